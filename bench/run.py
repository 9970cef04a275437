#!/usr/bin/env python3
"""Builds what the benchmarks need and runs them one after the other; figures go to docs/benchmarks.

    bench/run.py [NAME...]      NAME is pull, operator, ...; none means all that need nothing more

The build has a folder of its own, build/bench, so that build/release stays as `make build` wants it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent
BUILD = REPOSITORY / "build" / "bench"
# fanout_agents needs a build with the tests.
NOT_A_BENCHMARK = {
    "run",
    "figures",
    "fanout_chart",
    "fanout_agents",
    "operator_agents",
    "gpu_rivals",
    "gpu_load_rivals",
    "storage_stream",
}
# Run when they are named: they need a GPU, or a Python with others' packages (--python), or take long.
NAMED_ONLY = {"gpu_transfer", "gpu_broadcast", "host_rivals", "operator_scale"}


def scripts() -> dict[str, Path]:
    """By benchmark. A script NAME_bench.py is called so because NAME.py would hide Python's own module."""
    found = sorted(x for x in HERE.glob("*.py") if x.stem not in NOT_A_BENCHMARK)
    return {x.stem.removesuffix("_bench"): x for x in found}


def build() -> None:
    configure = ["cmake", "--preset", "release", "-B", str(BUILD), "--log-level=WARNING"]
    configure += ["-DROUSE_BUILD_BENCH=ON", "-DROUSE_BUILD_TESTS=OFF"]
    if cuda := os.environ.get("ROUSE_CUDA_ROOT"):
        configure.append(f"-DROUSE_CUDA_ROOT={cuda}")
    subprocess.run(configure, cwd=REPOSITORY, check=True, stdout=subprocess.DEVNULL)
    make = ["cmake", "--build", str(BUILD), "--target", "bench/all", "rouse-operator"]
    make += ["rouse-agent", "rouse_connector"]
    subprocess.run(make, cwd=REPOSITORY, check=True)


def main() -> int:
    known = scripts()
    chosen = sys.argv[1:] or [x for x in known if x not in NAMED_ONLY]
    if unknown := set(chosen) - set(known):
        print(f"no benchmark {', '.join(sorted(unknown))}; there are {', '.join(known)}")
        return 2
    build()
    environment = dict(os.environ, ROUSE_BUILD=str(BUILD))
    failed = []
    for name in chosen:
        print(f"== {name}", flush=True)
        done = subprocess.run([sys.executable, str(known[name])], env=environment)
        if done.returncode != 0:
            failed.append(name)
    if failed:
        print(f"failed: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
