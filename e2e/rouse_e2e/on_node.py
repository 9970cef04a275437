"""Faults on the node; runs in the node's namespaces (RealCluster.execute).

on_node.py kill POD PROGRAM    SIGKILL to the program's processes in the pod
on_node.py slow ADDRESS RATE   limits what the pod with this address sends, for example to 100mbit
on_node.py fast ADDRESS        takes the limit away
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path


def kill(pod: str, program: str) -> None:
    killed = 0
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes().split(b"\0")[0].decode()
            environment = (process / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if Path(command).name == program and f"HOSTNAME={pod}".encode() in environment:
            os.kill(int(process.name), signal.SIGKILL)
            killed += 1
    if not killed:
        raise SystemExit(f"no process {program} in pod {pod}")


def network_of(address: str) -> str:
    for name in sorted(x.name for x in Path("/run/netns").iterdir()):
        text = subprocess.run(
            ["ip", "-n", name, "-j", "address", "show", "dev", "eth0"],
            capture_output=True,
            text=True,
        ).stdout
        if any(x.get("local") == address for y in json.loads(text or "[]") for x in y["addr_info"]):
            return name
    raise SystemExit(f"no pod has the address {address}")


def slow(address: str, rate: str) -> None:
    subprocess.run(
        ["tc", "-n", network_of(address), "qdisc", "replace", "dev", "eth0", "root"]
        + ["tbf", "rate", rate, "burst", "256k", "latency", "200ms"],
        check=True,
    )


def fast(address: str) -> None:
    subprocess.run(
        ["tc", "-n", network_of(address), "qdisc", "delete", "dev", "eth0", "root"], check=True
    )


if __name__ == "__main__":
    {"kill": kill, "slow": slow, "fast": fast}[sys.argv[1]](*sys.argv[2:])
