#!/usr/bin/env python3
"""Weights pulled between two processes' host memory over loopback: ours, Mooncake's transfer engine and NIXL.

    bench/host_rivals.py [--gib N] [--rounds N] [--python PYTHON] [--out docs/benchmarks/transfer-host.json]

The rivals run in PYTHON, those of them that can be imported there: mooncake-transfer-engine-non-cuda (TCP;
its other transports need a NIC or a GPU) and nixl-cu13 (UCX), both with numpy:

    python3 -m venv V && V/bin/pip install --no-deps numpy nixl-cu13 mooncake-transfer-engine-non-cuda

In each of ROUNDS rounds each rival and each of ours has two processes of its own, buffers of the same size that
were touched and registered before, pieces of the same size, and a first run that does not count; they run one
after the other, because progress threads that spin take a core even when idle. Figures are medians, a ratio is
the median of the rounds' ratios, because runs that follow each other see the same machine.

Ours are a pull by UCX over TCP, as between nodes without RDMA; one over shared memory; and the copy that two
agents of one node make by descriptors. Each is set beside the rivals' nearest. Our time includes the digest of
every chunk (about 0.1 s a core and GB) but in the row that says so; the rivals take none. What they brought is
compared with the source's bytes after each run, outside of the time.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import queue
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PIECE = 4 << 20
HOST = "127.0.0.1"


def buffer(count: int, fill: bool):
    import numpy

    if fill:
        return numpy.random.default_rng(1).integers(0, 256, count, dtype=numpy.uint8)
    return numpy.ones(count, dtype=numpy.uint8)


def checksum(array) -> str:
    import hashlib

    return hashlib.blake2b(memoryview(array)).hexdigest()


def mooncake_engine():
    from mooncake.engine import TransferEngine

    engine = TransferEngine()
    if engine.initialize(HOST, "P2PHANDSHAKE", "tcp", "") != 0:
        sys.exit("Mooncake did not start")
    return engine


def mooncake_source(count: int, answers, done) -> None:
    array, engine = buffer(count, True), mooncake_engine()
    if engine.register_memory(array.ctypes.data, count) != 0:
        sys.exit("Mooncake did not register")
    session = f"{HOST}:{engine.get_rpc_port()}"
    answers.put((session, array.ctypes.data, checksum(array)))
    done.wait()


def mooncake(count: int, described):
    session, remote, _ = described
    array, engine = buffer(count, False), mooncake_engine()
    if engine.register_memory(array.ctypes.data, count) != 0:
        sys.exit("Mooncake did not register")
    at = range(0, count, PIECE)
    here = [array.ctypes.data + x for x in at]
    there = [remote + x for x in at]
    sizes = [min(PIECE, count - x) for x in at]

    def run() -> None:
        if engine.batch_transfer_sync_read(session, here, there, sizes) != 0:
            sys.exit("Mooncake: the transfer failed")

    return array, run


def nixl_agent(name: str):
    from nixl_cu13._api import nixl_agent as agent
    from nixl_cu13._api import nixl_agent_config

    return agent(name, nixl_agent_config(backends=["UCX"], enable_prog_thread=True))


def nixl_source(count: int, answers, done) -> None:
    array, agent = buffer(count, True), nixl_agent("source")
    agent.register_memory([(array.ctypes.data, count, 0, "")], mem_type="DRAM")
    answers.put((agent.get_agent_metadata(), array.ctypes.data, checksum(array)))
    done.wait()


def nixl(count: int, described):
    metadata, remote, _ = described
    array, agent = buffer(count, False), nixl_agent("target")
    name = agent.add_remote_agent(metadata)
    agent.register_memory([(array.ctypes.data, count, 0, "")], mem_type="DRAM")
    pieces = [(at, min(PIECE, count - at)) for at in range(0, count, PIECE)]
    there = [(remote + at, size, 0) for at, size in pieces]
    here = [(array.ctypes.data + at, size, 0) for at, size in pieces]
    far = agent.prep_xfer_dlist(name, there, mem_type="DRAM")
    near = agent.prep_xfer_dlist("", here, mem_type="DRAM")
    every = list(range(len(pieces)))

    def run() -> None:
        handle = agent.make_prepped_xfer("READ", near, every, far, every)
        state = agent.transfer(handle)
        while state not in ("DONE", "ERR"):
            state = agent.check_xfer_state(handle)
        agent.release_xfer_handle(handle)
        if state == "ERR":
            sys.exit("NIXL: the transfer failed")

    return array, run


RIVALS = {
    "mooncake": (mooncake_source, mooncake, "mooncake-transfer-engine-non-cuda"),
    "nixl": (nixl_source, nixl, "nixl-cu13"),
}


def serve(name: str, count: int) -> None:
    """A rival's two processes: for each line read, one transfer and one line of JSON."""
    from importlib.metadata import version

    source, target, package = RIVALS[name]
    # What the libraries say on standard output is not for who reads ours.
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    context = multiprocessing.get_context("spawn")
    answers, done = context.Queue(), context.Event()
    process = context.Process(target=source, args=(count, answers, done), daemon=True)
    process.start()
    while True:
        try:
            described = answers.get(timeout=1)
            break
        except queue.Empty:
            if not process.is_alive():
                raise RuntimeError("the source ended") from None
    array, run = target(count, described)
    print(json.dumps({"version": version(package)}), file=out, flush=True)
    for _ in sys.stdin:
        array.fill(0)
        started = time.perf_counter()
        run()
        seconds = time.perf_counter() - started
        equal = checksum(array) == described[2]
        print(json.dumps({"seconds": seconds, "equal": equal}), file=out, flush=True)
    done.set()
    process.join(10)
    os._exit(0)


class Rival:
    """One rival in a setting of its own."""

    def __init__(self, python: str, name: str, count: int, **environment: str) -> None:
        self.count = count
        self.process = subprocess.Popen(
            [python, __file__, "--serve", name, "--bytes", str(count)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=dict(os.environ, **environment),
        )
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            _, said = self.process.communicate()
            errors = [x for x in said.splitlines() if "Error" in x]
            raise RuntimeError((errors or ["no answer"])[0])
        self.version = json.loads(line)["version"]
        self.run()  # connects

    def run(self) -> float:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.process.args} ended")
        said = json.loads(line)
        if not said["equal"]:
            raise SystemExit(f"{self.process.args}: other bytes arrived")
        return self.count / said["seconds"]

    def close(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait(30)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--serve", choices=RIVALS, help=argparse.SUPPRESS)
    parser.add_argument("--bytes", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--program", type=Path, default=None)
    parser.add_argument("--python", default=sys.executable, help="one that has the rivals")
    parser.add_argument("--gib", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve, options.bytes)
    else:
        compare(options)


def compare(options: argparse.Namespace) -> None:
    from figures import REPOSITORY, Figure, write
    from pull import Pull

    load = os.getloadavg()[0]
    count = options.gib << 30
    build = Path(os.environ.get("ROUSE_BUILD", REPOSITORY / "build" / "bench"))
    program = str(options.program or build / "bench" / "rouse-bench-pull")
    print(f"{options.rounds} rounds, {options.gib} GiB; load average {load:.2f} before the start")

    # Each with the pulls that it is set beside: over TCP, and over what a node's processes share.
    wanted = [
        (("tcp", "node"), "mooncake", "Mooncake {}, TCP", {}),
        (("tcp",), "nixl", "NIXL {}, UCX over TCP", {"UCX_TLS": "tcp"}),
        (("sysv", "node", "node, unverified"), "nixl", "NIXL {}, UCX's own choice", {}),
    ]
    what = {
        "tcp": "pull by UCX over TCP, host memory, verification included",
        "sysv": "pull by UCX over shared memory, host memory, verification included",
        "node": "copy within the node by descriptors, host memory, verification included",
        "node, unverified": "copy within the node by descriptors, host memory, not verified",
    }
    figures = []
    # One pair of processes at a time: progress threads that spin would take the cores from the others.
    for transports, name, label, environment in wanted:
        try:
            rival = Rival(options.python, name, count, **environment)
        except RuntimeError as error:
            print(f"without {name}: {error}", file=sys.stderr)
            continue
        rival.close()
        label = label.format(rival.version)
        ours: dict[str, list[float]] = {x: [] for x in transports}
        theirs: list[float] = []
        for _ in range(options.rounds):
            rival = Rival(options.python, name, count, **environment)
            theirs.append(rival.run())
            rival.close()
            for transport in transports:
                with tempfile.TemporaryDirectory() as folder:
                    more = ["--node-folder", folder] if "node" in transport else []
                    more += ["--unverified"] if "unverified" in transport else []
                    ucx = "tcp" if "node" in transport else transport
                    pull = Pull(program, ucx, PIECE, count, *more)
                    ours[transport].append(pull.run())
                    pull.close()
        print(f"{label}: {theirs}; ours: {ours}")
        for transport, rates in ours.items():
            ratio = statistics.median(mine / other for mine, other in zip(rates, theirs))
            figures.append(
                Figure(
                    what[transport],
                    round(statistics.median(rates) / 1e9, 4),
                    "GB/s",
                    f"{label}: {statistics.median(theirs) / 1e9:.3f} GB/s, not verified",
                    round(ratio, 3),
                )
            )
    if not figures:
        raise SystemExit(
            f"{options.python} has none of {', '.join(RIVALS)}; name another by --python"
        )
    default = REPOSITORY / "docs" / "benchmarks" / "transfer-host.json"
    write("transfer-host", figures, options.out or default)


if __name__ == "__main__":
    main()
