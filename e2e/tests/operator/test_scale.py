"""Scale-out, scale-in, replacement and deletion by the real operator; no faults here."""

from __future__ import annotations

import datetime
import json
import re
import time

from rouse_e2e.processes import wait_until

from .conftest import Operator, World
from .fake_agent_reports import GIB, FakeAgents
from .modelservice import (
    condition,
    modelservice,
    peer,
    pods,
    ready,
    scale,
    status,
    uids,
    wait_pods,
    wait_status,
)


def annotations(pod) -> dict[str, str]:
    return pod["metadata"].get("annotations", {})


def test_a_modelservice_gets_its_pod_with_agent_engine_and_owner(
    world: World, namespace: str, operator: Operator
):
    cluster = world.cluster
    cluster.apply(modelservice(namespace))
    pod = wait_pods(cluster, namespace, {"m-0"})["m-0"]
    owner = cluster.get("modelservice", "m", namespace)["metadata"]
    (reference,) = pod["metadata"]["ownerReferences"]
    assert reference["kind"] == "ModelService" and reference["controller"]
    assert reference["uid"] == owner["uid"]
    labels = pod["metadata"]["labels"]
    assert labels["rouse.dev/modelservice"] == "m" and labels["rouse.dev/role"] == "Active"
    assert re.fullmatch("[0-9a-f]{32}", labels["rouse.dev/launch-identity"])
    assert annotations(pod)["rouse.dev/path"] == "Storage"
    assert "weights.source is Storage" in annotations(pod)["rouse.dev/path-reason"]

    (agent,) = pod["spec"]["initContainers"]
    assert agent["name"] == "agent" and agent["restartPolicy"] == "Always"
    assert agent["image"] == "rouse-agent:test"
    env = {x["name"]: x.get("value") for x in agent["env"]}
    service = cluster.get("service", "rouse-operator", "rouse-system")
    assert env["ROUSE_OPERATOR_URL"] == f"https://{service['spec']['clusterIP']}:7482"

    (engine,) = pod["spec"]["containers"]
    assert engine["image"] == "engine:test"
    text = " ".join(engine["args"])
    assert "--served-model-name test/model --port 8000 --load-format rouse" in text
    assert engine["args"][-1] == "--max-model-len=256"
    assert {"name": "PYTHONPATH", "value": "/rouse/plugin"} in engine["env"]
    volume = next(x for x in pod["spec"]["volumes"] if x["name"] == "model")
    assert volume["hostPath"]["path"] == "/models/m"


def test_scale_out_and_in_end_with_exactly_the_wanted_pods(
    world: World, namespace: str, operator: Operator
):
    cluster = world.cluster
    cluster.apply(modelservice(namespace, 2))
    wait_pods(cluster, namespace, {"m-0", "m-1"})
    scale(cluster, namespace, 5)
    wait_pods(cluster, namespace, {f"m-{x}" for x in range(5)})
    found = wait_status(cluster, namespace, replicas=5, readyReplicas=5, desired=5, active=5)
    assert found["failed"] == found["guards"] == found["waking"] == 0
    assert (
        found["observedGeneration"]
        == cluster.get("modelservice", "m", namespace)["metadata"]["generation"]
    )
    assert condition(cluster, namespace, "Available")["status"] == "True"
    scale(cluster, namespace, 1)
    wait_pods(cluster, namespace, 1)
    scale(cluster, namespace, 0)
    wait_pods(cluster, namespace, 0)
    wait_status(cluster, namespace, replicas=0, readyReplicas=0)
    assert condition(cluster, namespace, "Available")["reason"] == "ScaledToZero"


def test_scaling_back_and_forth_quickly_ends_with_the_last_number(
    world: World, namespace: str, operator: Operator
):
    cluster = world.cluster
    cluster.apply(modelservice(namespace, 1))
    for replicas in (8, 2, 6, 0, 12, 3):
        scale(cluster, namespace, replicas)
    wait_pods(cluster, namespace, 3)
    time.sleep(2)
    wait_pods(cluster, namespace, 3, 5)


def test_the_scale_subresource_selects_exactly_the_instances(
    world: World, namespace: str, operator: Operator
):
    cluster = world.cluster
    cluster.apply(modelservice(namespace, 3))
    names = wait_pods(cluster, namespace, 3).keys()
    wait_status(cluster, namespace, replicas=3)
    path = f"/apis/rouse.dev/v1alpha1/namespaces/{namespace}/modelservices/m/scale"
    answer = cluster.request("GET", path).json()["status"]
    assert answer["replicas"] == 3
    selected = cluster.list("pods", namespace, answer["selector"])
    assert {x["metadata"]["name"] for x in selected} == set(names)


def test_a_second_instance_waits_for_the_firsts_weights_and_then_starts_by_peer(
    world: World, namespace: str, operator: Operator
):
    cluster = world.cluster
    cluster.apply(modelservice(namespace, 3, fastStart=peer()))
    wait_pods(cluster, namespace, {"m-0"})
    waiting = wait_until(
        "the condition that says what is waited for",
        10,
        lambda: (
            "m-0" in condition(cluster, namespace, "Progressing").get("message", "")
            and condition(cluster, namespace, "Progressing")
        ),
    )
    assert waiting["reason"] == "WaitingForWeightSource"
    assert pods(cluster, namespace).keys() == {"m-0"}

    with FakeAgents(cluster, namespace, operator.tls_port) as agents:
        found = wait_pods(cluster, namespace, {"m-0", "m-1", "m-2"})
        wait_until(
            "everybody's first token",
            20,
            lambda: len(status(cluster, namespace).get("scaleOuts", [])) == 3,
        )
        answer = wait_until("an answer for m-1", 10, lambda: agents.answers.get("m-1"))
    assert annotations(found["m-0"])["rouse.dev/path"] == "Storage"
    for name in ("m-1", "m-2"):
        assert annotations(found[name])["rouse.dev/path"] == "Peer"
        volumes = found[name]["spec"]["volumes"]
        assert not any("hostPath" in x for x in volumes), "was given the model volume"
    assert answer["path"] == "Peer" and answer["protocol"] == "rouse-agent"
    assert "m-0" in [x["pod"] for x in answer["peers"]]
    assert "m-1" not in [x["pod"] for x in answer["peers"]], "a pod is no peer of itself"

    told = {x["pod"]: x for x in status(cluster, namespace)["scaleOuts"]}
    assert told["m-0"]["path"] == "Storage" and told["m-0"]["bytesBySource"]["storage"] == GIB
    assert told["m-1"]["path"] == "Peer" and told["m-1"]["bytesBySource"] == {
        "peer": GIB,
        "storage": 0,
    }
    for each in told.values():
        assert abs(sum(x["seconds"] for x in each["phases"]) - each["seconds"]) < 0.01
    columns = cluster.kubectl("get", "modelservice", "m", "-n", namespace, "--no-headers").split()
    assert columns[:4] == ["m", "3", "3", "Peer"] and float(columns[4]) == 18.88


def test_where_storage_is_allowed_peers_are_still_preferred_and_the_volume_is_there(
    world: World, namespace: str, operator: Operator
):
    cluster = world.cluster
    cluster.apply(modelservice(namespace, 1, fastStart=peer("Storage")))
    wait_pods(cluster, namespace, {"m-0"})
    with FakeAgents(cluster, namespace, operator.tls_port):
        wait_until("weights of m-0", 20, lambda: status(cluster, namespace).get("lastPath"))
        scale(cluster, namespace, 2)
        pod = wait_pods(cluster, namespace, {"m-0", "m-1"})["m-1"]
    assert annotations(pod)["rouse.dev/path"] == "Peer"
    assert any("hostPath" in x for x in pod["spec"]["volumes"])


def test_metrics_tell_the_scale_outs_by_path_and_phase(
    world: World, namespace: str, operator: Operator
):
    cluster = world.cluster
    cluster.apply(modelservice(namespace, 2, fastStart=peer()))
    with FakeAgents(cluster, namespace, operator.tls_port):
        wait_pods(cluster, namespace, 2)
        wait_until(
            "both first tokens",
            20,
            lambda: len(status(cluster, namespace).get("scaleOuts", [])) == 2,
        )
    value = operator.metric
    assert value("rouse_scaleout_seconds_count", path="Peer", phase="Weights") == 1
    assert value("rouse_scaleout_seconds_sum", path="Peer", phase="Weights") == 0.25
    assert value("rouse_scaleout_total_seconds_count", path="Storage") == 1
    assert value("rouse_scaleout_bytes_total", path="Peer", source="peer") == GIB
    assert value("rouse_instances", namespace=namespace, modelservice="m", state="ready") == 2


def events(world: World, namespace: str) -> dict[str, str]:
    """What is told about ModelServices: the last note by reason."""
    text = world.cluster.kubectl("get", "events.events.k8s.io", "-n", namespace, "-o", "json")
    told = [x for x in json.loads(text)["items"] if x["regarding"]["kind"] == "ModelService"]
    return {x["reason"]: x.get("note", "") for x in told}


def test_events_tell_what_was_done(world: World, namespace: str, operator: Operator):
    cluster = world.cluster
    cluster.apply(modelservice(namespace, 1))
    wait_pods(cluster, namespace, 1)
    with FakeAgents(cluster, namespace, operator.tls_port):
        wait_until("the first token", 20, lambda: status(cluster, namespace).get("lastPath"))
    wait_until(
        "the event InstanceServes",
        20,
        lambda: "m-0 serves after 18.88 s" in events(world, namespace).get("InstanceServes", ""),
    )
    assert "created m-0, path Storage" in events(world, namespace)["InstanceCreated"]


def test_a_pod_deleted_by_hand_is_replaced(world: World, namespace: str, operator: Operator):
    cluster = world.cluster
    cluster.apply(modelservice(namespace, 3))
    before = wait_pods(cluster, namespace, {"m-0", "m-1", "m-2"})
    cluster.kubectl("delete", "pod", "m-1", "-n", namespace)
    after = wait_pods(cluster, namespace, 3)
    uids = {x["metadata"]["uid"] for x in before.values()}
    kept = {x["metadata"]["uid"] for x in after.values()} & uids
    assert len(kept) == 2, "the others were to stay"


def test_all_pods_deleted_by_hand_are_replaced(world: World, namespace: str, operator: Operator):
    cluster = world.cluster
    cluster.apply(modelservice(namespace, 4))
    before = wait_pods(cluster, namespace, 4)
    cluster.kubectl("delete", "pods", "--all", "-n", namespace, "--force", "--grace-period=0")
    uids = {x["metadata"]["uid"] for x in before.values()}

    def new() -> bool:
        found = pods(cluster, namespace)
        return len(found) == 4 and not uids & {x["metadata"]["uid"] for x in found.values()}

    wait_until("four new pods", 30, new)


def test_an_agent_that_gave_up_has_its_pod_replaced_and_the_reason_told(
    world: World, namespace: str, operator: Operator
):
    cluster = world.cluster
    cluster.apply(modelservice(namespace, 1))
    before = uids(wait_pods(cluster, namespace, {"m-0"}))
    with FakeAgents(cluster, namespace, operator.tls_port) as agents:
        agents.states["m-0"] = {"state": "Failed", "message": "the checkpoint is corrupt: shard 3"}
        wait_until(
            "the event InstanceFailed to name the reason",
            20,
            lambda: "shard 3" in events(world, namespace).get("InstanceFailed", ""),
        )
        agents.states.clear()
        wait_until("another pod", 30, lambda: uids(pods(cluster, namespace)) - before)
        wait_until(
            "recovery to be told",
            30,
            lambda: condition(cluster, namespace, "Degraded").get("status") == "False",
        )
    after = status(cluster, namespace)
    assert after["lastFailureTime"] and after["consecutiveFailures"] == 0


def test_agents_that_always_give_up_are_replaced_more_and_more_slowly(
    world: World, namespace: str, make_operator
):
    cluster = world.cluster
    flags = ("--backoff-first=8s", "--backoff-max=60s")
    operator = make_operator("operator-0", "", *flags).start()
    # On no node: kwok would make the pods Ready, which counts as recovery.
    nowhere = {"spec": {"nodeSelector": {"kubernetes.io/hostname": "nowhere"}}}
    cluster.apply(modelservice(namespace, 1, template=nowhere))

    def creates() -> list[float]:
        """When the API server was asked for each of the pods."""
        return [
            datetime.datetime.fromisoformat(x["requestReceivedTimestamp"]).timestamp()
            for x in world.audit()
            if (x["verb"], x["objectRef"]["resource"]) == ("create", "pods")
            and x["objectRef"]["namespace"] == namespace
            and x["responseStatus"]["code"] == 201
        ]

    with FakeAgents(cluster, namespace, operator.tls_port) as agents:
        agents.all = {"state": "Failed", "message": "no such GPU"}
        agents.phases = {"Pending"}

        wait_until(
            "four failures in a row",
            120,
            lambda: status(cluster, namespace).get("consecutiveFailures", 0) >= 4,
        )
        wait_until(
            "the wait to be told",
            10,
            lambda: condition(cluster, namespace, "Progressing").get("reason") == "BackingOff",
        )
        assert "4 failures" in condition(cluster, namespace, "Progressing")["message"]
        assert "no such GPU" in condition(cluster, namespace, "Degraded")["message"]
    # An edit says that something was repaired: the wait, 32 s now, ends.
    patch = json.dumps({"spec": {"engine": {"image": "engine:repaired"}, "template": None}})
    cluster.kubectl("patch", "modelservice", "m", "-n", namespace, "--type=merge", "-p", patch)
    wait_pods(cluster, namespace, 1)
    times = creates()
    gaps = [later - earlier for earlier, later in zip(times, times[1:])]
    assert len(gaps) == 4, "one pod a failure, and one after the edit"
    # The first replacement does not wait. Failures are kept in whole seconds.
    assert gaps[1] >= 7 and gaps[2] >= 15, gaps
    assert gaps[3] < 30, "it went on waiting"


def test_a_pod_of_somebody_else_with_our_name_is_left_alone(
    world: World, namespace: str, operator: Operator
):
    cluster = world.cluster
    spec = {"containers": [{"name": "c", "image": "x:1"}]}
    metadata = {"name": "m-1", "namespace": namespace}
    cluster.apply({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})
    cluster.apply(modelservice(namespace, 3))
    wait_pods(cluster, namespace, {"m-0", "m-2", "m-3"})
    stranger = cluster.get("pod", "m-1", namespace)
    assert "ownerReferences" not in stranger["metadata"]
    assert "rouse.dev/modelservice" not in stranger["metadata"].get("labels", {})


def test_a_changed_image_reaches_every_instance_one_at_a_time(
    world: World, namespace: str, operator: Operator
):
    cluster = world.cluster
    cluster.apply(modelservice(namespace, 3))
    wait_pods(cluster, namespace, 3)
    patch = json.dumps({"spec": {"engine": {"image": "engine:next"}}})
    cluster.kubectl("patch", "modelservice", "m", "-n", namespace, "--type=merge", "-p", patch)

    serving: list[int] = []  # how many, each time somebody looked
    path = f"/api/v1/namespaces/{namespace}/pods"

    def rolled() -> bool:
        found = cluster.request("GET", path).json()["items"]
        found = [x for x in found if "deletionTimestamp" not in x["metadata"]]
        serving.append(sum(ready(x) for x in found))
        images = {x["spec"]["containers"][0]["image"] for x in found}
        return serving[-1] == 3 and images == {"engine:next"}

    wait_until("three ready pods with the new image", 60, rolled, 0.02)
    assert min(serving) >= 2, serving
    wait_pods(cluster, namespace, 3)


def test_deleting_a_modelservice_leaves_nothing(world: World, namespace: str, operator: Operator):
    cluster = world.cluster
    cluster.apply(modelservice(namespace, 3))
    wait_pods(cluster, namespace, 3)
    cluster.kubectl("delete", "modelservice", "m", "-n", namespace, "--timeout=30s")
    wait_until("no pod", 30, lambda: not cluster.list("pods", namespace))
    wait_until("no Service", 30, lambda: not cluster.list("services", namespace))
    time.sleep(1)
    assert cluster.list("pods", namespace) == []
    kinds = ("configmaps", "secrets", "services", "leases", "persistentvolumeclaims")
    left = [x["metadata"]["name"] for kind in kinds for x in cluster.list(kind, namespace)]
    # Whom agents of this namespace trust stays, for the next ModelService.
    assert [x for x in left if x not in ("kube-root-ca.crt", "rouse-ca")] == []


def test_a_modelservice_has_a_service_for_its_replicas(
    world: World, namespace: str, operator: Operator
):
    cluster = world.cluster
    cluster.apply(modelservice(namespace, 2))
    wait_pods(cluster, namespace, 2)

    def ready() -> set[str]:
        return cluster.ready_endpoints("m", namespace)

    wait_until("both in the endpoints", 20, lambda: ready() == {"m-0", "m-1"})
    service = cluster.get("service", "m", namespace)
    assert [(x["port"], x["targetPort"]) for x in service["spec"]["ports"]] == [(80, 8000)]
    cluster.kubectl("delete", "service", "m", "-n", namespace)
    wait_until("another Service", 20, lambda: cluster.get("service", "m", namespace))
    scale(cluster, namespace, 1)
    wait_until("one to have left the endpoints", 20, lambda: len(ready()) == 1)


def test_two_modelservices_do_not_touch_each_others_pods(
    world: World, namespace: str, operator: Operator
):
    cluster = world.cluster
    cluster.apply(modelservice(namespace, 2, "m"))
    cluster.apply(modelservice(namespace, 2, "m-0"))  # its first pod is m-0-0
    wait_pods(cluster, namespace, {"m-0", "m-1"})
    other = wait_pods(cluster, namespace, {"m-0-0", "m-0-1"}, name="m-0")
    cluster.kubectl("delete", "modelservice", "m", "-n", namespace)
    wait_until("the pods of m to be gone", 30, lambda: not pods(cluster, namespace))
    assert wait_pods(cluster, namespace, 2, name="m-0").keys() == other.keys()
