"""What an engine takes for its own of the memory that is in use when it starts."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fake_agent import FakeAgent
from vllm.utils.mem_utils import MemorySnapshot
from vllm.v1.worker import utils, worker_base

from rouse_vllm import device_memory, identity
from rouse_vllm.errors import Unsupported

GIB = 1 << 30


def snapshot(free: int, total: int = 139 * GIB) -> MemorySnapshot:
    used = total - free
    return MemorySnapshot(
        free_memory=free,
        total_memory=total,
        cuda_memory=used,
        torch_memory=0,
        non_torch_memory=used,
        device="cpu",
        auto_measure=False,
    )


@pytest.fixture(autouse=True)
def on_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity, "gpu_uuid", lambda device_type: "GPU-1")


def test_an_engine_that_is_started_again_finds_the_memory_that_its_weights_are_in(
    tmp_path: Path,
) -> None:
    config = SimpleNamespace(gpu_memory_utilization=0.9)
    found = snapshot(free=80 * GIB)
    with pytest.raises(ValueError, match="Free memory on device"):
        utils.request_memory(found, config)
    with FakeAgent(tmp_path / "s", gpu="GPU-1", held=57 * GIB) as agent:
        device_memory.count(found, str(agent.path))
    assert agent.errors == []
    assert found.free_memory == 137 * GIB
    # In use by others: what is left. vLLM takes what was added since for this engine's.
    assert (found.cuda_memory, found.non_torch_memory) == (2 * GIB, 2 * GIB)
    assert utils.request_memory(found, config) > 125 * GIB


def test_memory_of_another_gpu_is_not_ours(tmp_path: Path) -> None:
    found = snapshot(free=80 * GIB)
    with FakeAgent(tmp_path / "s", gpu="GPU-2", held=57 * GIB) as agent:
        device_memory.count(found, str(agent.path))
    assert dataclasses.replace(found) == snapshot(free=80 * GIB)


def test_without_an_agent_all_that_is_in_use_is_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_memory, "_TIMEOUT_S", 0.2)
    found = snapshot(free=80 * GIB)
    device_memory.count(found, str(tmp_path / "nobody"))
    assert found.free_memory == 80 * GIB


def test_only_workers_of_our_load_format_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrapper:
        """Stands in for vLLM's."""

        def __init__(self, load_format: str) -> None:
            load = SimpleNamespace(load_format=load_format, model_loader_extra_config={"a": 1})
            device = SimpleNamespace(device_type="cuda")
            self.vllm_config = SimpleNamespace(load_config=load, device_config=device)

        def init_device(self) -> str:
            return "initialised"

    counted: list[Any] = []
    monkeypatch.setattr(worker_base, "WorkerWrapperBase", Wrapper)
    monkeypatch.setattr(device_memory, "_count_from_now_on", lambda *args: counted.append(args))
    device_memory.install("rouse")
    assert Wrapper("auto").init_device() == "initialised" and counted == []
    assert Wrapper("rouse").init_device() == "initialised" and counted == [("cuda", {"a": 1})]


def test_an_unknown_vllm_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrapper:
        def init_device(self, device: int) -> None:
            pass

    monkeypatch.setattr(worker_base, "WorkerWrapperBase", Wrapper)
    with pytest.raises(Unsupported, match="init_device takes"):
        device_memory.install("rouse")
