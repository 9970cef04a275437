"""What an engine core is asked for, and in which order, when the agent commands: the core is not real here."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest

from rouse_vllm import capture, commands, guard
from rouse_vllm.errors import ManifestError, Unsupported

NAMES: dict[Callable[..., Any], str] = {
    guard.problem: "problem",
    guard.sleep: "sleep",
    guard.wake: "wake",
    guard.sleep_on: "sleep on",
    capture.step: "capture",
}


class FakeCore:
    """Its loop runs in a thread of its own, as the real one's does to the agent's."""

    def __init__(self) -> None:
        self.input_queue: queue.Queue[Any] = queue.Queue()
        self.done: list[str] = []
        self.answers: dict[str, list[Any]] = {
            "problem": ["", ""],
            "sleep": [{"kvBytes": 5, "gpuUsedBytes": 7}, {"kvBytes": 6, "gpuUsedBytes": 8}],
            "wake": [{"mapSeconds": 0.1, "kvSeconds": 0.4}, {"mapSeconds": 0.3, "kvSeconds": 0.2}],
            "sleep on": [None, None],
            "capture": [(3, 9), (3, 9)],
        }
        self.failing: dict[str, Exception] = {}
        self.idle: dict[str, Future[None] | None] = {"wait": None, "abort": None}
        parallel = SimpleNamespace(data_parallel_rank_local=None, data_parallel_size_local=1)
        self.vllm_config = SimpleNamespace(parallel_config=parallel)
        self.model_executor = SimpleNamespace(is_sleeping=False, collective_rpc=self.collective_rpc)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while (item := self.input_queue.get()) is not None:
            kind, call = item
            assert kind is commands._CALL
            commands._call(*call)

    def collective_rpc(self, function: Callable[..., Any], **_: Any) -> list[Any]:
        assert threading.current_thread() is self._thread
        name = NAMES[function]
        self.done.append(name)
        if name in self.failing:
            raise self.failing.pop(name)
        return self.answers[name]

    def pause_scheduler(self, mode: str) -> Future[None] | None:
        self.done.append(f"pause {mode}")
        return self.idle[mode]

    def resume_scheduler(self) -> None:
        self.done.append("resume")

    def close(self) -> None:
        self.input_queue.put(None)
        self._thread.join()


@pytest.fixture
def core() -> Iterator[FakeCore]:
    core = FakeCore()
    yield core
    core.close()


@pytest.fixture
def ordered(core: FakeCore) -> commands.Commands:
    return commands.Commands(core, "/nowhere")  # type: ignore[arg-type]


def ended() -> Future[None]:
    future: Future[None] = Future()
    future.set_result(None)
    return future


def test_an_idle_core_sleeps_at_once_and_its_ranks_add_up(
    core: FakeCore, ordered: commands.Commands
) -> None:
    assert ordered.sleep(30.0) == {"kvBytes": 11, "gpuUsedBytes": 15}
    assert core.done == ["problem", "pause wait", "sleep"]
    assert core.model_executor.is_sleeping
    core.done.clear()
    assert ordered.wake() == {"mapSeconds": 0.3, "kvSeconds": 0.4}
    assert core.done == ["wake", "resume"]
    assert not core.model_executor.is_sleeping


def test_a_rank_that_cannot_sleep_keeps_all_awake(
    core: FakeCore, ordered: commands.Commands
) -> None:
    core.answers["problem"] = ["", "experts change their places"]
    with pytest.raises(Unsupported, match="cannot sleep: experts change their places"):
        ordered.sleep(0.0)
    assert core.done == ["problem"]


def test_requests_are_aborted_when_their_time_is_over(
    core: FakeCore, ordered: commands.Commands
) -> None:
    core.idle = {"wait": ended(), "abort": None}
    ordered.sleep(0.05)
    assert core.done == ["problem", "pause wait", "sleep"]
    core.done.clear()
    core.idle = {"wait": Future(), "abort": ended()}
    ordered.sleep(0.05)
    assert core.done == ["problem", "pause wait", "pause abort", "sleep"]


def test_a_core_that_does_not_come_to_rest_goes_on(
    core: FakeCore, ordered: commands.Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commands, "_ABORT_S", 0.05)
    core.idle = {"wait": Future(), "abort": Future()}
    with pytest.raises(commands.TimeoutError):
        ordered.sleep(0.0)
    assert core.done == ["problem", "pause wait", "pause abort", "resume"]
    assert not core.model_executor.is_sleeping


def test_a_rank_that_does_not_wake_has_all_sleep_on(
    core: FakeCore, ordered: commands.Commands
) -> None:
    ordered.sleep(0.0)
    core.done.clear()
    core.failing["wake"] = ManifestError("another layout")
    with pytest.raises(ManifestError):
        ordered.wake()
    assert core.done == ["wake", "sleep on"]
    assert core.model_executor.is_sleeping


def test_graphs_are_captured_only_awake(core: FakeCore, ordered: commands.Commands) -> None:
    assert ordered.capture(0.1) == {"captured": 3, "left": 9}
    ordered.sleep(0.0)
    with pytest.raises(Unsupported, match="sleeps"):
        ordered.capture(0.1)


def test_nobody_else_wakes_what_the_agent_has_asleep(
    core: FakeCore, ordered: commands.Commands
) -> None:
    resume = commands._unless_asleep(FakeCore.resume_scheduler)
    resume(core)
    ordered.sleep(0.0)
    with pytest.raises(RuntimeError, match="only it can wake it"):
        resume(core)
    ordered.wake()
    resume(core)
    assert core.done.count("resume") == 3
