"""The operator, KEDA itself and a HorizontalPodAutoscaler; only agents and their load are fakes.

Not among the tests of `make test`: building KEDA takes long. `make test-keda` runs it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from rouse_e2e import keda, paths
from rouse_e2e.cluster import Object
from rouse_e2e.processes import wait_until

from .conftest import Operator, World, start_world
from .fake_agent_reports import FakeAgents
from .modelservice import NAME, modelservice, pods, wait_pods

#: KEDA takes back the last replica when it asks, no sooner: as often as by default. What it knows at
#: once it was told.
POLLING_S = 30
MOST = 3


@pytest.fixture(scope="module")
def world(build_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    flags = keda.aggregation_flags(tmp_path_factory.mktemp("front-proxy"))
    with start_world(build_folder, tmp_path_factory, more_flags=flags) as started:
        keda.Keda(started.cluster)
        yield started


def scaled_object(operator: Operator, namespace: str) -> Object:
    """The sample, quicker, and down to zero."""
    sample = yaml.safe_load((paths.SAMPLES / "keda.yaml").read_text())
    sample["metadata"] = {"name": NAME, "namespace": namespace}
    spec = sample["spec"]
    spec["scaleTargetRef"]["name"] = NAME
    spec |= {"pollingInterval": POLLING_S, "cooldownPeriod": 5}
    spec |= {"minReplicaCount": 0, "maxReplicaCount": MOST}
    behavior = spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    behavior["scaleDown"] = {"stabilizationWindowSeconds": 0}
    spec["triggers"][0]["metadata"]["scalerAddress"] = f"127.0.0.1:{operator.scaler_port}"
    return sample


class Scaled:
    def __init__(self, world: World, namespace: str) -> None:
        self.cluster, self.namespace = world.cluster, namespace

    def condition(self, kind: str) -> str:
        found = self.cluster.get("scaledobject.keda.sh", NAME, self.namespace) or {}
        said = found.get("status", {}).get("conditions", [])
        return next((x["status"] for x in said if x["type"] == kind), "")

    def replicas(self) -> int:
        found = self.cluster.get("modelservice", NAME, self.namespace)
        assert found
        return found["spec"]["replicas"]

    def wait(self, what: str, seconds: float, condition) -> float:
        begun = time.monotonic()
        wait_until(what, seconds, condition)
        return time.monotonic() - begun


@pytest.mark.timeout(600)
def test_keda_scales_a_modelservice_by_its_load_from_one_to_many_to_none_and_back(
    world: World, namespace: str, operator: Operator
):
    cluster, scaled = world.cluster, Scaled(world, namespace)
    cluster.apply([modelservice(namespace, 1)])
    with FakeAgents(cluster, namespace, operator.tls_port) as agents:
        agents.all = {"load": {"running": 3, "waiting": 0}}
        wait_pods(cluster, namespace, 1)
        cluster.apply([scaled_object(operator, namespace)])
        scaled.wait("KEDA to take the trigger", 60, lambda: scaled.condition("Ready") == "True")
        scaled.wait("KEDA to see load", 30, lambda: scaled.condition("Active") == "True")
        hpa = cluster.get("hpa", f"keda-hpa-{NAME}", namespace)
        assert hpa and hpa["spec"]["metrics"][0]["external"]["target"]["averageValue"] == "8"

        # More load than one replica shall have, on each: the HPA goes to the most.
        agents.all = {"load": {"running": 8, "waiting": 4}}
        scaled.wait(f"{MOST} replicas", 120, lambda: scaled.replicas() == MOST)
        wait_pods(cluster, namespace, MOST)

        agents.all = {"load": {"running": 0, "waiting": 0}}
        scaled.wait("no replica", 120, lambda: scaled.replicas() == 0)
        scaled.wait("KEDA to say so", 10, lambda: scaled.condition("Active") == "False")
        wait_until("all pods to go", 60, lambda: not pods(cluster, namespace))

        # Somebody else asks for one: the trigger is active until it serves, and for as long as it works.
        agents.all = {"load": {"running": 1, "waiting": 0}}
        cluster.kubectl("scale", f"modelservice/{NAME}", "--replicas=1", "-n", namespace)
        back = scaled.wait("KEDA to hear", 10, lambda: scaled.condition("Active") == "True")
        wait_pods(cluster, namespace, 1)
        time.sleep(POLLING_S + 5)
        assert scaled.replicas() == 1, "KEDA has taken back what was asked for"
    print(f"KEDA heard after {back:.2f} s that there was something to do again")
