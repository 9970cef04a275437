"""etcd, kube-apiserver, kube-controller-manager, kube-scheduler and kwok as processes."""

from __future__ import annotations

import os
import random
import socket
import ssl
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

from . import kwok_stages, paths, pki
from .processes import Processes, tail, wait_until

SERVICES = "10.96.0.0/16"
PODS = "10.244.0.0/16"


_reserved: list[socket.socket] = []


def free_ports(count: int) -> list[int]:
    """This process's own until it ends, though nobody listens there yet: below those that the kernel gives to
    connections, and of all processes of the tests only one can have the abstract address of a port."""
    first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    found: list[int] = []
    for port in random.sample(range(first - 12_000, first), 12_000):
        if len(found) == count:
            break
        mark = socket.socket(socket.AF_UNIX)
        with socket.socket() as probe:
            try:
                mark.bind(f"\0rouse-e2e-port-{port}")
                probe.bind(("127.0.0.1", port))
            except OSError:
                mark.close()
                continue
        _reserved.append(mark)
        found.append(port)
    return found


@dataclass
class Options:
    node: str = "node-0"
    address: str = "127.0.0.1"  # where the API server listens
    port: int = 0  # 0: any free one
    controller_manager: bool = True
    scheduler: bool = True
    kwok: bool = True
    pods: str = PODS  # where kwok's pods have their addresses; each node gets a /24 of it
    apiserver_flags: list[str] = field(default_factory=list)
    kwok_flags: list[str] = field(default_factory=list)


class ControlPlane:
    """Not thread-safe. Every start_* returns once the program answers that it is ready."""

    def __init__(self, folder: Path, processes: Processes, options: Options) -> None:
        self.folder, self.processes, self.options = folder, processes, options
        ports = free_ports(6)
        self.port = options.port or ports[0]
        self._etcd, self._etcd_peer, self._kcm, self._scheduler, self._kwok = ports[1:]
        self.pki = folder / "pki"
        self.server = f"https://{options.address}:{self.port}"

    def create_identities(self) -> None:
        pki.create(self.pki, self.options.node, [self.options.address])
        for user in [*pki.USERS, *map(pki.kubelet, range(pki.NODES))]:
            pki.write_kubeconfig(self.kubeconfig(user), self.pki, user, self.server)

    def kubeconfig(self, user: str = "admin") -> Path:
        return self.folder / f"{user}.kubeconfig"

    def start(self) -> None:
        self.start_etcd()
        self.start_all_but_etcd()

    def end_all_but_etcd(self) -> None:
        """Clients too: left alone, they are back only after a backoff of up to a minute."""
        for program in ("kwok", "kube-scheduler", "kube-controller-manager", "kube-apiserver"):
            self.processes.end(program)

    def start_all_but_etcd(self) -> None:
        self.start_apiserver()
        # Nothing below waits for anything else below: start all, then wait for all.
        if self.options.controller_manager:
            self.start_controller_manager()
        if self.options.scheduler:
            self.start_scheduler()
        if self.options.kwok:
            self.start_kwok()
        if self.options.scheduler:
            self._ready("kube-scheduler", f"https://127.0.0.1:{self._scheduler}/readyz", 60)
        if self.options.kwok:
            self._ready("kwok", f"http://127.0.0.1:{self._kwok}/healthz", 60)
        if self.options.controller_manager:
            # Until then the API server refuses pods.
            account = "/api/v1/namespaces/default/serviceaccounts/default"
            self._ready("kube-controller-manager", self.server + account, 60)

    def start_etcd(self) -> None:
        client, peer = (f"http://127.0.0.1:{x}" for x in (self._etcd, self._etcd_peer))
        self._start(
            "etcd",
            *("--data-dir", f"{self.folder}/etcd", "--unsafe-no-fsync", "--log-level", "warn"),
            *("--listen-client-urls", client, "--advertise-client-urls", client),
            *("--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer),
            *("--initial-cluster", f"default={peer}"),
        )
        self._ready("etcd", f"{client}/readyz", 60)

    def start_apiserver(self) -> None:
        # No aggregation layer, and below no signing controllers: nobody here uses them, and each
        # certificate that a program reads costs one of the machine's few inotify instances.
        keys = self.pki
        if self.options.address == "127.0.0.1":
            endpoint = "--endpoint-reconciler-type=none"  # an Endpoint must not be loopback
        else:
            endpoint = f"--advertise-address={self.options.address}"
        admission = "--enable-admission-plugins=NodeRestriction"
        if not self.options.controller_manager:  # nobody makes the default service accounts
            admission = "--disable-admission-plugins=ServiceAccount"
        self._start(
            "kube-apiserver",
            f"--etcd-servers=http://127.0.0.1:{self._etcd}",
            f"--bind-address={self.options.address}",
            f"--secure-port={self.port}",
            endpoint,
            f"--tls-cert-file={keys}/kube-apiserver.crt",
            f"--tls-private-key-file={keys}/kube-apiserver.key",
            f"--client-ca-file={keys}/ca.crt",
            f"--token-auth-file={keys}/tokens.csv",
            "--authorization-mode=Node,RBAC",
            admission,
            "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
            f"--service-account-signing-key-file={keys}/sa.key",
            f"--service-account-key-file={keys}/sa.pub",
            f"--kubelet-client-certificate={keys}/kubelet-client.crt",
            f"--kubelet-client-key={keys}/kubelet-client.key",
            "--kubelet-preferred-address-types=InternalIP,Hostname",
            f"--service-cluster-ip-range={SERVICES}",
            "--allow-privileged=true",
            "--profiling=false",
            *self.options.apiserver_flags,
        )
        self._ready("kube-apiserver", f"{self.server}/readyz", 120)

    def start_controller_manager(self) -> None:
        self._start(
            "kube-controller-manager",
            *self._client_flags("kube-controller-manager", self._kcm),
            "--use-service-account-credentials",
            # By default it starts its controllers, and acts, at 20 requests a second: for five seconds.
            *("--kube-api-qps=1000", "--kube-api-burst=1000"),
            f"--service-account-private-key-file={self.pki}/sa.key",
            f"--root-ca-file={self.pki}/ca.crt",
            "--allocate-node-cidrs",
            f"--cluster-cidr={self.options.pods}",
            f"--service-cluster-ip-range={SERVICES}",
        )

    def start_scheduler(self) -> None:
        self._start("kube-scheduler", *self._client_flags("kube-scheduler", self._scheduler))

    def start_kwok(self) -> None:
        stages = self.folder / "kwok-stages.yaml"
        text = (paths.tools() / "kwok-stages.yaml").read_text()
        stages.write_text(kwok_stages.with_gates(text))
        self._start(
            "kwok",
            f"--kubeconfig={self.kubeconfig('kwok')}",
            "--manage-all-nodes=false",
            "--manage-nodes-with-annotation-selector=kwok.x-k8s.io/node=fake",
            f"--config={stages}",
            f"--server-address=127.0.0.1:{self._kwok}",
            "--node-ip=127.0.0.1",
            "--node-lease-duration-seconds=40",
            f"--cidr={self.options.pods}",
            *self.options.kwok_flags,
        )

    def _client_flags(self, user: str, port: int) -> list[str]:
        return [
            f"--kubeconfig={self.kubeconfig(user)}",
            "--leader-elect=false",
            "--bind-address=127.0.0.1",
            f"--secure-port={port}",
            "--authorization-always-allow-paths=/healthz,/readyz,/livez,/metrics",
        ]

    def _start(self, program: str, *flags: str) -> None:
        # Collecting garbage is a fifth of what these compute while they start.
        environment = dict(os.environ, GOGC="400")
        self.processes.start(program, [paths.tool(program), *flags], env=environment)

    def _ready(self, program: str, url: str, seconds: float) -> None:
        def answers() -> bool:
            if not self.processes.alive(program):
                log = self.folder / f"{program}.log"
                raise RuntimeError(f"{program} ended:\n{tail(log)}")
            return self._get(url)

        wait_until(f"{program} to be ready ({self.folder}/{program}.log)", seconds, answers, 0.05)

    def _get(self, url: str) -> bool:
        context = None
        if url.startswith(self.server):
            context = ssl.create_default_context(cafile=str(self.pki / "ca.crt"))
        elif url.startswith("https:"):
            context = ssl._create_unverified_context()  # the scheduler's own, on loopback
        token = (self.pki / "admin.token").read_text()
        request = urllib.request.Request(url)
        if url.startswith(self.server):
            request.add_header("Authorization", f"Bearer {token}")
        try:
            handlers = [urllib.request.ProxyHandler({})]
            if context:
                handlers.append(urllib.request.HTTPSHandler(context=context))
            with urllib.request.build_opener(*handlers).open(request, timeout=5) as answer:
                return answer.status == 200
        except OSError:
            return False
