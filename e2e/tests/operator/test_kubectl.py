"""`kubectl rouse` against a real API server, with the real operator; the agents are fakes."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import threading
import xml.etree.ElementTree
from pathlib import Path

import pytest

from rouse_e2e import paths
from rouse_e2e.cluster import Object
from rouse_e2e.processes import wait_until

from .conftest import Operator, World
from .fake_agent_reports import FakeAgents
from .modelservice import modelservice, peer, pods, scale, wait_pods, wait_status
from .test_kube_client import with_client_certificate

FALLBACK = "mlx5_0 was refused\x1b[31m: no memory locked; raise the limit"


class Plugin:
    """kubectl-rouse as built, run by a real kubectl that finds it on PATH."""

    def __init__(self, world: World, build_folder: Path, folder: Path) -> None:
        self.program = program = build_folder / "operator" / "kubectl" / "kubectl-rouse"
        assert program.exists(), f"{program} is missing: build it, or name its build in ROUSE_BUILD"
        self.environment = dict(
            os.environ,
            KUBECONFIG=str(world.cluster.kubeconfig),
            PATH=f"{program.parent}:{os.environ['PATH']}",
            TMPDIR=str(folder),
            COLUMNS="100",
        )
        self.environment.pop("XDG_RUNTIME_DIR", None)

    @staticmethod
    def command(*arguments: str) -> list[str]:
        return [paths.tool("kubectl"), "rouse", *arguments]

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            self.command(*arguments),
            env=self.environment | environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )

    def __call__(self, *arguments: str) -> str:
        result = self.run(*arguments)
        assert result.returncode == 0, result.stdout + result.stderr
        assert not result.stderr, result.stderr
        return result.stdout

    def fails(self, *arguments: str, **environment: str) -> str:
        result = self.run(*arguments, **environment)
        assert result.returncode == 1, result.stdout + result.stderr
        assert result.stderr.startswith("error: "), result.stderr
        return result.stderr


class Shown:
    """A command that goes on, and what it has written; on a terminal, if that is wanted."""

    def __init__(self, rouse: Plugin, *arguments: str, terminal: bool = False) -> None:
        self.text = ""
        source, target = pty.openpty() if terminal else os.pipe()
        # Without kubectl in between, which passes on no signal that only it gets.
        self.process = subprocess.Popen(
            [rouse.program, *arguments],
            env=rouse.environment | {"TERM": "xterm"},
            stdin=subprocess.DEVNULL,
            stdout=target,
            stderr=subprocess.PIPE,
            text=True,
        )
        os.close(target)
        self._source = source
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        try:
            while data := os.read(self._source, 65536):
                self.text += data.decode()
        except OSError:  # a terminal whose other end is closed
            pass

    def __enter__(self) -> Shown:
        return self

    def __exit__(self, *_) -> None:
        self.process.kill()
        self.process.wait()
        self._thread.join(10)
        os.close(self._source)

    def wait(self, pattern: str, seconds: float = 20) -> None:
        try:
            wait_until(f"{pattern!r} to be shown", seconds, lambda: re.search(pattern, self.text))
        except RuntimeError as error:
            raise RuntimeError(f"{error}; shown so far:\n{self.text}") from error


@pytest.fixture
def rouse(world: World, build_folder: Path, tmp_path: Path) -> Plugin:
    return Plugin(world, build_folder, tmp_path)


def test_status_and_timeline_of_a_scale_out(
    world: World, namespace: str, operator: Operator, rouse: Plugin
) -> None:
    world.cluster.apply(modelservice(namespace, 1, fastStart=peer()))
    with FakeAgents(world.cluster, namespace, operator.tls_port) as agents:
        agents.states["m-1"] = {"transport": "tcp", "transportFallback": FALLBACK}
        wait_pods(world.cluster, namespace, {"m-0"})
        scale(world.cluster, namespace, 2)
        wait_pods(world.cluster, namespace, {"m-0", "m-1"})
        wait_status(world.cluster, namespace, readyReplicas=2, lastPath="Peer")

    text = rouse("status", "-n", namespace)
    assert f"{namespace}/m: 2 of 2 instances serve\n" in text
    assert re.search(r"m-0 +Active +Serving +Storage +18\.88 s", text), text
    assert re.search(r"m-1 +Active +Serving +Peer +18\.88 s", text), text
    assert re.search(r"! +Degraded +TransportFallback +m-1: mlx5_0 was refused", text), text
    assert "\x1b" not in text and "\\x1b[31m: no memory locked" in text

    [told] = json.loads(rouse("status", "m", "-n", namespace, "-o", "json"))["modelServices"]
    assert [x["state"] for x in told["instances"]] == ["Serving", "Serving"]
    assert told["instances"][1]["bytesBySource"]["peer"] > 0
    everywhere = json.loads(rouse("status", "-A", "-o", "json"))["modelServices"]
    assert (namespace, "m") in {(x["namespace"], x["name"]) for x in everywhere}

    chart = rouse("timeline", "m", "-n", namespace)
    assert re.search(r"m-0 +Storage +18\.88 +S+H*E+P+D+B+W*O+V+G+A+T*\n", chart), chart
    assert re.search(r"m-1 +Peer +18\.88 +S+H*E+P+D+B+W*O+V+G+A+T*\n", chart), chart
    detail = rouse("timeline", "m", "m-1", "-n", namespace)
    assert re.search(r"= Pull +0\.40 s", detail), detail
    assert "1.1 GB from peers" in detail
    starts = json.loads(rouse("timeline", "m", "-n", namespace, "-o", "json"))["starts"]
    assert [x["path"] for x in starts] == ["Storage", "Peer"]
    assert sum(x["endUs"] - x["startUs"] for x in starts[1]["phases"]) == starts[1]["totalUs"]
    assert starts[1]["lanes"][0]["name"] == "Pull"
    picture = xml.etree.ElementTree.fromstring(rouse("timeline", "m", "-n", namespace, "-o", "svg"))
    titles = [x.text for x in picture.iter("{http://www.w3.org/2000/svg}title")]
    assert titles.count("Spawn 5.00 s") == 2
    assert "Pull 0.40 s" in titles


@pytest.mark.parametrize("terminal", [True, False])
def test_watch_shows_a_scale_out_while_it_runs(
    world: World, namespace: str, operator: Operator, rouse: Plugin, terminal: bool
) -> None:
    world.cluster.apply(modelservice(namespace, 1))
    with (
        FakeAgents(world.cluster, namespace, operator.tls_port) as agents,
        Shown(rouse, "timeline", "m", "-n", namespace, "-w", terminal=terminal) as timeline,
        Shown(rouse, "status", "-w", "-n", namespace, terminal=terminal) as status,
    ):
        wait_pods(world.cluster, namespace, {"m-0"})
        agents.states["m-1"] = {"state": "Loading", "weights": None, "timeline": None}
        scale(world.cluster, namespace, 2)
        timeline.wait(r"m-1 +Storage +\d+\.\d\d… .*Loading")
        status.wait(r"m-1 .*Loading")  # kwok has it ready before its agent says more
        del agents.states["m-1"]
        timeline.wait(r"m-1 +Storage +18\.88 ")
        status.wait(r"2 of 2 instances serve")
        assert ("\x1b[H" in timeline.text) == terminal
        if terminal:
            assert "\x1b[30;48;5;" in timeline.text
        world.cluster.kubectl("delete", "modelservice", "m", "-n", namespace)
        assert timeline.process.wait(20) == 1
        assert f"ModelService {namespace}/m is gone" in timeline.process.stderr.read()
        status.process.send_signal(signal.SIGINT)
        assert status.process.wait(10) == 128 + signal.SIGINT


def test_keys_of_a_kubeconfig_are_not_left_behind_by_ctrl_c(
    world: World, namespace: str, rouse: Plugin, tmp_path: Path
) -> None:
    kubeconfig = with_client_certificate(world, tmp_path / "inline.kubeconfig")
    with Shown(rouse, "status", "-w", "-n", namespace, "--kubeconfig", str(kubeconfig)) as shown:
        wait_until("a folder of secrets", 20, lambda: list(tmp_path.glob("rouse-*")))
        shown.process.send_signal(signal.SIGINT)
        assert shown.process.wait(10) == 128 + signal.SIGINT
    assert not list(tmp_path.glob("rouse-*"))


def test_a_kubectl_proxy_can_stand_in_for_a_kubeconfig(
    world: World, namespace: str, rouse: Plugin
) -> None:
    world.cluster.apply(modelservice(namespace, 0))
    url = world.cluster.proxy_url()
    assert "0 of 0 instances serve" in rouse("status", "-n", namespace, "--server", url)
    assert "expected the address" in rouse.fails("status", "--server", "https://127.0.0.1:1")


def test_errors_name_the_object_and_the_remedy(
    world: World, namespace: str, rouse: Plugin, tmp_path: Path
) -> None:
    assert f"ModelService {namespace}/none is not there" in rouse.fails(
        "status", "none", "-n", namespace
    )
    assert "cannot be the name of a ModelService" in rouse.fails("timeline", "No/Such")
    assert "NAME is required" in rouse.fails("timeline")
    assert "no context" in rouse.fails("status", "--context", "nowhere")
    assert str(tmp_path / "none") in rouse.fails("status", "--kubeconfig", str(tmp_path / "none"))
    nobody = world.cluster.control_plane.kubeconfig("nobody")
    refused = rouse.fails("status", "-n", namespace, KUBECONFIG=str(nobody))
    assert "cannot list resource" in refused and "grant it with a Role" in refused
    assert "cannot list resource" in rouse.fails(
        "status", "--watch", "-n", namespace, KUBECONFIG=str(nobody)
    )
    result = rouse.run("status", "-n", namespace)
    assert (result.returncode, result.stdout) == (0, "")
    assert f"No ModelServices found in namespace {namespace}" in result.stderr
    world.cluster.apply(modelservice(namespace, 0))
    assert "has no instance m-7; it has none" in rouse.fails(
        "timeline", "m", "m-7", "-n", namespace
    )


def test_explain_says_why_this_path_and_what_has_happened(
    world: World, namespace: str, operator: Operator, rouse: Plugin
) -> None:
    world.cluster.apply(modelservice(namespace, 1, fastStart=peer()))
    with FakeAgents(world.cluster, namespace, operator.tls_port):
        wait_pods(world.cluster, namespace, {"m-0"})
        scale(world.cluster, namespace, 2)
        wait_pods(world.cluster, namespace, {"m-0", "m-1"})
        wait_status(world.cluster, namespace, readyReplicas=2, lastPath="Peer")
        # Events are written a moment after the status.
        wait_until(
            "the Event of m-1",
            20,
            lambda: "m-1 serves after" in rouse("explain", "m", "-n", namespace),
        )
    text = rouse("explain", "m", "-n", namespace)
    assert re.search(r"not Wake +no guards\n +not Peer +no other instance runs\n", text), text
    assert re.search(r"Available +True +InstancesServe ", text), text
    assert re.search(r"Normal +ModelService m +InstanceServes +m-0 serves after 18\.88 s", text), (
        text
    )
    one = rouse("explain", "m", "m-1", "-n", namespace)
    assert "path      Peer: weights come from instances that have them\n" in one
    assert "weights   1.1 GB from peers by tcp\n" in one
    assert "m-0" not in one.partition("events")[0]
    assert "Pod m-1" in one.partition("events")[2]  # the scheduler's
    assert "has no instance m-7; it has m-0, m-1" in rouse.fails(
        "explain", "m", "m-7", "-n", namespace
    )


def test_preview_says_what_the_operator_then_does(
    world: World, namespace: str, operator: Operator, rouse: Plugin
) -> None:
    world.cluster.apply(modelservice(namespace, 1, fastStart=peer()))
    with FakeAgents(world.cluster, namespace, operator.tls_port):
        wait_pods(world.cluster, namespace, {"m-0"})
        wait_status(world.cluster, namespace, readyReplicas=1, lastPath="Storage")
        before = rouse("preview", "m", "--replicas", "3", "-n", namespace)
        told = json.loads(rouse("preview", "m", "--replicas", "3", "-n", namespace, "-o", "json"))
        assert set(pods(world.cluster, namespace)) == {"m-0"}, "a preview changes nothing"
        scale(world.cluster, namespace, 3)
        found = wait_pods(world.cluster, namespace, 3)
    assert "then 3 of 3 instances serve" in before
    assert "Storage 18.88 s" in before
    created = {
        x["pod"] for step in told["steps"] for x in step["actions"] if x["kind"] == "CreateInstance"
    }
    assert created == found.keys() - {"m-0"}
    for name in created:
        annotations = found[name]["metadata"]["annotations"]
        wanted = f"create {name} by {annotations['rouse.dev/path']} ({annotations['rouse.dev/path-reason']})"
        assert wanted in before
    assert "--replicas is required" in rouse.fails("preview", "m", "-n", namespace)
    assert "not in range" in rouse.fails("preview", "m", "--replicas=-1", "-n", namespace)


def test_who_may_view_a_namespace_may_see_what_rouse_does_there(
    world: World, namespace: str, rouse: Plugin, tmp_path: Path
) -> None:
    world.cluster.apply(modelservice(namespace, 0))
    viewer = str(viewer_kubeconfig(world, namespace, tmp_path / "viewer"))
    assert "0 of 0 instances serve" in rouse("status", "--kubeconfig", viewer)
    assert "no start is known yet" in rouse("timeline", "m", "--kubeconfig", viewer)
    result = rouse.run("preview", "m", "--replicas=1", "--kubeconfig", viewer)
    assert result.returncode == 0, result.stderr
    assert "create m-0 by Storage" in result.stdout
    assert "no node is taken for lost" in result.stderr


def viewer_kubeconfig(world: World, namespace: str, path: Path) -> Path:
    """That of an account that has the role `view` in this namespace, and nothing else."""
    kubectl = world.cluster.kubectl
    kubectl("create", "serviceaccount", "viewer", "-n", namespace)
    kubectl(
        *("create", "rolebinding", "viewer", "-n", namespace, "--clusterrole=view"),
        f"--serviceaccount={namespace}:viewer",
    )
    token = kubectl("create", "token", "viewer", "-n", namespace).strip()
    document = json.loads(world.kubeconfig(path).read_text())
    document["users"][0]["user"]["token"] = token
    document["contexts"][0]["context"]["namespace"] = namespace
    path.write_text(json.dumps(document))
    return path


def findings(rouse: Plugin, *arguments: str) -> list[Object]:
    result = rouse.run("doctor", "-o", "json", *arguments)
    assert result.returncode in (0, 1), result.stderr
    found = json.loads(result.stdout)["findings"]
    assert (result.returncode == 1) == any(x["level"] == "Error" for x in found), result.stderr
    return found


def texts(found: list[Object], level: str, subject: str = "") -> list[str]:
    return [x["text"] for x in found if x["level"] == level and subject in (x["subject"], "")]


def test_doctor_finds_what_is_wrong_and_nothing_else(
    world: World, namespace: str, operator: Operator, rouse: Plugin
) -> None:
    world.cluster.apply(modelservice(namespace, 1))
    with FakeAgents(world.cluster, namespace, operator.tls_port):
        wait_pods(world.cluster, namespace, {"m-0"})
        wait_status(world.cluster, namespace, readyReplicas=1, lastPath="Storage")
    found = findings(rouse, "-n", namespace)
    assert texts(found, "Error") == []
    # The tests' operator is a process of its own; the chart's Deployment has no replicas.
    assert [x for x in texts(found, "Warning") if "Deployment" not in x] == []
    assert texts(found, "Ok", "CustomResourceDefinition") == [
        "v1alpha1 is served, and has all fields that this program knows"
    ]
    assert texts(found, "Ok", "operator") == ["operator-0 leads"]
    assert re.fullmatch(
        r"1 certificate authority trusted, good until \S+",
        *texts(found, "Ok", f"namespace {namespace}"),
    )
    assert texts(found, "Ok", f"{namespace}/m") == ["1 of 1 instance serves, nothing is amiss"]

    claimed = modelservice(
        namespace,
        1,
        "claimed",
        model={"name": "m", "storage": {"persistentVolumeClaim": {"claimName": "none"}}},
    )
    world.cluster.apply(claimed)
    unplaced = modelservice(
        namespace, 1, "unplaced", template={"spec": {"nodeSelector": {"no": "where"}}}
    )
    world.cluster.apply(unplaced)
    # Of this one: the other has no place either, for want of its claim.
    word = rf"! +{namespace}/unplaced +Progressing Unschedulable: .*\n +-> add or free"
    wait_until(
        "the scheduler's word",
        40,
        lambda: re.search(word, rouse.run("doctor", "-n", namespace).stdout),
    )
    operator.kill()
    wait_until(
        "the lease to have passed",
        40,
        lambda: "nobody leads" in rouse.run("doctor", "-n", namespace).stdout,
    )
    result = rouse.run("doctor", "-n", namespace)
    assert result.returncode == 1
    assert re.fullmatch(r"error: \d findings to be mended .*\n", result.stderr), result.stderr
    assert re.search(r"! +operator +nobody leads: operator-0 renewed the lease", result.stdout)
    assert f"{namespace}/claimed" in result.stdout
    assert "claim none of spec.model.storage is not there\n" in result.stdout
    assert re.search(word, result.stdout)


def test_doctor_says_what_it_may_not_look_at(
    world: World, namespace: str, rouse: Plugin, tmp_path: Path
) -> None:
    world.cluster.apply(modelservice(namespace, 0))
    viewer = str(viewer_kubeconfig(world, namespace, tmp_path / "viewer"))
    unchecked = texts(findings(rouse, "--kubeconfig", viewer), "Unchecked")
    for resource in ("customresourcedefinitions", "deployments", "leases"):
        denied = re.compile(rf'cannot (get|list) resource "{resource}"')
        assert any(denied.search(x) for x in unchecked), (resource, unchecked)
