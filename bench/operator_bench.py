#!/usr/bin/env python3
"""How fast the operator is, and how much memory it takes, against a real API server.

    bench/operator_bench.py [--operator PROGRAM] [--samples N] [--out FILE]

Times from a scale patch to the pod create call are the API server's own (its audit log, whole
microseconds): from the moment the patch was answered to the moment the create arrived. That is less
than nothing where the watch told the operator before the patch's own answer was out; how often, is a
figure too. kwok plays the nodes; nothing runs in the pods.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY / "e2e"))

from figures import Figure, write  # noqa: E402
from rouse_e2e.control_plane import PODS, Options, free_ports  # noqa: E402
from rouse_e2e.light import LightCluster  # noqa: E402
from rouse_e2e.processes import wait_until  # noqa: E402

NAMESPACE = "bench"
SYSTEM = "rouse-system"
AUDIT_POLICY = """
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- level: Metadata
  verbs: [create, patch, list]
  resources: [{group: "", resources: [pods]}, {group: rouse.dev, resources: ["modelservices/scale", "modelservices"]}]
- level: None
"""
EACH = 20  # instances of one ModelService


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


class Audit:
    """Reads the API server's audit log as it grows."""

    def __init__(self, path: Path) -> None:
        self.file = open(path)
        self.entries: list[dict] = []

    def read(self) -> list[dict]:
        while True:
            at = self.file.tell()
            line = self.file.readline()
            if not line.endswith("\n"):
                self.file.seek(at)
                return self.entries
            self.entries.append(json.loads(line))


def moment(text: str) -> float:
    return datetime.datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()


def modelservice(name: str, replicas: int, **spec: object) -> dict:
    return {
        "apiVersion": "rouse.dev/v1alpha1",
        "kind": "ModelService",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {
            "replicas": replicas,
            "model": {"name": "bench/model", "storage": {"hostPath": {"path": "/models"}}},
            "engine": {"image": "engine:bench", "args": ["--max-model-len=4096"]},
            "fastStart": {"weights": {"source": "Storage"}},
            **spec,
        },
    }


class Bench:
    """A light cluster with the chart installed, and the operator as a process under its account."""

    def __init__(
        self, program: Path, folder: Path, audit_policy: str, pods: str = PODS, nodes: int = 2
    ) -> None:
        self.program, self.folder = program, folder
        policy, log = folder / "policy.yaml", folder / "audit.log"
        policy.write_text(audit_policy)
        log.touch()
        flags = [f"--audit-policy-file={policy}", f"--audit-log-path={log}"]
        self.cluster = LightCluster(options=Options(apiserver_flags=flags, pods=pods), nodes=nodes)
        self.audit = Audit(log)
        chart = str(REPOSITORY / "charts" / "rouse")
        self.cluster.helm(
            *("install", "rouse", chart, "-n", SYSTEM, "--create-namespace"),
            *("--set", "operator.replicas=0"),
        )
        self.cluster.kubectl("create", "namespace", NAMESPACE)
        self.cluster.kubectl(
            *("wait", "--for=condition=Established", "crd/modelservices.rouse.dev", "--timeout=60s")
        )
        token = self.cluster.kubectl("create", "token", "rouse-operator", "-n", SYSTEM).strip()
        self.kubeconfig = folder / "operator.kubeconfig"
        self.kubeconfig.write_text(self.cluster.kubeconfig.read_text())
        environment = dict(os.environ, KUBECONFIG=str(self.kubeconfig))
        subprocess.run(
            ["kubectl", "config", "set-credentials", "admin", f"--token={token}"],
            check=True,
            stdout=subprocess.DEVNULL,
            env=dict(environment, PATH=self.cluster.environment()["PATH"]),
        )
        self.port, self.tls_port = free_ports(2)
        self.child: subprocess.Popen | None = None

    def close(self) -> None:
        if self.child:
            self.child.kill()
            self.child.wait()
        self.cluster.close()

    def start_operator(self, *flags: str) -> None:
        with open(self.folder / "operator.log", "ab") as log:
            self.child = subprocess.Popen(
                [
                    *("setpriv", "--pdeathsig", "KILL", "--", str(self.program)),
                    *(f"--kubeconfig={self.kubeconfig}", f"--port={self.port}"),
                    *(f"--tls-port={self.tls_port}", "--authorities-secret=rouse-authorities"),
                    *("--agent-image=rouse-agent:bench", "--service-name=rouse-operator", *flags),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=dict(os.environ, POD_NAME="bench", POD_NAMESPACE=SYSTEM),
            )

    def stop_operator(self) -> None:
        assert self.child
        self.child.terminate()
        self.child.wait(30)

    def metrics(self) -> str:
        import urllib.request

        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"http://127.0.0.1:{self.port}/metrics", timeout=10) as answer:
            return answer.read().decode()

    def ready_pods(self) -> int:
        path = f"/api/v1/namespaces/{NAMESPACE}/pods?fieldSelector=status.phase%3DRunning"
        items = self.cluster.request("GET", path + "&resourceVersion=0", timeout=120).json()[
            "items"
        ]
        return sum("deletionTimestamp" not in x["metadata"] for x in items)

    def grow_to(self, services: int) -> None:
        known = {x["metadata"]["name"] for x in self.cluster.list("modelservices", NAMESPACE)}
        wanted = [f"s{i}" for i in range(services)]
        self.cluster.apply([modelservice(x, EACH) for x in wanted if x not in known])
        count = services * EACH
        wait_until(f"{count} pods to run", 600, lambda: self.ready_pods() == count, 2)
        self.wait_quiet()

    def wait_quiet(self) -> None:
        """Until the operator has seen everything: all statuses are right, and stay untouched."""

        def settled() -> bool:
            found = self.cluster.list("modelservices", NAMESPACE)
            return all(
                x.get("status", {}).get("readyReplicas") == x["spec"]["replicas"] for x in found
            )

        wait_until("all statuses to be right", 300, settled, 1)
        time.sleep(3)

    # ---- what is measured

    def latencies(self, services: int, samples: int) -> list[float]:
        result = []
        for number in range(samples):
            name = f"s{number % services}"
            path = f"/apis/rouse.dev/v1alpha1/namespaces/{NAMESPACE}/modelservices/{name}/scale"
            begun = len(self.audit.read())
            self.scale(path, EACH + 1)
            seconds = wait_until("the pod create call", 30, lambda: self.latency(begun, name), 0.01)
            result.append(seconds)
            wait_until("the pod to run", 60, lambda: self.ready_pods() == services * EACH + 1, 0.2)
            self.scale(path, EACH)
            wait_until("the pod to go", 60, lambda: self.ready_pods() == services * EACH, 0.2)
            time.sleep(0.2)
            if number % 20 == 19:
                say(f"  {number + 1} of {samples} scale-outs")
        return result

    def scale(self, path: str, replicas: int) -> None:
        answer = self.cluster.request(
            "PATCH", path, {"spec": {"replicas": replicas}}, kind="application/merge-patch+json"
        )
        assert answer.status == 200, answer.text

    def latency(self, begun: int, name: str) -> float | None:
        """Seconds from the answer to the scale patch to the arrival of the create call; may be < 0."""
        answered = arrived = None
        for entry in self.audit.read()[begun:]:
            what = entry["objectRef"]
            if what.get("subresource") == "scale" and what["name"] == name:
                answered = moment(entry["stageTimestamp"])
            elif (
                answered is not None
                and what["resource"] == "pods"
                and entry["user"]["username"].endswith(":rouse-operator")
                and entry["verb"] in ("create", "patch")
                and entry["responseStatus"]["code"] == 201
            ):
                arrived = moment(entry["requestReceivedTimestamp"])
        if arrived is None:
            return None
        return arrived - answered

    def memory_mb(self, key: str) -> float:
        assert self.child
        text = Path(f"/proc/{self.child.pid}/status").read_text()
        found = re.search(rf"^{key}:\s+(\d+) kB", text, re.M)
        assert found
        return int(found[1]) * 1024 / 1e6


def percentile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def default_program() -> Path:
    build = Path(os.environ.get("ROUSE_BUILD", REPOSITORY / "build" / "bench"))
    return build / "operator" / "rouse-operator"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--operator", type=Path, default=default_program())
    parser.add_argument("--samples", type=int, default=100)
    parser.add_argument(
        "--out", type=Path, default=REPOSITORY / "docs" / "benchmarks" / "operator.json"
    )
    options = parser.parse_args()
    say(f"load average {os.getloadavg()[0]:.2f} before the start, {options.samples} samples")
    figures: list[Figure] = []

    def figure(what: str, value: float, unit: str, limit: float) -> None:
        ratio = round(value / limit, 3)
        figures.append(Figure(what, round(value, 4), unit, f"limit {limit:g} {unit}", ratio))
        say(f"  {what}: {value:.4g} {unit}")

    with tempfile.TemporaryDirectory(prefix="rouse-bench-") as work:
        # A node takes 1,000 pods, and beside as many there are some on their way in or out.
        bench = Bench(options.operator, Path(work), AUDIT_POLICY)
        try:
            bench.start_operator()
            say("making 500 pods of 25 ModelServices")
            bench.grow_to(25)
            seconds = bench.latencies(25, options.samples)
            label = "scale patch accepted to pod create call, 500 pods cached"
            figure(f"{label}, median", percentile(seconds, 0.5) * 1e3, "ms", 30)
            figure(f"{label}, p99", percentile(seconds, 0.99) * 1e3, "ms", 100)
            early = 100 * sum(x < 0 for x in seconds) / len(seconds)
            figures.append(Figure(f"{label}, create before the patch's answer", early, "%"))
            say("making 1,000 pods of 50 ModelServices")
            bench.grow_to(50)
            resident = bench.memory_mb("VmRSS")
            # Starting afresh is the other way to have them cached, and shows what a list costs.
            bench.stop_operator()
            bench.start_operator()
            wait_until(
                "the new operator to be ready", 60, lambda: relist_seconds(bench) is not None
            )
            time.sleep(5)
            resident = max(resident, bench.memory_mb("VmRSS"))
            label = "operator resident memory, 1,000 pods and 50 ModelServices"
            figure(label, resident, "MB", 60)
            relist = relist_seconds(bench)
            assert relist is not None
            figure("relist of 1,000 pods", relist, "s", 0.5)
        finally:
            bench.close()
    write("operator", figures, options.out, keep=True)


def relist_seconds(bench: Bench) -> float | None:
    """How long the operator's informer says its last full list of pods took."""
    try:
        text = bench.metrics()
    except OSError:
        return None
    found = re.search(r"^rouse_informer_last_list_seconds\{[^}]*pods[^}]*\} (\S+)", text, re.M)
    return float(found[1]) if found and float(found[1]) > 0 else None


if __name__ == "__main__":
    main()
