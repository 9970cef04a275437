#!/usr/bin/env python3
"""One source's weights to N new instances: how long until the last has them, simulated.

    bench/fanout.py [--program rouse-bench-fanout] [--targets N...] [--out docs/benchmarks/fanout.json]

The agent's own planner runs for every instance, over a modelled fabric (simulate_fanout/). A star (all pull
from the one source) and serve-when-complete (an instance serves once it has everything; the number of sources
doubles each round) come out of the same model. Beside the figures it draws OUT with the ending .svg.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from fanout_chart import Curve, draw
from figures import REPOSITORY, Figure, write

MIB = 1 << 20
ARENA = 43_500_000_000  # 348 GB over 8 ranks
DYING = 0.01


def unit_bytes(targets: int) -> int:
    """The agent's 4 MiB chunks as far as that is affordable; larger ones make the result worse."""
    return 4 * MIB if targets <= 64 else 16 * MIB if targets <= 1024 else 32 * MIB


def refresh_us(targets: int) -> int:
    """The agent's 1 ms between two looks at a peer; longer where chunks take longer."""
    return 1000 if targets <= 64 else 2000 if targets <= 1024 else 4000


class Simulator:
    def __init__(self, program: Path) -> None:
        self.program = program

    def run(self, targets: int, mode: str = "swarm", dying: float = 0, **more: int) -> dict:
        options = {
            "targets": targets,
            "mode": mode,
            "dying": dying,
            "arena-bytes": ARENA,
            "unit-bytes": unit_bytes(targets),
            "refresh-us": refresh_us(targets),
            **{name.replace("_", "-"): value for name, value in more.items()},
        }
        command = [str(self.program), *(f"--{name}={value}" for name, value in options.items())]
        start = time.monotonic()
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        outcome = json.loads(done.stdout)
        print(
            f"{targets} targets, {mode}, {dying:.0%} dying: {outcome['lastReadySeconds']:.3f} s "
            f"({outcome['events']} events in {time.monotonic() - start:.0f} s)",
            flush=True,
        )
        if outcome["failed"]:
            raise SystemExit(
                f"{outcome['failed']} of {targets} targets gave up: {' '.join(command)}"
            )
        return outcome

    def rival(self, targets: int, mode: str) -> float:
        # Flows of one port share it whatever their size, and nothing is served on in a star; so
        # large units change nothing but the number of events.
        unit = ARENA // 4 if mode == "star" else 64 * MIB
        gets = 1 if mode == "star" else 2
        return self.run(targets, mode, unit_bytes=unit, gets=gets)["lastReadySeconds"]


def ratio_figure(what: str, value: float, against: str, reference: float) -> Figure:
    return Figure(
        what, round(value, 4), "s", f"{against}: {reference:.3f} s", round(value / reference, 4)
    )


def figures_of(targets: int, outcome: dict, one_pull: float, suffix: str) -> list[Figure]:
    last = outcome["lastReadySeconds"]
    found = [
        ratio_figure(
            f"time to last of {targets:,} from one source{suffix}, against one pull",
            last,
            "one pull",
            one_pull,
        )
    ]
    for who, key in [
        ("the first source", "sourceBytes"),
        ("whoever sent most", "mostBytes"),
        ("an instance on average", "meanBytes"),
    ]:
        found.append(
            Figure(
                f"sent by {who}, rank's NIC, {targets:,} targets{suffix}",
                round(outcome[key] / 1e9, 3),
                "GB",
                f"the weights once: {ARENA / 1e9:.1f} GB",
                round(outcome[key] / ARENA, 4),
            )
        )
    return found


def main() -> None:
    build = Path(os.environ.get("ROUSE_BUILD", REPOSITORY / "build" / "release"))
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--program", type=Path, default=build / "bench" / "rouse-bench-fanout")
    parser.add_argument("--targets", type=int, nargs="+", default=[15, 64, 256, 1024, 4096])
    parser.add_argument(
        "--out", type=Path, default=REPOSITORY / "docs" / "benchmarks" / "fanout.json"
    )
    options = parser.parse_args()

    simulator = Simulator(options.program)
    print(f"load average {os.getloadavg()[0]:.2f} before the start", file=sys.stderr)
    # As fast as one source can be: enough in flight to hide round trips.
    one_pull = simulator.run(1, unit_bytes=16 * MIB, gets=8)["lastReadySeconds"]
    found = [Figure("one pull, one source to one target", round(one_pull, 4), "s")]
    curves = []
    last: dict[str, list[tuple[int, float]]] = {"star": [], "serve when complete": [], "Rouse": []}
    for targets in options.targets:
        for dying in (0.0, DYING):
            outcome = simulator.run(targets, dying=dying)
            suffix = f", {dying:.0%} of instances dying on the way" if dying else ""
            found += figures_of(targets, outcome, one_pull, suffix)
            curves.append(Curve(targets, bool(dying), outcome["readySeconds"]))
            if not dying:
                swarm = outcome["lastReadySeconds"]
        last["Rouse"].append((targets, swarm))
        for mode in ("star", "serve-when-complete"):
            rival = simulator.rival(targets, mode)
            name = mode.replace("-", " ")
            last[name].append((targets, rival))
            found.append(
                ratio_figure(
                    f"time to last of {targets:,} from one source, against {name}",
                    swarm,
                    name,
                    rival,
                )
            )
    shared = simulator.run(64, instances_per_node=4)["lastReadySeconds"]
    found.append(
        ratio_figure(
            "time to last of 64 from one source, four instances a node, against one pull",
            shared,
            "one pull",
            one_pull,
        )
    )
    write("fanout", found, options.out)
    chart = options.out.with_suffix(".svg")
    chart.write_text(draw(curves, last, one_pull))
    print(f"drawn to {chart}")


if __name__ == "__main__":
    main()
