"""The main job, step by step, on any cluster; `make demo` shows it and the tests assert on it.

A ModelService starts from storage, is scaled out, and its second instance takes everything from
the first. Each step says what it does and how far it is, and raises with a clear text if it fails.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from . import images, paths
from .cluster import Cluster, Object, wait_until
from .real import Machine, RealCluster

sys.path.insert(0, str(paths.E2E))
import make_checkpoint  # noqa: E402

SYSTEM = "rouse-system"
RELEASE = "rouse"
SAMPLES = [paths.SAMPLES / x for x in ("demo-volume.yaml", "demo.yaml")]
PROMPT = "Rouse wakes large models"
TOKENS = 24
START_SECONDS = 300


@dataclass
class Instance:
    """What is known of one pod that serves."""

    pod: Object
    tokens: list[int] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.pod["metadata"]["name"]

    @property
    def uid(self) -> str:
        return self.pod["metadata"]["uid"]

    def annotation(self, name: str) -> str:
        return self.pod["metadata"].get("annotations", {}).get(f"rouse.dev/{name}", "")

    @property
    def path(self) -> str:
        return self.annotation("path")

    @property
    def timeline(self) -> Object:
        return json.loads(self.annotation("timeline") or "null")

    @property
    def bytes_by_source(self) -> dict[str, int]:
        return json.loads(self.annotation("bytes-by-source") or "{}")

    @property
    def role(self) -> str:
        return self.pod["metadata"]["labels"]["rouse.dev/role"]

    def condition(self, kind: str) -> str:
        conditions = {x["type"]: x["status"] for x in self.pod["status"].get("conditions", [])}
        return conditions.get(kind, "")

    @property
    def serves(self) -> bool:
        """It says so, has told its timeline, and is Ready."""
        return (
            self.annotation("agent-state") == "Serving"
            and self.annotation("timeline") != ""
            and self.condition("Ready") == "True"
            and "deletionTimestamp" not in self.pod["metadata"]
        )

    @property
    def sleeps(self) -> bool:
        """A guard that can be woken, and is not Ready."""
        asleep = self.role == "Guard" and self.annotation("agent-state") == "Asleep"
        return asleep and self.condition("Ready") == "False"

    def seconds(self, phase: str) -> float:
        return sum(
            (x["endUs"] - x["startUs"]) / 1e6 for x in self.timeline["phases"] if x["name"] == phase
        )


def table(instances: list[Instance]) -> str:
    """The timelines side by side, then the bytes by source."""
    lines = [f"{'':14}" + "".join(f"{x.name + ' (' + x.path + ')':>22}" for x in instances)]
    # Of all of them, in the first one's order: a phase that only another has belongs to its total.
    names = list(dict.fromkeys(y["name"] for x in instances for y in x.timeline["phases"]))
    for name in names:
        cells = "".join(
            f"{x.seconds(name):>20.2f} s"
            if any(y["name"] == name for y in x.timeline["phases"])
            else f"{'-':>22}"
            for x in instances
        )
        lines.append(f"{name:14}{cells}")
    totals = "".join(f"{x.timeline['totalUs'] / 1e6:>20.2f} s" for x in instances)
    lines.append(f"{'total':14}{totals}")
    lanes = sorted({lane["name"] for x in instances for lane in x.timeline.get("lanes", [])})
    for name in lanes:
        cells = ""
        for x in instances:
            spans = [y for y in x.timeline.get("lanes", []) if y["name"] == name]
            taken = sum(y["endUs"] - y["startUs"] for y in spans) / 1e6
            cells += f"{taken:>20.2f} s" if spans else f"{'-':>22}"
        lines.append(f"{'| ' + name:14}{cells}   (beside the phases)")
    for source in ("storage", "peer"):
        cells = "".join(f"{x.bytes_by_source.get(source, 0) / 1e6:>19.1f} MB" for x in instances)
        lines.append(f"{'from ' + source:14}{cells}")
    transports = "".join(f"{x.annotation('transport') or '-':>22}" for x in instances)
    lines.append(f"{'transport':14}{transports}")
    return "\n".join(lines)


class Story:
    def __init__(
        self,
        cluster: Cluster,
        say: Callable[[str], None],
        namespace: str = "default",
        edit: Callable[[Object], None] = lambda service: None,
    ) -> None:
        """`edit` may change the sample's ModelService before it is applied."""
        self.cluster, self.say, self.namespace = cluster, say, namespace
        self.samples = self._samples()
        self.service = self._sample("ModelService")
        edit(self.service)
        for sample in self.samples:
            if sample["kind"] != "PersistentVolume":
                sample["metadata"]["namespace"] = namespace
        self.name: str = self.service["metadata"]["name"]
        self.port: int = self.service["spec"]["engine"].get("port", 8000)

    # ---- what is given

    @staticmethod
    def _samples() -> list[Object]:
        return [x for file in SAMPLES for x in yaml.safe_load_all(file.read_text()) if x]

    def _sample(self, kind: str) -> Object:
        found = [x for x in self.samples if x["kind"] == kind]
        if len(found) != 1:
            raise RuntimeError(f"{SAMPLES} have {len(found)} objects of kind {kind}, not one")
        return found[0]

    def import_images(self) -> None:
        """On our own node; elsewhere the images come from where $ROUSE_*_IMAGE says."""
        if isinstance(self.cluster, RealCluster):
            self.import_images_on(self.cluster.machine)

    def import_images_on(self, machine: Machine) -> None:
        for name, tar in images.rouse_tars(self.say).items():
            started = time.monotonic()
            machine.import_image(tar)
            seconds = time.monotonic() - started
            self.say(f"imported {images.rouse_reference(name)} ({seconds:.1f} s)")

    def install(self, *more: str) -> None:
        """As a user would: helm install, with the images' names as values."""
        values = []
        for part in ("operator", "agent"):
            reference = os.environ.get(f"ROUSE_{part.upper()}_IMAGE", images.rouse_reference(part))
            repository, _, tag = reference.rpartition(":")
            values += ["--set", f"{part}.image.repository={repository}"]
            values += ["--set", f"{part}.image.tag={tag}"]
        self.say(f"helm install {RELEASE} charts/rouse --namespace {SYSTEM}")
        self.cluster.helm(
            *("install", RELEASE, str(paths.CHART)),
            *("--namespace", SYSTEM, "--create-namespace", "--wait", "--timeout", "120s"),
            *(*values, *more),
        )

    def uninstall(self) -> None:
        """Takes away the samples and the chart (not the CRD, which helm leaves too)."""
        documents = yaml.safe_dump_all(self.samples)
        self.cluster.kubectl("delete", "--ignore-not-found", "-f", "-", stdin=documents)
        self.say(f"helm uninstall {RELEASE}")
        self.cluster.helm("uninstall", RELEASE, "--namespace", SYSTEM, "--wait")

    def provide_checkpoint(self) -> None:
        """Puts the checkpoint where the samples' volume is: in a folder of the node."""
        if not isinstance(self.cluster, RealCluster):
            return  # a user's cluster has it there already
        self.provide_checkpoint_on(self.cluster.machine)
        megabytes = make_checkpoint.weight_bytes() / 1e6
        self.say(f"checkpoint: Qwen3-MoE, random weights, {megabytes:.0f} MB, on the node")

    def provide_checkpoint_on(self, machine: Machine) -> None:
        folder = make_checkpoint.cached()
        volume = self._sample("PersistentVolume")["spec"]["hostPath"]["path"]
        claim = self.service["spec"]["model"]["storage"]["persistentVolumeClaim"]
        target = f"{volume}/{claim.get('path', '')}"
        machine.execute("mkdir", "-p", target)
        machine.execute("mount", "--bind", str(folder), target)

    # ---- the ModelService

    def apply(self) -> None:
        files = " ".join(f"-f {x.relative_to(paths.REPOSITORY)}" for x in SAMPLES)
        self.say(f"kubectl apply {files}")
        self.cluster.apply(self.samples)

    def scale(self, replicas: int) -> None:
        self.say(f"kubectl scale modelservice/{self.name} --replicas={replicas}")
        self.cluster.kubectl(
            *("scale", f"modelservice/{self.name}", f"--replicas={replicas}"),
            *("-n", self.namespace),
        )

    def pods(self) -> list[Object]:
        selector = f"rouse.dev/modelservice={self.name}"
        pods = self.cluster.list("pods", self.namespace, selector)
        return sorted(pods, key=lambda pod: pod["metadata"]["name"])

    def instances(self) -> list[Instance]:
        return [Instance(pod) for pod in self.pods()]

    def uids(self) -> set[str]:
        return {x.uid for x in self.instances()}

    def guard(self, replicas: int) -> None:
        """Keeps so many guards from now on."""
        spec = {"fastStart": {"profile": "Guarded"}, "guards": {"replicas": replicas}}
        patch = json.dumps({"spec": spec})
        self.say(f"kubectl patch modelservice/{self.name} --type=merge -p '{patch}'")
        self.cluster.kubectl(
            *("patch", "modelservice", self.name, "--type=merge", "-p", patch),
            *("-n", self.namespace),
        )

    def serving(self) -> list[Instance]:
        return [x for x in map(Instance, self.pods()) if x.serves]

    def await_pods(
        self, what: str, wanted: Callable[[dict[str, Instance]], bool], seconds: float
    ) -> dict[str, Instance]:
        """Waits until all its pods, by name, are as wanted; shows every change of state."""
        shown: dict[str, str] = {}

        def look() -> dict[str, Instance] | None:
            pods = self.pods()
            for pod in pods:
                self._show(pod, shown)
            found = {x["metadata"]["name"]: Instance(x) for x in pods}
            return found if wanted(found) else None

        return wait_until(what, seconds, look, 0.2)

    def await_serving(self, count: int, seconds: float = START_SECONDS) -> list[Instance]:
        """Waits for exactly `count` pods that all serve; shows every change of state."""
        restarts_allowed = 3

        def all_serve(instances: dict[str, Instance]) -> bool:
            for name, instance in instances.items():
                for status in instance.pod["status"].get("containerStatuses", []):
                    if status["restartCount"] > restarts_allowed:
                        raise RuntimeError(f"{name}: {status['name']} restarts")
            return len(instances) == count and all(x.serves for x in instances.values())

        what = f"{count} instances of {self.name} to serve"
        found = list(self.await_pods(what, all_serve, seconds).values())
        for instance in found:
            self.say(f"{instance.name} serves (path {instance.path})")
        return found

    def _show(self, pod: Object, shown: dict[str, str]) -> None:
        instance = Instance(pod)
        text = instance.annotation("agent-state") or pod["status"].get("phase", "")
        if "deletionTimestamp" in pod["metadata"]:
            text = "Terminating"
        message = instance.annotation("agent-message")
        if message:
            text += f" ({message})"
        uid = pod["metadata"]["uid"]
        if shown.get(uid) != text:
            shown[uid] = text
            self.say(f"  {instance.name}: {text}")

    def ask(self, instance: Instance, prompt: str = PROMPT, timeout: float = 60) -> list[int]:
        """The token ids of a greedy answer by vLLM's own OpenAI API."""
        answer = self.cluster.pod_request(
            instance.name,
            self.port,
            "/v1/completions",
            "POST",
            {
                "model": self.service["spec"]["model"]["name"],
                "prompt": prompt,
                "max_tokens": TOKENS,
                "temperature": 0,
                "return_token_ids": True,
            },
            self.namespace,
            timeout,
        )
        if answer.status != 200:
            raise RuntimeError(f"{instance.name}: HTTP {answer.status}: {answer.text[:500]}")
        tokens: list[int] = answer.json()["choices"][0]["token_ids"]
        if prompt == PROMPT:
            instance.tokens = tokens
        return tokens

    def delete(self) -> None:
        self.say(f"kubectl delete modelservice/{self.name}")
        self.cluster.kubectl(
            *("delete", "modelservice", self.name, "-n", self.namespace, "--timeout=60s")
        )
        wait_until(f"the pods of {self.name} to be gone", 90, lambda: not self.pods(), 0.5)

    def left_behind(self) -> list[str]:
        """Whatever of our instances still exists; empty is what it should be."""
        left = [f"pod {pod['metadata']['name']}" for pod in self.pods()]
        if not isinstance(self.cluster, RealCluster):
            return left
        script = Path(__file__).with_name("leftovers.py")
        for machine in self.cluster.machines():
            left += machine.execute(sys.executable, str(script)).splitlines()
        return left

    # ---- telling

    def explain(self) -> str:
        """The log lines that matter after a failure."""
        parts = []
        for pod in self.pods():
            name = pod["metadata"]["name"]
            for container in ("agent", "engine"):
                text = self.cluster.logs(name, container, self.namespace, 25)
                parts.append(f"---- {name}, {container}\n{text}")
            notes = pod["metadata"].get("annotations", {})
            parts.append(f"---- {name}, annotations\n{json.dumps(notes, indent=1)}")
        for pod in self.cluster.list("pods", SYSTEM):
            name = pod["metadata"]["name"]
            text = self.cluster.logs(name, "operator", SYSTEM, 40)
            parts.append(f"---- {name}, operator\n{text}")
        parts.append(f"---- events\n{self.cluster.events(lines=30)}")
        return "\n".join(parts)
