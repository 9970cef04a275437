#!/usr/bin/env python3
"""Pull of weights between two processes of one machine, verified, against `ucx_perftest -t ucp_get`.

    bench/pull.py [--program rouse-bench-pull] [--gib N] [--rounds N] [--out docs/benchmarks/pull.json]

For each transport and message size the two are run in turn, ROUNDS times, in the same setting: two
processes, the same message size, the same number of reads in flight. Figures are medians; the ratio is the
median of the rounds' ratios, because two runs that follow each other see the same machine.

What is not the same, to our disadvantage: a pull reads distinct gigabytes, digests every chunk and counts
connecting; ucx_perftest reads the same few megabytes again and again. Over shared memory ucx_perftest would
use memory that UCX itself shares between the processes, which weights (a memfd of the agent) are not:
UCX_ALLOC_PRIO=mmap gives it ordinary memory too. The figure for its own kind of memory is shown beside.

On a machine of two cores source and target have one each, so digests take their time from the copy. What
is left when ucx_perftest's bytes are digested by the core that copied them, 1 / (1 / copy + 1 / digest), is
shown as a rival of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import IO

from figures import REPOSITORY, Figure, write

MIB = 1 << 20
WINDOW = 4


class Child:
    """A program that answers each line with a line of JSON."""

    def __init__(self, command: list[str], environment: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def tell(self, line: str) -> None:
        stdin: IO[str] | None = self.process.stdin
        assert stdin
        stdin.write(line + "\n")
        stdin.flush()

    def hear(self) -> dict:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.process.args} ended with {self.process.wait()}")
        return json.loads(line)

    def close(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait(30)


def environment(transport: str, **more: str) -> dict[str, str]:
    # Without the first two UCX does not use shared memory when it has to handle errors; the agent
    # sets them itself, ucx_perftest (-e) must be told.
    return dict(
        os.environ,
        UCX_TLS=transport,
        UCX_WARN_UNUSED_ENV_VARS="n",
        UCX_POSIX_ERROR_HANDLING="y",
        UCX_SYSV_ERROR_HANDLING="y",
        **more,
    )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def perftest(transport: str, size: int, total: int, **more: str) -> float:
    """Bytes per second of ucx_perftest's one-sided get."""
    port, env = free_port(), environment(transport, **more)
    # Both of its processes spin. On a machine that does other work the scheduler may put them on one core,
    # where they only wait for each other, so each gets its own; the pull is left to the scheduler.
    cores = sorted(os.sched_getaffinity(0))
    common = ["ucx_perftest", "-p", str(port)]
    pinned = ["taskset", "-c", str(cores[0]), *common]
    server = subprocess.Popen(pinned, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        command = [
            "taskset",
            "-c",
            str(cores[-1]),
            *common,
            "127.0.0.1",
            "-t",
            "ucp_get",
            "-s",
            str(size),
            "-e",
        ]
        command += ["-n", str(total // size), "-w", "20", "-O", str(WINDOW), "-f", "-v"]
        for _ in range(50):
            time.sleep(0.1)
            answer = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
            rows = [x for x in answer.stdout.splitlines() if x.strip()[:1].isdigit()]
            if answer.returncode == 0 and rows:
                # iterations, 50th percentile, average and overall latency, average and overall MB/s, ...
                return float(rows[-1].split(",")[5]) * MIB
        raise SystemExit(f"ucx_perftest failed: {answer.stdout}{answer.stderr}")
    finally:
        server.kill()
        server.wait()


class Pull:
    """`more` are further arguments of both ends."""

    def __init__(self, program: str, transport: str, size: int, total: int, *more: str) -> None:
        env = environment(transport)
        self.source = Child([program, "source", "--bytes", str(total), *more], env)
        command = [program, "target", "--bytes", str(total), "--piece-bytes", str(size)]
        self.target = Child([*command, "--window", str(WINDOW), *more], env)
        self.source.tell("open")
        self.target.tell(json.dumps(self.source.hear()))
        self.transport = ""
        self.run()  # warm-up, as ucx_perftest has

    def run(self) -> float:
        self.target.tell("pull")
        report = self.target.hear()
        self.transport = report["transport"]
        return report["bytes"] / report["seconds"]

    def close(self) -> None:
        self.target.close()
        self.source.close()


# The one setting by which the agent differs from UCX's defaults where it matters for speed (agent/ucx/context.cpp).
AGENT_SETTINGS = {"tcp": {"UCX_TCP_TX_SEG_SIZE": "60K"}}


def compare(
    options: argparse.Namespace, transport: str, size: int, digest_rate: float
) -> list[Figure]:
    """The pull against ucx_perftest as it comes, and against one with the agent's own UCX settings.

    `digest_rate` is that of one core, in bytes per second.
    """
    total = options.gib << 30
    rivals = {"": {}}
    if transport in AGENT_SETTINGS:
        rivals[", with the agent's UCX settings"] = AGENT_SETTINGS[transport]
    ours: list[float] = []
    theirs: dict[str, list[float]] = {suffix: [] for suffix in rivals}
    pull = Pull(str(options.program), transport, size, total)
    try:
        for _ in range(options.rounds):
            for suffix, settings in rivals.items():
                theirs[suffix].append(
                    perftest(transport, size, total, UCX_ALLOC_PRIO="mmap", **settings)
                )
            ours.append(pull.run())
    finally:
        pull.close()
    label = f"{transport}, {size // MIB} MiB messages"
    figures = []
    for suffix, rates in theirs.items():
        ratio = statistics.median(mine / other for mine, other in zip(ours, rates))
        rival = f"ucx_perftest ucp_get, {label}{suffix}: {statistics.median(rates) / 1e9:.3f} GB/s"
        what = f"pull over loopback, verification included, {label}"
        value = round(statistics.median(ours) / 1e9, 4)
        figures.append(Figure(what, value, "GB/s", rival, round(ratio, 3)))
    # The last rival has the agent's settings.
    both = [1 / (1 / rate + 1 / digest_rate) for rate in rates]
    ratio = statistics.median(mine / other for mine, other in zip(ours, both))
    rival = f"the same and digests on one core: {statistics.median(both) / 1e9:.3f} GB/s"
    figures.append(Figure(what, value, "GB/s", rival, round(ratio, 3)))
    return figures


def shared_by_ucx(options: argparse.Namespace) -> Figure:
    rate = statistics.median(
        perftest("sysv", 4 * MIB, options.gib << 30) for _ in range(min(options.rounds, 3))
    )
    what = "ucx_perftest ucp_get, sysv, 4 MiB messages, memory that UCX shares (weights are not)"
    return Figure(what, round(rate / 1e9, 4), "GB/s")


def local(options: argparse.Namespace) -> list[Figure]:
    command = [str(options.program), "local", "--bytes", str(options.gib << 30)]
    runs = [
        json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        for _ in range(min(options.rounds, 3))
    ]
    return [
        Figure(what, round(statistics.median(x["bytes"] / x[key] for x in runs) / 1e9, 4), "GB/s")
        for what, key in (
            ("chunk digests, one thread", "digestSeconds"),
            ("taking an arena's memory, two threads", "populateSeconds"),
        )
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    build = Path(os.environ.get("ROUSE_BUILD", REPOSITORY / "build" / "bench"))
    parser.add_argument("--program", type=Path, default=build / "bench" / "rouse-bench-pull")
    parser.add_argument("--gib", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--transports", default="tcp,sysv")
    parser.add_argument("--sizes", default="1,4", help="message sizes in MiB")
    default = REPOSITORY / "docs" / "benchmarks" / "pull.json"
    parser.add_argument("--out", type=Path, default=default)
    options = parser.parse_args()

    settings = f"{options.rounds} rounds, {options.gib} GiB, {WINDOW} reads in flight"
    print(f"{settings}; load average {os.getloadavg()[0]:.2f} before the start", file=sys.stderr)
    figures: list[Figure] = []
    alone = local(options)
    digest_rate = alone[0].value * 1e9
    for transport in options.transports.split(","):
        for size in options.sizes.split(","):
            figures += compare(options, transport, int(size) * MIB, digest_rate)
    if "sysv" in options.transports:
        figures.append(shared_by_ucx(options))
    figures += alone
    write("pull", figures, options.out)


if __name__ == "__main__":
    main()
