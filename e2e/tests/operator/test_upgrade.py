"""An upgrade from the previous chart, as docs/install.md says, with ModelServices that serve."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from rouse_e2e import paths
from rouse_e2e.cluster import Object
from rouse_e2e.processes import wait_until

from .conftest import SYSTEM, Operator, World, start_world
from .fake_agent_reports import FakeAgents
from .modelservice import modelservice, scale, status, uids, wait_pods

#: `helm package` of the chart that was there before PodDisruptionBudget, monitors and alerts.
PREVIOUS = Path(__file__).with_name("previous-chart-0.1.0.tgz")


@pytest.fixture(scope="module")
def world(build_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with start_world(build_folder, tmp_path_factory, PREVIOUS) as started:
        yield started


def crd(world: World) -> Object:
    return world.cluster.get("crd", "modelservices.rouse.dev")["spec"]["versions"][0]


def test_an_upgrade_keeps_instances_authorities_and_objects(world: World, make_operator):
    cluster, namespace = world.cluster, world.namespace()
    # As if the previous CRD lacked a field that this one has.
    cluster.kubectl(
        *("patch", "crd", "modelservices.rouse.dev", "--type=json", "-p"),
        '[{"op": "remove", "path": "/spec/versions/0/schema/openAPIV3Schema/properties/spec'
        '/properties/scaleIn"}]',
    )
    assert (
        "scaleIn" not in crd(world)["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]
    )
    cluster.apply(modelservice(namespace, 2))
    before = make_operator("before").start()
    with FakeAgents(cluster, namespace, before.tls_port):
        pods = wait_pods(cluster, namespace, 2)
        wait_until(
            "both to serve", 30, lambda: status(cluster, namespace).get("readyReplicas") == 2
        )
    authorities = cluster.get("secret", "rouse-authorities", SYSTEM)["data"]
    assert before.stop() == 0

    # The two commands of docs/install.md.
    shown = cluster.helm("show", "crds", str(paths.CHART))
    cluster.kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", stdin=shown)
    cluster.helm(
        *("upgrade", "rouse", str(paths.CHART), "-n", SYSTEM, "--reset-then-reuse-values"),
        *("--set", "operator.image.tag=next"),
    )
    deployment = cluster.get("deployment", "rouse-operator", SYSTEM)
    assert deployment["spec"]["replicas"] == 0, "the values of the release are kept"
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert container["image"] == "rouse-operator:next"
    new = yaml.safe_load((paths.CHART / "crds" / "modelservices.rouse.dev.yaml").read_text())
    wanted = new["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    found = crd(world)["schema"]["openAPIV3Schema"]["properties"]["spec"]
    assert found["properties"].keys() == wanted["properties"].keys()

    after = make_operator("after").start()
    after.wait_idle()
    assert uids(wait_pods(cluster, namespace, 2)) == uids(pods), "an instance was replaced"
    assert status(cluster, namespace)["readyReplicas"] == 2
    assert cluster.get("secret", "rouse-authorities", SYSTEM)["data"] == authorities
    scale(cluster, namespace, 3)
    assert uids(wait_pods(cluster, namespace, 3)) > uids(pods)


def test_the_operator_is_asked_by_its_own_program(world: World, operator: Operator):
    """As `helm test` does in its pod."""

    def ask(path: str) -> subprocess.CompletedProcess[str]:
        command = [world.program, f"--check-url=http://127.0.0.1:{operator.port}{path}"]
        return subprocess.run(command, capture_output=True, text=True, timeout=30)

    well, wrong = ask("/readyz"), ask("/nothing")
    operator.kill()
    gone = ask("/readyz")
    assert (well.returncode, well.stdout) == (0, f"http://127.0.0.1:{operator.port}/readyz: ok\n")
    assert wrong.returncode == 1 and "answers 404" in wrong.stderr
    assert gone.returncode == 1 and "Unavailable" in gone.stderr
