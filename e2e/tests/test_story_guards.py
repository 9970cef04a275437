"""Guards on a real cluster: a scale-out is served by one, which is one again after the scale-in."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from rouse_e2e.cluster import Object, wait_until
from rouse_e2e.story import START_SECONDS, TOKENS, Instance, Story

pytestmark = pytest.mark.timeout(900)

WAKE_PHASES = ["Command", "Map", "Weights", "Resume", "Canary"]


class Watch:
    """Looks all the time at who is in the Service's endpoints: a guard never is."""

    def __init__(self, story: Story) -> None:
        self.story = story
        self.looks = 0
        self.wrong: list[str] = []
        self.errors: list[str] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        self._thread.join(30)

    def ready(self) -> set[str]:
        """The pods that requests to the Service may reach."""
        slices = self.story.cluster.request(
            "GET",
            f"/apis/discovery.k8s.io/v1/namespaces/{self.story.namespace}/endpointslices"
            f"?labelSelector=kubernetes.io/service-name={self.story.name}",
        ).json()["items"]
        endpoints = [x for each in slices for x in each["endpoints"] or []]
        return {x["targetRef"]["name"] for x in endpoints if x["conditions"].get("ready")}

    def _asleep(self) -> set[str]:
        path = f"/api/v1/namespaces/{self.story.namespace}/pods"
        pods = [Instance(x) for x in self.story.cluster.request("GET", path).json()["items"]]
        states = ("Sleeping", "Asleep", "Waking")
        return {x.name for x in pods if x.annotation("agent-state") in states}

    def _run(self) -> None:
        while not self._stop.wait(0.1):
            try:
                # Asleep before and after that look: it slept meanwhile.
                before = self._asleep()
                ready = self.ready()
                self.wrong += sorted(before & self._asleep() & ready)
                self.looks += 1
            except (OSError, ValueError, KeyError) as error:
                self.errors.append(str(error))


@pytest.fixture(scope="module")
def guarded(installed_story: Story) -> Iterator[Story]:
    story = installed_story
    story.service["spec"]["fastStart"]["profile"] = "Guarded"
    story.service["spec"]["guards"] = {"replicas": 1}
    story.service["spec"]["scaleIn"] = {"drainSeconds": 60}
    story.apply()
    yield story


@pytest.fixture(scope="module")
def watch(guarded: Story) -> Iterator[Watch]:
    watch = Watch(guarded)
    yield watch
    watch.close()


def status(story: Story) -> Object:
    return (story.cluster.get("modelservice", story.name, story.namespace) or {})["status"]


def wake(story: Story) -> dict[str, Instance]:
    begun = time.monotonic()
    story.scale(2)
    pods = story.await_pods(
        "the guard to serve", lambda p: p["demo-0"].serves and p["demo-1"].serves, 60
    )
    assert [pods[x].role for x in ("demo-0", "demo-1")] == ["Active", "Active"]
    story.say(f"demo-1 is ready {time.monotonic() - begun:.2f} s after kubectl scale")
    return pods


def test_a_guard_is_made_once_the_replica_serves_and_falls_asleep(guarded: Story, watch: Watch):
    pods = guarded.await_pods(
        "demo-0 to serve and demo-1 to sleep",
        lambda p: len(p) == 2 and p["demo-0"].serves and p["demo-1"].sleeps,
        2 * START_SECONDS,
    )
    assert pods.keys() == {"demo-0", "demo-1"}
    assert pods["demo-1"].condition("rouse.dev/serving") in ("", "False")
    assert pods["demo-0"].condition("rouse.dev/serving") == "True"
    wait_until("status.guards to be 1", 10, lambda: status(guarded)["guards"] == 1, 0.2)
    found = status(guarded)
    assert (found["replicas"], found["readyReplicas"], found["active"]) == (1, 1, 1)
    assert found["lastPath"] == "Storage", "the guard's start is no scale-out"
    wait_until("the endpoints to be demo-0", 10, lambda: watch.ready() == {"demo-0"}, 0.2)


def test_a_scale_out_is_served_by_the_guard(guarded: Story, watch: Watch):
    before = {x["metadata"]["name"]: Instance(x) for x in guarded.pods()}
    expected = guarded.ask(before["demo-0"])
    assert len(set(expected)) > 3, "too uniform to tell right weights from wrong ones"
    pods = wake(guarded)
    woken = pods["demo-1"]
    assert woken.uid == before["demo-1"].uid
    assert woken.path == "Wake"
    assert "weights of demo-0 (Node)" in woken.annotation("path-reason")
    assert guarded.ask(woken) == expected
    timeline = woken.timeline
    assert timeline["path"] == "Wake"
    assert [x["name"] for x in timeline["phases"]] == WAKE_PHASES
    assert timeline["phases"][-1]["endUs"] == timeline["totalUs"]
    # From the operator's decision, which its claim tells.
    assert timeline["decidedAtUs"] == int(woken.annotation("decided-at-us"))
    guarded.say(f"demo-1 woke in {timeline['totalUs'] / 1e6:.2f} s")
    wait_until("the wake in the status", 10, lambda: status(guarded)["lastPath"] == "Wake", 0.2)
    assert status(guarded)["scaleOuts"][0]["pod"] == "demo-1"
    wait_until("both in the endpoints", 10, lambda: watch.ready() >= {"demo-0", "demo-1"}, 0.2)


def test_after_the_scale_in_it_is_a_guard_again_and_what_it_was_asked_is_answered(
    guarded: Story, watch: Watch
):
    """The guard that had begun to take its place gives way to it."""
    long = 200
    answers: list[int] = []

    def ask() -> None:
        answer = guarded.cluster.pod_request(
            "demo-1",
            guarded.port,
            "/v1/completions",
            "POST",
            {
                "model": guarded.service["spec"]["model"]["name"],
                "prompt": "x",
                "max_tokens": long,
                "ignore_eos": True,
                "temperature": 0,
                "return_token_ids": True,
            },
            guarded.namespace,
        )
        answers.append(len(answer.json()["choices"][0]["token_ids"]) if answer.status == 200 else 0)

    asking = threading.Thread(target=ask)
    asking.start()
    time.sleep(0.3)
    guarded.scale(1)
    asking.join(120)
    assert answers == [long], "a request under way was not finished"
    pods = guarded.await_pods(
        "demo-1 to sleep, and nobody else to be there",
        lambda p: p.keys() == {"demo-0", "demo-1"} and p["demo-1"].sleeps,
        120,
    )
    assert pods["demo-0"].serves
    wait_until("the endpoints to be demo-0", 10, lambda: watch.ready() == {"demo-0"}, 0.2)


def test_it_wakes_again_with_the_same_answers(guarded: Story, watch: Watch):
    pods = wake(guarded)
    first, woken = (guarded.ask(pods[name]) for name in ("demo-0", "demo-1"))
    assert len(woken) == TOKENS and woken == first
    restarts = [x["restartCount"] for x in pods["demo-1"].pod["status"]["containerStatuses"]]
    assert restarts == [0]


def test_no_guard_was_in_the_endpoints_at_any_time(watch: Watch):
    assert watch.wrong == []
    assert watch.looks > 50, watch.errors[:3]


def test_deletion_leaves_nothing_behind(guarded: Story):
    guarded.delete()
    wait_until("nothing to be left", 60, lambda: not guarded.left_behind(), 0.5)
