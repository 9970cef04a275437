"""The operator as KEDA's external push scaler; the agents and KEDA are fakes, gRPC is real."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import grpc
import pytest
import yaml

from rouse_e2e import paths
from rouse_e2e.cluster import Object
from rouse_e2e.processes import wait_until

from .conftest import SYSTEM, Operator, World
from .fake_agent_reports import FakeAgents, report, send
from .fake_keda import FakeKeda
from .modelservice import modelservice, pods, scale, wait_pods


def load(running: int, waiting: int = 0) -> Object:
    return {"running": running, "waiting": waiting}


@pytest.fixture
def keda(namespace: str) -> Iterator[Callable[..., FakeKeda]]:
    made: list[FakeKeda] = []

    def make(operator: Operator, name: str = "m", **metadata: str) -> FakeKeda:
        made.append(FakeKeda(operator.scaler_port, namespace, name, **metadata))
        return made[-1]

    yield make
    for each in made:
        each.close()


def serve(world: World, namespace: str, operator: Operator, replicas: int = 1) -> dict[str, Object]:
    """The pods of ModelService m, once they serve, as their agents have told; no agent reports on."""
    world.cluster.apply(modelservice(namespace, replicas))
    with FakeAgents(world.cluster, namespace, operator.tls_port) as agents:
        agents.all = {"load": load(0)}
        found = wait_pods(world.cluster, namespace, replicas)
        wait_until("all to report", 20, lambda: agents.answers.keys() >= found.keys())
    return pods(world.cluster, namespace)


def tell(operator: Operator, pod: Object, **changes: object) -> None:
    cluster = operator.world.cluster
    status, answer = send(cluster, operator.tls_port, pod, report(pod, **changes))
    assert status == 200, answer


def settle(keda: FakeKeda, value: float) -> None:
    """Until the operator has seen that the replicas serve, and knows their load."""

    def known() -> bool:
        return keda.tried(keda.metric) == value and keda.tried(keda.is_active) is False

    wait_until(f"a load of {value}", 20, known)


def test_keda_hears_of_load_the_moment_it_is_reported(
    world: World, namespace: str, operator: Operator, keda
):
    found = serve(world, namespace, operator, 2)
    k = keda(operator, loadPerReplica="8")
    settle(k, 0)
    assert k.metric_spec() == ("rouse-load", 8)
    k.listen()
    k.wait_heard(False)
    took = []
    for busy in range(5):
        at = time.monotonic()
        tell(operator, found["m-0"], load=load(3, busy))
        took.append(k.wait_heard(True, at) - at)
        tell(operator, found["m-1"], load=load(2))
        assert k.is_active() and k.metric() == 5 + busy
        at = time.monotonic()
        tell(operator, found["m-0"], load=load(0))
        tell(operator, found["m-1"], load=load(0))
        k.wait_heard(False, at)
    print(f"from report to push, ms: {[round(1000 * x, 1) for x in took]}")
    assert max(took) < 1
    assert operator.metric("grpc_server_handled_total", grpc_method="GetMetrics") >= 5


def test_load_that_is_not_known_is_unavailable_and_never_0(
    world: World, namespace: str, operator: Operator, keda
):
    found = serve(world, namespace, operator, 2)
    k = keda(operator, loadPerReplica="8")
    settle(k, 0)
    tell(operator, found["m-1"])  # an agent that does not know its engine's load
    for call in (k.metric, k.is_active):
        code, why = k.error(call)
        assert code == grpc.StatusCode.UNAVAILABLE
        assert f"pod {namespace}/m-1" in why and "num_requests_running" in why
    # What is known is enough to know that it is active.
    tell(operator, found["m-0"], load=load(1))
    assert k.is_active()
    assert k.error(k.metric)[0] == grpc.StatusCode.UNAVAILABLE


def test_what_the_trigger_says_is_checked_and_the_answer_says_what_is_wrong(
    world: World, namespace: str, operator: Operator, keda
):
    serve(world, namespace, operator)
    settle(keda(operator, loadPerReplica="8"), 0)
    for metadata, words in (
        ({}, "loadPerReplica: is missing"),
        ({"loadPerReplica": "many"}, 'loadPerReplica: "many" is not a number'),
        ({"loadPerReplica": "8", "activationLoad": "-1"}, 'activationLoad: "-1"'),
        ({"loadPerReplica": "8", "modelservice": "m"}, 'metadata "modelservice": unknown'),
    ):
        k = keda(operator, **metadata)
        for call in (k.is_active, k.metric_spec, k.metric):
            code, why = k.error(call)
            assert code == grpc.StatusCode.INVALID_ARGUMENT and words in why
    k = keda(operator, name="scaled", loadPerReplica="8")
    code, why = k.error(k.metric)
    assert code == grpc.StatusCode.NOT_FOUND and f"no ModelService {namespace}/scaled" in why
    assert keda(operator, name="scaled", modelService="m", loadPerReplica="8").metric() == 0
    k = keda(operator, loadPerReplica="8")
    assert k.error(lambda: k.metric("s0-other"))[0] == grpc.StatusCode.INVALID_ARGUMENT
    assert k.error(k.stream_metric_spec)[0] == grpc.StatusCode.UNIMPLEMENTED


def test_the_samples_trigger_is_accepted(world: World, namespace: str, operator: Operator, keda):
    sample = yaml.safe_load((paths.REPOSITORY / "config/samples/keda.yaml").read_text())
    (trigger,) = sample["spec"]["triggers"]
    assert trigger["type"] == "external-push"
    metadata = dict(trigger["metadata"])
    assert metadata.pop("scalerAddress") == f"rouse-operator.{SYSTEM}:7481"
    k = keda(operator, name=sample["metadata"]["name"], **metadata)
    spec = wait_until("an answer", 20, lambda: k.tried(k.metric_spec))
    assert spec == ("rouse-load", 8)
    service = world.cluster.get("service", "rouse-operator", SYSTEM)
    assert 7481 in {x["port"] for x in service["spec"]["ports"]}


def test_with_no_replicas_nothing_is_active_and_a_replica_that_is_wanted_is_at_once(
    world: World, namespace: str, operator: Operator, keda
):
    world.cluster.apply(modelservice(namespace, 0))
    k = keda(operator, loadPerReplica="8")
    settle(k, 0)
    k.listen()
    k.wait_heard(False)
    at = time.monotonic()
    scale(world.cluster, namespace, 1)  # as KEDA would for another trigger, or somebody by hand
    k.wait_heard(True, at, 5)
    code, why = k.error(k.metric)
    assert code == grpc.StatusCode.UNAVAILABLE and "none of 1 replicas serves yet" in why
    with FakeAgents(world.cluster, namespace, operator.tls_port) as agents:
        agents.all = {"load": load(0)}
        k.wait_heard(False, time.monotonic())
    assert k.metric() == 0


def test_load_costs_no_call_to_the_api_server(
    world: World, namespace: str, operator: Operator, keda
):
    found = serve(world, namespace, operator)
    k = keda(operator, loadPerReplica="8")
    settle(k, 0)
    operator.wait_idle()

    def writes() -> int:
        verbs, resources = {"create", "update", "patch", "delete"}, {"pods", "modelservices"}
        return sum(
            x["verb"] in verbs
            and x["objectRef"].get("namespace") == namespace
            and x["objectRef"].get("resource") in resources
            for x in world.audit()
            if "objectRef" in x
        )

    def at_rest() -> int | None:
        before = writes()
        time.sleep(1)
        return before if writes() == before else None

    before = wait_until("the operator to have nothing to write", 20, at_rest)
    assert before > 0
    for number in range(100):
        tell(operator, found["m-0"], load=load(number, number % 3))
    assert k.metric() == 99
    time.sleep(1)
    assert writes() == before


def test_the_leader_answers_whomever_agents_report_to(
    world: World, namespace: str, operator: Operator, make_operator, keda
):
    found = serve(world, namespace, operator)
    other = make_operator("operator-1").start()
    leader, follower = keda(operator, loadPerReplica="8"), keda(other, loadPerReplica="8")
    settle(leader, 0)
    code, why = follower.error(follower.metric)
    assert code == grpc.StatusCode.UNAVAILABLE and "refused" in why, "it listens and does not lead"

    leader.listen()
    leader.wait_heard(False)
    at = time.monotonic()
    tell(other, found["m-0"], load=load(4, 2))
    assert leader.wait_heard(True, at) - at < 1
    assert leader.metric() == 6

    # The other leads now. It knows what it was told, and its port is open.
    operator.stop()

    wait_until("the next leader to answer", 30, lambda: follower.tried(follower.metric) == 6)
    tell(other, found["m-0"], load=load(1))
    assert follower.metric() == 1
