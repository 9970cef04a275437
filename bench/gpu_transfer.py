#!/usr/bin/env python3
"""Weights moved between two processes of one node in GPU memory: ours, the driver's own copy, and peers.

Writes docs/benchmarks/transfer-NAME.json. Needs a GPU and a Python with torch; NIXL (nixl-cu13), Mooncake
(mooncake-transfer-engine-cuda13) and ucx_perftest are set beside it if they are there, and named as missing if not.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import figures  # noqa: E402
import gpu_load_rivals  # noqa: E402
import gpu_rivals  # noqa: E402

SLAB_MIB = 1024
RIVAL_SECONDS = 120


def ours(program: str, gib: int, rounds: int, source: int, target: int) -> tuple[str, dict]:
    """The GPU's name, and every figure's values in order."""
    answer = subprocess.run(
        [program, f"--gib={gib}", f"--slab-mib={SLAB_MIB}", f"--rounds={rounds}"]
        + [f"--source-gpu={source}", f"--target-gpu={target}"],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=300,
    )
    gpu, values = "", {}
    for line in answer.stdout.splitlines():
        said = json.loads(line)
        gpu = said.get("gpu", gpu)
        if "what" in said:
            values.setdefault(said["what"], []).append(said["value"])
    return gpu, values


def run_rival(script: str, *arguments: str) -> dict | str:
    """What a rival measured, or why it could not."""
    program = [sys.executable, script, *arguments]
    try:
        answer = subprocess.run(program, capture_output=True, text=True, timeout=RIVAL_SECONDS)
    except subprocess.TimeoutExpired:
        return f"did not end within {RIVAL_SECONDS} s"
    lines = [x for x in answer.stdout.splitlines() if x.startswith("{")]
    if answer.returncode or not lines:
        return (answer.stderr.strip().splitlines() or ["no answer"])[-1]
    return json.loads(lines[-1])


LOADERS = {
    "instanttensor": "InstantTensor",
    "fastsafetensors": "fastsafetensors",
    "safetensors": "safetensors",
    "runai": "Run:ai model streamer",
}


def loading(program: str, folder: str, rivals: str) -> list[figures.Figure]:
    """Storage starts: everything from opening the files to the last byte on the GPU."""
    answer = subprocess.run(
        [program, folder, "--rounds=5"], capture_output=True, text=True, check=True
    )
    rounds = [json.loads(x) for x in answer.stdout.splitlines()]
    rate = statistics.median(x["GBps"] for x in rounds)
    print(f"storage start: {json.dumps(rounds)}")
    size = f"{rounds[0]['bytes'] / 1e9:.1f} GB"
    rows = [
        figures.Figure(
            f"storage start from tmpfs, {size}, reading alone",
            statistics.median(x["readGBps"] for x in rounds),
            "GB/s",
        )
    ]
    for name in filter(None, rivals.split(",")):
        said = run_rival(gpu_load_rivals.__file__, name, folder)
        if isinstance(said, str):
            print(f"{name}: not measured: {said}")
            continue
        best = statistics.median(said["GBps"])
        print(f"{name}: {said['GBps']}")
        rows.append(
            figures.Figure(
                f"storage start from tmpfs, against {LOADERS[name]}",
                rate,
                "GB/s",
                f"{LOADERS[name]}, the same {size}: {best:.1f} GB/s",
                round(rate / best, 3),
            )
        )
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    build = Path(os.environ.get("ROUSE_BUILD", figures.REPOSITORY / "build" / "bench"))
    parser.add_argument("--program", default=str(build / "bench" / "rouse-bench-gpu-transfer"))
    parser.add_argument("--name", default="h200", help="of the machine, in the file's name")
    parser.add_argument("--gib", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--source-gpu", type=int, default=0)
    parser.add_argument("--target-gpu", type=int, default=0)
    parser.add_argument(
        "--rivals", default="nixl,mooncake,torch,ucx", help="comma-separated, or empty"
    )
    parser.add_argument("--checkpoint", help="folder of safetensors files in tmpfs, to load too")
    parser.add_argument("--load-rivals", default="instanttensor,fastsafetensors,safetensors,runai")
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()

    gpu, values = ours(
        options.program, options.gib, options.rounds, options.source_gpu, options.target_gpu
    )
    median = {what: statistics.median(x) for what, x in values.items()}
    # Paired: each round's pull against the better of the driver's two copies in that round.
    copies = [
        max(x) for x in zip(values["device copy, 1 stream"], values["device copy, 4 streams"])
    ]
    plain = statistics.median(a / b for a, b in zip(values["pull, not verified"], copies))
    verified = statistics.median(a / b for a, b in zip(values["pull, verified"], copies))
    size = f"{options.gib} GiB"
    copy = f"device copy, {statistics.median(copies):.0f} GB/s"
    Figure = figures.Figure
    rows = [
        Figure(
            f"node-local pull, {size}, against device copy",
            median["pull, not verified"],
            "GB/s",
            copy,
            round(plain, 3),
        ),
        Figure(
            f"node-local pull, {size}, verification included, against device copy",
            median["pull, verified"],
            "GB/s",
            copy,
            round(verified, 3),
        ),
        Figure(
            "chunk digests on the GPU",
            median["digest"],
            "GB/s",
            "1 TB/s",
            round(median["digest"] / 1000, 3),
        ),
    ]
    for what in (
        "create and map slabs",
        "import and map slabs",
        "unmap imported slabs",
        "release slabs",
        "open device",
    ):
        rows.append(
            Figure(
                f"{what}, {size} in slabs of {SLAB_MIB} MiB" if "slabs" in what else what,
                median[what],
                "s",
            )
        )
    for part in ("", ", anonymous", ", file-backed", ", shared"):
        for when in (" before the device is opened", ""):
            resident = median[f"resident memory{part}{when}"]
            rows.append(
                Figure(f"resident memory of the target process{part}{when}", resident, "MiB")
            )
    for name in filter(None, options.rivals.split(",")):
        gpus = [str(options.source_gpu), str(options.target_gpu)]
        said = run_rival(gpu_rivals.__file__, name, str(options.gib), *gpus)
        if isinstance(said, str):
            print(f"{name}: not measured: {said}")
            continue
        best = max(said["GBps"])
        label = said["label"]
        rows.append(
            Figure(
                f"node-local pull, {size}, against {label}",
                median["pull, not verified"],
                "GB/s",
                f"{said['how']}: {best:.0f} GB/s",
                round(median["pull, not verified"] / best, 3),
            )
        )
        rows.append(
            Figure(
                f"node-local pull, {size}, verification included, against {label}",
                median["pull, verified"],
                "GB/s",
                f"{said['how']}: {best:.0f} GB/s",
                round(median["pull, verified"] / best, 3),
            )
        )
        time.sleep(1)
    if options.checkpoint:
        program = options.program.replace("gpu-transfer", "gpu-storage")
        rows += loading(program, options.checkpoint, options.load_rivals)
    out = (
        options.out or figures.REPOSITORY / "docs" / "benchmarks" / f"transfer-{options.name}.json"
    )
    print(f"GPU: {gpu}; every round: {json.dumps(values)}")
    figures.write(f"transfer-{options.name}", rows, out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
