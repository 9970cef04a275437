"""The real cluster: control plane, containerd, kubelet and kube-proxy in namespaces of their own.

One node, or more (add_node). Everything of a node runs in its own pid, mount, network, uts, ipc and
cgroup namespaces below one `unshare` process; when that process ends, the kernel ends all the rest,
and with it the mounts and the network. What remains is a folder and empty cgroups, which close()
removes, and which the next start removes if this program could not.

The API server is reachable on a loopback port of the machine.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

from . import images, node, paths, pki
from .cluster import Cluster
from .control_plane import ControlPlane, Options
from .processes import Identity, Processes, tail, wait_until

CGROUPS = Path("/sys/fs/cgroup")
BOOT = "node"  # the recorded name of the unshare process


def nodes_folder() -> Path:
    return paths.cache("nodes")


def _create_cgroups(name: str) -> list[tuple[str, Path]]:
    """One group below each hierarchy's part that we are in (v1), or below the root (v2)."""
    if (CGROUPS / "cgroup.controllers").exists():
        wanted = {"cpu", "cpuset", "memory", "pids", "io"}
        enabled = set((CGROUPS / "cgroup.subtree_control").read_text().split())
        for controller in wanted - enabled:
            try:
                (CGROUPS / "cgroup.subtree_control").write_text(f"+{controller}")
            except OSError as error:
                raise RuntimeError(
                    f"cannot hand controller {controller} to a child of {CGROUPS}: {error}; run "
                    "where the root cgroup is free of processes, or has its controllers enabled"
                ) from error
        path = CGROUPS / name
        path.mkdir()
        return [("unified", path)]
    own = {}
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            own[controller.removeprefix("name=")] = path.strip("/")
    created = []
    for hierarchy in sorted(CGROUPS.iterdir()):
        controller = hierarchy.name
        if controller == "unified" or hierarchy.is_symlink() or not hierarchy.is_dir():
            continue
        first = controller.split(",")[0]
        path = hierarchy / own.get(first, "") / name
        path.mkdir(parents=True)
        if first == "cpuset":  # empty at birth on v1, which lets no process in
            for file in ("cpuset.cpus", "cpuset.mems"):
                (path / file).write_text((path.parent / file).read_text())
        created.append((controller, path))
    return created


def _remove_cgroups(state: Path) -> None:
    record = state / "cgroups"
    if not record.exists():
        return
    for line in record.read_text().splitlines():
        top = Path(line.split(" ", 1)[1])
        deadline = time.monotonic() + 10  # the kernel takes a moment to forget the dead
        while top.exists():
            for folder, _, _ in os.walk(top, topdown=False):
                try:
                    os.rmdir(folder)
                except OSError:
                    pass
            if time.monotonic() > deadline:
                raise RuntimeError(f"cgroup {top} still holds processes")
            if top.exists():
                time.sleep(0.05)


def tear_down(state: Path) -> None:
    """Ends the node whose state this is, if it runs, and removes all that is left of it."""
    processes = Processes(state)
    processes.known = {name: x for name, x in processes.known.items() if name == BOOT}
    processes.end_all(grace=0)
    _remove_cgroups(state)
    shutil.rmtree(state)


def take_down(state: Path) -> None:
    """tear_down(), but for a node that a sweep() finds without an owner meanwhile, and removes itself."""
    with paths.locked("sweep"):
        if state.exists():
            tear_down(state)


def sweep() -> None:
    """Removes what runs that were killed have left. Running nodes are not touched."""
    with paths.locked("sweep"):
        for state in nodes_folder().glob("*"):
            owner = state / "owner.json"
            try:
                name, pid, started = json.loads(owner.read_text())
            except (OSError, ValueError):
                continue
            if not Identity(name, pid, started).alive():
                tear_down(state)


class Machine:
    """One node that runs, or that was started: its namespaces and its folder."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.state = nodes_folder() / name
        self.boot: Identity | None = None

    def start(
        self,
        number: int,
        control_plane: Path,
        keep: bool,
        say,
        listener: socket.socket | None = None,
    ) -> None:
        """Begins its boot; await_ready() is to follow. `control_plane`: the first node's folder."""
        started = time.monotonic()
        images.clone_containerd(
            images.containerd_template(say), self.state / "root/var/lib/containerd"
        )
        say(f"copied the image store in {time.monotonic() - started:.1f} s")
        cgroups = _create_cgroups(f"rouse-{self.name}")
        text = "".join(f"{controller} {path}\n" for controller, path in cgroups)
        (self.state / "cgroups").write_text(text)
        settings = {
            "number": number,
            "controlPlane": str(control_plane),
            "listener": listener.fileno() if listener else None,
            "images": [str(images.pause_tar())],
        }
        (self.state / "node.json").write_text(json.dumps(settings))
        identity = Processes(self.state, keep).start(
            BOOT,
            ["unshare", "--fork", "--kill-child=KILL", "--pid", "--mount", "--net", "--uts"]
            + ["--ipc", "--propagation", "private", "--"]
            + [str(paths.E2E / "rouse_e2e/node_init.sh"), str(self.state)]
            + [node.name_of(number), node.address_of(number), sys.executable],
            pass_fds=[listener.fileno()] if listener else [],
            cwd=paths.E2E,
            env=dict(os.environ, PYTHONPATH=str(paths.E2E), PATH=f"{os.environ['PATH']}:/usr/sbin"),
        )
        self.boot = identity
        owner = [identity.name, identity.pid, identity.started]
        (self.state / "owner.json").write_text(json.dumps(owner))

    def await_ready(self, say) -> None:
        assert self.boot
        said = 0
        deadline = time.monotonic() + 300
        while not (self.state / "ready").exists():
            lines = (self.state / f"{BOOT}.log").read_text().splitlines()
            for line in lines[said:]:
                say(line)
            said = len(lines)
            if (self.state / "failed").exists() or not self.boot.alive():
                raise RuntimeError(f"the node did not start:\n{tail(self.state / 'node.log', 30)}")
            if time.monotonic() > deadline:
                raise RuntimeError(f"the node is not ready after 300 s: {self.state}/*.log")
            time.sleep(0.1)

    def inner_pid(self) -> int:
        """The pid, as the machine sees it, of the node's PID 1."""
        children = ""
        if self.boot and self.boot.alive():
            children = Path(f"/proc/{self.boot.pid}/task/{self.boot.pid}/children").read_text()
        if not children.strip():
            raise RuntimeError(f"node {self.name} does not run")
        return int(children.split()[0])

    def inside(self, *command: str) -> list[str]:
        """The command line that runs `command` in the node's namespaces."""
        return [
            *("nsenter", "-t", str(self.inner_pid()), "--mount", "--net", "--uts", "--ipc"),
            *("--pid", "--cgroup", "--", "env", f"KUBECONFIG={self.state}/admin.kubeconfig"),
            *(f"PATH={paths.tools()}:{os.environ['PATH']}:/usr/sbin", *command),
        ]

    def execute(self, *command: str, timeout: float = 120) -> str:
        result = subprocess.run(
            self.inside(*command),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        if result.returncode:
            raise RuntimeError(f"{' '.join(command)} on {self.name}: {result.stderr.strip()}")
        return result.stdout

    def import_image(self, tar: Path) -> None:
        self.execute(
            *("ctr", "--address", node.CONTAINERD_SOCKET, "-n", "k8s.io"),
            *("images", "import", str(tar)),
            timeout=300,
        )

    def collect(self, folder: Path, prefix: str) -> None:
        for log in self.state.glob("*.log"):
            shutil.copy(log, folder / f"{prefix}.{log.name}")


class RealCluster(Cluster):
    def __init__(self, name: str | None = None, keep: bool = False, say=lambda text: None) -> None:
        """Brings it up. `keep`: it outlives this program, until tear_down(). Needs root."""
        if os.geteuid() != 0:
            raise RuntimeError("the real cluster needs root (namespaces, cgroups, containerd)")
        sweep()
        self.name = name or f"node-{os.getpid()}"
        self.machine = Machine(self.name)
        self.more: dict[int, Machine] = {}
        self.state = self.machine.state
        if self.state.exists():
            raise RuntimeError(f"{self.state} exists; take that cluster down first")
        self.keep = keep
        super().__init__(self.state / "host.kubeconfig")
        images.containerd_template(say)
        self.state.mkdir(parents=True)
        try:
            self._start(say)
        except BaseException:
            self.close(force=True)
            raise

    def _start(self, say) -> None:
        # The node's own programs find everything there is under the same names later.
        ControlPlane(
            self.state,
            Processes(self.state),
            Options(node.name_of(0), node.ADDRESS, node.API_PORT),
        ).create_identities()
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            listener.listen(128)
            server = f"https://127.0.0.1:{listener.getsockname()[1]}"
            pki.write_kubeconfig(self.kubeconfig, self.state / "pki", "admin", server)
            self.machine.start(0, self.state, self.keep, say, listener)
        self.machine.await_ready(say)

    def add_node(self, number: int = 1, say=lambda text: None) -> Machine:
        """Brings up one more node, or one that was lost, which has nothing of what it held then. Its
        network is the first one's, where its only link ends."""
        self.lose_node(number)
        machine = self.more[number] = Machine(f"{self.name}-{number}")
        machine.state.mkdir(parents=True)
        machine.start(number, self.state, self.keep, say)
        wait_until(f"namespaces of {machine.name}", 30, lambda: self._link(number, machine))
        machine.await_ready(say)
        return machine

    def _link(self, number: int, machine: Machine) -> bool:
        try:
            there = machine.inner_pid()
        except RuntimeError:
            return False
        mine = f"to-{node.name_of(number)}"
        subprocess.run(
            ["ip", "link", "add", mine, "netns", str(self.inner_pid()), "type", "veth"]
            + ["peer", "name", node.UPLINK, "netns", str(there)],
            check=True,
        )
        self.execute("ip", "link", "set", mine, "master", node.BRIDGE, "up")
        to_its_pods = [node.pods_of(number), "via", node.address_of(number)]
        self.execute("ip", "route", "replace", *to_its_pods)
        return True

    def lose_node(self, number: int = 1) -> None:
        """As if its power went: all of its processes are gone at once."""
        if machine := self.more.pop(number, None):
            take_down(machine.state)

    @classmethod
    def existing(cls, name: str) -> RealCluster:
        """A cluster that another program started with keep=True."""
        self = cls.__new__(cls)
        self.machine, self.more = Machine(name), {}
        self.name, self.keep, self.state = name, True, self.machine.state
        if not (self.state / "ready").exists():
            raise RuntimeError(f"no cluster {name} in {nodes_folder()}")
        Cluster.__init__(self, self.state / "host.kubeconfig")
        self.machine.boot = Processes(self.state).known[BOOT]
        return self

    def close(self, force: bool = False) -> None:
        super().close()
        if not self.keep or force:
            for number in list(self.more):
                self.lose_node(number)
            take_down(self.state)

    def machines(self) -> list[Machine]:
        return [self.machine, *self.more.values()]

    # ---- on the first node

    def inner_pid(self) -> int:
        return self.machine.inner_pid()

    def inside(self, *command: str) -> list[str]:
        return self.machine.inside(*command)

    def execute(self, *command: str, timeout: float = 120) -> str:
        return self.machine.execute(*command, timeout=timeout)

    def import_image(self, tar: Path) -> None:
        for machine in self.machines():
            machine.import_image(tar)

    def collect(self, folder: Path) -> None:
        super().collect(folder)
        self.machine.collect(folder, "node")
        for number, machine in self.more.items():
            machine.collect(folder, node.name_of(number))
