"""Sleep and wake of real vLLM engines on the CPU, by an agent that does what it is told."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from engines import Engine
from fake_agent import FakeAgent, Weights
from tiny_models import make_wide


def resident(pid: int) -> int:
    """Bytes of memory that a process has."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"process {pid} has no memory")


def arena_resident(pid: int) -> int:
    """Bytes of it that are an arena's: of an embedding only the rows that were looked at."""
    size, ours = 0, False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if "-" in line.split(" ")[0]:
            ours = "memfd:slab" in line
        elif ours and line.startswith("Rss:"):
            size += int(line.split()[1]) * 1024
    return size


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def changed(
    weights: Weights, name_end: str, change: Callable[[bytearray, int], bytes | bytearray]
) -> Weights:
    """The same weights, but for tensors whose name ends so: change(bytes, bytes of a row)."""
    other = weights.pulled()
    document = json.loads(other.manifest)
    content = bytearray(other.content())
    tensors = [t for t in document["tensors"] if t["name"].endswith(name_end)]
    assert tensors
    for tensor in tensors:
        assert tensor["dtype"] == "float32"
        begin = document["allocations"][tensor["allocation"]]["offset"] + tensor["offset"]
        row = tensor["stride"][0] * 4
        end = begin + row * tensor["shape"][0]
        content[begin:end] = change(content[begin:end], row)
    at = 0
    for fd, slab in zip(other.slabs, other.slab_bytes):
        os.pwrite(fd, content[at : at + slab], 0)
        at += slab
    return other


def backwards(content: bytearray, row: int) -> bytes:
    rows = [content[at : at + row] for at in range(0, len(content), row)]
    return b"".join(reversed(rows))


def values(done: dict[str, Any]) -> dict[str, float]:
    assert done["ok"], done
    return done["values"]


class Guard:
    """An engine that has loaded from storage and published, and its agent."""

    def __init__(self, model: Path, folder: Path, **arguments: object) -> None:
        self.agent = FakeAgent(folder / "engine.sock")
        self.agent.__enter__()
        self.engine = Engine(model, self.agent.path, **arguments)
        self.first = self.engine.tokens()
        self.pid = next(r["pid"] for r in self.agent.requests if r["type"] == "Hello")
        assert self.agent.published is not None
        self.published = self.agent.published

    def close(self) -> None:
        self.engine.close()
        self.agent.__exit__()
        assert self.agent.errors == []


@pytest.fixture(scope="module")
def guard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guard]:
    folder = tmp_path_factory.mktemp("guard")
    guard = Guard(make_wide(folder / "model", seed=3), folder, dtype="float32")
    yield guard
    guard.close()


@pytest.fixture
def awake(guard: Guard) -> Iterator[Guard]:
    """The same engine for each test, which leaves it with the weights that it began with."""
    yield guard
    guard.agent.weights = guard.published
    guard.agent.arena_ready = True
    values(guard.agent.command("Wake", limit_s=30))


def test_a_core_introduces_itself(awake: Guard) -> None:
    attached = awake.agent.wait_for("Attach")
    assert attached["pid"] != awake.pid  # the worker is another process
    assert (attached["engine"], attached["core"], attached["cores"]) == ("vllm", 0, 1)
    assert attached["engineVersion"].startswith("0.")


def test_an_engine_asleep_has_no_weights_and_its_requests_wait(awake: Guard) -> None:
    before, arena = resident(awake.pid), arena_resident(awake.pid)
    assert arena > 0.4 * sum(awake.published.slab_bytes)
    slept = values(awake.agent.command("Sleep", drainMs=5000))
    assert (slept["kvBytes"], slept["gpuUsedBytes"]) == (0, 0) and slept["seconds"] > 0
    types = [t for t in awake.agent.types() if t != "AwaitCommand"]  # It asks for the next one soon.
    assert types[-2:] == ["ReleaseArena", "CommandDone"]
    assert before - resident(awake.pid) > 0.95 * arena
    assert "memfd:slab" not in Path(f"/proc/{awake.pid}/maps").read_text()

    awake.engine.ask()
    time.sleep(1)
    assert not awake.engine.has_answered()
    awake.agent.weights = awake.published.pulled()
    woken = values(awake.agent.command("Wake"))
    assert woken["seconds"] >= woken["mapSeconds"] > 0
    assert awake.engine.tokens(60) == awake.first


def test_what_an_engine_computes_with_after_a_wake_are_the_bytes_that_came(awake: Guard) -> None:
    def tokens_of(weights: Weights) -> list[int]:
        values(awake.agent.command("Sleep", drainMs=5000))
        awake.agent.weights = weights
        values(awake.agent.command("Wake"))
        awake.engine.ask()
        return awake.engine.tokens(60)

    # vLLM has packed both of them.
    upside_down = tokens_of(changed(awake.published, "lm_head.weight", backwards))
    assert upside_down[0] == 32767 - awake.first[0]
    without = tokens_of(changed(awake.published, "w2_weight", lambda x, _: bytes(len(x))))
    assert len(without) == len(awake.first) and without != awake.first
    assert tokens_of(awake.published) == awake.first


def test_weights_that_arrive_slowly_are_waited_for(awake: Guard) -> None:
    values(awake.agent.command("Sleep", drainMs=0))
    awake.agent.arena_ready = False
    asked = len(awake.agent.requests)
    awake.engine.ask()
    awake.agent.weights = awake.published
    awake.agent.overrides["AwaitArena"] = lambda request, answer: (
        setattr(awake.agent, "arena_ready", len(awake.agent.requests) > asked + 3) or answer
    )
    values(awake.agent.command("Wake"))
    del awake.agent.overrides["AwaitArena"]
    assert awake.agent.types().count("AwaitArena") > 3
    assert awake.engine.tokens(60) == awake.first


def test_requests_under_way_finish_in_time_or_are_aborted(awake: Guard) -> None:
    def tokens_of_a_long_answer(drain_ms: int) -> list[int]:
        awake.engine.ask(240)
        time.sleep(0.3)  # It has begun, and takes more than that.
        assert not awake.engine.has_answered()
        values(awake.agent.command("Sleep", drainMs=drain_ms))
        tokens = awake.engine.tokens(5)  # It is not waited for asleep.
        awake.agent.weights = awake.published
        values(awake.agent.command("Wake"))
        return tokens

    whole = tokens_of_a_long_answer(60_000)
    assert len(whole) == 240 and whole[:24] == awake.first
    aborted = tokens_of_a_long_answer(0)
    assert len(aborted) < 240 and aborted == whole[: len(aborted)]


def test_weights_that_do_not_fit_leave_the_engine_asleep(awake: Guard) -> None:
    values(awake.agent.command("Sleep", drainMs=0))

    def moved(manifest: dict[str, Any]) -> None:
        two = manifest["tensors"][:2]
        two[0]["name"], two[1]["name"] = two[1]["name"], two[0]["name"]

    def scaled(manifest: dict[str, Any]) -> None:
        manifest["scalars"]["model.norm.variance_epsilon"] = 0.5

    for change, message in ((moved, "tensor .* is .* and was"), (scaled, "scalar model.norm")):
        awake.agent.weights = awake.published.pulled(change)
        failed = awake.agent.command("Wake")
        assert not failed["ok"] and re.search(message, failed["error"]), failed
        assert "memfd:slab" not in Path(f"/proc/{awake.pid}/maps").read_text()
    awake.agent.weights = None
    failed = awake.agent.command("Wake")
    assert not failed["ok"] and "Unavailable: no peer has weights" in failed["error"]
    awake.engine.ask()
    time.sleep(0.5)
    assert not awake.engine.has_answered()
    awake.agent.weights = awake.published
    values(awake.agent.command("Wake"))
    assert awake.engine.tokens(60) == awake.first


def test_an_engine_without_graphs_has_none_left(awake: Guard) -> None:
    done = values(awake.agent.command("CaptureGraphs", budgetMs=10))
    assert (done["captured"], done["left"]) == (0, 0) and done["seconds"] > 0
    values(awake.agent.command("Sleep", drainMs=0))
    failed = awake.agent.command("CaptureGraphs", budgetMs=10)
    assert not failed["ok"] and "sleeps" in failed["error"]


def test_a_command_that_it_does_not_know_is_answered(awake: Guard) -> None:
    failed = awake.agent.command("Dance")
    assert not failed["ok"] and "does not know the command Dance" in failed["error"]


def test_ten_rounds_leak_no_descriptors(awake: Guard) -> None:
    def once() -> None:
        values(awake.agent.command("Sleep", drainMs=0))
        awake.agent.weights = awake.published
        values(awake.agent.command("Wake"))

    once()
    core = awake.agent.wait_for("Attach")["pid"]
    before = [descriptors(pid) for pid in (awake.pid, core)]
    for _ in range(10):
        once()
    assert [descriptors(pid) for pid in (awake.pid, core)] == before
    awake.engine.ask()
    assert awake.engine.tokens(60) == awake.first


def test_an_agent_that_comes_back_is_attached_to_again(guard: Guard) -> None:
    """The last one: the engine has no weights afterwards."""
    values(guard.agent.command("Sleep", drainMs=0))
    guard.agent.die()

    def refuse(_: Any, __: Any) -> Any:
        message = "AwaitArena before ReleaseArena"
        return {"type": "Error", "code": "FailedPrecondition", "message": message}, []

    with FakeAgent(guard.agent.path, overrides={"AwaitArena": refuse}) as again:
        again.wait_for("Attach")
        for _ in range(2):
            failed = again.command("Wake")
            assert not failed["ok"] and "AwaitArena before ReleaseArena" in failed["error"]
        assert again.types().count("Hello") == 1
