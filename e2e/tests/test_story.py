"""The main job on a real cluster: storage start, scale-out from the peer, a guard woken, scale-in, deletion."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import threading
import time
from collections.abc import Iterator

import pytest

import make_checkpoint
from rouse_e2e.cluster import Object, wait_until
from rouse_e2e.prometheus import OPERATOR, OPERATOR_PORT, Prometheus, Query, dashboard_queries
from rouse_e2e.story import RELEASE, START_SECONDS, SYSTEM, TOKENS, Instance, Story

from .endpoint_watch import Watch

WAKE_PHASES = ["Command", "Map", "Weights", "Resume", "Canary"]
PHASES = ["Schedule", "Hydrate", "EngineStart", "Spawn", "DeviceInit", "ModelBuild", "Weights"]
PHASES += ["Profile", "KvCache", "Capture", "ApiStart", "FirstToken"]

pytestmark = pytest.mark.timeout(900)


@dataclasses.dataclass
class Told:
    """What was seen while the story was told."""

    story: Story
    first: Instance
    second: Instance
    prometheus: Prometheus
    columns: str


@pytest.fixture(scope="module")
def told(installed_story: Story):
    story = installed_story
    with Prometheus(story.cluster, SYSTEM) as prometheus:
        story.apply()
        first = story.await_serving(1)[0]
        story.ask(first)
        story.scale(2)
        first_again, second = story.await_serving(2)
        assert first_again.uid == first.uid
        story.ask(second)
        columns = story.cluster.kubectl("get", "modelservices", "-n", story.namespace)
        yield Told(story, first, second, prometheus, columns)


def test_the_first_instance_starts_from_storage(told: Told):
    assert told.first.path == "Storage"
    assert told.first.bytes_by_source["storage"] >= make_checkpoint.weight_bytes()
    assert told.first.bytes_by_source.get("peer", 0) == 0


def test_agents_tell_of_their_node(told: Told):
    (one, other) = (json.loads(x.annotation("node-facts")) for x in (told.first, told.second))
    assert one == other, "they are on one node"
    assert (one["gpuDriver"], one["gpus"], one["rdma"]) == ("", 0, [])
    assert one["nodeFolderProblem"] == "there is none"  # The demo's chart values set no folder.


def test_the_agent_reads_the_checkpoint_for_the_first_instance(told: Told):
    assert told.first.annotation("transport") in ("storage/io_uring", "storage/threads")
    # What was really read: the files, and of each batch a part of a block more.
    read = told.first.bytes_by_source["storage"]
    assert read < 1.05 * make_checkpoint.weight_bytes()
    weights, (lane,) = (
        next(x for x in told.first.timeline["phases"] if x["name"] == "Weights"),
        [x for x in told.first.timeline["lanes"] if x["name"] == "Read"],
    )
    assert weights["startUs"] <= lane["startUs"] <= lane["endUs"] <= weights["endUs"]
    assert not [x for x in told.second.timeline["lanes"] if x["name"] == "Read"]


def test_the_second_instance_takes_all_its_weights_from_the_first(told: Told):
    assert told.second.path == "Peer"
    assert told.second.bytes_by_source["peer"] >= make_checkpoint.weight_bytes()
    assert told.second.bytes_by_source.get("storage", 0) == 0
    assert told.second.annotation("transport")


def test_the_second_pod_has_no_way_to_the_checkpoint(told: Told):
    spec = told.second.pod["spec"]
    kinds = {kind for volume in spec["volumes"] for kind in volume if kind != "name"}
    assert kinds <= {"emptyDir", "projected", "configMap", "downwardAPI"}, spec["volumes"]
    # and the first has, so that this is a difference of the pods and not of the demo
    assert any("persistentVolumeClaim" in volume for volume in told.first.pod["spec"]["volumes"])


def test_both_instances_give_identical_greedy_tokens(told: Told):
    assert len(told.first.tokens) == TOKENS
    assert len(set(told.first.tokens)) > 3, "too uniform to tell right weights from wrong ones"
    assert told.second.tokens == told.first.tokens


def test_other_prompts_are_answered_alike_too(told: Told):
    answers = []
    for prompt in ("a", "the quick brown fox", "0123456789" * 8):
        first, second = (told.story.ask(x, prompt) for x in (told.first, told.second))
        assert first == second, prompt
        answers.append(tuple(first))
    assert len(set(answers)) == 3


@pytest.mark.parametrize("which", ["first", "second"])
def test_the_phases_partition_the_time_from_decision_to_first_token(told: Told, which: str):
    timeline = getattr(told, which).timeline
    assert [x["name"] for x in timeline["phases"]] == PHASES
    at = 0
    for phase in timeline["phases"]:
        assert phase["startUs"] == at, phase
        assert phase["endUs"] >= at, phase
        at = phase["endUs"]
    assert at == timeline["totalUs"] > 0
    # The engine told of each of its steps.
    unknown = [x["name"] for x in timeline["phases"][2:] if x["endUs"] == x["startUs"]]
    assert not unknown, timeline
    for lane in timeline.get("lanes", []):
        assert 0 <= lane["startUs"] <= lane["endUs"], lane


def test_the_timeline_agrees_with_the_clocks_of_the_cluster(told: Told):
    timeline = told.second.timeline
    created = told.second.pod["metadata"]["creationTimestamp"]
    created_at = time.mktime(time.strptime(created, "%Y-%m-%dT%H:%M:%SZ")) - time.timezone
    assert abs(timeline["decidedAtUs"] / 1e6 - created_at) < 5
    ready = next(x for x in told.second.pod["status"]["conditions"] if x["type"] == "Ready")
    ready_at = time.mktime(time.strptime(ready["lastTransitionTime"], "%Y-%m-%dT%H:%M:%SZ"))
    ready_at -= time.timezone
    assert abs(timeline["totalUs"] / 1e6 - (ready_at - created_at)) < 15


def test_kubectl_get_modelservices_answers_how_long_and_by_which_path(told: Told):
    header, row = told.columns.splitlines()[:2]
    values = dict(zip(header.split(), row.split(), strict=False))
    assert values["NAME"] == told.story.name
    assert values["DESIRED"] == "2"
    assert values["READY"] == "2"
    assert values["LAST-PATH"] == "Peer"
    assert float(values["LAST-SECONDS"].rstrip("s")) > 0


def test_the_status_tells_both_starts(told: Told):
    story = told.story
    service = story.cluster.get("modelservice", story.name, story.namespace)
    assert service is not None
    status = service["status"]
    assert status["observedGeneration"] == service["metadata"]["generation"]
    starts = {x["pod"]: x for x in status["scaleOuts"]}
    for instance in (told.first, told.second):
        start = starts[instance.name]
        assert start["path"] == instance.path
        assert start["seconds"] == pytest.approx(instance.timeline["totalUs"] / 1e6, abs=0.01)
        assert sum(x["seconds"] for x in start["phases"]) == pytest.approx(
            start["seconds"], abs=0.01
        )
    assert starts[told.second.name]["bytesBySource"]["peer"] >= make_checkpoint.weight_bytes()


def test_prometheus_scrapes_operator_and_agents(told: Told):
    def all_up() -> bool:
        targets = told.prometheus.targets()
        jobs = sorted(x["labels"]["job"] for x in targets if x["health"] == "up")
        return jobs == ["rouse-agent", "rouse-agent", "rouse-operator"] and len(targets) == 3

    wait_until("three targets to be up", 30, all_up)


# ---- a guard, and a scale-out that wakes it


@pytest.fixture(scope="module")
def watch(told: Told) -> Iterator[Watch]:
    told.story.guard(1)
    watch = Watch(told.story)
    yield watch
    watch.close()


def status(story: Story) -> Object:
    return (story.cluster.get("modelservice", story.name, story.namespace) or {})["status"]


def test_a_guard_is_made_beside_the_replicas_and_falls_asleep(told: Told, watch: Watch):
    pods = told.story.await_pods(
        "demo-2 to sleep", lambda p: "demo-2" in p and p["demo-2"].sleeps, START_SECONDS
    )
    assert pods.keys() == {"demo-0", "demo-1", "demo-2"}
    assert pods["demo-2"].condition("rouse.dev/serving") in ("", "False")
    assert pods["demo-0"].condition("rouse.dev/serving") == "True"
    wait_until("status.guards to be 1", 10, lambda: status(told.story)["guards"] == 1, 0.2)
    found = status(told.story)
    assert (found["replicas"], found["readyReplicas"], found["active"]) == (2, 2, 2)
    assert found["scaleOuts"][0]["pod"] == "demo-1", "the guard's start is no scale-out"
    wait_until("both endpoints", 10, lambda: watch.ready() == {"demo-0", "demo-1"}, 0.2)


def test_a_scale_out_is_served_by_the_guard(told: Told, watch: Watch):
    story = told.story
    (guard,) = [x for x in map(Instance, story.pods()) if x.sleeps]
    begun = time.monotonic()
    story.scale(3)
    pods = story.await_pods("the guard to serve", lambda p: p["demo-2"].serves, 60)
    story.say(f"demo-2 is ready {time.monotonic() - begun:.2f} s after kubectl scale")
    woken = pods["demo-2"]
    assert (woken.uid, woken.role, woken.path) == (guard.uid, "Active", "Wake")
    assert "this guard slept; weights of demo-" in woken.annotation("path-reason")
    assert story.ask(woken) == told.first.tokens
    timeline = woken.timeline
    assert [x["name"] for x in timeline["phases"]] == WAKE_PHASES
    assert timeline["phases"][-1]["endUs"] == timeline["totalUs"]
    # From the operator's decision, which its claim tells.
    assert timeline["decidedAtUs"] == int(woken.annotation("decided-at-us"))
    story.say(f"demo-2 woke in {timeline['totalUs'] / 1e6:.2f} s")
    wait_until("the wake in the status", 10, lambda: status(story)["lastPath"] == "Wake", 0.2)
    assert status(story)["scaleOuts"][0]["pod"] == "demo-2"
    wait_until("its endpoint", 10, lambda: "demo-2" in watch.ready(), 0.2)


def test_after_the_scale_in_it_is_a_guard_again_and_what_it_was_asked_is_answered(
    told: Told, watch: Watch
):
    """The guard that had begun to take its place gives way to it."""
    story, tokens = told.story, 100
    answers: list[int] = []

    def ask() -> None:
        body = {
            "model": story.service["spec"]["model"]["name"], "prompt": "x", "max_tokens": tokens,
            "ignore_eos": True, "temperature": 0, "return_token_ids": True,
        }  # fmt: skip
        answer = story.cluster.pod_request(
            "demo-2", story.port, "/v1/completions", "POST", body, story.namespace
        )
        answers.append(len(answer.json()["choices"][0]["token_ids"]) if answer.status == 200 else 0)

    asking = threading.Thread(target=ask)
    asking.start()
    time.sleep(0.3)
    story.scale(2)
    asking.join(120)
    assert answers == [tokens], "a request under way was not finished"
    story.await_pods(
        "demo-2 to sleep, and nobody else to be there",
        lambda p: p.keys() == {"demo-0", "demo-1", "demo-2"} and p["demo-2"].sleeps,
        120,
    )
    wait_until("both endpoints", 10, lambda: watch.ready() == {"demo-0", "demo-1"}, 0.2)


@pytest.mark.parametrize("query", dashboard_queries(), ids=str)
def test_every_query_of_the_dashboards_has_data(told: Told, query: Query):
    """Now that there have been starts by all paths, and a guard sleeps."""
    wait_until(f"data for {query}", 30, lambda: told.prometheus.has_data(query.expression), every=1)


def test_the_dashboards_have_queries():
    assert len(dashboard_queries()) >= 10


def test_every_alert_can_be_evaluated_and_none_fires(told: Told):
    wait_until(
        "all rules to be evaluated",
        30,
        lambda: all(x["health"] != "unknown" for x in told.prometheus.rules()),
    )
    rules = told.prometheus.rules()
    assert len(rules) >= 10
    assert [x for x in rules if x["health"] != "ok"] == []
    assert [x["name"] for x in rules if x["state"] == "firing"] == []


def test_the_operators_metrics_are_as_prometheus_wants_them(told: Told):
    (operator,) = told.story.cluster.list("pods", SYSTEM, OPERATOR)
    text = told.story.cluster.pod_request(
        operator["metadata"]["name"], OPERATOR_PORT, "/metrics", namespace=SYSTEM
    ).text
    said = subprocess.run(
        ["promtool", "check", "metrics"], input=text, capture_output=True, text=True, timeout=30
    )
    assert (said.returncode, said.stdout, said.stderr) == (0, "", "")


def test_helm_test_asks_the_operator(told: Told):
    assert "Succeeded" in told.story.cluster.helm("test", RELEASE, "-n", SYSTEM)


def test_no_guard_was_in_the_endpoints_at_any_time(watch: Watch):
    assert watch.wrong == []
    assert watch.looks > 30, watch.errors[:3]


def test_scale_in_and_deletion_leave_nothing_behind(told: Told):
    story = told.story
    assert story.left_behind(), "the search finds nothing even while two instances run"
    story.scale(1)
    pods = story.await_pods(
        "one to serve and the guard to sleep",
        lambda p: (
            len(p) == 2 and p["demo-2"].sleeps and all(x.serves or x.sleeps for x in p.values())
        ),
        60,
    )
    (remaining,) = [x for x in pods.values() if x.serves]
    assert story.ask(remaining) == told.first.tokens
    story.delete()
    wait_until("nothing to be left", 60, lambda: not story.left_behind(), 0.5)
