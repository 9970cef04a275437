"""The main job on a real cluster: storage start, scale-out from the peer, scale-in, deletion."""

from __future__ import annotations

import dataclasses
import time

import pytest

import make_checkpoint
from rouse_e2e.cluster import wait_until
from rouse_e2e.prometheus import Prometheus, Query, dashboard_queries
from rouse_e2e.story import SYSTEM, TOKENS, Instance, Story

PHASES = ["Schedule", "Hydrate", "EngineStart", "EngineInit", "Weights", "Warmup", "FirstToken"]

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


@pytest.mark.parametrize("query", dashboard_queries(), ids=str)
def test_every_query_of_the_dashboards_has_data(told: Told, query: Query):
    wait_until(f"data for {query}", 30, lambda: told.prometheus.has_data(query.expression), every=1)


def test_the_dashboards_have_queries():
    assert len(dashboard_queries()) >= 4


def test_scale_in_and_deletion_leave_nothing_behind(told: Told):
    story = told.story
    assert story.left_behind(), "the search finds nothing even while two instances run"
    story.scale(1)
    remaining = story.await_serving(1)[0]
    assert story.ask(remaining) == told.first.tokens
    story.delete()
    wait_until("nothing to be left", 30, lambda: not story.left_behind(), 0.5)
