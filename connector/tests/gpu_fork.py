#!/usr/bin/env python3
"""gpu_fork.py MODEL_DIR --work DIR [--out FILE] [--rounds N] [--imports] [--utilization X | --kv-gib N] [-- ARGUMENT …]

Seconds from a request for an engine to its first token over HTTP, on one GPU: `vllm serve` with cold caches and with
warm ones, plain and forked by rouse-launch, and after a kill -9 with the weights at a real agent. Fails when tokens
differ, when a forked start compiled what a plain one had compiled (another key), when something was spawned that
should have been forked, or when a killed engine left a process or memory of the GPU behind. Arguments behind "--" go
to `vllm serve`. --imports lists what forked processes still import. Run it by hand, like gpu_engines.py: PYTHONPATH has
vLLM, ROUSE_TEST_PLUGIN and ROUSE_TEST_AGENT name what was built.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from agents import Agent, FakeOperator
from gpu_engines import GIB, SLACK_BYTES, gpu_used, settled_gpu_used
from servers import LAUNCH, PLAIN, Server, processes_below

_INTERESTING = (
    "Rouse", "took", "compil", "Graph captur", "Resolved architecture", "Started server process",
)  # fmt: skip

#: Put on PYTHONPATH by --imports.
_SPY = """
import os, sys, time
_launcher, _files = os.getpid(), {}
def _hook(event, args):
    pid = os.getpid()
    if event == "import" and pid != _launcher:
        if pid not in _files:
            _files[pid] = open(os.path.join(os.path.dirname(__file__), "imports.%d" % pid), "w")
        print("%.3f" % time.time(), args[0], file=_files[pid], flush=True)
if "rouse_vllm.launch" in sys.orig_argv:
    sys.addaudithook(_hook)
"""


class Rows:
    """What was measured; every row must answer as the first one did."""

    def __init__(self) -> None:
        self.failures: list[str] = []
        self.report: dict[str, Any] = {}
        self._tokens: list[list[int]] | None = None

    def expect(self, holds: bool, what: str) -> None:
        if not holds:
            self.failures.append(what)
            print("FAILED", what, flush=True)

    def summary(self) -> dict[str, Any]:
        """The report without the lines of logs."""
        return {
            name: {k: v for k, v in row.items() if k != "log"} if isinstance(row, dict) else row
            for name, row in self.report.items()
        }

    def add(self, name: str, seconds: float, server: Server, log_from: int = 0) -> None:
        tokens = server.tokens()
        self._tokens = self._tokens or tokens
        self.expect(tokens == self._tokens, f"{name}: other tokens than the first start")
        lines = [x.strip()[:240] for x in server.lines[log_from:] if any(w in x for w in _INTERESTING)]
        row = self.report.setdefault(name, {"seconds": [], "log": lines})
        row["seconds"].append(round(seconds, 2))
        row["median"] = round(statistics.median(row["seconds"]), 2)
        print(f"{name}: {seconds:.2f} s", flush=True)


class Harness:
    def __init__(self, options: argparse.Namespace) -> None:
        self.rows = Rows()
        self.work: Path = options.work
        self.model: Path = options.model
        self.open_things: list[Any] = []
        self.cache = self.work / "cache"
        self.environment = {"VLLM_CACHE_ROOT": str(self.cache), "HF_HUB_OFFLINE": "1"}
        self.arguments = ["--max-model-len", "2048", "--max-num-seqs", "64"]
        self.arguments += ["--gpu-memory-utilization", str(options.utilization or 0.3)]
        if not options.utilization:
            self.arguments += ["--kv-cache-memory-bytes", str(int(options.kv_gib * GIB))]
        self.arguments += options.arguments
        self.plugin = os.environ["ROUSE_TEST_PLUGIN"]
        self.spy: Path | None = None
        if options.imports:
            self.spy = self.work / "spy"
            self.spy.mkdir()
            (self.spy / "sitecustomize.py").write_text(_SPY)

    def start(self, name: str, how: tuple[str, ...], agent: Agent | None = None) -> Server:
        path = [str(agent.plugin if agent else self.plugin), os.environ.get("PYTHONPATH", "")]
        if self.spy is not None:
            path.insert(0, str(self.spy))
        arguments = list(self.arguments)
        if agent is not None:
            extra = json.dumps({"socket": str(agent.socket)})
            arguments += ["--load-format", "rouse", "--model-loader-extra-config", extra]
        environment = self.environment | {"PYTHONPATH": ":".join(path)}
        server = Server(name, how, self.model, tuple(arguments), environment)
        self.open_things.append(server)
        return server

    def end(self, server: Server) -> None:
        below = processes_below(server.process.pid)
        begun = time.monotonic()
        status = server.close()
        self.open_things.remove(server)
        self.rows.expect(status == 0, f"{server.name}: ended with {status}")
        if server.name.startswith("launch"):
            self.rows.report.setdefault("end", []).append(round(time.monotonic() - begun, 2))
            left = [pid for pid in below if Path(f"/proc/{pid}").exists()]
            self.rows.expect(not left, f"{server.name}: left processes behind: {left}")

    def start_and_end(self, name: str, how: tuple[str, ...], agent: Agent | None = None) -> None:
        server = self.start(name, how, agent)
        self.rows.add(name, server.first_token() - server.started, server)
        self.check_forked(server, 0)
        self.end(server)

    def compiled(self) -> set[str]:
        return {x.name for x in (self.cache / "torch_compile_cache").glob("*")}

    def check_forked(self, server: Server, log_from: int) -> None:
        if server.name.startswith("launch"):
            log = "".join(server.lines[log_from:])
            self.rows.expect("forked from the launcher" in log, f"{server.name}: nothing was forked")
            self.rows.expect("spawned, not forked" not in log, f"{server.name}: something was spawned")

    def kill(self, name: str, server: Server, victim: Callable[[Server], int]) -> None:
        """kill -9, then the time until it answers again."""
        below = processes_below(server.process.pid)
        log_from = len(server.lines)
        count = server.log.count("a new one starts")
        begun = time.monotonic()
        os.kill(victim(server), signal.SIGKILL)
        server.await_line("a new one starts", count + 1)
        ended = time.monotonic()
        left = [pid for pid in below if Path(f"/proc/{pid}").exists()]
        self.rows.expect(not left, f"{name}: processes are left: {left}")
        self.rows.add(name, server.first_token() - begun, server, log_from)
        self.rows.report[name].setdefault("allEnded", []).append(round(ended - begun, 2))
        log = "".join(server.lines[log_from:])
        self.rows.expect(" from the agent in " in log, f"{name}: the agent did not have the weights")
        self.check_forked(server, log_from)

    def run(self, rounds: int, operator: FakeOperator) -> None:
        self.start_and_end("plain, cold caches", PLAIN)
        keys = self.compiled()
        for _ in range(rounds):
            self.start_and_end("plain, warm caches", PLAIN)
            self.start_and_end("launch, warm caches", LAUNCH)
        self.rows.expect(self.compiled() == keys, f"compiled anew: {self.compiled() - keys}")

        node = self.work / "node"
        node.mkdir()
        agent = Agent(
            self.work / "a0", operator, "demo-0", "--model-dir", str(self.model),
            "--node-folder", str(node), slab_mib=1024,
        )  # fmt: skip
        self.open_things.append(agent)
        operator.wait("demo-0", lambda r: True)
        idle = settled_gpu_used()
        server = self.start("launch, storage by the agent", LAUNCH, agent)
        self.rows.add(server.name, server.first_token() - server.started, server)
        report = operator.wait("demo-0", lambda r: (r["weights"] or {}).get("servable", False))
        used = gpu_used()
        for i in range(rounds):
            if i > 0:  # A launcher restarts an engine few times in ten minutes, and later ones late.
                self.end(server)
                server = self.start("launch, weights at the agent", LAUNCH, agent)
                self.rows.add(server.name, server.first_token() - server.started, server)
            self.kill("launch, vllm serve killed", server, started_server)
            self.kill("launch, engine core killed", server, engine_core)
        again = settled_gpu_used()
        self.rows.expect(
            again < used + SLACK_BYTES, f"GPU memory grew from {used / GIB:.2f} to {again / GIB:.2f} GiB"
        )
        self.end(server)
        left = settled_gpu_used() - idle
        self.rows.report["gpuUsedByTheAgentAfterTheEngine"] = left
        self.rows.expect(
            left < report["weights"]["bytes"] + SLACK_BYTES, f"{left / GIB:.2f} GiB are left on the GPU"
        )
        self.start_and_end("plain, weights at the agent", PLAIN, agent)
        self.rows.expect(self.compiled() == keys, f"compiled anew: {self.compiled() - keys}")
        if self.spy is not None:
            for file in sorted(self.spy.glob("imports.*")):
                print(f"{file.name}:\n{file.read_text()}", flush=True)


def started_server(server: Server) -> int:
    """The pid of `vllm serve`, as uvicorn says it."""
    line = [x for x in server.lines if "Started server process [" in x][-1]
    return int(line.split("Started server process [")[1].split("]")[0])


def engine_core(server: Server) -> int:
    below = processes_below(server.process.pid)
    cores = [pid for pid, command in below.items() if "EngineCore" in command]
    if not cores:  # They have no titles here: the one that says its name.
        marks = [x.split("EngineCore pid=")[1] for x in server.lines if "EngineCore pid=" in x]
        return int(marks[-1].split(")")[0])
    return cores[0]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--work", required=True, type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--imports", action="store_true")
    parser.add_argument("--utilization", type=float)
    parser.add_argument("--kv-gib", type=float, default=4.0)
    split = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    options = parser.parse_args(sys.argv[1:split])
    options.arguments = sys.argv[split + 1 :]
    options.work.mkdir(parents=True)
    operator = FakeOperator()
    harness = Harness(options)
    try:
        harness.run(options.rounds, operator)
    except BaseException:
        for thing in harness.open_things:
            log = thing.log if isinstance(thing, Server) else thing.log_path.read_text()
            print(f"---- {getattr(thing, 'name', 'agent')}\n{log[-12000:]}", flush=True)
        print("SO FAR", json.dumps(harness.rows.summary()), flush=True)
        raise
    finally:
        for thing in reversed(harness.open_things):
            thing.close()
        operator.close()
        shutil.rmtree(options.work, ignore_errors=True)
    if options.out:
        options.out.write_text(json.dumps(harness.rows.report, indent=1) + "\n")
    print("REPORT", json.dumps(harness.rows.summary()), flush=True)
    print("FAILURES", json.dumps(harness.rows.failures), flush=True)
    return 1 if harness.rows.failures else 0


if __name__ == "__main__":
    sys.exit(main())
