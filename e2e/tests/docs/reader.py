"""Who reads a page and types what stands there, on a cluster whose nodes kwok plays.

The API server is a real one, so what it accepts, refuses and answers is real; helm, kubectl, kustomize and our
plugin are. No pod runs: the operator is a process of the test, beside the pods that the chart makes, and
instances say that they serve as fakes do.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
from pathlib import Path

import yaml

from rouse_e2e import go_modules, paths
from rouse_e2e.cluster import Cluster
from rouse_e2e.light import LightCluster
from rouse_e2e.processes import wait_until

from ..operator.conftest import SYSTEM, Operator, World
from ..operator.fake_agent_reports import FakeAgents

#: What our pages leave to the reader, in capitals.
PLACEHOLDERS = {
    "REGISTRY": "registry.example.com",
    "NAME": "qwen3",
    "POD": "qwen3-0",
    "N": "3",
    "PATH/TO": str(paths.REPOSITORY),
}
SECONDS = 600
INSTALLS = {
    "helm install rouse ": "helm",
    "kubectl apply --server-side -k config/default": "kustomize",
}


def filled(text: str) -> str:
    for name, value in PLACEHOLDERS.items():
        text = re.sub(rf"\b{name}\b", value, text)
    return text


def variants(text: str) -> list[str]:
    """What stands in brackets may be left out."""
    if not re.search(r" \[\S+\]", text):
        return [filled(text)]
    return [filled(re.sub(r" \[\S+\]", "", text)), filled(re.sub(r" \[(\S+)\]", r" \1", text))]


def given(cluster: Cluster) -> None:
    """What our pages take for granted: GPUs, a volume with models, a priority, the kinds of others."""
    room = {"cpu": "1000", "memory": "10Ti", "pods": "1000", "nvidia.com/gpu": "64"}
    cluster.apply(
        [
            {
                "apiVersion": "v1",
                "kind": "Node",
                "metadata": {"name": "node-0", "annotations": {"kwok.x-k8s.io/node": "fake"}},
                "status": {"allocatable": room, "capacity": room},
            },
            {
                "apiVersion": "scheduling.k8s.io/v1",
                "kind": "PriorityClass",
                "metadata": {"name": "low-priority"},
                "value": -1,
            },
            yaml.safe_load((paths.SAMPLES / "demo-volume.yaml").read_text()),
            *(
                x
                for x in yaml.safe_load_all((paths.SAMPLES / "demo.yaml").read_text())
                if x["kind"] == "PersistentVolumeClaim"
            ),
        ]
    )
    for file in (
        *go_modules.keda_crds(),
        *go_modules.inference_crds(),
        *go_modules.prometheus_operator_crds(),
    ):
        cluster.kubectl("apply", "--server-side", "-f", str(file))
    cluster.kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=30s")


class Reader:
    def __init__(self, build_folder: Path, folder: Path) -> None:
        self.build, self.folder = build_folder, folder
        self.installed = ""  # by what
        self.registry = folder / "registry"
        self._cluster: LightCluster | None = None
        self._parts = contextlib.ExitStack()
        programs = folder / "bin"
        for each in (programs, self.registry, folder / "home"):
            each.mkdir()
        fake = Path(__file__).with_name("fake_docker.py")
        for name in ("docker", "buildah"):
            (programs / name).write_text(f'#!/bin/sh\nexec {sys.executable} {fake} {name} "$@"\n')
            (programs / name).chmod(0o755)

    def close(self) -> None:
        self._parts.close()
        self._cluster, self.installed = None, ""

    @property
    def cluster(self) -> LightCluster:
        if self._cluster is None:
            self._cluster = self._parts.enter_context(LightCluster(nodes=0))
            given(self._cluster)
        return self._cluster

    def environment(self) -> dict[str, str]:
        home = self.folder / "home"
        folders = [self.folder / "bin", home / ".local/bin", self.build / "operator/kubectl"]
        folders += [self.build / "operator", paths.tools(), Path("/usr/sbin"), Path("/usr/bin")]
        return dict(
            os.environ,
            PATH=":".join([*map(str, folders), os.environ["PATH"]]),
            HOME=str(home),
            ROUSE_CACHE=str(paths.cache()),
            FAKE_REGISTRY=str(self.registry),
            **({"KUBECONFIG": str(self._cluster.kubeconfig)} if self._cluster else {}),
        )

    def shell(self, text: str, allowed: tuple[int, ...] = (0,)) -> str:
        print(f"$ {text}", flush=True)
        result = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", text],
            cwd=paths.REPOSITORY,
            env=self.environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=SECONDS,
        )
        print(result.stdout, flush=True)
        assert result.returncode in allowed, f"{text}: status {result.returncode}: {result.stdout}"
        return result.stdout

    def type(self, text: str, allowed: tuple[int, ...] = (0,)) -> None:
        """One command of a page, in its order."""
        program = text.split()[0]
        how = next((by for start, by in INSTALLS.items() if text.startswith(start)), "")
        if how and self.installed:  # an alternative to what was there before
            self.close()
        if program in ("kubectl", "helm") and self._cluster is None:
            self.cluster  # noqa: B018  (comes up)
        if not how and program in ("kubectl", "helm") and not self.installed:
            self.install()
        if text.startswith(("helm upgrade", "helm uninstall")) and self.installed != "helm":
            self.close()
            self.install()
        self.shell(text, allowed)
        if how:
            self.start_operator(how)
        if text.startswith("helm uninstall"):
            self.close_operator()
        if text.startswith("kubectl apply -f"):
            self.await_instances()

    # ---- what a page takes for granted

    def install(self) -> None:
        """As its neighbours say, with ModelServices that serve."""
        self.cluster.helm(
            *("install", "rouse", str(paths.CHART), "-n", SYSTEM, "--create-namespace")
        )
        self.start_operator("helm")
        for sample in ("guarded.yaml", "demo.yaml"):
            self.cluster.apply(paths.SAMPLES / sample)
        self.await_instances()

    def start_operator(self, how: str) -> None:
        self.installed = how
        cluster = self.cluster
        cluster.kubectl(
            *("wait", "--for=condition=Established", "crd/modelservices.rouse.dev", "--timeout=30s")
        )
        world = World(cluster, self.build / "operator" / "rouse-operator", self.folder / "none")
        self.operator = Operator(world, self.folder)
        self._parts.callback(self.operator.kill)
        self.operator.start()
        wait_until("it to lead", 40, lambda: self.operator.metric("leader_election_master_status"))
        self._parts.enter_context(FakeAgents(cluster, "default", self.operator.tls_port))

    def close_operator(self) -> None:
        self.operator.kill()
        self.installed = "gone"

    def await_instances(self) -> None:
        """Until every ModelService has an instance that serves."""

        def all_serve() -> bool:
            services = self.cluster.list("modelservices", "*")
            return all(x.get("status", {}).get("readyReplicas", 0) > 0 for x in services)

        wait_until("instances to serve", 60, all_serve)
