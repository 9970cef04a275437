"""What one rank does, and in which order, when it sleeps and wakes on a GPU: nothing of it is real here."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from rouse_vllm import capture, guard, library
from rouse_vllm.errors import AgentUnreachable, ManifestError, RouseError, Unsupported
from rouse_vllm.sleep_backend import RouseSleepBackend

KV_BYTES = 7 << 30


class FakeLink:
    def __init__(self, done: list[str]) -> None:
        self._done = done
        self.mapped: Any = SimpleNamespace(plan=SimpleNamespace(mapped_bytes=16 << 30))
        self.failing: dict[str, RouseError] = {}

    def _do(self, name: str) -> None:
        self._done.append(name)
        if name in self.failing:
            raise self.failing.pop(name)

    def unmap_weights(self) -> None:
        self._do("unmap")

    def release_weights(self) -> None:
        self._do("release")

    def map_weights(self) -> None:
        self._do("map kept")

    def map_new_weights(self) -> float:
        self._do("map")
        return 0.25

    def await_new_weights(self) -> None:
        self._do("await")


def config(device: str = "cuda") -> Any:
    return SimpleNamespace(
        device_config=SimpleNamespace(device_type=device),
        kv_transfer_config=None,
        ec_transfer_config=None,
        parallel_config=SimpleNamespace(enable_eplb=False),
    )


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    done: list[str] = []
    monkeypatch.setattr(library, "gpu_pool_bytes", lambda: KV_BYTES)
    monkeypatch.setattr(library, "gpu_pool_release", lambda: done.append("release kv"))
    monkeypatch.setattr(library, "gpu_pool_restore", lambda: done.append("restore kv"))

    def set_stack(size: int) -> int:
        done.append(f"stack {size}")
        return 1024

    monkeypatch.setattr(library, "gpu_set_stack", set_stack)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: done.append("synchronize"))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: done.append("empty cache"))
    monkeypatch.setattr(capture, "finish", lambda worker: done.append(f"capture {worker}"))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (60 << 30, 80 << 30))

    class FakeSlots:
        def __init__(self, runner: str) -> None:
            assert runner == "the model runner"

        def give_up(self) -> None:
            done.append("give up slots")

        def take_back(self) -> None:
            done.append("take slots back")

    monkeypatch.setattr(guard, "RequestSlots", FakeSlots)
    return done


class FakeWorker:
    model_runner = "the model runner"

    def __str__(self) -> str:
        return "worker"


WORKER = FakeWorker()
#: As vLLM passes it.
WRAPPER = SimpleNamespace(worker=WORKER)


@pytest.fixture
def link(done: list[str], monkeypatch: pytest.MonkeyPatch) -> FakeLink:
    link = FakeLink(done)
    monkeypatch.setattr(guard, "_rank", guard.Rank([guard.Model(link)], config()))  # type: ignore[arg-type]
    return link


def test_the_kv_cache_comes_back_while_weights_arrive(link: FakeLink, done: list[str]) -> None:
    assert guard.problem(None) == ""
    assert guard.sleep(WORKER) == {"kvBytes": KV_BYTES, "gpuUsedBytes": 4 << 30}
    assert done == [
        "capture worker", "release kv", "unmap", "release", "give up slots", "empty cache", "stack 16",
    ]  # fmt: skip
    done.clear()
    assert guard.wake(None)["mapSeconds"] == 0.25
    assert done == ["stack 1024", "map", "restore kv", "take slots back", "await", "synchronize"]
    done.clear()
    guard.wake(None)
    assert done == []


@pytest.mark.parametrize("step", ["map", "await"])
def test_what_came_of_a_wake_that_failed_goes_again(
    link: FakeLink, done: list[str], step: str
) -> None:
    guard.sleep(WRAPPER)
    link.failing[step] = ManifestError("another layout")
    with pytest.raises(ManifestError):
        guard.wake(None)
    assert done[-4:] == ["unmap", "release kv", "give up slots", "stack 16"]
    guard.wake(None)
    assert done[-5:] == ["map", "restore kv", "take slots back", "await", "synchronize"]


def test_a_sleep_that_failed_can_be_asked_for_again(link: FakeLink, done: list[str]) -> None:
    link.failing["release"] = AgentUnreachable("gone")
    with pytest.raises(AgentUnreachable):
        guard.sleep(WORKER)
    guard.sleep(WORKER)
    guard.sleep(WORKER)
    assert done.count("release") == 2  # it failed once, and was not needed the third time


def test_who_cannot_sleep_says_why(link: FakeLink, monkeypatch: pytest.MonkeyPatch) -> None:
    rank = guard.served()
    rank.config.parallel_config.enable_eplb = True
    assert "EPLB" in guard.problem(None)
    rank.config.kv_transfer_config = object()
    assert "connector" in guard.problem(None)
    link.mapped = None
    assert "memory of its own" in guard.problem(None)
    monkeypatch.setattr(guard, "_rank", guard.Rank([guard.Model(None)], config()))
    assert "the agent was not there" in guard.problem(None)
    monkeypatch.setattr(guard, "_rank", None)
    assert "no model was loaded" in guard.problem(None)


def test_a_kv_cache_outside_the_pool_keeps_an_instance_awake(
    link: FakeLink, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library, "gpu_pool_bytes", lambda: 0)
    guard.served().kv_problem = "this vLLM has no function _allocate_kv_cache"
    assert "this vLLM has no function" in guard.problem(None)


def test_vllms_own_sleep_mode_leaves_the_weights_to_the_agent(
    link: FakeLink, done: list[str]
) -> None:
    backend = RouseSleepBackend()
    with pytest.raises(Unsupported, match="no level 1: use level 2"):
        backend.suspend(1)
    assert done == []
    backend.suspend(2)
    assert backend.state() == "SUSPENDED"
    assert done == ["release kv", "unmap"]
    done.clear()
    backend.resume(["weights"])
    assert backend.state() == "RESUMING"
    backend.resume(["kv_cache"])
    assert backend.state() == "RUNNING"
    assert done == ["map kept", "restore kv", "synchronize"]


def test_vllms_own_sleep_mode_does_not_wake_what_the_agent_has_asleep(
    link: FakeLink, done: list[str]
) -> None:
    backend = RouseSleepBackend()
    backend.suspend(2)
    guard.sleep(WORKER)
    with pytest.raises(Unsupported, match="only it can wake it"):
        backend.resume()
    assert "map kept" not in done
    guard.wake(WORKER)
    assert done[-5:] == ["map", "restore kv", "take slots back", "await", "synchronize"]


def test_a_draft_model_sleeps_and_wakes_with_the_served_one(
    link: FakeLink, done: list[str]
) -> None:
    draft = FakeLink(done)
    guard.add(guard.Model(draft))  # type: ignore[arg-type]
    assert guard.problem(None) == ""
    guard.sleep(WORKER)
    assert done == [
        "capture worker", "release kv", "unmap", "release", "unmap", "release", "give up slots",
        "empty cache", "stack 16",
    ]  # fmt: skip
    done.clear()
    draft.failing["await"] = AgentUnreachable("gone")
    with pytest.raises(AgentUnreachable):
        guard.wake(None)
    assert done[-5:] == ["unmap", "unmap", "release kv", "give up slots", "stack 16"]
    done.clear()
    assert guard.wake(None)["mapSeconds"] == 0.5
    assert done == [
        "stack 1024", "map", "map", "restore kv", "take slots back", "await", "await", "synchronize",
    ]  # fmt: skip
    draft.mapped = None
    assert "memory of its own" in guard.problem(None)
