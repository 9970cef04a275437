"""The loader on real vLLM models, against agents that do not do what they should."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_agent import Answer, Die, FakeAgent
from loading import Load, publish, published_as, same

from rouse_vllm import loader, tensors

pytest_plugins = ["loading"]


def die(request: dict[str, Any], answer: Answer) -> Answer:
    raise Die


def says(body: dict[str, Any] | bytes, fds: list[int] | None = None) -> Callable[..., Answer]:
    return lambda request, answer: (body, fds or [])


def changed(**fields: Any) -> Callable[..., Answer]:
    return lambda request, answer: (answer[0] | fields, answer[1])


def without_fds(request: dict[str, Any], answer: Answer) -> Answer:
    return answer[0], []


def with_one_more(request: dict[str, Any], answer: Answer) -> Answer:
    return answer[0], [*answer[1], 0]


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


ASKED_OF_A_SOURCE = ["Hello", "Phase", "OpenStream", "CreateArena", "GetSlabs", "Publish"]
ASKED_OF_A_TARGET = ["Hello", "Phase", "AwaitWeights", "GetSlabs"]
NONSENSE = [
    pytest.param(die, id="dies"),
    pytest.param(says(b"\x00\xff"), id="no JSON"),
    pytest.param(says(b"[1]"), id="no object"),
    pytest.param(says(b"x" * 131072), id="a message of the largest size"),
    pytest.param(says(b"x" * 131073), id="a message that is too long"),
    pytest.param(says({"type": "Surprise"}), id="unknown type"),
    pytest.param(says({}), id="no type"),
    pytest.param(says({"type": "Error"}), id="an error without a code"),
    pytest.param(says({"type": "Error", "code": "Internal", "message": "no"}), id="an error"),
    pytest.param(with_one_more, id="a descriptor too many"),
]


@pytest.mark.parametrize("fault", NONSENSE)
@pytest.mark.parametrize("asked", ASKED_OF_A_SOURCE)
def test_a_source_loads_whatever_its_agent_does(
    load: Load, moe: Path, tmp_path: Path, asked: str, fault: Callable[..., Answer]
) -> None:
    stock = load(moe, None)
    before = descriptors()
    agent = FakeAgent(tmp_path / "s", overrides={asked: fault})
    with agent:
        loaded = load(moe, agent.path)
    assert same(loaded, stock)
    assert agent.errors == []
    assert asked in agent.types()
    for link in loader._open_links:
        link.close()
    if agent.published is not None:
        agent.published.close()
    elif agent._arena is not None:
        agent._arena.close()
    assert descriptors() == before


@pytest.mark.parametrize("fault", NONSENSE)
@pytest.mark.parametrize("asked", ASKED_OF_A_TARGET)
def test_a_target_loads_from_storage_or_says_why_not(
    load: Load, moe: Path, bare: Path, tmp_path: Path, asked: str, fault: Callable[..., Answer]
) -> None:
    source, published = publish(load, moe, tmp_path)
    with FakeAgent(tmp_path / "s1", weights=published.pulled(), overrides={asked: fault}) as agent:
        with pytest.raises(RuntimeError, match="there are no weights for .*volume"):
            load(bare, agent.path)
    with FakeAgent(tmp_path / "s2", weights=published.pulled(), overrides={asked: fault}) as agent:
        assert same(load(moe, agent.path), source)
    assert asked in agent.types()


@pytest.mark.parametrize(
    ("asked", "fault", "message"),
    [
        ("Hello", changed(version=2), "rouse-engine 2, this plugin rouse-engine 1"),
        ("Hello", changed(protocol="other"), "other 1, this plugin rouse-engine 1"),
        ("Hello", changed(source="Wake"), "unknown value .Wake., expected one of Peer, Storage"),
        ("AwaitWeights", changed(slabBytes=[]), "Weights.slabBytes"),
        ("AwaitWeights", changed(slabBytes=[1, -1]), "expected positive integers"),
        ("AwaitWeights", changed(slabBytes=[4096]), "4096 in all, the arena has"),
        (
            "AwaitWeights",
            changed(slabBytes=[1 << 20, 100, 2 << 20]),
            "cannot be mapped at offset 1048676",
        ),
        ("AwaitWeights", changed(slabBytes=[1 << 30]), "1073741824 were announced"),
        ("AwaitWeights", changed(manifestBytes=10), "10 were announced"),
        ("AwaitWeights", changed(manifestBytes=1 << 40), "manifestBytes: .* is more than"),
        ("AwaitWeights", changed(arenaBytes=4096), "arenaBytes: the manifest has"),
        ("AwaitWeights", without_fds, "Weights came with 0 descriptors"),
        ("GetSlabs", without_fds, "got 0 descriptors"),
        ("GetSlabs", changed(first=1), "announced as first 1"),
    ],
)
def test_an_answer_that_lies_is_named(
    load: Load,
    moe: Path,
    bare: Path,
    tmp_path: Path,
    asked: str,
    fault: Callable[..., Answer],
    message: str,
) -> None:
    source, published = publish(load, moe, tmp_path)
    agent = FakeAgent(tmp_path / "s", weights=published.pulled(), overrides={asked: fault})
    with agent:
        with pytest.raises(RuntimeError, match=message):
            load(bare, agent.path)
        assert same(load(moe, agent.path), source)


def test_weights_that_will_not_come_send_the_engine_to_storage_when_the_agent_says_so(
    load: Load, moe: Path, tmp_path: Path
) -> None:
    source, published = publish(load, moe, tmp_path)
    agent = FakeAgent(tmp_path / "s", weights=published.pulled())

    def lost(request: dict[str, Any], answer: Answer) -> Answer:
        agent.weights = None
        return {"type": "Error", "code": "DataLoss", "message": "chunk 3 is wrong"}, []

    agent.overrides["AwaitWeights"] = lost
    with agent:
        assert same(load(moe, agent.path), source)
    assert [t for t in agent.types() if t != "Phase" and "Stream" not in t and t != "NextBatch"] == [
        "Hello", "AwaitWeights", "Hello", "CreateArena", "GetSlabs", "Publish",
    ]  # fmt: skip
    assert agent.published is not None


def test_what_nobody_foresaw_still_ends_in_a_load_from_storage(
    load: Load, moe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, published = publish(load, moe, tmp_path)
    calls: list[str] = []
    adopt = tensors.adopt

    def fail_half_way(pairs: list[Any], view: tensors.ArenaView) -> None:
        calls.append("adopt")
        adopt(pairs[: len(pairs) // 2], view)
        raise RuntimeError("torch does not like this")

    monkeypatch.setattr(tensors, "adopt", fail_half_way)
    with FakeAgent(tmp_path / "s", weights=published.pulled()) as agent:
        assert same(load(moe, agent.path), source)
    assert len(calls) == 2  # taking, and then publishing what came from storage
    assert agent.errors == []


def test_an_agent_that_refuses_is_obeyed_though_there_are_weight_files(
    load: Load, moe: Path, tmp_path: Path
) -> None:
    _, published = publish(load, moe, tmp_path)
    agent = FakeAgent(tmp_path / "s", weights=published.pulled(), storage_allowed=False)
    with agent:
        with pytest.raises(
            RuntimeError, match="agent refuses this engine.*identity: dtype; no storage"
        ):
            load(moe, agent.path, dtype="float32")


def test_without_an_agent_weights_come_from_storage_or_the_error_says_what_to_do(
    load: Load, moe: Path, bare: Path, tmp_path: Path
) -> None:
    stock = load(moe, None)
    assert same(load(moe, tmp_path / "nobody.sock"), stock)
    with pytest.raises(RuntimeError, match="holds no weight files .*nobody.sock.* storage volume"):
        load(bare, tmp_path / "nobody.sock")


def test_an_engine_whose_agent_goes_never_serves_with_placeholders(
    load: Load, moe: Path, tmp_path: Path
) -> None:
    source = load(moe, None)
    with FakeAgent(tmp_path / "s", begin_without=True, overrides={"CreateArena": die}) as agent:
        assert same(load(moe, agent.path), source)
    assert published_as(agent) == []
