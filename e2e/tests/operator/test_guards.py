"""Guards made, claimed, woken and lost, by the real operator; the agents are fakes."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rouse_e2e.cluster import Object
from rouse_e2e.processes import wait_until

from .conftest import Operator, World, start_world
from .fake_faulty_proxy import FakeFaultyProxy, Hook, Request
from .fake_role_agents import CONFLICT, DEAF, SILENCE, Command, FakeRoleAgents
from .modelservice import condition, modelservice, pods, ready, scale, status, uids


def guarded(namespace: str, replicas: int = 1, guards: int = 1) -> Object:
    fast = {"profile": "Guarded"}
    return modelservice(namespace, replicas, fastStart=fast, guards={"replicas": guards})


def note(pod: Object, name: str) -> str:
    return pod["metadata"].get("annotations", {}).get(f"rouse.dev/{name}", "")


def role(pod: Object) -> str:
    return pod["metadata"]["labels"]["rouse.dev/role"]


@pytest.fixture(scope="module")
def world(build_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Its own: pods with addresses on loopback, where fake agents can answer, are in no endpoints."""
    with start_world(build_folder, tmp_path_factory, pods="127.64.0.0/16") as started:
        yield started


class Guarded:
    """The ModelService m of one namespace, and its fake agents."""

    def __init__(self, world: World, namespace: str, agents: FakeRoleAgents) -> None:
        self.world, self.namespace, self.agents = world, namespace, agents
        self.cluster = world.cluster

    def settled(self, replicas: int, guards: int) -> dict[str, Object] | None:
        """All pods, once so many replicas serve, so many guards sleep, and nothing else is there."""
        path = f"/api/v1/namespaces/{self.namespace}/pods"
        found = {
            x["metadata"]["name"]: x for x in self.cluster.request("GET", path).json()["items"]
        }
        if any("deletionTimestamp" in x["metadata"] for x in found.values()):
            return None
        active = [x for x in found.values() if role(x) == "Active"]
        asleep = [x for x in found.values() if role(x) == "Guard"]
        right = (
            (len(active), len(asleep)) == (replicas, guards)
            and all(ready(x) and note(x, "agent-state") == "Serving" for x in active)
            and not any(ready(x) for x in asleep)
            and all(note(x, "agent-state") == "Asleep" for x in asleep)
        )
        told = status(self.cluster, self.namespace) if right else {}
        numbers = [told.get(x) for x in ("replicas", "readyReplicas", "guards", "waking")]
        return found if numbers == [replicas, replicas, guards, 0] else None

    def wait(self, replicas: int, guards: int = 1, seconds: float = 40) -> dict[str, Object]:
        what = f"{replicas} replicas that serve and {guards} guards that sleep"
        return wait_until(what, seconds, lambda: self.settled(replicas, guards))

    def scale(self, replicas: int) -> None:
        scale(self.cluster, self.namespace, replicas)

    def pod(self, name: str) -> Object:
        return pods(self.cluster, self.namespace)[name]

    def wait_told(self, wanted: str, count: int = 1, seconds: float = 20) -> list[Command]:
        told = self.agents.told
        wait_until(f"{count} commands {wanted}", seconds, lambda: len(told(wanted)) >= count)
        return told(wanted)


Start = Callable[..., Guarded]

#: Seconds; long enough that nothing else takes so long.
WAKE_RETRY = 12


@pytest.fixture
def start(world: World, namespace: str) -> Iterator[Start]:
    made: list[FakeRoleAgents] = []

    def make(operator: Operator, replicas: int = 1, guards: int = 1) -> Guarded:
        none = modelservice(namespace, replicas, fastStart={"profile": "Shared"})
        world.cluster.apply(guarded(namespace, replicas, guards) if guards else none)
        made.append(FakeRoleAgents(world.cluster, namespace, operator.tls_port))
        return Guarded(world, namespace, made[-1])

    yield make
    for agents in made:
        agents.close()


# ---- as it should be


def test_a_guard_is_made_after_its_replica_sleeps_when_told_and_is_never_ready(
    operator: Operator, start: Start
):
    m = start(operator)
    was_ready: set[str] = set()
    found: dict[str, Object] = {}

    def settled() -> bool:
        found.update(pods(m.cluster, m.namespace))
        was_ready.update(name for name, pod in found.items() if ready(pod))
        return bool(m.settled(1, 1))

    wait_until("a replica and a guard that sleeps", 40, settled, 0.05)
    assert found.keys() == {"m-0", "m-1"}
    assert (role(found["m-0"]), role(found["m-1"])) == ("Active", "Guard")
    assert int(note(found["m-0"], "decided-at-us")) < int(note(found["m-1"], "decided-at-us"))
    assert note(found["m-1"], "path") == "Peer", "it was made before there were weights"
    assert was_ready == {"m-0"}
    ports = {x: y["metadata"]["annotations"].get("llm-d.ai/active-ports") for x, y in found.items()}
    assert ports == {"m-0": None, "m-1": ""}
    assert {(x.pod, x.role) for x in m.agents.commands} == {("m-1", "Guard")}
    assert condition(m.cluster, m.namespace, "Progressing")["reason"] == "AsWanted"
    told = len(m.agents.commands)
    time.sleep(2)
    assert len(m.agents.commands) == told, "it sleeps and is told again and again"


def test_a_scale_out_wakes_the_guard_with_one_command_and_makes_another(
    operator: Operator, start: Start
):
    m = start(operator)
    before = m.wait(1)
    m.agents.wake_seconds = 4
    scaled_us = time.time() * 1e6
    m.scale(2)
    (command,) = m.wait_told("Active")
    waking = wait_until(
        "a status that counts the guard as waking",
        5,
        lambda: (told := status(m.cluster, m.namespace)).get("waking") == 1 and told,
    )
    assert (waking["replicas"], waking["readyReplicas"]) == (2, 1), "it is a replica, once"
    after = m.wait(2)
    assert command.pod == "m-1" and m.agents.told("Active") == [command]
    assert [x["pod"] for x in command.body["peers"]] == ["m-0"]
    peer = command.body["peers"][0]["address"]
    assert peer == f"https://{after['m-0']['status']['podIP']}:{m.agents.agent_port}"
    assert command.body["decidedAtUs"] == int(note(after["m-1"], "decided-at-us"))
    assert scaled_us < command.body["decidedAtUs"] <= command.at * 1e6
    assert after.keys() == {"m-0", "m-1", "m-2"} and role(after["m-2"]) == "Guard"
    assert uids(before) < uids(after), "nothing was to be replaced"
    assert "llm-d.ai/active-ports" not in after["m-1"]["metadata"]["annotations"]
    told = status(m.cluster, m.namespace)
    assert told["lastPath"] == "Wake"
    wakes = [x for x in told["scaleOuts"] if x["path"] == "Wake"]
    assert [(x["pod"], x["seconds"]) for x in wakes] == [("m-1", 0.05)]
    assert wakes[0]["reason"] == "this guard slept; weights of m-0 (Node)"
    assert operator.metric("rouse_actions_total", action="ClaimGuard") == 1


def test_a_scale_in_makes_a_guard_of_a_replica_that_has_left_the_endpoints(
    operator: Operator, start: Start
):
    m = start(operator)
    m.wait(1)
    m.agents.loading = {"m-2"}  # so that guards are short for a while
    m.scale(2)
    m.wait_told("Active")
    wait_until("the next guard", 20, lambda: "m-2" in pods(m.cluster, m.namespace))
    wait_until(
        "both replicas", 20, lambda: status(m.cluster, m.namespace).get("readyReplicas") == 2
    )
    wait_until("m-1 to serve", 20, lambda: note(m.pod("m-1"), "agent-state") == "Serving")
    told_while_ready: list[str] = []

    def look(command: Command) -> None:
        if ready(m.pod(command.pod)):
            told_while_ready.append(command.pod)

    m.agents.on_command = look
    m.scale(1)
    after = m.wait(1)
    assert after.keys() == {"m-0", "m-1"}, "the guard that had not even started was to go"
    assert told_while_ready == []
    assert {x.pod for x in m.agents.told("Guard")} == {"m-1"}


def test_scaled_to_zero_the_guards_stay_and_without_weights_none_is_woken(
    operator: Operator, start: Start
):
    m = start(operator)
    before = m.wait(1)
    m.scale(0)
    kept = m.wait(0)
    assert kept.keys() == {"m-1"} and uids(kept) < uids(before)
    assert condition(m.cluster, m.namespace, "Available")["reason"] == "ScaledToZero"
    m.scale(1)
    pod = wait_until("a replica", 20, lambda: pods(m.cluster, m.namespace).get("m-0"))
    assert note(pod, "path") == "Storage"
    assert "no instance has weights for m-1" in note(pod, "path-reason")
    m.wait(1)
    assert m.agents.told("Active") == []


def test_a_guard_deleted_by_hand_is_replaced(operator: Operator, start: Start):
    m = start(operator)
    before = m.wait(1)
    m.cluster.kubectl("delete", "pod", "m-1", "-n", m.namespace)
    after = m.wait(1)
    assert len(uids(after) & uids(before)) == 1
    assert after["m-0"]["metadata"]["uid"] == before["m-0"]["metadata"]["uid"]
    assert m.agents.told("Active") == []


# ---- agents that do not do as they are told


@pytest.mark.timeout(180)
@pytest.mark.parametrize("how", [CONFLICT, SILENCE], ids=["refuses", "does not answer"])
def test_a_guard_that_cannot_be_woken_is_passed_over_at_once_and_retired_the_second_time(
    make_operator, start: Start, how
):
    m = start(make_operator("operator-0", "", f"--wake-retry={WAKE_RETRY}s").start())
    m.wait(1)
    m.agents.answers["m-1"] = how
    m.scale(2)
    (command,) = m.wait_told("Active")
    pod = wait_until("another pod", 10, lambda: pods(m.cluster, m.namespace).get("m-2"))
    reason = note(pod, "path-reason")
    assert note(pod, "path") == "Peer" and role(pod) == "Active"
    assert reason.startswith("Wake: m-1 could not be woken: "), reason
    assert (CONFLICT[2] in reason) == (how == CONFLICT), reason
    waited = int(note(pod, "decided-at-us")) / 1e6 - command.at
    assert waited < 10, "it was waited for, though it was known not to wake"
    found = m.wait(2)
    assert json.loads(note(found["m-1"], "failed-wakes"))["count"] == 1
    assert role(found["m-1"]) == "Guard", "the claim was to be undone"

    # Left alone for a while, it is tried again, and then goes.
    failed = json.loads(note(found["m-1"], "failed-wakes"))["atUs"] / 1e6
    time.sleep(max(0, failed + WAKE_RETRY + 1 - time.time()))
    m.scale(3)
    assert [x.pod for x in m.wait_told("Active", 2)] == ["m-1", "m-1"]
    m.agents.answers.clear()
    after = m.wait(3)
    assert found["m-1"]["metadata"]["uid"] not in uids(after)
    assert len(m.agents.told("Active")) == 2


@pytest.mark.timeout(120)
def test_a_guard_that_was_told_and_sleeps_on_is_told_again(operator: Operator, start: Start):
    """As when a command is lost on its way, or the agent was started anew before it began."""
    m = start(operator)
    before = m.wait(1)
    m.agents.answers["m-1"] = DEAF
    m.scale(2)
    m.wait_told("Active")
    m.agents.answers.clear()
    after = m.wait(2, 1, 30)
    assert uids(before) < uids(after)
    assert {x.pod for x in m.agents.told("Active")} == {"m-1"}
    assert len({x.body["decidedAtUs"] for x in m.agents.told("Active")}) == 1, "it is one claim"


# ---- an operator that breaks


def claims(proxy: FakeFaultyProxy, begun: int = 0) -> list[Request]:
    """The patches that make a replica of a guard."""
    return [
        x
        for x in proxy.writes()[begun:]
        if x.resource == "pods" and b'"rouse.dev/role":"Active"' in x.body and x.method == "PATCH"
    ]


def is_claim(request: Request) -> bool:
    return request.write and request.method == "PATCH" and b'"Active"' in request.body


@pytest.mark.timeout(1200)
def test_killed_at_any_write_of_a_claim_or_beside_its_command_nothing_is_woken_twice_or_lost(
    world: World, make_operator, start: Start, proxy: FakeFaultyProxy
):
    """SIGKILL at the n-th write of a scale-out by a guard, before the API server hears of it and
    after it did it but before it answered, and just before and after the agent's answer to the
    command; then a new operator starts."""
    victim = make_operator("victim", proxy.url).start()
    healthy = make_operator("healthy")
    m = start(victim)
    m.wait(1)
    begun = len(proxy.writes())
    m.scale(2)
    m.wait(2)
    ours = proxy.writes()[begun:]
    # Until the status tells of the claim; what comes later has nothing to do with it.
    statuses = [x for x, y in enumerate(ours) if y.resource == "modelservices"]
    count = statuses[0] + 1
    assert any(is_claim(x) for x in ours[:count])
    moments = [("write", x, y) for x in range(count) for y in ("before", "after")]
    moments += [("command", 0, "before"), ("command", 0, "after")]
    kills = 0
    for what, number, moment in moments:
        where = f"{what} {number} of {count}, {moment}"
        m.scale(1)
        before = m.wait(1)
        m.agents.commands.clear()
        begun = len(proxy.writes())
        killed = threading.Event()

        def kill(killed: threading.Event = killed) -> None:
            if not killed.is_set():
                killed.set()
                victim.kill()

        def rule(
            request: Request,
            target: int = begun + number,
            moment: str = moment,
            killed: threading.Event = killed,
            kill: Callable = kill,
        ):
            if not request.write or killed.is_set() or len(proxy.writes()) - 1 < target:
                return None
            if moment == "before":
                return Hook(before=kill, swallow=True)
            return Hook(after=kill, drop=True)

        def wake(command: Command, kill: Callable = kill) -> None:
            if command.role == "Active":
                kill()

        if what == "write":
            proxy.rule = rule
        elif moment == "before":
            m.agents.on_command = wake
        else:
            m.agents.on_answered = wake
        m.scale(2)
        # Where there were fewer writes than the first time, there is nobody to kill.
        wait_until(f"the kill at {where}", 30, lambda: killed.is_set() or m.settled(2, 1))
        kills += killed.is_set()
        victim.kill()
        proxy.rule = lambda request: None
        m.agents.on_command = m.agents.on_answered = lambda command: None
        world.forget_lease()
        m.agents.port = healthy.tls_port
        healthy.start()
        after = m.wait(2, 1, 60)
        told = m.agents.told("Active")
        # Told again perhaps, but nobody else.
        assert len({x.pod for x in told}) == 1, f"{where}: {told}"
        assert uids(before) < uids(after) and len(after) == 3, where
        healthy.stop()
        world.forget_lease()
        m.agents.port = victim.tls_port
        victim.start()
    assert kills >= len(moments) - 2, "hardly any kill happened"


@pytest.mark.timeout(180)
@pytest.mark.parametrize("stopped", ["before its command", "before its claim"])
def test_of_two_operators_only_one_claims_even_if_the_first_wakes_up_late(
    world: World, make_operator, start: Start, make_proxy, stopped: str
):
    """The leader is stopped until another leads and has claimed the guard."""
    proxies = [make_proxy(), make_proxy()]
    first, second = (make_operator(f"operator-{i}", p.url) for i, p in enumerate(proxies))
    first.start()
    second.start(wait=False)
    m = start(first)
    m.wait(1)
    second.wait_ready()
    held = threading.Event()

    def hold() -> None:
        assert first.child
        first.child.send_signal(signal.SIGSTOP)
        held.set()
        wait_until("the other's claim", 60, lambda: claims(proxies[1]))
        time.sleep(0.5)

    def rule(request: Request):
        return Hook(before=hold) if is_claim(request) and not held.is_set() else None

    m.agents.port = second.tls_port
    assert first.child
    if stopped == "before its claim":
        proxies[0].rule = rule
        m.scale(2)
        wait_until("the first's claim", 20, held.is_set)
        world.forget_lease()
    else:  # Until its lease has run out.
        first.child.send_signal(signal.SIGSTOP)
        m.scale(2)
    wait_until("the second's claim", 60, lambda: claims(proxies[1]))
    if stopped == "before its claim":
        wait_until("the first's claim to be answered", 20, lambda: claims(proxies[0])[-1].status)
    first.child.send_signal(signal.SIGCONT)
    m.wait(2)
    time.sleep(2)
    told = [x.pod for x in m.agents.told("Active")]
    if stopped == "before its claim":
        # Both have told the guard, which wakes once.
        assert told == ["m-1", "m-1"]
        assert claims(proxies[0])[-1].status == 409
    else:
        assert told == ["m-1"]
        assert not claims(proxies[0])


@pytest.mark.timeout(240)
def test_with_an_api_server_that_takes_2_s_a_call_it_is_right_in_the_end(
    make_operator, start: Start, proxy: FakeFaultyProxy
):
    operator = make_operator("operator-0", proxy.url).start()
    m = start(operator)
    before = m.wait(1)

    def slow(request: Request):
        return None if request.watch else Hook(before=lambda: time.sleep(2))

    proxy.rule = slow
    m.scale(2)
    after = m.wait(2, 1, 120)
    assert {x.pod for x in m.agents.told("Active")} == {"m-1"}
    assert uids(before) < uids(after) and len(after) == 3
    m.scale(1)
    m.wait(1, 1, 120)
    proxy.rule = lambda request: None
    assert operator.exits == []


# ---- nodes


@pytest.fixture
def three_nodes(world: World) -> Iterator[None]:
    names = ["spare-0", "spare-1"]
    world.cluster.add_nodes(names)
    yield
    world.cluster.kubectl("delete", "node", *names)


def set_ready(world: World, node: str, value: str) -> None:
    """What its kubelet says of itself, or the node's controller when it hears nothing of it."""
    patch = {"status": {"conditions": [{"type": "Ready", "status": value, "reason": "Test"}]}}
    answer = world.cluster.request(
        "PATCH",
        f"/api/v1/nodes/{node}/status",
        patch,
        kind="application/strategic-merge-patch+json",
    )
    assert answer.status == 200, answer.text


def test_a_guard_takes_the_place_of_a_replica_whose_node_is_lost_until_it_is_back(
    world: World, operator: Operator, start: Start, three_nodes: None
):
    m = start(operator, replicas=1, guards=0)
    nodes: list[str] = []  # each instance has one of its own
    try:
        nodes += [x["spec"]["nodeName"] for x in m.wait(1, 0).values()]
        world.cluster.kubectl("cordon", *nodes)
        m.scale(2)
        before = m.wait(2, 0)
        nodes = [x["spec"]["nodeName"] for x in before.values()]
        world.cluster.kubectl("cordon", *nodes)
        spec = {"fastStart": {"profile": "Guarded"}, "guards": {"replicas": 1}}
        patch = json.dumps({"spec": spec})
        m.cluster.kubectl("patch", "rms", "m", "-n", m.namespace, "--type=merge", "-p", patch)
        (guard,) = m.wait(2).keys() - before.keys()
    finally:
        world.cluster.kubectl("uncordon", *nodes)
    lost, node = "m-0", before["m-0"]["spec"]["nodeName"]
    # Or its kwok would say at once that it is ready.
    world.cluster.kubectl("annotate", "node", node, "kwok.x-k8s.io/node-")
    set_ready(world, node, "Unknown")
    begun = time.monotonic()
    try:
        m.wait_told("Active")
        assert time.monotonic() - begun < 5
        assert [x.pod for x in m.agents.told("Active")] == [guard]

        def told() -> bool:
            degraded = condition(m.cluster, m.namespace, "Degraded")
            said = f"{lost} is on node {node}" in degraded["message"]
            return degraded["reason"] == "NodeLost" and said

        wait_until("the condition Degraded to say so", 10, told)
        # Who may serve where we do not see it is not killed.
        time.sleep(1)
        there = m.pod(lost)
        assert there["metadata"]["uid"] == before[lost]["metadata"]["uid"]
        assert "deletionTimestamp" not in there["metadata"]
    finally:
        world.cluster.kubectl("annotate", "node", node, "kwok.x-k8s.io/node=fake")
        set_ready(world, node, "True")
    after = m.wait(2)
    assert condition(m.cluster, m.namespace, "Degraded")["status"] == "False"
    assert after[lost]["metadata"]["uid"] == before[lost]["metadata"]["uid"]
