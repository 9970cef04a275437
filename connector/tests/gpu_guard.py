#!/usr/bin/env python3
"""gpu_guard.py MODEL_DIR --work DIR [--out FILE] [--rounds N] [--pause S] [--kv-gib N] [--eager]
[--tensor-parallel N | --guard-gpu N] [--draft DIR] [--begin-without] [--v2]: an instance that is put to sleep and
woken again and again, with real vLLM servers and real agents on one GPU; or on several, of which both instances use
N, or the guard one of its own.

A source loads from storage and serves; a guard takes its weights from it. Then, N times: the guard's agent is told to
be a guard, and to be active again; a request that came meanwhile is answered by the woken engine. Each round measures
how long its parts took and the GPU's memory asleep, and compares the greedy tokens of 16 prompts with those before any
sleep, and the checksum of every parameter and buffer with the source's. (The source's tokens are the same only if it
found compiled code as the guard does: who compiles may choose other kernels. It is reported.) Fails when any differs,
when a sleeping engine holds more of a GPU than --asleep-gib, or when descriptors or memory are lost from round to
round.
With --draft a second model drafts tokens, whose weight files the guard has not either. With --begin-without the guard
has no weights before it is woken for the first time.
Run it by hand: PYTHONPATH has vLLM, ROUSE_TEST_PLUGIN and ROUSE_TEST_AGENT name what was built. The model's folder
needs a tokenizer.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import threading
import time
import traceback
import urllib.request
from pathlib import Path
from typing import Any

from agents import Agent, FakeOperator
from gpu_engine import PROMPTS
from gpu_engines import GIB, gpu_used, settled_gpu_used
from servers import PLAIN, Server, free_port, processes_below

TESTS = Path(__file__).resolve().parent
NAME = "demo"  # of the model, as servers.py has it served


class GuardServer(Server):
    """A server that its workers can be looked at through, and that loads by way of an agent."""

    def __init__(
        self, name: str, model: Path, agent: Agent, port: int, arguments: list[str],
        variables: dict[str, str],
    ) -> None:  # fmt: skip
        extra = json.dumps({"socket": str(agent.socket)})
        super().__init__(
            name,
            PLAIN,
            model,
            (
                *("--load-format", "rouse", "--model-loader-extra-config", extra),
                *("--worker-extension-cls", "gpu_guard_worker.Checks"),
                *arguments,
            ),
            {
                "VLLM_SERVER_DEV_MODE": "1",  # /collective_rpc and /reset_prefix_cache
                "HF_HUB_OFFLINE": "1",
                "PYTHONPATH": f"{agent.plugin}:{TESTS}:{os.environ.get('PYTHONPATH', '')}",
            }
            | variables,
            port,
        )

    def _post(self, path: str, body: dict[str, Any] | None = None) -> Any:
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}",
            data=json.dumps(body or {}).encode(),
            headers={"Content-Type": "application/json"},
            method="POST",
        )
        with urllib.request.urlopen(request, timeout=300) as answer:
            return json.loads(answer.read() or b"null")

    def complete(self, prompts: list[list[int]], tokens: int) -> list[list[int]]:
        """Greedy tokens of all prompts, as one batch."""
        answer = self._post(
            "/v1/completions",
            {
                "model": NAME,
                "prompt": prompts,
                "max_tokens": tokens,
                "temperature": 0,
                "ignore_eos": True,
                "return_token_ids": True,
            },
        )
        choices = sorted(answer["choices"], key=lambda choice: choice["index"])
        return [choice["token_ids"] for choice in choices]

    def tokens(self) -> list[list[int]]:
        """Of all prompts, with nothing of them cached."""
        deadline = time.monotonic() + 10
        while not self._post("/reset_prefix_cache")["success"]:  # A request may just be ending.
            assert time.monotonic() < deadline, "the prefix cache cannot be reset"
            time.sleep(0.05)
        # One after the other: what a batch is made of may change the last bits.
        return [self.complete([prompt], 24)[0] for prompt in PROMPTS]

    def sums(self) -> list[dict[str, int]]:
        """Of each rank."""
        results = self._post("/collective_rpc", {"method": "rouse_checksums"})["results"]
        return [json.loads(sums) for sums in results]

    def last(self, command: str) -> str:
        """The values of the last command of that name, as the plugin logged them."""
        said = [x for x in self.lines if f"Rouse: command {command} done" in x]
        return said[-1].split("done: ", 1)[1].strip() if said else ""

    def descriptors(self) -> int:
        """Of all of its processes."""
        count = 0
        for pid in [self.process.pid, *processes_below(self.process.pid)]:
            try:
                count += len(os.listdir(f"/proc/{pid}/fd"))
            except OSError:
                pass  # It has ended meanwhile.
        return count


class Harness:
    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.operator = FakeOperator()
        self.open_things: list[Agent | GuardServer] = []
        self.failures: list[str] = []
        self.report: dict[str, Any] = {"rounds": []}

    def expect(self, holds: bool, what: str) -> None:
        if not holds:
            self.failures.append(what)
            print("FAILED", what, flush=True)

    def start(self, pod: str, model: Path, kv_gib: float, *agent_arguments: str) -> tuple[Agent, GuardServer]:
        options = self.options
        port = free_port()
        agent = Agent(
            options.work / pod, self.operator, pod, "--model-dir", str(model),
            "--node-folder", str(options.work / "node"),
            "--engine-url", f"http://127.0.0.1:{port}", "--served-model", NAME,
            *agent_arguments, slab_mib=options.slab_mib,
        )  # fmt: skip
        self.open_things.append(agent)
        if "Peer" in agent_arguments:
            self.operator.wait(pod, lambda r: r["state"] in ("Pulling", "Ready"))
            self.operator.wait(pod, lambda r: (model / "config.json").exists())
        else:
            self.operator.wait(pod, lambda r: True)
        arguments = [
            *("--max-model-len", "2048", "--max-num-seqs", "64"),
            *("--kv-cache-memory-bytes", str(int(kv_gib * GIB))),
            *("--gpu-memory-utilization", str(options.utilization)),
            *(["--enforce-eager"] if options.eager else []),
        ]
        variables = {"VLLM_USE_V2_MODEL_RUNNER": "1" if options.v2 else "0"}
        if options.draft:
            drafts = options.draft if pod == "demo-0" else options.work / "bare-draft"
            speculation = {"method": "draft_model", "model": str(drafts), "num_speculative_tokens": 2}
            arguments += ["--speculative-config", json.dumps(speculation)]
        if options.tensor_parallel > 1:
            # Without what uses NVLink's multicast, which not every machine allows.
            compilation = {"pass_config": {"fuse_allreduce_rms": False}}
            arguments += ["--tensor-parallel-size", str(options.tensor_parallel)]
            arguments += ["--compilation-config", json.dumps(compilation)]
            variables |= {"VLLM_ALLREDUCE_USE_SYMM_MEM": "0", "NCCL_NVLS_ENABLE": "0"}
        if options.guard_gpu is not None:
            variables["CUDA_VISIBLE_DEVICES"] = str(options.guard_gpu if pod == "demo-1" else 0)
        begun = time.monotonic()
        server = GuardServer(pod, model, agent, port, arguments, variables)
        self.open_things.append(server)
        begins_without = "--begin-without-weights" in agent_arguments
        if not begins_without:
            server.first_token(400)
        agent.wait("Asleep" if begins_without else "Serving")
        self.report[f"{pod}StartSeconds"] = round(time.monotonic() - begun, 2)
        print(pod, "serves after", self.report[f"{pod}StartSeconds"], "s", flush=True)
        return agent, server

    def run(self) -> None:
        options = self.options
        options.work.mkdir(parents=True)
        (options.work / "node").mkdir()
        bare = options.work / "bare"
        bare.mkdir()
        if options.draft:
            no_weights = shutil.ignore_patterns("*.safetensors")
            shutil.copytree(options.draft, options.work / "bare-draft", ignore=no_weights)
        _, source = self.start("demo-0", options.model, options.source_kv_gib)
        self.operator.wait("demo-0", lambda r: (r["weights"] or {}).get("servable", False))
        source.tokens()  # Kernels that are compiled at the first call.
        theirs, sums = source.tokens(), source.sums()
        self.expect(source.tokens() == theirs, "the source repeats its tokens")
        alone = settled_gpu_used()

        report = self.operator.reports["demo-0"]
        peers = [{"pod": report["pod"], "node": report["node"], "address": report["address"]}]
        if options.begin_without:
            no_weights = shutil.ignore_patterns("*.safetensors")
            shutil.copytree(options.model, bare, ignore=no_weights, dirs_exist_ok=True)
            agent, guard = self.start("demo-1", bare, options.kv_gib, "--begin-without-weights")
            agent.set_role("Active", peers)
            agent.wait("Serving")
        else:
            agent, guard = self.start(
                "demo-1", bare, options.kv_gib, "--path", "Peer", "--model-files", "Peer"
            )
        guard.tokens()
        tokens = guard.tokens()
        self.expect(guard.tokens() == tokens, "the guard repeats its tokens")
        self.report["tokensAsSource"] = tokens == theirs
        self.expect(guard.sums() == sums, "before any sleep: other bytes than the source")
        self.report["weightTensors"] = sum(len(rank) for rank in sums)
        self.report["transport"] = self.operator.reports["demo-1"]["transport"]
        print("transport", self.report["transport"], flush=True)
        self.report["awakeGiB"] = round((gpu_used() - alone) / GIB, 3)
        for i in range(options.rounds):
            pause = options.pause if i % 2 == 0 else 0.0
            result = self.round(agent, guard, peers, pause, alone)
            again = guard.tokens()
            result["tokensSame"] = again == tokens
            self.expect(result["tokensSame"], f"round {i}: other tokens")
            if i % options.sums_every == 0 or i == options.rounds - 1:
                result["bytesSame"] = guard.sums() == sums
                self.expect(result["bytesSame"], f"round {i}: other bytes")
            result["descriptors"] = guard.descriptors()
            result["agentDescriptors"] = len(os.listdir(f"/proc/{agent.pid}/fd"))
            result["agentMiB"] = resident_mib(agent.pid)
            self.report["rounds"].append(result)
            print("ROUND", i, json.dumps(result), flush=True)
        self.judge()

    def round(
        self, agent: Agent, guard: GuardServer, peers: list[dict[str, Any]], pause: float, alone: int
    ) -> dict[str, Any]:
        """Sleep and wake once; `alone` is the GPU's memory in use before the guard was started."""
        seen = len(agent.messages())
        begun = time.monotonic()
        agent.set_role("Guard", [])
        agent.wait("Asleep")
        asleep_s = time.monotonic() - begun
        asleep_bytes = None
        if pause > 0:  # Else it is woken while the driver still clears what was freed.
            time.sleep(pause)
            asleep_bytes = gpu_used() - alone
        waiting: dict[str, Any] = {}

        def ask() -> None:
            try:
                waiting["tokens"] = guard.complete(PROMPTS[:1], 1)
            except Exception as error:
                waiting["error"] = repr(error)
            waiting["at"] = time.monotonic()

        thread = threading.Thread(target=ask)
        thread.start()
        time.sleep(0.2 if pause > 0 else 0)
        self.expect(not waiting, f"an engine asleep answered {waiting}")
        begun = time.monotonic()
        agent.set_role("Active", peers)
        agent.wait("Serving")
        serving_s = time.monotonic() - begun
        thread.join(timeout=120)
        self.expect("tokens" in waiting, f"a request that waited: {waiting.get('error')}")
        return {
            "pauseSeconds": pause,
            "sleepSeconds": round(asleep_s, 4),
            "asleepGiB": None if asleep_bytes is None else round(asleep_bytes / GIB, 3),
            "firstTokenSeconds": round(waiting.get("at", begun) - begun, 4),
            "servingSeconds": round(serving_s, 4),
            "sleep": guard.last("Sleep"),
            "wake": guard.last("Wake"),
            "agent": agent.messages()[seen:],
        }

    def judge(self) -> None:
        rounds = self.report["rounds"]
        if not rounds:
            return
        for name in ("descriptors", "agentDescriptors"):
            # The first wake may open what stays open.
            later = [r[name] for r in rounds[1:]] or [rounds[0][name]]
            self.expect(later[-1] <= later[0] + 2, f"{name} grow: {later}")
        asleep = [r["asleepGiB"] for r in rounds if r["asleepGiB"] is not None]
        if asleep:
            most = max(asleep) / self.options.tensor_parallel
            self.expect(most <= self.options.asleep_gib, f"asleep it holds {most} GiB of each GPU")
            self.expect(asleep[-1] <= asleep[0] + 0.1, f"memory asleep grows: {asleep}")
        for name in ("sleepSeconds", "firstTokenSeconds", "servingSeconds"):
            self.report[name] = {
                "paused": spread([r[name] for r in rounds if r["pauseSeconds"] > 0]),
                "atOnce": spread([r[name] for r in rounds if r["pauseSeconds"] == 0]),
            }
        self.report["asleepGiB"] = spread(asleep)

    def show_logs(self) -> None:
        for thing in self.open_things:
            if isinstance(thing, Agent):
                print("--- agent", thing.log_path, "\n", thing.log_path.read_text()[-8000:], flush=True)
            else:
                print("--- server", thing.name, "\n", thing.log[-12000:], flush=True)

    def close(self) -> None:
        for thing in reversed(self.open_things):
            thing.close()
        self.operator.close()
        if not self.options.keep:
            shutil.rmtree(self.options.work, ignore_errors=True)


def resident_mib(pid: int) -> dict[str, float]:
    """Resident memory, and what it is made of."""
    status = Path(f"/proc/{pid}/status").read_text()
    lines = dict(line.split(":", 1) for line in status.splitlines())
    names = ("VmHWM", "VmRSS", "RssAnon", "RssFile", "RssShmem")
    return {name: round(int(lines[name].split()[0]) / 1024, 1) for name in names}


def spread(values: list[float]) -> dict[str, float] | None:
    if not values:
        return None
    return {"min": min(values), "median": round(statistics.median(values), 4), "max": max(values)}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("--work", required=True, type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--pause", type=float, default=1.0, help="asleep in every other round, seconds")
    parser.add_argument("--kv-gib", type=float, default=8.0, help="KV cache of the guard")
    parser.add_argument("--source-kv-gib", type=float, default=2.0)
    parser.add_argument("--asleep-gib", type=float, default=3.0)
    parser.add_argument("--sums-every", type=int, default=1, help="rounds between checksums")
    parser.add_argument("--slab-mib", type=int, default=1024)
    parser.add_argument("--utilization", type=float, default=0.3, help="that vLLM wants to be free")
    parser.add_argument("--eager", action="store_true")
    parser.add_argument("--tensor-parallel", type=int, default=1, help="GPUs of each instance")
    parser.add_argument("--guard-gpu", type=int, help="the guard's; the source has GPU 0")
    parser.add_argument("--draft", type=Path, help="a model that drafts tokens")
    parser.add_argument("--begin-without", action="store_true", help="a guard without weights")
    parser.add_argument("--v2", action="store_true", help="vLLM's second model runner")
    parser.add_argument("--keep", action="store_true", help="the work folder")
    options = parser.parse_args()
    harness = Harness(options)
    try:
        harness.run()
    except BaseException as error:
        harness.expect(False, repr(error))
        traceback.print_exc(file=sys.stdout)
    if harness.failures:
        harness.show_logs()
    harness.close()
    harness.report["failures"] = harness.failures
    if options.out:
        options.out.write_text(json.dumps(harness.report, indent=1) + "\n")
    short = {k: v for k, v in harness.report.items() if k != "rounds"}
    print("REPORT", json.dumps(short), flush=True)
    return 1 if harness.failures else 0


if __name__ == "__main__":
    sys.exit(main())
