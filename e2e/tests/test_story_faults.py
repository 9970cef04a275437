"""Faults in the middle of the story, on a real cluster: each ends in the right state."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable

import pytest

from rouse_e2e import paths
from rouse_e2e.cluster import wait_until
from rouse_e2e.story import START_SECONDS, SYSTEM, Instance, Story

pytestmark = pytest.mark.timeout(900)

# 324 MB take about 25 s at this rate: long enough to hit the middle of a pull.
SLOW = "100mbit"
RECOVERY_SECONDS = 400
# For how long an instance looks for a peer when its only one has lost the weights with its agent;
# longer than nobody leads after an operator's SIGKILL.
PEER_SECONDS = 30


def on_node(story: Story, *arguments: str) -> None:
    script = paths.E2E / "rouse_e2e" / "on_node.py"
    story.cluster.execute(sys.executable, str(script), *arguments)


def kill_operator(story: Story) -> None:
    def kill() -> bool:
        pod = story.cluster.list("pods", SYSTEM)[0]["metadata"]["name"]
        try:
            on_node(story, "kill", pod, "rouse-operator")
        except RuntimeError:  # not running: the kubelet waits before it starts it again
            return False
        return True

    wait_until("an operator to kill", 120, kill, 0.2)


def pod_named(story: Story, name: str) -> dict | None:
    return next((x for x in story.pods() if x["metadata"]["name"] == name), None)


@pytest.fixture(scope="module")
def first(installed_story: Story):
    """One instance that serves, when the first test begins."""
    env = [{"name": "ROUSE_PEER_DEADLINE_SECONDS", "value": str(PEER_SECONDS)}]
    agent = {"name": "agent", "env": env}
    spec = installed_story.service["spec"]
    spec["template"] = {"spec": {"initContainers": [agent]}}
    installed_story.apply()
    del spec["template"]
    instance = installed_story.await_serving(1)[0]
    installed_story.ask(instance)
    yield instance
    installed_story.delete()


@pytest.fixture
def begin_with(installed_story: Story, first: Instance):
    """Each test begins with as many instances as it says, which costs nothing if they are there."""

    def begin(count: int) -> Story:
        installed_story.scale(count)
        installed_story.await_serving(count, RECOVERY_SECONDS)
        return installed_story

    return begin


def check_two(story: Story, first: Instance) -> list[Instance]:
    instances = story.await_serving(2, RECOVERY_SECONDS)
    assert len({x.name for x in instances}) == 2
    for instance in instances:
        assert story.ask(instance) == first.tokens, instance.name
    return instances


def operator_is_there(story: Story) -> bool:
    return True


def pod_exists(story: Story) -> bool:
    return len(story.pods()) == 2


def engine_loads(story: Story) -> bool:
    states = [Instance(x).annotation("agent-state") for x in story.pods()]
    return len(states) == 2 and states[1] in ("Loading", "Warming")


# Killed between any two of its writes it is in tests/operator, where no engine starts.
def test_a_scale_out_survives_the_operators_sigkill_again_and_again(
    begin_with: Callable[[int], Story], first: Instance
):
    story = begin_with(1)
    story.scale(2)
    for moment in (operator_is_there, pod_exists, engine_loads):
        wait_until(f"the moment: {moment.__name__}", 120, lambda: moment(story), 0.05)
        story.say(f"SIGKILL to the operator ({moment.__name__})")
        kill_operator(story)
    instances = check_two(story, first)
    uids = {x.name: x.uid for x in instances}
    assert uids[first.name] == first.uid, "the first instance was disturbed"
    assert next(x for x in instances if x.name != first.name).path == "Peer"


@contextlib.contextmanager
def slow_sender(story: Story, source: Instance):
    """What the instance sends is slow meanwhile."""
    address = source.pod["status"]["podIP"]
    on_node(story, "slow", address, SLOW)
    try:
        yield
    finally:
        if pod_named(story, source.name):
            on_node(story, "fast", address)


def kill_agent_in_mid_pull(story: Story, source: Instance, end: str) -> None:
    def pulling() -> str | None:
        for pod in story.pods():
            instance = Instance(pod)
            arriving = "arriving" in instance.annotation("agent-message")
            if instance.name != source.name and arriving:
                return instance.name
        return None

    target = wait_until("another agent to pull", 120, pulling, 0.1)
    victim = target if end == "target" else source.name
    story.say(f"SIGKILL to the agent of {victim}")
    on_node(story, "kill", victim, "rouse-agent")


def test_a_pod_deleted_by_hand_is_replaced_by_the_peer_even_if_the_new_agent_is_killed_in_mid_pull(
    begin_with: Callable[[int], Story], first: Instance
):
    story = begin_with(2)
    source, second = sorted(story.serving(), key=lambda x: x.name != first.name)
    with slow_sender(story, source):
        story.say(f"kubectl delete pod {second.name}")
        story.cluster.kubectl("delete", "pod", second.name, "-n", story.namespace, "--wait=false")
        wait_until("the deleted pod to be gone", 60, lambda: second.uid not in story.uids())
        kill_agent_in_mid_pull(story, source, "target")
    instances = {x.name: x for x in check_two(story, first)}
    left = instances.pop(source.name)
    assert left.uid == source.uid, "the source was disturbed"
    (replacement,) = instances.values()
    assert replacement.uid != second.uid
    assert replacement.path == "Peer"


def test_a_sources_agent_killed_in_mid_pull_does_no_lasting_harm(
    begin_with: Callable[[int], Story], first: Instance
):
    story = begin_with(1)
    source = story.serving()[0]
    with slow_sender(story, source):
        story.scale(2)
        kill_agent_in_mid_pull(story, source, "source")
    for instance in check_two(story, first):
        if instance.uid == source.uid:
            # An agent that starts beside an engine that serves knows of no start of its own.
            assert instance.timeline == source.timeline


def serving_beside_guards(story: Story, count: int) -> list[Instance]:
    def enough(pods: dict[str, Instance]) -> bool:
        return sum(x.serves for x in pods.values()) == count

    pods = story.await_pods(f"{count} to serve", enough, RECOVERY_SECONDS)
    return [x for x in pods.values() if x.serves]


def test_a_guard_made_while_nobody_serves_reads_no_weights_and_wakes_with_the_first_replicas(
    begin_with: Callable[[int], Story], first: Instance
):
    story = begin_with(1)
    story.scale(0)
    wait_until("nobody to be left", 60, lambda: not story.pods())
    story.guard(1)
    (guard,) = story.await_pods(
        "a guard to sleep",
        lambda p: len(p) == 1 and all(x.sleeps for x in p.values()),
        START_SECONDS,
    ).values()
    assert guard.annotation("begins-without-weights") == "true"
    assert guard.bytes_by_source == {"peer": 0, "storage": 0}
    story.scale(1)
    (replica,) = serving_beside_guards(story, 1)
    assert replica.path == "Storage" and replica.uid != guard.uid
    assert story.ask(replica) == first.tokens
    story.scale(2)
    woken = next(x for x in serving_beside_guards(story, 2) if x.uid == guard.uid)
    assert woken.path == "Wake"
    assert story.ask(woken) == first.tokens
    assert woken.bytes_by_source["peer"] >= replica.bytes_by_source["storage"] > 0


def test_the_node_scripts_find_what_they_look_for(installed_story: Story):
    story = installed_story
    with pytest.raises(RuntimeError, match="no process rouse-agent in pod nobody"):
        on_node(story, "kill", "nobody", "rouse-agent")
