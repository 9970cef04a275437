"""`kubectl rouse` against a real API server, with the real operator; the agents are fakes."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

from rouse_e2e import paths

from .conftest import Operator, World
from .fake_agent_reports import FakeAgents
from .modelservice import modelservice, peer, scale, wait_pods, wait_status

FALLBACK = "mlx5_0 was refused\x1b[31m: no memory locked; raise the limit"


class Plugin:
    """kubectl-rouse as built, run by a real kubectl that finds it on PATH."""

    def __init__(self, world: World, build_folder: Path, folder: Path) -> None:
        program = build_folder / "operator" / "kubectl" / "kubectl-rouse"
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
    assert re.search(r"m-0 +Storage +18\.88 +S+H*E+I+W*U+T*\n", chart), chart
    assert re.search(r"m-1 +Peer +18\.88 +S+H*E+I+W*U+T*\n", chart), chart
    detail = rouse("timeline", "m", "m-1", "-n", namespace)
    assert re.search(r"= Pull +0\.40 s", detail), detail
    assert "1.1 GB from peers" in detail
    starts = json.loads(rouse("timeline", "m", "-n", namespace, "-o", "json"))["starts"]
    assert [x["path"] for x in starts] == ["Storage", "Peer"]
    assert sum(x["endUs"] - x["startUs"] for x in starts[1]["phases"]) == starts[1]["totalUs"]
    assert starts[1]["lanes"][0]["name"] == "Pull"


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
    result = rouse.run("status", "-n", namespace)
    assert (result.returncode, result.stdout) == (0, "")
    assert f"No ModelServices found in namespace {namespace}" in result.stderr
    world.cluster.apply(modelservice(namespace, 0))
    assert "has no instance m-7; it has none" in rouse.fails(
        "timeline", "m", "m-7", "-n", namespace
    )
