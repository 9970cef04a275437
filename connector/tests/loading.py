"""The loader at work on real vLLM models, in this process: what the tests of it share.

No engine is started: the loader loads into a model that vLLM built here, and what it left is looked
at right before vLLM post-processes it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_agent import FakeAgent, Weights
from tiny_models import make_moe, make_tied, without_weights

os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from vllm.config import set_current_vllm_config  # noqa: E402
from vllm.engine.arg_utils import EngineArgs  # noqa: E402
from vllm.model_executor.model_loader import base_loader, get_model  # noqa: E402

from rouse_vllm import loader, ranks, tensors  # noqa: E402


@dataclass
class Loaded:
    """What the loader left, before post-processing."""

    values: dict[str, torch.Tensor]
    places: dict[str, str]  # name -> line of /proc/self/maps that its memory is in


def mapping_of(address: int) -> str:
    for line in Path("/proc/self/maps").read_text().splitlines():
        low, high = (int(x, 16) for x in line.split()[0].split("-"))
        if low <= address < high:
            return line
    return "nothing"


@pytest.fixture(scope="session")
def parallel_state(tmp_path_factory: pytest.TempPathFactory) -> None:
    from vllm.distributed import ensure_model_parallel_initialized, init_distributed_environment

    folder = tmp_path_factory.mktemp("parallel")
    config = EngineArgs(
        model=str(make_moe(folder / "m")), skip_tokenizer_init=True
    ).create_engine_config()
    with set_current_vllm_config(config):
        init_distributed_environment(1, 0, f"file://{folder}/rendezvous", 0, backend="gloo")
        ensure_model_parallel_initialized(1, 1)


@pytest.fixture(scope="session")
def moe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_moe(tmp_path_factory.mktemp("checkpoints") / "moe", seed=1)


@pytest.fixture(scope="session")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tied(tmp_path_factory.mktemp("checkpoints") / "tied", seed=2)


@pytest.fixture
def bare(moe: Path, tmp_path: Path) -> Path:
    """The MoE model without weight files."""
    return without_weights(moe, tmp_path / "bare")


Load = Callable[..., Loaded]


@pytest.fixture
def load(parallel_state: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Load]:
    """load(model, agent or None for stock vLLM, **engine arguments) -> Loaded"""
    seen: list[Loaded] = []
    process = base_loader.process_weights_after_loading

    def look(model: torch.nn.Module, *arguments: Any) -> None:
        named = tensors.collect(model, "Loaded")
        values = {n.name: n.tensor.detach().clone() for n in named}
        seen.append(Loaded(values, {n.name: mapping_of(n.tensor.data_ptr()) for n in named}))
        process(model, *arguments)

    monkeypatch.setattr(base_loader, "process_weights_after_loading", look)

    def load_one(model: Path, socket: Path | None, **arguments: Any) -> Loaded:
        extra = {"connectTimeoutS": 0.3} | arguments.pop("extra", {})
        rouse = dict(load_format="rouse", model_loader_extra_config={"socket": str(socket)} | extra)
        config = EngineArgs(
            model=str(model),
            enforce_eager=True,
            skip_tokenizer_init=True,
            max_model_len=256,
            **(rouse if socket is not None else {}),
            **arguments,
        ).create_engine_config()
        try:
            with set_current_vllm_config(config):
                get_model(vllm_config=config)
        finally:
            torch.set_default_dtype(torch.float32)  # vLLM leaves the model's when loading fails
        assert config.load_config.load_format == ("rouse" if socket is not None else "auto")
        return seen[-1]

    yield load_one
    for link in loader._open_links:
        link.close()
    loader._open_links.clear()


def equal(got: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> bool:
    """Whether all that is expected is there, bit for bit."""
    return all(torch.equal(got[n], expected[n]) for n in expected)


def same(left: Loaded, right: Loaded) -> bool:
    assert left.values.keys() == right.values.keys()
    return equal(left.values, right.values)


def publish(load: Load, model: Path, folder: Path, **arguments: Any) -> tuple[Loaded, Weights]:
    with FakeAgent(folder / "publisher.sock") as agent:
        result = load(model, agent.path, **arguments)
    assert agent.errors == []
    assert agent.published is not None
    return result, agent.published


@pytest.fixture
def processed_form(monkeypatch: pytest.MonkeyPatch) -> dict[str, torch.nn.Module]:
    """Weights change hands after post-processing, as on CUDA, though this is a CPU.

    Linear layers hide theirs in opaque handles here, so only what can be seen is compared: the
    embeddings, norms and experts. Yields the model that was loaded last, under "model".
    """
    monkeypatch.setattr(ranks, "form_for", lambda device_type: "Processed")
    last: dict[str, torch.nn.Module] = {}
    finish = loader.RouseModelLoader._finish

    def look(self: loader.RouseModelLoader, model: torch.nn.Module) -> bool:
        done = finish(self, model)
        last["model"] = model
        return done

    monkeypatch.setattr(loader.RouseModelLoader, "_finish", look)
    return last


def values(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {n.name: n.tensor.detach().clone() for n in tensors.collect(model, "Processed")}


def published_as(agent: FakeAgent) -> list[bool]:
    """For each Publish whether it was of placeholders."""
    return [r.get("placeholders", False) for r in agent.requests if r["type"] == "Publish"]
