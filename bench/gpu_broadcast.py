#!/usr/bin/env python3
"""One GPU's weights to several others of the node: one NCCL broadcast against a node-local pull each.

Writes docs/benchmarks/broadcast-NAME.json. Needs two GPUs or more and libnccl.so.2 (--library, or where
the dynamic linker finds it; it comes with torch). Times run until the last target has every byte, verified.
The first broadcast of a process pays for everything that NCCL does once; a new instance has no other.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

from figures import REPOSITORY, Figure, write


def slowest(row: dict, key: str) -> float:
    return max(target[key] for target in row["targets"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    build = Path(os.environ.get("ROUSE_BUILD", REPOSITORY / "build" / "bench"))
    parser.add_argument("--program", default=str(build / "bench" / "rouse-bench-gpu-broadcast"))
    parser.add_argument("--library", default="libnccl.so.2")
    parser.add_argument("--name", default="h200-x2", help="of the machine, in the file's name")
    parser.add_argument("--gib", type=int, default=16)
    parser.add_argument("--targets", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()

    command = [options.program, f"--gib={options.gib}", f"--targets={options.targets}"]
    command += [f"--rounds={options.rounds}", f"--library={options.library}"]
    answer = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=300)
    said = [json.loads(x) for x in answer.stdout.splitlines() if x.startswith("{")]
    print(answer.stdout)
    rows = [x for x in said if "way" in x]
    broadcasts = [x for x in rows if x["way"] == "broadcast"]
    pulls = [x for x in rows if x["way"] == "pull"]
    pull = statistics.median(x["seconds"] for x in pulls)
    bytes_each = rows[0]["bytes"]
    label = f"{options.gib} GiB to {options.targets} target{'s' if options.targets > 1 else ''}"
    against = f"a pull each, {pull:.3f} s"
    later = broadcasts[1:] or broadcasts

    def middle(key: str) -> float:
        return statistics.median(slowest(x, key) for x in later)

    first, warm = broadcasts[0]["seconds"], statistics.median(x["seconds"] for x in later)
    once = "first in its processes"
    figures = [
        Figure(
            f"broadcast, {label}, verified, {once}", first, "s", against, round(first / pull, 3)
        ),
        Figure(f"broadcast, {label}, verified, later", warm, "s", against, round(warm / pull, 3)),
        Figure(f"pulls, {label}, verified", pull, "s"),
        Figure(f"setting up a communicator, {once}", slowest(broadcasts[0], "setupSeconds"), "s"),
        Figure("setting up a communicator, later", middle("setupSeconds"), "s"),
        Figure("making a broadcast's id, first", broadcasts[0]["idSeconds"], "s"),
        Figure("taking a communicator down", middle("closeSeconds"), "s"),
        Figure(
            f"broadcast's transfer alone, {label}, {once}",
            bytes_each / slowest(broadcasts[0], "transferSeconds") / 1e9,
            "GB/s",
        ),
        Figure(
            f"broadcast's transfer alone, {label}, later",
            bytes_each / middle("transferSeconds") / 1e9,
            "GB/s",
        ),
        Figure(f"pull of one target, {label}", bytes_each / pull / 1e9, "GB/s"),
    ]
    default = REPOSITORY / "docs" / "benchmarks" / f"broadcast-{options.name}.json"
    write(f"broadcast-{options.name}", figures, options.out or default)


if __name__ == "__main__":
    sys.exit(main())
