"""A light cluster with the chart installed, and the real operator started under its account."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from rouse_e2e import paths
from rouse_e2e.cluster import Cluster, Object
from rouse_e2e.control_plane import Options, free_ports
from rouse_e2e.light import LightCluster
from rouse_e2e.processes import tail, wait_until

from .fake_faulty_proxy import FakeFaultyProxy

SYSTEM = "rouse-system"
ACCOUNT = f"system:serviceaccount:{SYSTEM}:rouse-operator"
AUDIT_POLICY = """
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- {level: Metadata, users: ["system:serviceaccount:rouse-system:rouse-operator"]}
- {level: None}
"""


class World:
    """The cluster, and what tests do with it."""

    def __init__(self, cluster: LightCluster, program: Path, audit: Path) -> None:
        self.cluster, self.program, self.audit_log = cluster, program, audit
        self.token = cluster.kubectl(
            *("create", "token", "rouse-operator", "-n", SYSTEM, "--duration=10h")
        ).strip()
        self.starts: list[tuple[str, str]] = []  # from when to when the API server was started anew
        self._numbers = itertools.count(1)

    def namespace(self) -> str:
        name = f"test-{next(self._numbers)}"
        self.cluster.kubectl("create", "namespace", name)
        wait_until(
            f"service account default in {name}",
            30,
            lambda: self.cluster.get("serviceaccount", "default", name),
        )
        return name

    def kubeconfig(self, path: Path, server: str = "") -> Path:
        """The operator's, by way of `server` if that is given."""
        path.write_text(
            json.dumps(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "clusters": [
                        {
                            "name": "c",
                            "cluster": {
                                "server": server or self.cluster.control_plane.server,
                                "certificate-authority": f"{self.cluster.control_plane.pki}/ca.crt",
                            },
                        }
                    ],
                    "users": [{"name": "u", "user": {"token": self.token}}],
                    "contexts": [
                        {"name": "x", "context": {"cluster": "c", "user": "u", "namespace": SYSTEM}}
                    ],
                    "current-context": "x",
                }
            )
        )
        return path

    def forget_lease(self) -> None:
        """As if the lease's time had passed: a killed operator cannot give it back."""
        self.cluster.kubectl("delete", "lease", "--all", "-n", SYSTEM)

    def audit(self) -> list[Object]:
        """What the API server saw from the operator's account, so far."""
        with open(self.audit_log) as file:
            return [json.loads(line) for line in file if line.endswith("\n")]


#: Which has no authorities: to read a system's takes a processor 0.07 s for each client.
AS_IN_ITS_IMAGE = {"SSL_CERT_FILE": "/nonexistent", "SSL_CERT_DIR": "/nonexistent"}


class Operator:
    """rouse-operator as a process that is started anew when it ends, as a kubelet would."""

    def __init__(
        self, world: World, folder: Path, name: str = "operator-0", server: str = "", *flags: str
    ) -> None:
        self.world, self.name, self.flags = world, name, flags
        self.port, self.scaler_port, self.tls_port = free_ports(3)
        self.log = folder / f"{name}.log"
        self.kubeconfig = world.kubeconfig(folder / f"{name}.kubeconfig", server)
        self.environment: dict[str, str] = {}  # beside ours; for the next start
        self.starts = 0
        self.exits: list[int] = []
        self.child: subprocess.Popen | None = None
        # Each start() has a number, and its watcher ends with it: a kill() and a start() that follow
        # each other quickly leave no old watcher that would start a second process. 0: none wanted.
        self._generation = 0
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()

    def start(self, wait: bool = True) -> Operator:
        with self._lock:
            generation = self._generation = next(self._numbers)
        self._spawn(generation)
        threading.Thread(target=self._watch, args=(generation,), daemon=True).start()
        if wait:
            self.wait_ready()
        return self

    def _spawn(self, generation: int) -> None:
        with self._lock, open(self.log, "ab") as log:
            if generation != self._generation:
                return
            self.starts += 1
            self.child = subprocess.Popen(
                [
                    *("setpriv", "--pdeathsig", "KILL", "--", str(self.world.program)),
                    f"--kubeconfig={self.kubeconfig}",
                    f"--port={self.port}",
                    f"--scaler-port={self.scaler_port}",
                    f"--tls-port={self.tls_port}",
                    "--authorities-secret=rouse-authorities",
                    "--agent-image=rouse-agent:test",
                    "--service-name=rouse-operator",
                    "--log-level=debug",
                    *self.flags,
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=os.environ
                | {"POD_NAME": self.name, "POD_NAMESPACE": SYSTEM, "POD_IP": "127.0.0.1"}
                | AS_IN_ITS_IMAGE
                | self.environment,
            )

    def _watch(self, generation: int) -> None:
        while True:
            with self._lock:
                if generation != self._generation:
                    return
                status = self.child.poll() if self.child else None
                if status is not None:
                    self.exits.append(status)
            if status is not None:
                time.sleep(0.5)
                self._spawn(generation)
            time.sleep(0.05)

    def get(self, path: str, timeout: float = 3) -> tuple[int, str]:
        import http.client

        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode(errors="replace")
        except http.client.HTTPException as error:
            raise OSError(str(error)) from error
        finally:
            connection.close()

    def answers(self, path: str, status: int = 200) -> bool:
        try:
            return self.get(path)[0] == status
        except OSError:
            return False

    def metric(self, name: str, **labels: str) -> float:
        """The sum of all series of this name with these labels; 0 if there is none."""
        code, text = self.get("/metrics")
        assert code == 200, text
        total = 0.0
        for line in text.splitlines():
            found = re.fullmatch(r"(\w+)(?:\{(.*)\})? (\S+)", line)
            if found and found[1] == name:
                have = dict(re.findall(r'(\w+)="([^"]*)"', found[2] or ""))
                if labels.items() <= have.items():
                    total += float(found[3])
        return total

    def wait_idle(self, seconds: float = 40) -> None:
        """Until it leads, has reconciled every ModelService that it knows, and none waits."""

        def idle() -> bool:
            known = self.metric("rouse_cached_objects", resource="modelservices")
            return (
                self.metric("leader_election_master_status") == 1
                and self.metric("controller_runtime_reconcile_total") >= max(known, 1)
                and self.metric("workqueue_depth") == 0
            )

        wait_until(f"{self.name} to lead and to be done", seconds, idle)

    def wait_ready(self, seconds: float = 40) -> None:
        try:
            wait_until(f"{self.name} to be ready", seconds, lambda: self.answers("/readyz"))
        except RuntimeError as error:
            raise RuntimeError(f"{error}; end of its log:\n{tail(self.log, 30)}") from error

    def kill(self) -> None:
        """SIGKILL, and it stays dead."""
        with self._lock:
            self._generation = 0
            if self.child is not None:
                self.child.kill()
                self.child.wait()

    def stop(self, seconds: float = 15) -> int:
        """SIGTERM; its exit status."""
        with self._lock:
            self._generation = 0
            if self.child is None:
                return 0
            self.child.send_signal(signal.SIGTERM)
        try:
            return self.child.wait(seconds)
        except subprocess.TimeoutExpired:
            self.child.kill()
            self.child.wait()
            raise RuntimeError(f"{self.name} did not end within {seconds} s of SIGTERM") from None


# ---- fixtures


@contextlib.contextmanager
def start_world(
    build_folder: Path,
    tmp_path_factory: pytest.TempPathFactory,
    chart: Path = paths.CHART,
    more_flags: Sequence[str] = (),
    **options: Any,
) -> Iterator[World]:
    named = os.environ.get("ROUSE_OPERATOR")
    program = Path(named) if named else build_folder / "operator" / "rouse-operator"
    assert program.exists(), f"{program} is missing: build it, or name it in ROUSE_OPERATOR"
    folder = tmp_path_factory.mktemp("audit")
    policy, log = folder / "policy.yaml", folder / "audit.log"
    policy.write_text(AUDIT_POLICY)
    log.touch()
    flags = [f"--audit-policy-file={policy}", f"--audit-log-path={log}"]
    # As on OpenShift: who makes pods with a blocking owner must be allowed to block it.
    flags += ["--enable-admission-plugins=OwnerReferencesPermissionEnforcement"]
    flags += more_flags
    with LightCluster(options=Options(apiserver_flags=flags, **options)) as cluster:
        # Installed as a user would, but the operator's processes are started by the tests.
        cluster.helm(
            *("install", "rouse", str(chart)),
            *("--namespace", SYSTEM, "--create-namespace", "--set", "operator.replicas=0"),
        )
        cluster.kubectl(
            *("wait", "--for=condition=Established", "crd/modelservices.rouse.dev", "--timeout=30s")
        )
        yield World(cluster, program, log)


@pytest.fixture(scope="session")
def world(build_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with start_world(build_folder, tmp_path_factory) as started:
        yield started


@pytest.fixture
def namespace(world: World) -> Iterator[str]:
    name = world.namespace()
    yield name
    world.cluster.kubectl("delete", "modelservices", "--all", "-n", name, "--wait=false")
    world.cluster.kubectl("delete", "pods", "--all", "-n", name, "--force", "--grace-period=0")
    world.cluster.kubectl("delete", "namespace", name, "--wait=false")


@pytest.fixture
def make_operator(world: World, tmp_path: Path) -> Iterator[Callable[..., Operator]]:
    made: list[Operator] = []

    def make(name: str = "operator-0", server: str = "", *flags: str) -> Operator:
        operator = Operator(world, tmp_path, name, server, *flags)
        made.append(operator)
        return operator

    world.forget_lease()
    yield make
    for operator in made:
        operator.kill()


@pytest.fixture
def operator(make_operator) -> Operator:
    return make_operator().start()


@pytest.fixture
def make_proxy(world: World) -> Iterator[Callable[[], FakeFaultyProxy]]:
    made: list[FakeFaultyProxy] = []

    def make() -> FakeFaultyProxy:
        control_plane = world.cluster.control_plane
        made.append(FakeFaultyProxy(control_plane.server, control_plane.pki))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture
def proxy(make_proxy) -> FakeFaultyProxy:
    return make_proxy()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo):
    report = yield
    if report.when == "call" and report.failed:
        folder = getattr(item, "funcargs", {}).get("tmp_path")
        for log in sorted(folder.glob("*.log")) if folder else []:
            report.sections.append((f"end of {log.name}", tail(log, 60)))
        up: Any = getattr(item, "funcargs", {}).get("proxy")
        if up:
            lines = "\n".join(str(x) for x in up.seen()[-60:])
            report.sections.append(("last requests through the proxy", lines))
        world = getattr(item, "funcargs", {}).get("world")
        if world:
            report.sections.append(("pods", pods_text(world.cluster)))
    return report


def pods_text(cluster: Cluster) -> str:
    try:
        return cluster.kubectl("get", "pods,modelservices", "-A", "-o", "wide", timeout=20)
    except (RuntimeError, subprocess.TimeoutExpired) as error:
        return str(error)
