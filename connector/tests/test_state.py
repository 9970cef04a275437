"""Compile caches from one node to another: real vLLM that compiles, real agents, and pods' environment
as the operator renders it. A node is a mount namespace and a host name of its own.

On a CPU vLLM 0.26 cannot load its outermost artefact again, which a test below says;
what lies below it is found.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from agents import Agent, FakeOperator
from servers import PLAIN, Server, free_port
from tiny_models import make_tied

from rouse_vllm import cache_key

ARGUMENTS = (
    "--max-model-len", "256", "--max-num-seqs", "4", "--dtype", "float32",
    "--load-format", "rouse",
)  # fmt: skip

#: What the tests' machine needs, the same on all nodes.
MACHINE = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
    "TORCHINDUCTOR_COMPILE_THREADS": "1",
}

NO_LOAD_ON_CPU = "finalize_loading"


def rendered_environment(folder: Path) -> dict[str, str]:
    """The engine's variables in a pod of the operator's, whose /rouse is this folder."""
    tools = Path(os.environ["ROUSE_TEST_AGENT"]).parents[1] / "operator"
    service = Path(__file__).parents[2] / "operator/tests/preview/service.json"
    shown = subprocess.run(
        [str(tools / "plan-preview"), str(service), "--pods"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    pod = json.loads(re.search(r"^\{$.*?^\}$", shown, re.MULTILINE | re.DOTALL)[0])  # type: ignore[index]
    (engine,) = [c for c in pod["spec"]["containers"] if c["name"] == "engine"]
    return {
        entry["name"]: entry["value"].replace("/rouse/", f"{folder}/")
        for entry in engine["env"]
        if entry["name"] != "PYTHONPATH"
    }


class Node:
    """An agent with its folders, and engines in namespaces in which these are the pod's."""

    def __init__(self, folder: Path, rouse: Path, operator: FakeOperator, pod: str) -> None:
        folder.mkdir()
        self.folder, self.rouse, self.pod = folder, rouse, pod
        self.state = folder / "state"
        self.state.mkdir()
        (folder / "home").mkdir()
        self.port = free_port()
        self.agent = Agent(
            folder / "agent", operator, pod,
            "--state-dir", str(self.state), "--state-store", str(folder / "store"),
            "--engine-identity", "engine", "--engine-url", f"http://127.0.0.1:{self.port}",
            "--served-model", "demo",
        )  # fmt: skip

    def serve(self, model: Path, changed: dict[str, str | None] | None = None) -> Server:
        """`changed` are variables with another value than the operator's, or without one."""
        setup = [f"hostname host-of-{self.pod}"]
        for part in ("state", "home"):
            setup.append(f"mount --bind {self.folder / part} {self.rouse / part}")
        setup.append('exec "$@"')
        user = () if os.geteuid() == 0 else ("--user", "--map-root-user")
        wrap = ("unshare", *user, "--mount", "--uts", "sh", "-ec", "\n".join(setup), "sh")
        extra = json.dumps({"socket": str(self.agent.socket)})
        environment = rendered_environment(self.rouse) | MACHINE | (changed or {})
        return Server(
            self.pod, PLAIN, model,
            (*ARGUMENTS, "--model-loader-extra-config", extra),
            {name: value for name, value in environment.items() if value is not None},
            self.port, wrap,
        )  # fmt: skip

    def wait_for_metric(self, text: str, limit_s: float = 60) -> None:
        deadline = time.monotonic() + limit_s
        while text not in self.agent.metrics():
            assert time.monotonic() < deadline, self.agent.metrics()
            time.sleep(0.1)

    def outermost(self) -> set[str]:
        """The keys of the outermost cache that are there."""
        folder = self.state / "vllm/torch_compile_cache/torch_aot_compile"
        return {path.name for path in folder.iterdir()}


@pytest.fixture(scope="module")
def operator() -> Iterator[FakeOperator]:
    operator = FakeOperator()
    yield operator
    operator.close()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tied(tmp_path_factory.mktemp("checkpoints") / "model", seed=5)


@pytest.fixture(scope="module")
def rouse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pod's /rouse: the same path on every node, and other files."""
    folder = tmp_path_factory.mktemp("rouse")
    for part in ("state", "home"):
        (folder / part).mkdir()
    return folder


@pytest.fixture(scope="module")
def source(
    operator: FakeOperator, model: Path, rouse: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Node, list[list[int]]]]:
    """The instance that has compiled, and its tokens. Its engine is gone, its agent is not."""
    node = Node(tmp_path_factory.mktemp("nodes") / "a", rouse, operator, "demo-0")
    server = node.serve(model)
    try:
        server.first_token(limit_s=600)
        tokens = server.tokens()
        node.wait_for_metric('rouse_state_bundles_total{class="Matched",outcome="published"} 1')
        assert server.close() == 0
        yield node, tokens
    finally:
        server.close()
        node.agent.close()


@pytest.fixture
def target(
    operator: FakeOperator, rouse: Path, tmp_path: Path, source: tuple[Node, list[list[int]]]
) -> Iterator[Node]:
    """The next instance, its caches in place."""
    pod = f"demo-{len(operator.reports)}"
    node = Node(tmp_path / "b", rouse, operator, pod)
    try:
        operator.wait(pod, lambda report: report["state"] == "Ready")
        assert operator.reports[pod]["stateOrigin"].startswith("from ")
        yield node
    finally:
        node.agent.close()
        operator.gone.add(pod)


def test_the_first_instance_finds_nothing_and_says_so(
    source: tuple[Node, list[list[int]]],
) -> None:
    node, _ = source
    lookups = node.agent.cache_lookups()
    assert lookups["aot_compile"] == (0, 1)
    hits, misses = lookups["fx_graph"]
    assert hits == 0 and misses > 0
    assert "rouse_cache_installed_misses_total{" not in node.agent.metrics()
    # What its key is made of lies beside the cache, and goes with it.
    (key,) = node.outermost()
    parts = cache_key.read(
        node.state / f"vllm/torch_compile_cache/torch_aot_compile/{key}/rank_0_0"
        / cache_key.FILE_NAME
    )  # fmt: skip
    assert parts is not None and "config.model.model" in parts and "env.VLLM_PLUGINS" in parts


def test_an_instance_of_another_node_finds_all_that_can_be_loaded(
    source: tuple[Node, list[list[int]]], target: Node, model: Path, operator: FakeOperator
) -> None:
    node, tokens = source
    server = target.serve(model)
    try:
        server.first_token(limit_s=600)
        assert server.tokens() == tokens
    finally:
        server.close()
    assert target.outermost() == node.outermost()  # The same folder, and no other.
    lookups = target.agent.cache_lookups()
    for cache in ("aot_autograd", "fx_graph"):
        hits, misses = lookups.get(cache, (0, 0))
        assert misses == 0, lookups
    assert lookups["fx_graph"][0] > 0, lookups
    assert lookups["aot_compile"] == (0, 1)
    report = operator.wait(target.pod, lambda report: "stateMiss" in report)
    assert report["stateMiss"].startswith("aot_compile missed at ")
    assert "it is there and does not load" in report["stateMiss"]
    assert NO_LOAD_ON_CPU in report["stateMiss"]


@pytest.mark.parametrize(
    ("changed", "factors"),
    [
        (
            {"VLLM_CONFIG_ROOT": None, "VLLM_XLA_CACHE_PATH": None, "HOME": "{home}/of-this-pod"},
            ["env.VLLM_CONFIG_ROOT", "env.VLLM_XLA_CACHE_PATH"],
        ),
        ({"VLLM_PROCESS_NAME_PREFIX": "demo-7"}, ["env.VLLM_PROCESS_NAME_PREFIX"]),
        ({"VLLM_CACHE_ROOT": "{home}/elsewhere"}, ["place.VLLM_CACHE_ROOT"]),
        ({"model": "another path"}, ["config.model.model"]),
        # The plugin sets it where nobody else does.
        ({"VLLM_USE_MEGA_AOT_ARTIFACT": "0"}, ["env.VLLM_USE_MEGA_AOT_ARTIFACT"]),
    ],
    ids=["paths made of HOME", "per-pod value", "cache root", "model path", "whole artifact"],
)
def test_without_one_of_the_canonical_values_the_miss_has_its_name(
    target: Node, model: Path, operator: FakeOperator, tmp_path: Path,
    changed: dict[str, str | None], factors: list[str],
) -> None:  # fmt: skip
    where = model
    environment = {
        name: value and value.format(home=target.rouse / "home") for name, value in changed.items()
    }
    if environment.pop("model", None):
        where = tmp_path / "moved"
        where.symlink_to(model)
    server = target.serve(where, environment)
    try:
        report = operator.wait(target.pod, lambda report: "stateMiss" in report, limit_s=240)
    except AssertionError:
        print(server.log[-4000:])
        raise
    finally:
        server.process.kill()
        server.close()
    assert report["stateMiss"].endswith(
        "what differs from the installed caches: " + ", ".join(factors)
    ), report["stateMiss"]
    kind = factors[0].partition(".")[0]
    target.wait_for_metric(
        f'rouse_cache_installed_misses_total{{cache="aot_compile",factor="{kind}"}} 1'
    )
