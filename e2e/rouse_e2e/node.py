"""PID 1 of a real node: network, container runtime, kubelet, kube-proxy, and on the first the control plane.

    python -m rouse_e2e.node STATE      (started by node_init.sh, never by hand)

Reads STATE/node.json, says how far it is in STATE/boot.log, and ends up with STATE/ready or
STATE/failed. It never ends by itself; killing it ends everything in its pid namespace.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from pathlib import Path

from . import paths, pki
from .control_plane import ControlPlane, Options
from .processes import Processes, tail, wait_until

API_PORT = 6443
#: Between the nodes: the first one's bridge, and the others' only link, which ends there.
BRIDGE, UPLINK = "node0", "uplink"
CONTAINERD_SOCKET = "/run/containerd/containerd.sock"

CONTAINERD_CONFIG = """version = 2
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "localhost/pause:1"
  restrict_oom_score_adj = true
  disable_apparmor = true
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "/run/cni"
"""


def name_of(number: int) -> str:
    return f"node-{number}"


def address_of(number: int) -> str:
    return f"10.200.0.{number + 1}"


def pods_of(number: int) -> str:
    """The network of its pods."""
    return f"10.244.{number}.0/24"


ADDRESS = address_of(0)  # the API server's, too


def network_config(number: int) -> dict:
    ipam = {
        "type": "host-local",
        "ranges": [[{"subnet": pods_of(number)}]],
        "routes": [{"dst": "0.0.0.0/0"}],
    }
    plugin = {"type": "ptp", "mtu": 1500, "ipMasq": False, "ipam": ipam}
    return {"cniVersion": "0.4.0", "name": "pods", "plugins": [plugin]}


def command(*arguments: str) -> str:
    result = subprocess.run(arguments, capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"{' '.join(arguments)}: {result.stderr.strip() or result.stdout}")
    return result.stdout


def set_up_network(number: int) -> None:
    command("ip", "link", "set", "lo", "up")
    link = BRIDGE if number == 0 else UPLINK
    if number == 0:
        command("ip", "link", "add", BRIDGE, "type", "bridge")
    else:
        wait_until(f"the link {UPLINK}", 30, lambda: Path(f"/sys/class/net/{UPLINK}").exists())
    command("ip", "address", "add", f"{address_of(number)}/24", "dev", link)
    command("ip", "link", "set", link, "up")
    command("ip", "route", "add", "default", "via", ADDRESS)
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
    Path("/run/cni").mkdir()
    Path("/run/cni/10-pods.conflist").write_text(json.dumps(network_config(number)))


def forward(listener: socket.socket, target: tuple[str, int]) -> None:
    """Serves the machine's side: `listener` belongs to the machine's network, we to the node's."""

    async def pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
            writer.write_eof()
        except (OSError, RuntimeError):
            writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            onward = await asyncio.open_connection(*target)
        except OSError:
            writer.close()
            return
        await asyncio.gather(pipe(reader, onward[1]), pipe(onward[0], writer))
        onward[1].close()
        writer.close()

    async def run() -> None:
        server = await asyncio.start_server(serve, sock=listener)
        await server.serve_forever()

    threading.Thread(target=lambda: asyncio.run(run()), name="forward", daemon=True).start()


class Node:
    def __init__(self, state: Path) -> None:
        self.state = state
        self.settings = json.loads((state / "node.json").read_text())
        self.number = self.settings["number"]
        self.name, self.address = name_of(self.number), address_of(self.number)
        self.processes = Processes(state, keep=True)  # the pid namespace ends them
        self.began = time.monotonic()

    def say(self, what: str) -> None:
        print(f"{time.monotonic() - self.began:5.1f} s  {what}", flush=True)

    def boot(self) -> None:
        set_up_network(self.number)
        Path("/run/containerd").mkdir()
        Path("/run/containerd/config.toml").write_text(CONTAINERD_CONFIG)
        self.processes.start("containerd", ["containerd", "-c", "/run/containerd/config.toml"])
        control_plane = ControlPlane(
            Path(self.settings["controlPlane"]),  # whose keys and kubeconfigs all nodes use
            self.processes,
            Options(name_of(0), ADDRESS, API_PORT, kwok=False),
        )
        if self.number == 0:
            listener = socket.socket(fileno=self.settings["listener"])
            forward(listener, (ADDRESS, API_PORT))
            control_plane.start()
            self.say("control plane ready")
        wait_until("containerd's socket", 30, lambda: Path(CONTAINERD_SOCKET).exists())
        self.import_images()
        self.start_kubelet(control_plane)
        self.start_kube_proxy(control_plane)
        self.await_ready(control_plane.kubeconfig())
        self.say("node ready")

    def import_images(self) -> None:
        for tar in self.settings["images"]:
            import_image(tar)
        self.say(f"{len(self.settings['images'])} images imported")

    def start_kubelet(self, control_plane: ControlPlane) -> None:
        keys = control_plane.pki
        config = {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "failCgroupV1": False,
            "cgroupDriver": "cgroupfs",
            "containerRuntimeEndpoint": f"unix://{CONTAINERD_SOCKET}",
            "address": self.address,
            "healthzBindAddress": "127.0.0.1",
            "readOnlyPort": 0,
            "authentication": {
                "anonymous": {"enabled": False},
                "webhook": {"enabled": True},
                "x509": {"clientCAFile": f"{keys}/ca.crt"},
            },
            "authorization": {"mode": "Webhook"},
            "tlsCertFile": f"{keys}/kubelet.crt",
            "tlsPrivateKeyFile": f"{keys}/kubelet.key",
            "clusterDomain": "cluster.local",
            "clusterDNS": [ADDRESS],
            "resolvConf": "",
            "failSwapOn": False,
            "oomScoreAdj": 0,
            "evictionHard": {
                "memory.available": "100Mi",
                "nodefs.available": "1%",
                "imagefs.available": "1%",
            },
            "imageGCHighThresholdPercent": 100,
            "imageGCLowThresholdPercent": 99,
            "maxPods": 60,
            # What tests kill comes back soon, again and again: by default after 10 s, then 20 s, then 40 s.
            "crashLoopBackOff": {"maxContainerRestartPeriod": "3s"},
        }
        path = self.state / "kubelet.yaml"
        path.write_text(json.dumps(config))
        self.processes.start(
            "kubelet",
            [paths.tool("kubelet"), f"--config={path}", f"--node-ip={self.address}", "--v=2"]
            + [f"--kubeconfig={control_plane.kubeconfig(pki.kubelet(self.number))}"]
            + [f"--hostname-override={self.name}"],
        )

    def start_kube_proxy(self, control_plane: ControlPlane) -> None:
        config = {
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "mode": "nftables",
            "clientConnection": {"kubeconfig": str(control_plane.kubeconfig("kube-proxy"))},
            "hostnameOverride": self.name,
            "clusterCIDR": "10.244.0.0/16",
            "bindAddress": self.address,
            "healthzBindAddress": "127.0.0.1:10256",
            "metricsBindAddress": "127.0.0.1:10249",
            "conntrack": {
                "maxPerCore": 0,
                "min": 0,
                "tcpEstablishedTimeout": "0s",
                "tcpCloseWaitTimeout": "0s",
            },
        }
        path = self.state / "kube-proxy.yaml"
        path.write_text(json.dumps(config))
        self.processes.start("kube-proxy", [paths.tool("kube-proxy"), f"--config={path}", "--v=2"])

    def await_ready(self, kubeconfig: Path) -> None:
        os.environ["KUBECONFIG"] = str(kubeconfig)
        kubectl = paths.tool("kubectl")
        if self.number == 0:
            command(
                *(kubectl, "create", "clusterrolebinding", "e2e-kube-proxy"),
                *("--clusterrole=system:node-proxier", "--user=system:kube-proxy"),
            )

        def exists() -> bool:
            for program in ("kubelet", "kube-proxy", "containerd"):
                if not self.processes.alive(program):
                    log = tail(self.state / f"{program}.log")
                    raise RuntimeError(f"{program} ended:\n{log}")
            return bool(command(kubectl, "get", "node", self.name, "--ignore-not-found"))

        wait_until(f"node {self.name} to register (kubelet.log)", 90, exists, 0.2)
        command(kubectl, "wait", "--for=condition=Ready", f"node/{self.name}", "--timeout=90s")

    def watch(self) -> None:
        """Reaps what is re-parented to PID 1; starts a part of the node again when it ends, as an init
        does."""
        names = {identity.pid: name for name, identity in self.processes.known.items()}
        while True:
            try:
                pid, status = os.wait()
            except ChildProcessError:
                time.sleep(1)
                continue
            if pid in names:
                name = names.pop(pid)
                self.say(f"{name} ended: {os.waitstatus_to_exitcode(status)}; starting it again")
                time.sleep(1)
                names[self.processes.start_again(name).pid] = name


def import_image(tar: str) -> None:
    command("ctr", "--address", CONTAINERD_SOCKET, "-n", "k8s.io", "images", "import", tar)


def main() -> None:
    state = Path(sys.argv[1])
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    node = Node(state)
    try:
        node.boot()
    except Exception:
        traceback.print_exc()
        sys.stderr.flush()
        (state / "failed").touch()
    else:
        (state / "ready").touch()
    node.watch()


if __name__ == "__main__":
    main()
