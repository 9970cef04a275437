#!/usr/bin/env python3
"""Builds what the benchmarks need and runs them one after the other; figures go to docs/benchmarks.

    bench/run.py [NAME...]      NAME is a script of this folder without ".py"; none means all
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent
NOT_A_BENCHMARK = {"run", "figures", "fanout_chart"}


def build(folder: Path) -> None:
    configure = ["cmake", "--preset", "release", "-DROUSE_BUILD_BENCH=ON", "--log-level=WARNING"]
    subprocess.run(configure, cwd=REPOSITORY, check=True, stdout=subprocess.DEVNULL)
    subprocess.run(["cmake", "--build", str(folder)], cwd=REPOSITORY, check=True)


def main() -> int:
    known = sorted(x.stem for x in HERE.glob("*.py") if x.stem not in NOT_A_BENCHMARK)
    chosen = sys.argv[1:] or known
    if unknown := set(chosen) - set(known):
        print(f"no benchmark {', '.join(sorted(unknown))}; there are {', '.join(known)}")
        return 2
    folder = REPOSITORY / "build" / "release"
    build(folder)
    environment = dict(os.environ, ROUSE_BUILD=str(folder))
    failed = []
    for name in chosen:
        print(f"== {name}", flush=True)
        done = subprocess.run([sys.executable, str(HERE / f"{name}.py")], env=environment)
        if done.returncode != 0:
            failed.append(name)
    if failed:
        print(f"failed: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
