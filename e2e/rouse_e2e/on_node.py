"""Faults on the node; runs in the node's namespaces (RealCluster.execute).

on_node.py kill POD PROGRAM    SIGKILL to the program's processes in the pod
on_node.py kill-one POD CHANCE SIGKILL to one of all processes in the pod, chosen by a number from 0 to 1
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


def processes_of(pod: str) -> list[tuple[int, str]]:
    """Pid and program of each, but for the one that holds the pod's namespaces."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes().split(b"\0")[0].decode()
            environment = (process / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if f"HOSTNAME={pod}".encode() in environment:
            found.append((int(process.name), Path(command).name))
    return sorted(found)


def kill(pod: str, program: str) -> None:
    pids = [pid for pid, name in processes_of(pod) if name == program]
    if not pids:
        raise SystemExit(f"no process {program} in pod {pod}")
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


def kill_one(pod: str, chance: str) -> None:
    found = processes_of(pod)
    if not found:
        raise SystemExit(f"no process in pod {pod}")
    pid, name = found[int(float(chance) * len(found))]
    os.kill(pid, signal.SIGKILL)
    print(f"{name} ({pid}) of {pod}, one of {len(found)}")


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
    {"kill": kill, "kill-one": kill_one, "slow": slow, "fast": fast}[sys.argv[1]](*sys.argv[2:])
