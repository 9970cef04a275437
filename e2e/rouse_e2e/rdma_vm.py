"""A virtual machine with RDMA, for tests of real verbs where there is no NIC.

Debian's stock kernel under QEMU's plain emulation, over this machine's own root file system: read
only, with a writable layer in memory that is gone afterwards. So every program of this machine is
there, at its path. Two soft-RoCE devices sit on the two ends of a cable that is software too:

    rxe0 on veth0, 10.99.0.1        rxe1 on veth1, 10.99.0.2

The kernel is taken out of Debian's package into the cache folder; nothing is installed. Emulated,
everything is slow (some ten MB/s): what runs here proves that it is right, not that it is fast.
"""

from __future__ import annotations

import gzip
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from . import paths

KERNEL_PACKAGE = "linux-image-amd64"
MODULES = ("virtio_pci", "9pnet_virtio", "9p", "overlay", "veth", "crc32_generic", "rdma_rxe")
MEMORY_MIB = 3072
# The plainest processor with what compilers and libraries of today may ask for.
CPU = "qemu64,+ssse3,+sse4.1,+sse4.2,+popcnt,+rdrand"
# From QEMU's start to the guest's first command, on a busy machine.
BOOT_SECONDS = 180

# What the firmware says to a terminal.
TERMINAL = re.compile(r"\x1bc|\x1b\[[?=0-9;]*[a-zA-Z]")

INIT = """#!/bin/busybox sh
/bin/busybox --install -s /bin; export PATH=/bin
mount -t proc p /proc; mount -t sysfs s /sys; mount -t devtmpfs d /dev
for m in $(cat /modules/order); do insmod /modules/$m || echo "insmod $m failed"; done
for word in $(cat /proc/cmdline); do case $word in share=*) eval "$word";; esac; done
mount -t 9p -o trans=virtio,version=9p2000.L,ro,cache=loose,msize=512000 root /lower || poweroff -f
mount -t tmpfs -o size=40% t /upper; mkdir /upper/data /upper/work
mount -t overlay -o lowerdir=/lower,upperdir=/upper/data,workdir=/upper/work o /new || poweroff -f
mkdir -p "/new$share" /new/proc /new/sys /new/dev /new/run
mount -t 9p -o trans=virtio,version=9p2000.L,rw,cache=mmap,msize=512000 share "/new$share"
mount --move /proc /new/proc; mount --move /sys /new/sys; mount --move /dev /new/dev
mount -t tmpfs t /new/run; mkdir -p /new/dev/shm /new/dev/pts
mount -t tmpfs -o size=60% t /new/dev/shm; mount -t devpts t /new/dev/pts
exec switch_root /new /bin/bash "$share/guest.sh"
"""

GUEST = """#!/bin/bash
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8
share=$(dirname "$0")
finish() {{ echo "$1" > "$share/status"; sync; exec /bin/busybox poweroff -f; }}
trap 'echo "rdma-vm: line $LINENO failed"; finish 98' ERR
set -E
hostname rdma-vm; dmesg -n 3; ulimit -l unlimited
ip link set lo up
# Both ends are on this one machine: it must take packets that come from its own addresses.
sysctl -qw net.ipv4.conf.all.accept_local=1 net.ipv4.conf.all.rp_filter=0 \\
  net.ipv4.conf.default.rp_filter=0
# A packet lost in the kernel's queues costs a retransmission of seconds.
sysctl -qw net.core.netdev_max_backlog=200000 net.core.netdev_budget=2000 \\
  net.core.netdev_budget_usecs=20000
ip link add veth0 mtu 4500 type veth peer name veth1 mtu 4500
for i in 0 1; do
  ip addr add 10.99.0.$((i + 1))/24 dev veth$i
  ip link set veth$i up
done
for i in 0 1; do rdma link add rxe$i type rxe netdev veth$i; done
mkdir -p /dev/infiniband
for d in /sys/class/infiniband_verbs/uverbs*; do
  n=/dev/infiniband/${{d##*/}}
  [[ -e $n ]] || mknod "$n" c $(tr : ' ' < "$d/dev")
done
# UCX 1.13 takes soft-RoCE's own packets for strangers'.
export UCX_UD_VERBS_ETH_DGID_CHECK=n
echo "rdma-vm: up after $(cut -d' ' -f1 /proc/uptime) s"
touch "$share/up"
cd {folder}
trap - ERR
timeout -k 10 {seconds} {command} < /dev/null
status=$?
echo "rdma-vm: ended with status $status after $(cut -d' ' -f1 /proc/uptime) s"
[[ $status == 0 ]] || {{ echo "rdma-vm: the kernel's last words:"; dmesg | tail -n 25; }}
finish $status
"""


def kernel() -> Path:
    """The folder of Debian's kernel and its modules, taken out of the package."""
    folder = paths.cache("rdma-vm", "kernel")
    with paths.locked("rdma-vm"):
        if folder.exists():
            return folder
        with tempfile.TemporaryDirectory() as work:
            package = _download(Path(work))
            partial = folder.with_suffix(".partial")
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            subprocess.run(["dpkg-deb", "-x", str(package), str(partial)], check=True)
        if not (partial / "lib").exists():
            (partial / "lib").symlink_to("usr/lib")
        subprocess.run(["depmod", "-b", str(partial), _version(partial)], check=True)
        partial.rename(folder)
    return folder


def _download(folder: Path) -> Path:
    """Debian's kernel package of today, which the meta package names."""

    def ask(*command: str) -> str:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        return done.stdout if done.returncode == 0 else ""

    # Where nothing was ever installed, apt knows no packages yet.
    for refresh in (False, True):
        if refresh:
            subprocess.run(["apt-get", "update", "-q"], capture_output=True)
        depends = ask("apt-cache", "depends", "--important", KERNEL_PACKAGE)
        names = [x.split()[-1] for x in depends.splitlines() if "Depends: linux-image-" in x]
        # Unsigned, it is the same kernel and need not fit a signature.
        for name in [f"{x}-unsigned" for x in names] + names:
            ask("apt-get", "download", "-q", name)
            if files := list(folder.glob("linux-image-*.deb")):
                return files[0]
    raise RuntimeError(f"apt-get cannot download the kernel that {KERNEL_PACKAGE} depends on")


def _version(folder: Path) -> str:
    return next((folder / "lib" / "modules").iterdir()).name


def _initial_files(tree: Path) -> bytes:
    """What the kernel unpacks and starts first: busybox, and modules for the rest to be mounted."""
    version = _version(tree)
    modules: dict[str, Path] = {}
    for name in MODULES:
        shown = subprocess.run(
            ["modprobe", "-d", str(tree), "-S", version, "--show-depends", name],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for line in shown.splitlines():
            if line.startswith("insmod "):
                path = Path(line.split()[1])
                modules.setdefault(path.name, path)
    files: list[tuple[str, int, bytes]] = [
        (folder, 0o040755, b"")
        for folder in ("bin", "modules", "proc", "sys", "dev", "lower", "upper", "new")
    ]
    files.append(("bin/busybox", 0o100755, Path("/bin/busybox").read_bytes()))
    files.append(("init", 0o100755, INIT.encode()))
    order = []
    for name, path in modules.items():
        if path.suffix != ".ko":
            raise RuntimeError(f"{path}: only modules that are not compressed are understood")
        files.append((f"modules/{name}", 0o100644, path.read_bytes()))
        order.append(name)
    files.append(("modules/order", 0o100644, "\n".join(order).encode()))
    return b"".join(_cpio(*file, inode) for inode, file in enumerate(files, 1)) + _cpio(
        "TRAILER!!!", 0, b"", 0
    )


def _cpio(name: str, mode: int, content: bytes, inode: int) -> bytes:
    """One member of a "newc" archive, the form that the kernel reads."""

    def padded(data: bytes) -> bytes:
        return data + b"\0" * (-len(data) % 4)

    numbers = (inode, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name) + 1, 0)
    header = b"070701" + b"".join(b"%08x" % number for number in numbers)
    return padded(header + name.encode() + b"\0") + padded(content)


def run(command: list[str], seconds: int, say=print) -> int:
    """Runs `command` as root in a new machine, its output passed on; its exit status.

    Never longer than `seconds`, and what the machine needs to come up: 124 when it took longer,
    RuntimeError when the machine itself failed."""
    tree = kernel()
    parent = paths.REPOSITORY / "build" / "rdma-vm"
    parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=parent) as text:
        share = Path(text)
        (share / "initrd.gz").write_bytes(gzip.compress(_initial_files(tree), 1))
        (share / "guest.sh").write_text(
            GUEST.format(
                folder=shlex.quote(os.getcwd()), seconds=seconds, command=shlex.join(command)
            )
        )
        lines = _boot(tree, share, seconds, say)
        status = share / "status"
        if status.exists():
            return int(status.read_text())
        if (share / "up").exists():
            say("rdma-vm: the machine hung, or ended without a word")
            return 124
    raise RuntimeError("the machine did not come up; its last words:\n" + "\n".join(lines[-30:]))


def _boot(tree: Path, share: Path, seconds: int, say) -> list[str]:
    """Runs the machine to its end; what it said."""
    console = [
        *("setpriv", "--pdeathsig", "KILL", "--"),
        "qemu-system-x86_64",
        *("-accel", "tcg,thread=multi,tb-size=512", "-cpu", CPU),
        *("-smp", str(min(os.cpu_count() or 1, 4)), "-m", str(MEMORY_MIB)),
        *("-nodefaults", "-no-user-config", "-nographic", "-no-reboot", "-serial", "stdio"),
        *("-kernel", str(tree / "boot" / f"vmlinuz-{_version(tree)}")),
        *("-initrd", str(share / "initrd.gz")),
        "-append",
        f"console=ttyS0 quiet panic=-1 mitigations=off random.trust_cpu=on share={share}",
        "-fsdev",
        "local,id=root,path=/,security_model=none,readonly=on,multidevs=remap",
        *("-device", "virtio-9p-pci,fsdev=root,mount_tag=root"),
        *("-fsdev", f"local,id=share,path={share},security_model=none"),
        *("-device", "virtio-9p-pci,fsdev=share,mount_tag=share"),
    ]
    machine = subprocess.Popen(
        console,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    deadline = threading.Event()

    def watch() -> None:
        started = time.monotonic()
        while machine.poll() is None:
            late = time.monotonic() - started
            up = (share / "up").exists()
            if late > BOOT_SECONDS + seconds + 30 or (late > BOOT_SECONDS and not up):
                deadline.set()
                machine.kill()
                return
            time.sleep(0.5)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    lines: list[str] = []
    try:
        for raw in machine.stdout:
            line = TERMINAL.sub("", raw.decode(errors="replace")).strip("\r\n")
            if not line or line.startswith(("SeaBIOS", "Booting from")):
                continue
            lines.append(line)
            say(line)
    finally:
        machine.kill()
        machine.wait()
        watcher.join()
    return lines


def main(arguments: list[str]) -> None:
    """[--seconds N] COMMAND ..."""
    seconds = 600
    if arguments[:1] == ["--seconds"] and len(arguments) > 1 and arguments[1].isdigit():
        seconds, arguments = int(arguments[1]), arguments[2:]
    if not arguments:
        raise SystemExit(__doc__)
    sys.exit(run(arguments, seconds, lambda line: print(line, flush=True)))


if __name__ == "__main__":
    main(sys.argv[1:])
