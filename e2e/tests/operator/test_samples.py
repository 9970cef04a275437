"""What the operator makes of the samples, one for each profile."""

from __future__ import annotations

import json

import pytest
import yaml

from rouse_e2e import paths
from rouse_e2e.cluster import Object
from rouse_e2e.processes import wait_until

from .conftest import Operator, World
from .modelservice import pods


def engine_arguments(pod: Object) -> str:
    (engine,) = [x for x in pod["spec"]["containers"] if x["name"] == "engine"]
    return json.dumps(engine.get("command", []) + engine["args"])


@pytest.mark.parametrize(
    ("file", "replicas", "guards", "lazy"),
    [
        ("guarded", 2, 2, False),
        ("disaster-recovery", 1, 0, True),
        ("rare-scaling", 1, 0, False),
    ],
)
def test_the_operator_makes_the_first_instance_of_a_sample(
    world: World,
    namespace: str,
    operator: Operator,
    file: str,
    replicas: int,
    guards: int,
    lazy: bool,
):
    sample = yaml.safe_load((paths.SAMPLES / f"{file}.yaml").read_text())
    if sample["spec"].get("template"):  # a PriorityClass would have to be there
        del sample["spec"]["template"]["spec"]["priorityClassName"]
    world.cluster.apply(sample, namespace)
    name = sample["metadata"]["name"]
    found = wait_until("an instance", 30, lambda: pods(world.cluster, namespace, name))
    first = found[f"{name}-0"]
    assert first["metadata"]["annotations"]["rouse.dev/path"] == "Storage"
    assert ("Lazy" in engine_arguments(first)) == lazy
    operator.wait_idle()
    labels = {"namespace": namespace, "modelservice": name}
    assert operator.metric("rouse_instances_desired", role="active", **labels) == replicas
    assert operator.metric("rouse_instances_desired", role="guard", **labels) == guards
