"""The loader on real vLLM models, with arenas that are mapped as a GPU's memory is."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_agent import FakeAgent
from loading import Load, equal, mapping_of, publish, published_as, values
from tiny_models import without_weights

from rouse_vllm import guard, identity, library, stand_in, tensors

pytest_plugins = ["loading"]


class StandInForGpuArena(library.Arena):
    """Host memory, mapped as a GPU's is: writes reach the slabs until they are forbidden."""

    def map(self, offset: int, size: int, fd: int, access: int) -> None:
        super().map(offset, size, fd, library.MAP_SHARED)
        if access == library.GPU_READ:
            self.protect()

    def protect(self) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.mprotect(ctypes.c_void_p(self.address), ctypes.c_size_t(self.size), 1) == 0


@pytest.fixture
def on_gpu(
    processed_form: dict[str, torch.nn.Module], monkeypatch: pytest.MonkeyPatch
) -> dict[str, torch.nn.Module]:
    """The engine takes the CPU for the GPU "GPU-1"."""
    monkeypatch.setattr(identity, "gpu_uuid", lambda device_type: "GPU-1")
    monkeypatch.setattr(library, "GpuArena", StandInForGpuArena)
    monkeypatch.setattr("rouse_vllm.link._release_gpu_memory", lambda: None)
    monkeypatch.setattr("rouse_vllm.gpu_pools.empty_cache", lambda: None)
    monkeypatch.setattr(stand_in, "memory", contextlib.nullcontext)
    monkeypatch.setattr(
        tensors,
        "GpuArenaView",
        lambda arena, allocations: tensors.ArenaView(arena.buffer(), allocations),
    )
    return processed_form


def places(model: torch.nn.Module) -> dict[str, str]:
    """Each tensor's kind, and the mapping that it is in."""
    named = tensors.collect(model, "Processed")
    return {n.name: f"{n.kind} {mapping_of(n.tensor.data_ptr())}" for n in named}


def test_on_a_gpu_what_began_without_weights_has_all_of_a_peers_when_it_wakes(
    load: Load, moe: Path, bare: Path, tmp_path: Path, on_gpu: dict[str, torch.nn.Module]
) -> None:
    with FakeAgent(tmp_path / "source.sock", gpu="GPU-1") as agent:
        load(moe, agent.path)
    assert agent.published is not None
    source = agent.published
    expected = values(on_gpu["model"])
    with FakeAgent(tmp_path / "guard.sock", gpu="GPU-1", begin_without=True) as agent:
        load(bare, agent.path)
        assert published_as(agent) == [True]
        model = on_gpu["model"]
        begun, where = values(model), places(model)
        # Also what is no parameter, and so not in the arena.
        differing = {n for n in expected if not torch.equal(begun[n], expected[n])}
        assert {n for n in differing if "rouse-rank" not in where[n]}
        (held,) = guard.served().models
        held.release()
        agent.weights = source.pulled()
        held.map_new()
        held.await_new()
        got = values(model)
        assert equal(got, expected)
        assert places(model).keys() == where.keys()
    assert agent.errors == []


@pytest.mark.parametrize("kind", ["moe", "tied"])
def test_on_a_gpu_both_sides_compute_with_the_arenas_parameters(
    load: Load,
    kind: str,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    on_gpu: dict[str, torch.nn.Module],
) -> None:
    checkpoint = request.getfixturevalue(kind)
    with FakeAgent(tmp_path / "source.sock", gpu="GPU-1") as agent:
        load(checkpoint, agent.path)
    assert agent.errors == [] and agent.published is not None
    assert agent.requests[0]["gpu"] == "GPU-1"
    expected = values(on_gpu["model"])
    source = places(on_gpu["model"])
    target_folder = without_weights(checkpoint, tmp_path / "target")
    pulled = agent.published.pulled()
    with FakeAgent(tmp_path / "target.sock", weights=pulled, gpu="GPU-1") as agent:
        load(target_folder, agent.path)
    assert agent.errors == []
    got = values(on_gpu["model"])
    assert got.keys() == expected.keys()
    assert equal(got, expected)
    for side, memfd in ((source, "/memfd:slab"), (places(on_gpu["model"]), "/memfd:pulled")):
        for name, place in side.items():
            # Nobody can change what peers read; what an engine may write to is its own. (vLLM keeps
            # rotary embeddings for the process: an earlier test's may lie in a private mapping.)
            if place.startswith("Parameter"):
                assert memfd in place and " r--s " in place, f"{name}: {place}"
            else:
                assert " r--s " not in place, f"{name}: {place}"
        assert any(place.startswith("Buffer") for place in side.values())
    model = on_gpu["model"]
    if kind == "tied":
        assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()


class StandInMemory:
    """Stands in for the library's: the large tensors of models that are built in it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, found: dict[str, torch.nn.Module]) -> None:
        self.entered = 0
        self.left = [0]
        self._open = False
        self._places = set[int]()
        make = torch.empty

        def empty(*size: Any, **more: Any) -> torch.Tensor:
            tensor = make(*size, **more)
            if self._open and tensor.numel() > 1000:
                self._places.add(tensor.untyped_storage().data_ptr())
                self._kept.append(tensor)  # So that nothing else comes to lie there.
            return tensor

        self._kept = list[torch.Tensor]()
        monkeypatch.setattr(torch, "empty", empty)
        monkeypatch.setattr(stand_in, "memory", self.memory)
        monkeypatch.setattr(stand_in, "holds", self.holds)
        monkeypatch.setattr(
            stand_in, "bytes_in_use", lambda: self.left.pop() if len(self.left) > 1 else 0
        )

    @contextlib.contextmanager
    def memory(self) -> Iterator[None]:
        self.entered += 1
        self._open = True
        yield
        self._open = False
        for tensor in self._kept:
            tensor.fill_(0)  # Nothing of it may be used.

    def holds(self, tensor: torch.Tensor) -> bool:
        return tensor.untyped_storage().data_ptr() in self._places


def test_a_model_on_a_gpu_is_built_without_memory_for_the_weights_that_come(
    load: Load,
    moe: Path,
    bare: Path,
    tmp_path: Path,
    on_gpu: dict[str, torch.nn.Module],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    memory = StandInMemory(monkeypatch, on_gpu)
    with FakeAgent(tmp_path / "source.sock", gpu="GPU-1") as agent:
        load(moe, agent.path)
    assert agent.published is not None
    assert memory.entered == 0, "weights from storage need memory"
    # Each slab is asked for when what comes before it has been moved.
    asked = [(x["first"], x["count"]) for x in agent.requests if x["type"] == "GetSlabs"]
    assert asked == [(i, 1) for i in range(len(asked))]
    expected = values(on_gpu["model"])
    for gpu in ("GPU-1", "GPU-2"):  # whose memory the weights are in
        with FakeAgent(tmp_path / gpu, weights=agent.published.pulled(), gpu=gpu) as target:
            load(bare, target.path)
        assert target.errors == []
        named = tensors.collect(on_gpu["model"], "Processed")
        assert memory.entered > 0 and not [n.name for n in named if memory.holds(n.tensor)]
        assert equal(values(on_gpu["model"]), expected), gpu


def test_a_model_that_keeps_tensors_which_are_not_found_is_built_with_memory_of_its_own(
    load: Load,
    moe: Path,
    bare: Path,
    tmp_path: Path,
    on_gpu: dict[str, torch.nn.Module],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, published = publish(load, moe, tmp_path)
    expected = values(on_gpu["model"])
    memory = StandInMemory(monkeypatch, on_gpu)
    memory.left = [0, 4096]  # after the first load
    with FakeAgent(tmp_path / "target", weights=published.pulled(), gpu="GPU-1") as agent:
        load(bare, agent.path)
    assert agent.errors == [] and memory.entered == 1
    assert agent.types().count("AwaitWeights") == 2
    assert equal(values(on_gpu["model"]), expected)


def test_on_another_gpu_than_the_arenas_an_engine_keeps_its_own_memory(
    load: Load, moe: Path, bare: Path, tmp_path: Path, on_gpu: dict[str, torch.nn.Module]
) -> None:
    with FakeAgent(tmp_path / "source.sock", gpu="GPU-1") as agent:
        load(moe, agent.path)
    assert agent.published is not None
    expected = values(on_gpu["model"])
    with FakeAgent(tmp_path / "s", weights=agent.published.pulled(), gpu="GPU-2") as agent:
        load(bare, agent.path)
    assert agent.errors == []
    assert equal(values(on_gpu["model"]), expected)
    assert not any(" r--s " in place for place in places(on_gpu["model"]).values())
