#!/usr/bin/env python3
"""A checkpoint read from files into host memory, against the loaders that a user could pick instead.

    bench/storage.py [--gib N] [--rounds N] [--python PYTHON] [--checkpoint FOLDER | --parent FOLDER] [--cold]

Without --checkpoint it writes one of N GiB to --parent (default /dev/shm, a tmpfs) and removes it at the end.
The rivals run in PYTHON, those of them that can be imported there: safetensors, fastsafetensors,
runai-model-streamer; each needs torch. Every run is a process of its own; its clock runs from the first open
to the last byte in memory, imports not counted, allocation counted. All are run in turn, ROUNDS times; figures
are medians, a ratio is the median of the rounds' ratios, because runs that follow each other see the same
machine.

With --cold the files' pages are dropped from the page cache before each run, and docs/benchmarks/storage-disk.json is
written: for a --parent on a disk.

safetensors maps the files and hands out views, so its tensors are cloned: only then are the bytes in
memory that is not the file's own.

Nearly all of our time goes into taking the arena's memory: pages of a memfd come one by one, zeroed, and cost
more than a process's own. One figure leaves that out; it is what reading into pinned staging memory, which
is used again and again, amounts to. The last one is what a start from storage does: the agent reads into a few slots,
whose memory is taken once, and the engine's process copies every tensor out of them (storage_stream.py).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from figures import REPOSITORY, Figure, write

GIB = 1 << 30
SHARD_BYTES = GIB // 2
TENSOR_BYTES = 32 << 20

# What a rival runs: `folder` and `files` are given, `count` shall be the bytes that are in memory.
RIVALS = {
    "safetensors": """
from safetensors import torch as st
from safetensors import __version__ as version
def load():
    return [t.clone() for f in files for t in st.load_file(f).values()]
""",
    "fastsafetensors": """
from importlib.metadata import version as of
from fastsafetensors import SafeTensorsFileLoader, SingleGroup
version = of("fastsafetensors")
def load():
    loader = SafeTensorsFileLoader(SingleGroup(), torch.device("cpu"), nogds=True)
    loader.add_filenames({0: files})
    buffer = loader.copy_files_to_device()
    keep.append((loader, buffer))
    return [buffer.get_tensor(name) for name in buffer.key_to_rank_lidx]
""",
    "runai-model-streamer": """
from importlib.metadata import version as of
from runai_model_streamer import SafetensorsStreamer
version = of("runai-model-streamer")
def load():
    streamer = SafetensorsStreamer()
    keep.append(streamer)
    streamer.__enter__()
    streamer.stream_files(files)
    return [tensor for _, tensor in streamer.get_tensors()]
""",
}
RIVAL = """
import glob, json, sys, time
import torch
folder = sys.argv[1]
files = sorted(glob.glob(folder + "/*.safetensors"))
keep = []
{code}
if len(sys.argv) > 2:
    print(json.dumps({{"version": version}}))
    sys.exit()
start = time.monotonic()
tensors = load()
seconds = time.monotonic() - start
count = sum(t.numel() * t.element_size() for t in tensors)
print(json.dumps({{"bytes": count, "seconds": seconds}}), flush=True)
import os
os._exit(0)
"""


def write_checkpoint(folder: Path, total: int) -> None:
    """Shards of half a GiB with an index: large matrices, and a norm before each."""
    noise = os.urandom(TENSOR_BYTES + 4096)
    shards = -(-total // SHARD_BYTES)
    places = {}
    for shard in range(shards):
        name = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        header: dict[str, dict] = {"__metadata__": {"format": "pt"}}
        sizes, left, at = [], min(SHARD_BYTES, total - shard * SHARD_BYTES), 0
        while left > 0:
            for kind, size in (("norm", 8192), ("matrix", TENSOR_BYTES)):
                if size := min(size, left) // 2 * 2:
                    tensor = f"model.layers.{shard}.{len(sizes)}.{kind}.weight"
                    header[tensor] = {"dtype": "BF16", "shape": [size // 2]}
                    header[tensor]["data_offsets"] = [at, at + size]
                    places[tensor] = name
                    sizes.append(size)
                    at, left = at + size, left - size
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with open(folder / name, "wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for number, size in enumerate(sizes):
                file.write(memoryview(noise)[number % 4096 :][:size])
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def run(command: list[str]) -> dict:
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    if done.returncode != 0:
        raise SystemExit(f"{command[0]} failed: {done.stdout}{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def rival_command(python: str, name: str, folder: Path) -> list[str]:
    return [python, "-c", RIVAL.format(code=RIVALS[name]), str(folder)]


def evict(folder: Path) -> None:
    """Drops the files' pages from the page cache; on a tmpfs, where they are the files, it does nothing."""
    for file in folder.glob("*.safetensors"):
        with file.open("rb") as opened:
            os.fsync(opened.fileno())  # Pages that were not written yet stay.
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def importable(python: str, folder: Path) -> dict[str, str]:
    """Name and version of each rival that PYTHON has."""
    found = {}
    for name in RIVALS:
        done = subprocess.run(
            [*rival_command(python, name, folder), "version"], capture_output=True, text=True
        )
        if done.returncode == 0:
            found[name] = json.loads(done.stdout.splitlines()[-1])["version"]
        else:
            reason = (done.stderr.strip().splitlines() or ["unknown"])[-1]
            print(f"without {name}: {reason}", file=sys.stderr)
    return found


def install_plugin(build: Path, prefix: Path) -> Path:
    command = ["cmake", "--install", str(build), "--component", "plugin", "--prefix", str(prefix)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return prefix / "share/rouse/plugin"


def measure(options: argparse.Namespace, folder: Path, plugin: Path) -> list[Figure]:
    versions = importable(options.python, folder)
    program = [str(options.program), str(folder)]
    # What to run, and which of its times counts.
    ours = {
        "by io_uring": (program, "seconds"),
        "by threads": ([*program, "--threads-only"], "seconds"),
        "by io_uring, its memory taken before (theirs while the clock runs)": (
            [*program, "--populate"],
            "readSeconds",
        ),
    }
    if versions:  # PYTHON has torch then
        agent = options.build / "agent" / "rouse-agent"
        script = REPOSITORY / "bench" / "storage_stream.py"
        ours["by the agent, and on into the engine's own memory"] = (
            [options.python, str(script), str(folder), str(agent), str(plugin)],
            "seconds",
        )
    rates: dict[str, list[float]] = {}
    ways = set()
    for _ in range(options.rounds):
        sizes = set()
        for way, (command, clock) in ours.items():
            if options.cold:
                evict(folder)
            answer = run(command)
            ways.add((way, answer["way"], answer["reason"], answer["bytesDirect"]))
            rates.setdefault(way, []).append(answer["bytes"] / answer[clock])
            sizes.add(answer["bytes"])
        for name in versions:
            if options.cold:
                evict(folder)
            answer = run(rival_command(options.python, name, folder))
            rates.setdefault(name, []).append(answer["bytes"] / answer["seconds"])
            sizes.add(answer["bytes"])
        if len(sizes) != 1:
            raise SystemExit(f"not all read the same number of bytes: {sizes}")

    def median(name: str) -> float:
        return round(statistics.median(rates[name]) / 1e9, 3)

    figures = []
    for way in ours:
        what = f"checkpoint read {way}" if "agent" in way else f"checkpoint into an arena {way}"
        for name, version in versions.items():
            ratio = statistics.median(a / b for a, b in zip(rates[way], rates[name]))
            against = f"{name} {version} into host memory: {median(name)} GB/s"
            figures.append(Figure(what, median(way), "GB/s", against, round(ratio, 3)))
        if not versions:
            figures.append(Figure(what, median(way), "GB/s"))
    for way, taken, reason, direct in sorted(ways):
        print(f"{way}: {taken} {reason}, {direct} bytes past the page cache")
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    build = Path(os.environ.get("ROUSE_BUILD", REPOSITORY / "build" / "release"))
    parser.add_argument("--build", type=Path, default=build)
    parser.add_argument("--program", type=Path, default=build / "bench" / "rouse-bench-storage")
    parser.add_argument("--gib", type=float, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--python", default=sys.executable, help="has the rivals and torch")
    parser.add_argument("--checkpoint", type=Path, help="read this one")
    parser.add_argument("--parent", type=Path, default=Path("/dev/shm"))
    parser.add_argument("--cold", action="store_true", help="nothing of it in the page cache")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    name = "storage-disk" if options.cold else "storage"
    out = options.out or REPOSITORY / "docs" / "benchmarks" / f"{name}.json"

    print(f"load average {os.getloadavg()[0]:.2f} before the start", file=sys.stderr)
    made = None
    if not options.checkpoint:
        made = Path(tempfile.mkdtemp(prefix="rouse-bench-", dir=options.parent))
    try:
        if made:
            write_checkpoint(made, int(options.gib * GIB))
        folder = options.checkpoint or made
        with tempfile.TemporaryDirectory(prefix="rouse-bench-plugin-") as prefix:
            plugin = install_plugin(options.build, Path(prefix))
            figures = measure(options, folder, plugin)
    finally:
        if made:
            shutil.rmtree(made)
    write(name, figures, out)


if __name__ == "__main__":
    main()
