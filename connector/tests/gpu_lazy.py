#!/usr/bin/env python3
"""gpu_lazy.py MODEL_DIR [--out FILE] [--runners v1,v2] [--tp N] [--kv-gib N | --utilization X] [--max-num-seqs N]: lazy
capture of CUDA graphs, with real vLLM engines on one GPU (or N), one after the other, without agents.

For each of vLLM's model runners: an engine that captures all graphs at start, one that captures when it is asked to
(Idle), one that captures before its first request (FirstRequest), one that captures when memory has run out. Prints what
was measured as JSON. Fails when a token differs from the eager engine's, at any batch size, before, while and after the
late graphs are captured; when graphs are missing in the end, or one is never replayed. Run it by hand: PYTHONPATH has
vLLM, ROUSE_TEST_PLUGIN names the plugin that was built.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from gpu_engines import GIB, Engine, settled_gpu_used

#: How much more GPU memory a lazily captured engine may use in the end than an eager one, of what its graphs take.
MEMORY_SLACK_BYTES = 256 << 20


def engine(
    options: argparse.Namespace, v2: bool, name: str, doing: list[str], trigger: str | None
) -> dict[str, Any]:
    """Runs one engine and returns its result."""
    arguments: dict[str, Any] = {
        "max_model_len": 2048,
        "max_num_seqs": options.max_num_seqs,
        "enable_prefix_caching": False,  # Equal prompts are computed anew each time.
    }
    if options.tp > 1:
        arguments["tensor_parallel_size"] = options.tp
    if options.kv_gib:
        arguments["kv_cache_memory_bytes"] = int(options.kv_gib * GIB)
    if options.utilization:
        arguments["gpu_memory_utilization"] = options.utilization
    plugin = os.environ["ROUSE_TEST_PLUGIN"]
    extra: dict[str, Any] = {"doing": doing}
    if trigger is not None:
        extra["loadFormat"] = "rouse"
        extra["extra"] = {
            "socket": "/nonexistent/engine.sock",  # No agent: weights come from storage.
            "connectTimeoutS": 0.2,
            "graphCapture": "Lazy",
            "graphCaptureTrigger": trigger,
        }
    settled_gpu_used()
    running = Engine(
        f"{'v2' if v2 else 'v1'} {name}",
        options.model,
        None,
        arguments,
        program="gpu_lazy_engine.py",
        extra=extra,
        variables={
            "VLLM_USE_V2_MODEL_RUNNER": "1" if v2 else "0",
            "PYTHONPATH": f"{plugin}:{os.environ.get('PYTHONPATH', '')}",
        },
    )
    try:
        result = running.result(timeout_s=options.timeout)
    except BaseException:
        print(f"--- log of {running.name}\n" + "".join(running.lines[-300:]), flush=True)
        running.kill()
        raise
    running.close()
    result["captureLog"] = [
        x.strip() for x in running.lines if "Graph captur" in x or "graph mem" in x
    ]
    return result


class Check:
    """Compares lazily capturing engines with an eager one."""

    def __init__(self, runner: str, eager: dict[str, Any]) -> None:
        self._runner = runner
        self._eager = {did["what"]: did for did in eager["done"]}
        self._graphs = eager["done"][-1]["graphs"]
        self._kv_blocks = eager["kvBlocks"]
        self.failures: list[str] = []

    def expect(self, holds: bool, what: str) -> None:
        if not holds:
            self.failures.append(f"{self._runner} {what}")
            print("FAILED", self.failures[-1], flush=True)

    def tokens(self, name: str, did: dict[str, Any]) -> None:
        """The same as the eager engine's: says at which batch size they are not."""
        expected, found = self._eager[did["what"]]["tokens"], did.get("tokens")
        if isinstance(expected, dict):
            differing = [
                f"batch {size}: {sum(a != b for a, b in zip(expected[size], found[size]))} of {len(expected[size])}"
                for size in expected
                if expected[size] != found[size]
            ]
        else:
            differing = [] if expected == found else ["all"]
        self.expect(not differing, f"{name}: other tokens in {did['what']}: {', '.join(differing)}")

    def complete(self, name: str, result: dict[str, Any]) -> None:
        last = result["done"][-1]
        self.expect(
            last["status"]["left"] == 0, f"{name}: {last['status']['left']} graphs are left"
        )
        self.expect(
            last["graphs"] + last["status"]["dropped"] == self._graphs,
            f"{name}: {last['graphs']} graphs, the eager engine has {self._graphs}",
        )
        self.expect(
            result["kvBlocks"] == self._kv_blocks,
            f"{name}: {result['kvBlocks']} KV blocks, the eager engine has {self._kv_blocks}",
        )


def without_tokens(result: dict[str, Any]) -> dict[str, Any]:
    done = [{k: v for k, v in did.items() if k != "tokens"} for did in result["done"]]
    return result | {"done": done}


def of(result: dict[str, Any], what: str) -> list[dict[str, Any]]:
    return [did for did in result["done"] if did["what"] == what]


def compare(options: argparse.Namespace, runner: str, report: dict[str, Any]) -> list[str]:
    v2 = runner == "v2"
    engines: dict[str, Any] = {}
    report[runner] = engines

    def run(name: str, doing: list[str], trigger: str | None) -> dict[str, Any]:
        result = engine(options, v2, name, doing, trigger)
        engines[name] = without_tokens(result)
        print(runner, name, json.dumps(engines[name]), flush=True)
        return result

    run("cold", [], None)  # The others find compiled kernels, and their starts compare.
    eager = run("eager", ["answers", "long", "busy", "sizes", "memory"], None)
    check = Check(runner, eager)
    (eager_sizes,) = of(eager, "sizes")
    check.expect(
        not eager_sizes["neverReplayed"], f"eager: never replayed {eager_sizes['neverReplayed']}"
    )

    idle = run(
        "idle",
        ["answers", "long", "answers", "half", "answers", "busy", "answers", "rest", "answers"]
        + ["busy", "sizes", "memory"],
        "Idle",
    )
    at_start = idle["statusAtStart"]
    modes = len({name.split()[0] for name in eager_sizes["replays"]})
    check.expect(at_start["captured"] == modes, f"idle: {at_start['captured']} graphs at start")
    check.expect(idle["graphsAtStart"] == modes, f"idle: {idle['graphsAtStart']} graphs at start")
    for did in idle["done"]:
        if "tokens" in did:
            check.tokens(f"idle ({did['status']['left']} left)", did)
    check.expect(
        of(idle, "answers")[0]["stepsWithoutGraph"] > 0, "idle: no step was without a graph"
    )
    check.expect(
        of(idle, "answers")[-1]["stepsWithoutGraph"] == 0, "idle: steps without graph in the end"
    )
    (long,) = of(idle, "long")
    check.expect(
        long["status"]["captured"] > of(idle, "answers")[0]["status"]["captured"],
        "idle: nothing was captured although the agent did not ask for long",
    )
    check.expect(of(idle, "busy")[0]["captured"] > 0, "idle: nothing was captured between steps")
    (sizes,) = of(idle, "sizes")
    check.expect(not sizes["neverReplayed"], f"idle: never replayed {sizes['neverReplayed']}")
    check.expect(
        set(sizes["withoutGraph"]) <= set(eager_sizes["withoutGraph"]),
        f"idle: batches without a graph {sizes['withoutGraph']}",
    )
    check.expect(idle["done"][-1]["status"]["dropped"] == 0, "idle: graphs were dropped")
    check.complete("idle", idle)
    more = of(idle, "memory")[0]["usedBytes"] - of(eager, "memory")[0]["usedBytes"]
    check.expect(more < MEMORY_SLACK_BYTES, f"idle: takes {more >> 20} MiB more than eager")

    first = run("firstRequest", ["answers", "busy"], "FirstRequest")
    for did in first["done"]:
        check.tokens("first request", did)
    # Capturing runs the model without the graph once before each.
    late = of(first, "answers")[0]["graphs"] - first["graphsAtStart"]
    check.expect(
        of(first, "answers")[0]["stepsWithoutGraph"] == late, "first request: steps without graph"
    )
    check.complete("first request", first)

    starved = run("starved", ["answers", "starve", "answers", "rest", "answers"], "Idle")
    for did in of(starved, "answers"):
        check.tokens("starved", did)
    (starve,) = of(starved, "starve")
    check.expect(
        starve["status"]["dropped"] > 0, "starved: all graphs were captured without memory"
    )
    check.complete("starved", starved)

    engines["summary"] = {
        "startSeconds": {n: engines[n]["engineSeconds"] for n in ("cold", "eager", "idle")},
        "captureAtStartSeconds": {n: engines[n]["captureSeconds"] for n in ("eager", "idle")},
        "graphsAtStart": {n: engines[n]["graphsAtStart"] for n in ("eager", "idle")},
        "lateSeconds": of(idle, "half")[0]["seconds"] + of(idle, "rest")[0]["seconds"],
        "oneGraphSeconds": of(idle, "half")[0]["longestCallSeconds"],
        "firstRequestSeconds": {
            "eager": of(eager, "answers")[0]["firstRequestSeconds"],
            "idle": of(idle, "answers")[0]["firstRequestSeconds"],
            "firstRequest": of(first, "answers")[0]["firstRequestSeconds"],
        },
        "memoryMoreThanEagerBytes": more,
    }
    return check.failures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--runners", default="v1,v2")
    parser.add_argument("--tp", type=int, default=1, help="GPUs, one for each tensor-parallel rank")
    parser.add_argument("--kv-gib", type=float, default=0.0, help="0: as vLLM sizes it")
    parser.add_argument("--utilization", type=float, default=0.0)
    parser.add_argument("--max-num-seqs", type=int, default=128)
    parser.add_argument("--timeout", type=float, default=400.0, help="seconds for one engine")
    options = parser.parse_args()
    report: dict[str, Any] = {"model": str(options.model)}
    failures: list[str] = []
    for runner in options.runners.split(","):
        try:
            failures += compare(options, runner, report)
        except Exception as error:  # The other runner is worth looking at all the same.
            failures.append(f"{runner}: {type(error).__name__}: {str(error)[:500]}")
            print("FAILED", failures[-1], flush=True)
    report["failures"] = failures
    if options.out:
        options.out.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report), flush=True)
    print("FAILURES", json.dumps(failures), flush=True)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
