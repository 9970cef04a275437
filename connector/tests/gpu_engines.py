#!/usr/bin/env python3
"""gpu_engines.py MODEL_DIR --work DIR [--out FILE] [--eager] [--utilization X | --kv-gib N]: weights in GPU memory,
with real vLLM engines and real agents on one GPU.

One after the other: vLLM as it is; an engine that loads from storage and publishes; a second one, with an agent of its
own and no weight files, that takes the weights from the first; and that one again after a kill -9, which finds them at
its agent. Fails when tokens or checksums differ, when weights did not go the way they should, or when the GPU's memory
holds them more often than there are engines. Run it by hand: PYTHONPATH has vLLM, ROUSE_TEST_PLUGIN and
ROUSE_TEST_AGENT name what was built.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from agents import Agent, FakeOperator

GIB = 1 << 30
#: A CUDA context, compiled kernels, and what allocators round up.
SLACK_BYTES = 1536 << 20


def gpu_used() -> int:
    """Bytes of all GPUs that CUDA_VISIBLE_DEVICES leaves, whoever uses them."""
    query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    if visible := os.environ.get("CUDA_VISIBLE_DEVICES"):
        query.append(f"--id={visible}")
    answer = subprocess.run(query, capture_output=True, text=True, check=True)
    return sum(int(line) for line in answer.stdout.split()) << 20


class Engine:
    """gpu_engine.py, or another program of its kind, starting or up. `extra` are further keys of its
    request, `variables` of its environment."""

    def __init__(
        self,
        name: str,
        model: Path,
        agent: Agent | None,
        arguments: dict[str, Any],
        program: str = "gpu_engine.py",
        extra: dict[str, Any] | None = None,
        variables: dict[str, str] | None = None,
    ):
        request = {
            "model": str(model),
            "loadFormat": "auto" if agent is None else "rouse",
            "extra": {} if agent is None else {"socket": str(agent.socket)},
            "arguments": arguments,
        } | (extra or {})
        environment = os.environ | {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "HF_HUB_OFFLINE": "1"}
        environment |= variables or {}
        if agent is not None:
            environment["PYTHONPATH"] = f"{agent.plugin}:{environment.get('PYTHONPATH', '')}"
        self.name = name
        self._started = time.monotonic()
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).parent / program), json.dumps(request)],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.lines: list[str] = []
        self._results: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)
            if line.startswith(("RESULT ", "AWAKE ")):
                self._results.put(json.loads(line.split(" ", 1)[1]))
        self._results.put(None)

    def result(self, timeout_s: float = 300) -> dict[str, Any]:
        result = self._results.get(timeout=timeout_s)
        if result is None:
            raise AssertionError(f"{self.name} ended without a result:\n" + "".join(self.lines[-60:]))
        result["seconds"] = round(time.monotonic() - self._started, 2)
        result["log"] = [line.strip() for line in self.lines if "Rouse" in line]
        return result

    def sleep_and_wake(self) -> list[dict[str, Any]]:
        assert self.process.stdin is not None
        self.process.stdin.write("sleep\n")
        self.process.stdin.flush()
        rounds: Any = self._results.get(timeout=120)
        if rounds is None:
            raise AssertionError(f"{self.name} did not wake:\n" + "".join(self.lines[-60:]))
        return rounds

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            self.process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


def settled_gpu_used() -> int:
    """The driver gives memory of ended processes back a little later."""
    before = gpu_used()
    for _ in range(20):
        time.sleep(0.25)
        now = gpu_used()
        if now >= before:
            return now
        before = now
    return before


class Comparison:
    def __init__(self, stock: dict[str, Any]) -> None:
        self._stock = stock
        self.failures: list[str] = []
        self.report: dict[str, Any] = {}
        self.add("stock", stock)

    def add(self, name: str, result: dict[str, Any]) -> None:
        if result["tokens"] != self._stock["tokens"]:
            self.failures.append(f"{name}: other tokens than vLLM as it is")
        differing = [n for n in self._stock["sums"] if result["sums"].get(n) != self._stock["sums"][n]]
        if differing:
            self.failures.append(f"{name}: other bytes in {len(differing)} tensors: {differing[:5]}")
        self.report[name] = {k: v for k, v in result.items() if k not in ("tokens", "sums")}
        print(name, json.dumps(self.report[name]), flush=True)

    def expect(self, holds: bool, what: str) -> None:
        if not holds:
            self.failures.append(what)
            print("FAILED", what, flush=True)


def messages(agent: Agent, wanted: tuple[str, ...]) -> list[dict[str, Any]]:
    lines = [json.loads(x) for x in agent.log_path.read_text().splitlines() if x.startswith("{")]
    return [line for line in lines if line.get("message") in wanted]


def compare(options: argparse.Namespace, operator: FakeOperator, open_things: list[Any]) -> Comparison:
    arguments: dict[str, Any] = {"max_model_len": 2048, "max_num_seqs": 64}
    # vLLM wants so much to be free, and several engines are on one GPU.
    arguments["gpu_memory_utilization"] = options.utilization or 0.3
    if options.eager:
        arguments["enforce_eager"] = True
    if options.quantization:
        arguments["quantization"] = options.quantization
    if not options.utilization:
        arguments["kv_cache_memory_bytes"] = int(options.kv_gib * GIB)
    work: Path = options.work
    work.mkdir(parents=True)
    node = work / "node"
    node.mkdir()
    agent_arguments = ("--node-folder", str(node))
    interesting = (
        "engine rank connected", "rank transferred", "weights are served to peers", "engine phase",
        "weights are kept in host memory, not in the engine's GPU",
        "a peer of this node is read over the network",
    )  # fmt: skip

    idle = settled_gpu_used()
    stock_engine = Engine("stock", options.model, None, arguments)
    open_things.append(stock_engine)
    stock = stock_engine.result()
    stock["gpuUsedMore"] = gpu_used() - idle
    stock_engine.close()
    open_things.remove(stock_engine)
    comparison = Comparison(stock)
    weights = stock["weightBytes"]

    first = Agent(
        work / "a0", operator, "demo-0", "--model-dir", str(options.model), *agent_arguments,
        slab_mib=1024,
    )  # fmt: skip
    open_things.append(first)
    operator.wait("demo-0", lambda r: True)
    before = settled_gpu_used()
    source_engine = Engine("source", options.model, first, arguments)
    open_things.append(source_engine)
    source = source_engine.result()
    report = operator.wait("demo-0", lambda r: (r["weights"] or {}).get("servable", False))
    source["gpuUsedMore"] = gpu_used() - before
    source["agent"] = messages(first, interesting)
    comparison.add("source", source)
    comparison.expect(report["weights"]["form"] == "Processed", "weights are in processed form")
    comparison.expect(any("published" in x for x in source["log"]), "the source published")

    bare = work / "bare"
    bare.mkdir()
    second = Agent(
        work / "a1", operator, "demo-1", "--path", "Peer", "--model-files", "Peer",
        "--model-dir", str(bare), *agent_arguments, slab_mib=1024,
    )  # fmt: skip
    open_things.append(second)
    # The model's files must be there; weights wait for the engine.
    operator.wait("demo-1", lambda r: r["state"] == "Pulling" and (bare / "config.json").exists())
    comparison.expect(not list(bare.glob("*.safetensors")), "a target has no weight files")
    before = settled_gpu_used()
    target_engine = Engine("target", bare, second, arguments)
    open_things.append(target_engine)
    target = target_engine.result()
    target["gpuUsedMore"] = gpu_used() - before
    target["agent"] = messages(second, interesting)
    comparison.add("target", target)
    got = operator.wait("demo-1", lambda r: r["bytesBySource"]["peer"] > 0)
    comparison.expect(got["transport"].startswith("node/cuda:"), f"transport {got['transport']}")
    comparison.expect(
        got["bytesBySource"] == {"peer": report["weights"]["bytes"], "storage": 0},
        f"bytes by source {got['bytesBySource']}",
    )

    rounds = target_engine.sleep_and_wake()
    for i, one in enumerate(rounds):
        comparison.expect(one.pop("tokens") == stock["tokens"], f"wake {i}: other tokens")
    comparison.report["target"]["sleepAndWake"] = rounds
    print("sleep and wake", json.dumps(rounds), flush=True)
    target_engine.kill()
    open_things.remove(target_engine)
    again_engine = Engine("again", bare, second, arguments)
    open_things.append(again_engine)
    again = again_engine.result()
    again["gpuUsedMore"] = gpu_used() - before
    comparison.add("again", again)
    comparison.expect(any("from the agent" in x for x in again["log"]), "the agent kept the weights")

    if not options.utilization:
        for name, result in (("source", source), ("target", target), ("again", again)):
            more = result["gpuUsedMore"] - stock["gpuUsedMore"]
            comparison.expect(
                more < min(SLACK_BYTES, 0.9 * weights),
                f"{name} takes {more / GIB:.2f} GiB more than vLLM alone, weights are {weights / GIB:.2f} GiB",
            )
            comparison.expect(
                result["torchAllocated"] < stock["torchAllocated"] - 0.9 * weights,
                f"{name}: torch holds {result['torchAllocated'] / GIB:.2f} GiB",
            )
    return comparison


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--work", required=True, type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--eager", action="store_true")
    parser.add_argument("--quantization", help="as vLLM's option: fp8 quantises while it loads")
    parser.add_argument("--utilization", type=float)
    parser.add_argument("--kv-gib", type=float, default=4.0)
    options = parser.parse_args()
    operator = FakeOperator()
    open_things: list[Any] = []
    try:
        comparison = compare(options, operator, open_things)
    except BaseException:
        for thing in open_things:
            if isinstance(thing, Agent):
                print(thing.log_path.read_text()[-5000:], flush=True)
            else:
                print(thing.name, "".join(thing.lines[-40:]), flush=True)
        raise
    finally:
        for thing in reversed(open_things):
            thing.close()
        operator.close()
        shutil.rmtree(options.work, ignore_errors=True)
    if options.out:
        options.out.write_text(json.dumps(comparison.report, indent=1) + "\n")
    print("FAILURES", json.dumps(comparison.failures), flush=True)
    return 1 if comparison.failures else 0


if __name__ == "__main__":
    sys.exit(main())
