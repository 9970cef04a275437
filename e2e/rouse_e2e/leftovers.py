"""Runs on the node: names what instances have left there; prints nothing when all is gone."""

from __future__ import annotations

import glob
import os
import re
from pathlib import Path

PROGRAMS = ("vllm", "VLLM::", "rouse-agent")


def open_files(process: Path) -> list[str]:
    """What the descriptors of `process`, its folder in /proc, lead to; it may close some meanwhile."""
    targets = []
    for descriptor in (process / "fd").iterdir():
        try:
            targets.append(os.readlink(descriptor))
        except FileNotFoundError:
            pass  # closed since it was listed
    return targets


def main() -> None:
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            files = set(open_files(process))
            # One that has closed the descriptor and kept the mapping keeps the memory.
            files |= set(re.findall(r"/memfd:rouse\S*", (process / "maps").read_text()))
        except OSError:
            continue  # it has ended
        if any(name in command.split(" ")[0] or f"/{name} " in command for name in PROGRAMS):
            print(f"process {process.name}: {command[:120]}")
        for file in sorted(files):
            if file.startswith(("/memfd:rouse", "/dev/shm/")):
                print(f"process {process.name} ({command[:60]}) holds {file}")
    for file in Path("/dev/shm").iterdir():
        print(f"shared memory {file}")
    mounts = Path("/proc/mounts").read_text()
    # Unlike Path.glob, it does not fail where the kubelet removes a folder meanwhile.
    for volume in map(Path, glob.glob("/var/lib/kubelet/pods/*/volumes/*/*")):
        if volume.name in ("model", "rouse-run", "rouse-plugin", "dshm", "home"):
            state = "mounted" if str(volume) in mounts else "a folder"
            print(f"volume {volume} ({state})")


if __name__ == "__main__":
    main()
