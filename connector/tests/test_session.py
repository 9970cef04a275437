"""The conversation below the loader: signals, timeouts, and a plugin folder that is not whole."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fake_agent import Answer, FakeAgent

from rouse_vllm import library
from rouse_vllm.errors import AgentRefused, AgentUnreachable, RouseError
from rouse_vllm.session import Session, SlabPlan


@pytest.fixture
def agent(tmp_path: Path) -> FakeAgent:
    return FakeAgent(tmp_path / "engine.sock")


def silent(request: dict, answer: Answer) -> Answer:
    time.sleep(3)
    return answer


def test_a_signal_ends_the_wait_for_an_answer(agent: FakeAgent) -> None:
    """An engine that is told to end does not wait for weights first."""

    class Stop(Exception):
        pass

    def stop(*_: object) -> None:
        raise Stop

    agent.overrides["Phase"] = silent
    before = signal.signal(signal.SIGALRM, stop)
    try:
        with agent:
            session = Session(str(agent.path), 0, 5)
            started = time.monotonic()
            signal.setitimer(signal.ITIMER_REAL, 0.2)
            with pytest.raises(Stop):
                session.phase("ModelReady", 1)
            assert time.monotonic() - started < 2
            session.close()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_a_signal_that_changes_nothing_does_not_end_the_wait(agent: FakeAgent) -> None:
    def slow(request: dict, answer: Answer) -> Answer:
        time.sleep(0.5)
        return answer

    agent.overrides["Phase"] = slow
    before = signal.signal(signal.SIGALRM, lambda *_: None)
    try:
        with agent:
            session = Session(str(agent.path), 0, 5)
            signal.setitimer(signal.ITIMER_REAL, 0.1, 0.1)
            session.phase("ModelReady", 1)
            session.close()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert agent.phases() == {"ModelReady": 1}


def test_weights_that_do_not_come_in_time_are_an_error(agent: FakeAgent) -> None:
    late = {"type": "Error", "code": "DeadlineExceeded", "message": "on their way"}
    agent.weights = None

    def not_yet(request: dict, answer: Answer) -> Answer:
        time.sleep(request["timeoutMs"] / 1000)
        return late, []

    agent._answer = lambda request, fds: ({}, [])  # type: ignore[method-assign]
    agent.overrides["AwaitWeights"] = not_yet
    with agent:
        session = Session(str(agent.path), 0, 5)
        started = time.monotonic()
        with pytest.raises(AgentRefused, match="DeadlineExceeded: on their way"):
            session.await_weights(0.3)
        assert 0.2 < time.monotonic() - started < 5
        session.close()


def test_a_silent_agent_is_given_up(agent: FakeAgent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rouse_vllm.connection.ANSWER_TIMEOUT_S", 0.2)
    agent.overrides["Phase"] = silent
    with agent:
        session = Session(str(agent.path), 0, 5)
        with pytest.raises(AgentUnreachable, match=r"no answer came from the agent within \d+ ms"):
            session.phase("ModelReady", 1)
        session.close()
        with pytest.raises(AgentUnreachable, match="closed before"):
            session.phase("ModelReady", 1)


def test_an_arena_that_failed_to_map_is_given_back(agent: FakeAgent) -> None:
    def large_ranges() -> int:
        """As large as what could not be mapped: smaller ones come and go, with other threads."""
        ranges = [line.split()[0] for line in Path("/proc/self/maps").read_text().splitlines()]
        ends = [[int(at, 16) for at in each.split("-")] for each in ranges]
        return sum(end - begin >= 1 << 30 for begin, end in ends)

    with agent:
        session = Session(str(agent.path), 0, 5)
        plan = session.create_arena(3 << 20)
        before = large_ranges()
        lie = SlabPlan(plan.arena_bytes, (*plan.slab_bytes[:-1], 1 << 30))
        with pytest.raises(RouseError, match="1073741824 were announced"):
            session.map_slabs(lie, library.MAP_SHARED)
        assert large_ranges() <= before
        session.close()


def test_a_plugin_folder_without_its_library_says_so(tmp_path: Path) -> None:
    package = Path(library.__file__).parent
    shutil.copytree(package, tmp_path / "rouse_vllm")
    code = "from rouse_vllm import library\nlibrary.load()"
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "librouse_connector.so cannot be loaded" in done.stderr
    assert "copy it again from the agent's image" in done.stderr


def test_a_library_of_another_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "_library", None)
    monkeypatch.setattr(library, "LIBRARY_ABI_VERSION", 2)
    with pytest.raises(RouseError, match="has ABI version 1, the plugin needs 2"):
        library.load()


def test_slabs_that_take_too_long_are_given_up(agent: FakeAgent) -> None:
    agent.arena_ready = False
    with agent:
        session = Session(str(agent.path), 0, 5)
        session.release_arena()
        with pytest.raises(AgentUnreachable, match="has not answered AwaitArena within 0 s"):
            session.await_arena(0.2)
        agent.arena_ready = True
        with pytest.raises(AgentRefused, match="Unavailable: no peer has weights"):
            session.await_arena(0.2)
        session.close()
