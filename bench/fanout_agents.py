#!/usr/bin/env python3
"""How well the fan-out simulator's model fits: the same small scenario with 32 real agents on loopback.

    bench/fanout_agents.py [--build build/bench] [--tests build/release] [--out FILE]

Every agent's weights can be read for a small part of the time only, which makes loopback a network of slow,
equal ports that need little of the processor: they stand still for 79 of 80 ms, which the simulator knows
nothing of, so that each hop takes the real ones longer. One pull over such a port gives the rate; the simulator is given
that rate and says how long 32 should take. Needs a quiet machine: 66 processes on busy cores are slower than
their ports.
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

ROUNDS = 5


def run(command: list[str]) -> dict:
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    build = Path(os.environ.get("ROUSE_BUILD", REPOSITORY / "build" / "bench"))
    parser.add_argument("--build", type=Path, default=build, help="has the simulator")
    tests = REPOSITORY / "build" / "release"
    parser.add_argument("--tests", type=Path, default=tests, help="has the agents and their test")
    parser.add_argument(
        "--out", type=Path, default=REPOSITORY / "docs" / "benchmarks" / "fanout-agents.json"
    )
    options = parser.parse_args()

    print(f"load average {os.getloadavg()[0]:.2f} before the start", file=sys.stderr)
    program = str(options.tests / "agent" / "agent_fan_out_program_test")
    runs = [run([program, "[model]"]) for _ in range(ROUNDS)]
    real = runs[0] | {
        key: statistics.median(x[key] for x in runs) for key in ("oneSeconds", "lastSeconds")
    }
    rate = real["arenaBytes"] / real["oneSeconds"]
    simulated = run(
        [
            str(options.build / "bench" / "rouse-bench-fanout"),
            f"--targets={real['targets']}",
            f"--arena-bytes={real['arenaBytes']}",
            f"--unit-bytes={real['chunkBytes']}",
            f"--nic-rate={rate}",
            f"--nvlink-rate={rate}",
            "--gets=4",
            "--deadline-ms=10000",  # as the agents'
        ]
    )
    last = simulated["lastReadySeconds"]
    write(
        "fanout-agents",
        [
            Figure("one pull between two agents", round(real["oneSeconds"], 3), "s"),
            Figure(
                f"time to last of {real['targets']} agents from one source, against the simulator",
                round(real["lastSeconds"], 3),
                "s",
                f"simulated, with ports that never stand still: {last:.3f} s",
                round(real["lastSeconds"] / last, 3),
            ),
        ],
        options.out,
    )


if __name__ == "__main__":
    main()
