"""Real engines: one from storage, one that publishes, one that takes its weights from the first."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from fake_agent import FakeAgent
from tiny_models import make_moe, without_weights

TIME_LIMIT_S = 240


@dataclass
class Run:
    status: int
    tokens: list[int]
    log: str


def run_engine(model: Path, socket: Path | None, **extra: object) -> Run:
    request = {
        "model": str(model),
        "loadFormat": "auto" if socket is None else "rouse",
        "extra": {} if socket is None else {"socket": str(socket), **extra},
    }
    environment = os.environ | {
        "TORCHDYNAMO_DISABLE": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    done = subprocess.run(
        [sys.executable, str(Path(__file__).parent / "engine.py"), json.dumps(request)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=TIME_LIMIT_S,
    )
    tokens = [json.loads(line[7:]) for line in done.stdout.splitlines() if line.startswith("TOKENS ")]
    return Run(done.returncode, tokens[0] if tokens else [], done.stdout)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("engine")


@pytest.fixture(scope="module")
def checkpoint(folder: Path) -> Path:
    return make_moe(folder / "model")


@pytest.fixture(scope="module")
def stock(checkpoint: Path) -> Run:
    """vLLM without any of ours in use."""
    run = run_engine(checkpoint, None)
    assert run.status == 0, run.log
    return run


@pytest.fixture(scope="module")
def source(checkpoint: Path, folder: Path) -> tuple[Run, FakeAgent]:
    with FakeAgent(folder / "source.sock") as agent:
        run = run_engine(checkpoint, agent.path)
        assert run.status == 0, run.log
    return run, agent


@pytest.fixture(scope="module")
def target(checkpoint: Path, folder: Path, source: tuple[Run, FakeAgent]) -> tuple[Run, FakeAgent]:
    published = source[1].published
    assert published is not None
    model = without_weights(checkpoint, folder / "target")
    with FakeAgent(folder / "target.sock", weights=published.pulled()) as agent:
        run = run_engine(model, agent.path)
        assert run.status == 0, run.log
    return run, agent


def test_source_publishes_and_answers_as_stock_vllm_does(
    stock: Run, source: tuple[Run, FakeAgent]
) -> None:
    run, agent = source
    assert len(stock.tokens) == 24
    assert len(set(stock.tokens)) > 3  # A constant answer would compare nothing.
    assert run.tokens == stock.tokens
    assert agent.types() == [
        "Hello", "Phase", "Phase", "CreateArena", "GetSlabs", "Publish", "Phase", "Phase",
    ]  # fmt: skip
    assert agent.writable_at_publish == []


def test_target_without_weight_files_answers_the_same(
    stock: Run, target: tuple[Run, FakeAgent]
) -> None:
    run, agent = target
    assert run.tokens == stock.tokens
    assert agent.types() == ["Hello", "Phase", "Phase", "AwaitWeights", "GetSlabs", "Phase", "Phase"]


def test_phases_are_in_order_and_begin_with_the_first_process(target: tuple[Run, FakeAgent]) -> None:
    phases = target[1].phases()
    assert list(phases) == ["EngineImported", "LoadStarted", "WeightsReady", "ModelReady"]
    times = list(phases.values())
    assert times == sorted(times)
    # The API process calls the plugin seconds before the worker that reports it.
    assert phases["LoadStarted"] - phases["EngineImported"] > 1_000_000


def test_published_bytes_stay_as_they_were_published(
    source: tuple[Run, FakeAgent], checkpoint: Path, folder: Path
) -> None:
    """The engine post-processed and served after publishing; a target still finds loaded weights."""
    import torch
    from safetensors import safe_open

    published = source[1].published
    assert published is not None
    manifest = json.loads(published.manifest)
    content = published.content()
    (row,) = [t for t in manifest["tensors"] if t["name"] == "lm_head.weight"]
    begin = manifest["allocations"][row["allocation"]]["offset"] + row["offset"]
    bytes_ = content[begin : begin + 2 * row["shape"][0] * row["shape"][1]]
    ours = torch.frombuffer(bytearray(bytes_), dtype=torch.bfloat16).reshape(row["shape"])
    index = json.loads((checkpoint / "model.safetensors.index.json").read_text())["weight_map"]
    with safe_open(checkpoint / index["lm_head.weight"], "pt") as file:
        assert torch.equal(ours, file.get_tensor("lm_head.weight"))
