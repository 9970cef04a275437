"""What the operator does when things around it break. The end is always the right pods."""

from __future__ import annotations

import datetime
import json
import subprocess
import threading
import time

import pytest

from rouse_e2e.processes import wait_until

from .conftest import ACCOUNT, SYSTEM, Operator, World
from .fake_agent_reports import FakeAgents, report, send
from .fake_faulty_proxy import Answer, Cut, FakeFaultyProxy, Hook, Request, Stream
from .modelservice import (
    modelservice,
    peer,
    pods,
    scale,
    status,
    uids,
    wait_pods,
    wait_status,
)

WATCHED = ("modelservices", "pods")


def is_watch(request: Request) -> bool:
    return request.watch and request.resource in WATCHED


class Times:
    """A rule for the first `count` matching requests of each resource."""

    def __init__(self, count: int, matches, action) -> None:
        self.count, self.matches, self.action = count, matches, action
        self.lock = threading.Lock()
        self.seen: dict[str, int] = {}

    def __call__(self, request: Request):
        if not self.matches(request):
            return None
        with self.lock:
            seen = self.seen[request.resource] = self.seen.get(request.resource, 0) + 1
        return self.action if seen <= self.count else None

    def done(self) -> bool:
        return bool(self.seen) and all(x > self.count for x in self.seen.values())


def timestamp() -> str:
    """As in the audit log."""
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


# ---- the API server


@pytest.mark.timeout(180)
def test_an_api_server_that_is_down_for_20_s_costs_nothing_but_that_time(
    world: World, namespace: str, operator: Operator
):
    cluster = world.cluster
    cluster.apply(modelservice(namespace, 3))
    before = wait_pods(cluster, namespace, 3)
    cluster.control_plane.end_all_but_etcd()
    ended = time.monotonic()
    time.sleep(20)
    starting = timestamp()
    cluster.control_plane.start_all_but_etcd()
    world.starts.append((starting, timestamp()))
    assert time.monotonic() - ended >= 20
    assert uids(wait_pods(cluster, namespace, 3)) == uids(before), "running instances were to stay"
    scale(cluster, namespace, 5)
    wait_pods(cluster, namespace, 5, 60)
    cluster.kubectl("delete", "pod", "m-0", "-n", namespace)
    wait_pods(cluster, namespace, 5, 60)
    assert operator.exits == [1], "it ends once, in order, when it cannot renew its lease"


GONE_EVENT = json.dumps(
    {
        "type": "ERROR",
        "object": {
            "kind": "Status",
            "apiVersion": "v1",
            "status": "Failure",
            "reason": "Expired",
            "code": 410,
            "message": "too old resource version: 1 (2)",
        },
    }
).encode()

WATCH_FAULTS = {
    "is garbage": Stream([b"<html>502 Bad Gateway</html>\n"], "silence"),
    "is binary garbage": Stream([bytes(range(256)) * 16, b"\n"], "end"),
    "is JSON of another kind": Stream(
        [b'{"type":"ADDED","object":{"kind":"Pod"}}\n[1]\n'], "silence"
    ),
    "is cut in the middle of a line": Cut(0),
    "ends with half a line": Stream([b'{"type":"MODIFIED","object":{"kind":"Po'], "break"),
    "ends at once": Stream([], "end"),
    "breaks at once": Stream([], "break"),
    "answers 410 Gone in the stream": Stream([GONE_EVENT + b"\n"], "end"),
    "answers 410 Gone with the status": Answer(410, "Expired", "too old resource version"),
    "answers 500": Answer(500, "InternalError"),
    "answers 429": Answer(429, "TooManyRequests", headers={"Retry-After": "1"}),
    "answers 200 and no JSON": Answer(200),
}


@pytest.mark.parametrize("fault", WATCH_FAULTS)
def test_a_watch_that_misbehaves_is_resumed(
    world: World, namespace: str, make_operator, proxy: FakeFaultyProxy, fault: str
):
    cluster = world.cluster
    rule = proxy.rule = Times(2, is_watch, WATCH_FAULTS[fault])
    operator = make_operator("operator-0", proxy.url).start(wait=False)
    cluster.apply(modelservice(namespace, 2))
    wait_pods(cluster, namespace, 2, 60)
    wait_until("healthy watches", 60, rule.done)
    scale(cluster, namespace, 4)
    wait_pods(cluster, namespace, 4, 60)
    cluster.kubectl("delete", "pod", "m-1", "-n", namespace)
    wait_pods(cluster, namespace, 4, 60)
    assert rule.seen.keys() == set(WATCHED)
    assert operator.exits == []


def test_connections_that_break_in_mid_work_lose_nothing(
    world: World, namespace: str, make_operator, proxy: FakeFaultyProxy
):
    cluster = world.cluster
    operator = make_operator("operator-0", proxy.url).start()
    cluster.apply(modelservice(namespace, 1))
    for replicas in (4, 1, 6, 3):
        scale(cluster, namespace, replicas)
        proxy.break_connections()
        wait_pods(cluster, namespace, replicas, 60)
    assert operator.exits == []


@pytest.mark.timeout(280)
def test_a_watch_that_is_silent_for_ever_is_noticed(
    world: World, namespace: str, make_operator, proxy: FakeFaultyProxy
):
    cluster = world.cluster
    rule = proxy.rule = Times(1, is_watch, Stream([], "silence"))
    operator = make_operator("operator-0", proxy.url, "--watch-silence=5s").start(wait=False)
    wait_until("both watches to be silent", 30, lambda: rule.seen.keys() == set(WATCHED))
    cluster.apply(modelservice(namespace, 2))
    wait_pods(cluster, namespace, 2, 60)
    assert operator.exits == []


@pytest.mark.parametrize(
    "answer",
    [
        Answer(
            409, "Conflict", "the object has been modified; please apply your changes to the latest"
        ),
        Answer(409, "AlreadyExists", "pods already exists"),
        Answer(429, "TooManyRequests", headers={"Retry-After": "1"}),
        Answer(500, "InternalError", "etcdserver: leader changed"),
        Answer(503, "ServiceUnavailable"),
        Answer(504, "Timeout"),
        Hook(drop=True),
        Hook(swallow=True),
    ],
    ids=[
        *("409 Conflict", "409 AlreadyExists", "429", "500", "503", "504"),
        *("done but not answered", "not even received"),
    ],
)
def test_writes_that_are_refused_are_tried_again(
    world: World, namespace: str, make_operator, proxy: FakeFaultyProxy, answer
):
    cluster = world.cluster
    operator = make_operator("operator-0", proxy.url).start()
    rule = proxy.rule = Times(3, lambda request: request.write, answer)
    cluster.apply(modelservice(namespace, 3))
    wait_pods(cluster, namespace, {"m-0", "m-1", "m-2"}, 60)
    scale(cluster, namespace, 1)
    wait_pods(cluster, namespace, 1, 60)
    wait_status(cluster, namespace, 30, replicas=1, readyReplicas=1)
    assert rule.seen, "nothing was refused"
    assert operator.exits == []


def test_a_pod_that_the_api_server_refuses_is_told_in_status_and_event(
    world: World, namespace: str, operator: Operator
):
    cluster = world.cluster
    quota = {"apiVersion": "v1", "kind": "ResourceQuota", "spec": {"hard": {"pods": "2"}}}
    cluster.apply({**quota, "metadata": {"name": "few", "namespace": namespace}})
    wait_until(
        "the quota",
        30,
        lambda: cluster.get("resourcequota", "few", namespace).get("status", {}).get("hard"),
    )
    cluster.apply(modelservice(namespace, 3))

    def told() -> bool:
        text = json.dumps(status(cluster, namespace).get("conditions", []))
        return "exceeded quota" in text and "ActionFailed" in text

    wait_until("a condition that names the quota", 30, told)
    assert len(pods(cluster, namespace)) == 2
    cluster.kubectl("delete", "resourcequota", "few", "-n", namespace)
    wait_pods(cluster, namespace, 3, 90)
    assert operator.stop() == 0  # counts that were not due yet are written now
    text = cluster.kubectl("get", "events.events.k8s.io", "-n", namespace, "-o", "json")
    told = [x for x in json.loads(text)["items"] if x["reason"] == "ActionFailed"]
    assert len(told) == 1 and "exceeded quota" in told[0]["note"]
    assert "raise the quota" in told[0]["note"] and "Role" not in told[0]["note"]
    assert told[0]["series"]["count"] >= 2, "one event with a count, not many events"


def test_a_report_whose_write_meets_a_conflict_is_kept_in_the_end(
    world: World, namespace: str, make_operator, proxy: FakeFaultyProxy
):
    cluster = world.cluster
    operator = make_operator("operator-0", proxy.url).start()
    conflict = Answer(409, "Conflict", "the object has been modified")
    rule = proxy.rule = Times(3, lambda request: request.report, conflict)
    cluster.apply(modelservice(namespace, 1))
    pod = wait_pods(cluster, namespace, {"m-0"})["m-0"]
    code, answer = send(cluster, operator.tls_port, pod, report(pod))
    assert code == 503 and "report again" in answer["error"]["message"], (code, answer)

    def kept() -> bool:
        annotations = cluster.get("pod", "m-0", namespace)["metadata"]["annotations"]
        return annotations.get("rouse.dev/agent-state") == "Serving"

    with FakeAgents(cluster, namespace, operator.tls_port):
        wait_until("the report on the pod", 30, kept)
    assert rule.done(), "too few refusals"
    assert uids(pods(cluster, namespace)) == {pod["metadata"]["uid"]}
    assert operator.exits == []


# ---- the operator itself


@pytest.mark.timeout(1200)
def test_killed_between_any_two_actions_of_a_scale_out_it_ends_with_exactly_the_right_pods(
    world: World, namespace: str, make_operator, proxy: FakeFaultyProxy
):
    """SIGKILL at the n-th write, for every n, before the API server hears of it and after it did
    it but before it answered; then a new operator starts."""
    cluster = world.cluster
    cluster.apply(modelservice(namespace, 1, fastStart=peer()))
    victim = make_operator("victim", proxy.url).start()
    healthy = make_operator("healthy")
    with FakeAgents(cluster, namespace, victim.tls_port) as agents:

        def settle_at_one() -> None:
            scale(cluster, namespace, 1)
            wait_pods(cluster, namespace, {"m-0"})
            wait_status(cluster, namespace, readyReplicas=1)
            wait_until("weights of m-0", 20, lambda: status(cluster, namespace).get("lastPath"))

        settle_at_one()
        begun = len(proxy.writes())
        scale(cluster, namespace, 3)
        wait_pods(cluster, namespace, {"m-0", "m-1", "m-2"})
        wait_status(cluster, namespace, readyReplicas=3)
        ours = proxy.writes()[begun:]
        creates = [x for x in ours if x.resource == "pods"]
        assert len(creates) >= 2
        kills = 0
        for number in range(len(ours)):
            for moment in ("before", "after"):
                settle_at_one()
                killed = threading.Event()
                count = len(proxy.writes())

                def kill() -> None:
                    victim.kill()
                    killed.set()

                def rule(request: Request, target: int = count + number, moment: str = moment):
                    if not request.write or killed.is_set() or len(proxy.writes()) - 1 < target:
                        return None
                    return (
                        Hook(before=kill, swallow=True)
                        if moment == "before"
                        else Hook(after=kill, drop=True)
                    )

                proxy.rule = rule
                scale(cluster, namespace, 3)
                where = f"write {number} of {len(ours)}, {moment}"

                def settled(killed: threading.Event = killed) -> bool:
                    found = status(cluster, namespace)
                    return killed.is_set() or found.get("readyReplicas") == 3

                wait_until(f"the kill at {where}", 30, settled)
                kills += killed.is_set()
                victim.kill()
                proxy.rule = lambda request: None
                world.forget_lease()
                agents.port = healthy.tls_port
                healthy.start()
                found = wait_pods(cluster, namespace, {"m-0", "m-1", "m-2"})
                paths = {
                    x: y["metadata"]["annotations"]["rouse.dev/path"] for x, y in found.items()
                }
                assert paths == {"m-0": "Storage", "m-1": "Peer", "m-2": "Peer"}, where
                wait_status(cluster, namespace, replicas=3, readyReplicas=3)
                healthy.stop()
                world.forget_lease()
                agents.port = victim.tls_port
                victim.start()
        assert kills >= 2 * len(creates), "hardly any kill happened"


def test_killed_and_started_again_it_changes_nothing_that_is_right(
    world: World, namespace: str, make_operator, proxy: FakeFaultyProxy
):
    cluster = world.cluster
    operator = make_operator("operator-0", proxy.url).start()
    cluster.apply(modelservice(namespace, 3))
    before = wait_pods(cluster, namespace, 3)
    wait_status(cluster, namespace, readyReplicas=3)
    operator.wait_idle()
    wait_until("the last write to be 2 s ago", 60, lambda: time.time() - proxy.writes()[-1].at > 2)
    operator.kill()
    world.forget_lease()
    begun = len(proxy.writes())
    operator.start()
    operator.wait_idle()
    time.sleep(2)
    assert [str(x) for x in proxy.writes()[begun:]] == []
    after = wait_pods(cluster, namespace, 3)
    assert {x["metadata"]["uid"] for x in after.values()} == {
        x["metadata"]["uid"] for x in before.values()
    }


def test_of_two_operators_one_acts_and_the_other_takes_over(
    world: World, namespace: str, make_operator, make_proxy
):
    cluster = world.cluster
    proxies = [make_proxy(), make_proxy()]
    operators = [make_operator(f"operator-{i}", p.url) for i, p in enumerate(proxies)]
    operators[0].start()
    operators[1].start(wait=False)
    cluster.apply(modelservice(namespace, 2))
    wait_pods(cluster, namespace, 2)
    operators[1].wait_ready()  # it knows all that the leader knows
    scale(cluster, namespace, 4)
    wait_pods(cluster, namespace, 4)
    wait_status(cluster, namespace, readyReplicas=4)
    assert proxies[0].writes()
    assert [str(x) for x in proxies[1].writes()] == [], "the one that does not lead wrote"
    lease = cluster.list("leases", SYSTEM)
    assert len(lease) == 1 and lease[0]["spec"]["holderIdentity"].startswith("operator-0")

    assert operators[0].stop() == 0
    assert "released the lease" in operators[0].log.read_text(), "others had to wait for 15 s"
    scale(cluster, namespace, 5)
    wait_pods(cluster, namespace, 5, 60)
    assert proxies[1].writes()
    (lease,) = cluster.list("leases", SYSTEM)
    assert lease["spec"]["holderIdentity"].startswith("operator-1")


@pytest.mark.timeout(120)
def test_a_killed_leader_is_replaced_once_its_lease_has_run_out(
    world: World, namespace: str, make_operator
):
    cluster = world.cluster
    operators = [make_operator(f"operator-{i}") for i in range(2)]
    operators[0].start()
    operators[1].start(wait=False)
    cluster.apply(modelservice(namespace, 1))
    wait_pods(cluster, namespace, 1)
    operators[1].wait_ready()
    operators[0].kill()
    scale(cluster, namespace, 3)
    wait_pods(cluster, namespace, 3, 45)


def test_sigterm_ends_it_in_order(world: World, operator: Operator):
    started = time.monotonic()
    assert operator.stop() == 0
    assert time.monotonic() - started < 10


def test_without_rights_it_is_not_ready_and_says_what_is_missing(world: World, make_operator):
    operator = make_operator()
    operator.kubeconfig = world.cluster.control_plane.kubeconfig("nobody")
    operator.start(wait=False)

    def told() -> bool:
        try:
            code, text = operator.get("/readyz")
        except OSError:
            return False
        return code == 503 and "forbidden" in text and "nobody-in-particular" in text

    wait_until("/readyz to name the missing right", 30, told)
    assert operator.answers("/healthz"), "restarting it would not help"
    assert operator.exits == []


@pytest.mark.parametrize(
    ("flags", "part"),
    [
        (["--kubeconfig=/nowhere/config"], "/nowhere/config"),
        (["--agent-image"], "--agent-image"),
        (["--port=70000"], "port"),
        (["--colour=red"], "--colour"),
    ],
    ids=["no kubeconfig", "no agent image", "no such port", "no such flag"],
)
def test_a_bad_flag_ends_it_at_once_and_is_named(
    world: World, tmp_path, flags: list[str], part: str
):
    kubeconfig = world.kubeconfig(tmp_path / "kubeconfig")
    good = {
        "--kubeconfig": str(kubeconfig),
        "--agent-image": "a:1",
        "--service-name": "rouse-operator",
    }
    for flag in flags:
        name, _, value = flag.partition("=")
        good[name] = value
        if not value:
            del good[name]
    result = subprocess.run(
        [str(world.program), *(f"{key}={value}" for key, value in good.items())],
        capture_output=True,
        text=True,
        timeout=20,
        env={"POD_NAME": "x", "POD_NAMESPACE": SYSTEM, "PATH": "/usr/bin:/bin"},
    )
    assert result.returncode > 0
    assert part in result.stdout + result.stderr


# ---- who talks to it


BAD_REPORTS = {
    "no JSON": ("{", 400, "InvalidArgument", ""),
    "an empty body": ("", 400, "InvalidArgument", ""),
    "a list": ([], 400, "InvalidArgument", ""),
    "nothing in it": ({}, (400, 412), ("InvalidArgument", "FailedPrecondition"), "protocol"),
    "another protocol": ({"protocol": "rouse-weights"}, 412, "FailedPrecondition", "rouse-weights"),
    "a newer version": ({"version": 2}, 412, "FailedPrecondition", "2"),
    "no pod": ({"pod": None}, 400, "InvalidArgument", "pod"),
    "a pod that is a number": ({"pod": 7}, 400, "InvalidArgument", "pod"),
    "an unknown state": ({"state": "Dreaming"}, 400, "InvalidArgument", "Dreaming"),
    "an unknown form": (
        {"weights": {"form": "Raw", "identity": "00", "bytes": 1, "ranks": 1, "servable": True}},
        400,
        "InvalidArgument",
        "weights.form",
    ),
    "negative bytes": (
        {"bytesBySource": {"peer": -1, "storage": 0}},
        400,
        "InvalidArgument",
        "peer",
    ),
    "a pod that does not exist": ({"pod": "m-77"}, 403, "PermissionDenied", "m-77"),
    "a pod of another namespace": (
        {"namespace": "kube-system"},
        403,
        "PermissionDenied",
        "kube-system",
    ),
    "another uid": (
        {"podUid": "00000000-0000-0000-0000-000000000000"},
        403,
        "PermissionDenied",
        "uid",
    ),
}


def test_bad_reports_are_refused_by_name_and_change_nothing(
    world: World, namespace: str, operator: Operator
):
    cluster = world.cluster
    cluster.apply(modelservice(namespace, 1))
    pod = wait_pods(cluster, namespace, {"m-0"})["m-0"]
    wrong = []
    for case, (change, codes, names, part) in BAD_REPORTS.items():
        body = {**report(pod), **change} if isinstance(change, dict) and change else change
        code, answer = send(cluster, operator.tls_port, pod, body)
        error = answer.get("error", {}) if isinstance(answer, dict) else {}
        codes = codes if isinstance(codes, tuple) else (codes,)
        names = names if isinstance(names, tuple) else (names,)
        right = code in codes and (names == (None,) or error.get("code") in names)
        if not right or part not in error.get("message", ""):
            wrong.append((case, code, answer))
    assert wrong == []
    code, _ = send(cluster, operator.tls_port, pod, report(pod, transport="x" * (8 << 20)))
    assert code in (400, 413)
    assert operator.exits == []
    annotations = cluster.get("pod", "m-0", namespace)["metadata"]["annotations"]
    assert "rouse.dev/agent-state" not in annotations
    assert send(cluster, operator.tls_port, pod, report(pod))[0] == 200, (
        "the good one, to see that the others could have worked"
    )


def test_a_stranger_gets_no_answer_but_404_on_other_paths(operator: Operator):
    assert operator.get("/")[0] == 404
    assert operator.get("/v1/agents/report")[0] == 404
    assert operator.get("/healthz")[0] == 200
    assert operator.get("/metrics")[0] == 200


def test_a_report_is_kept_on_the_pod_so_that_a_restarted_operator_knows_it(
    world: World, namespace: str, make_operator
):
    cluster = world.cluster
    cluster.apply(modelservice(namespace, 1, fastStart=peer()))
    first = make_operator("first").start()
    pod = wait_pods(cluster, namespace, {"m-0"})["m-0"]
    assert send(cluster, first.tls_port, pod, report(pod))[0] == 200

    def told() -> bool:
        pod = cluster.get("pod", "m-0", namespace)
        return "rouse.dev/weights" in pod["metadata"]["annotations"]

    wait_until("the report on the pod", 10, told)
    first.kill()
    world.forget_lease()
    make_operator("second").start()  # nobody reports to this one
    scale(cluster, namespace, 2)
    pod = wait_pods(cluster, namespace, {"m-0", "m-1"})["m-1"]
    assert pod["metadata"]["annotations"]["rouse.dev/path"] == "Peer"


def test_a_service_that_sends_requests_elsewhere_is_mended(
    world: World, namespace: str, operator: Operator
):
    cluster = world.cluster
    cluster.apply(modelservice(namespace, 1))
    wait_pods(cluster, namespace, 1)
    wait_until("the Service", 20, lambda: cluster.get("service", "m", namespace))
    elsewhere = json.dumps({"spec": {"selector": {"rouse.dev/role": "Guard"}}})
    cluster.kubectl("patch", "service", "m", "-n", namespace, "--type=merge", "-p", elsewhere)

    def mended() -> bool:
        selector = cluster.get("service", "m", namespace)["spec"]["selector"]
        return selector == {"rouse.dev/modelservice": "m", "rouse.dev/role": "Active"}

    wait_until("the selector to be the replicas'", 60, mended)


# ---- what it was allowed, and what it used


def test_zz_the_rights_that_the_chart_gives_are_those_that_were_used(world: World):
    """Reads the API server's audit log of this worker's session; run with the rest of the file."""
    entries = [x for x in world.audit() if x.get("objectRef")]
    refused = {
        (x["verb"], x["objectRef"]["resource"], x["responseStatus"].get("message", ""))
        for x in entries
        if x["responseStatus"]["code"] == 403
        and "quota" not in x["responseStatus"].get("message", "")
        # An API server that starts answers before it has read the roles.
        and not any(a <= x["requestReceivedTimestamp"] <= b for a, b in world.starts)
    }
    refused = {x for x in refused if "being terminated" not in x[2]}
    assert refused == set()

    def name(reference) -> str:
        sub = reference.get("subresource")
        return f"{reference['resource']}/{sub}" if sub else reference["resource"]

    used = {(x["verb"], name(x["objectRef"])) for x in entries}
    granted = set()
    roles = (("clusterrole", ""), ("clusterrole", "-tokenreviews"), ("role", ""))
    for kind, suffix in roles:
        found = world.cluster.get(kind, f"rouse-operator{suffix}", SYSTEM)
        for rule in found["rules"]:
            granted |= {(verb, what) for verb in rule["verbs"] for what in rule["resources"]}
    # Nobody calls this one: the API server asks for it when a pod blocks its owner's deletion.
    granted.discard(("update", "modelservices/finalizers"))
    # Nor this: the API server asks for it when an apply makes what is not there.
    granted.discard(("create", "configmaps"))
    assert granted - used == set(), "granted and never used"
    assert used - granted == set()
    assert ACCOUNT
