"""The loader on real vLLM models, against agents that do what they should."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from agents import LOADING_PHASES
from fake_agent import Answer, FakeAgent
from loading import Load, equal, publish, published_as, same, values
from tiny_models import without_weights
from vllm.model_executor.model_loader import get_model_loader

import rouse_vllm
from rouse_vllm import guard, loader, tensors

pytest_plugins = ["loading"]

# ---- Weights that change hands -------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["moe", "tied"])
def test_a_target_has_the_sources_weights_in_the_agents_memory(
    load: Load, kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    checkpoint = request.getfixturevalue(kind)
    stock = load(checkpoint, None)
    source, published = publish(load, checkpoint, tmp_path)
    assert same(source, stock)
    target_folder = without_weights(checkpoint, tmp_path / "target")
    with FakeAgent(tmp_path / "target.sock", weights=published.pulled()) as agent:
        target = load(target_folder, agent.path)
    assert agent.errors == []
    assert same(target, stock)
    # Neither side computes with a second copy: private mappings of the agent's own memory.
    for loaded, memfd in ((source, "/memfd:slab"), (target, "/memfd:pulled")):
        for name, line in loaded.places.items():
            assert memfd in line and line.split()[1] == "rw-p", f"{name}: {line}"
    if kind == "tied":
        rows = {t["name"]: t for t in json.loads(published.manifest)["tensors"]}
        embed = rows["model.embed_tokens.weight"]
        assert rows["lm_head.weight"] == embed | {"name": "lm_head.weight"}


def test_a_source_and_a_target_say_what_the_protocol_has_them_say(
    load: Load, moe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(rouse_vllm.IMPORTED_AT_VARIABLE, "1234567")
    with FakeAgent(tmp_path / "s0") as agent:
        load(moe, agent.path)
    assert agent.stream is not None
    batches = ["NextBatch"] * (len(agent.stream.batches) + 1)
    assert agent.types() == [
        "Hello", *["Phase"] * 4, "OpenStream", *batches, "CloseStream",
        "CreateArena", "GetSlabs", "Publish", *["Phase"] * 3,
    ]  # fmt: skip
    assert agent.published is not None
    with FakeAgent(tmp_path / "s1", weights=agent.published.pulled()) as other:
        load(moe, other.path)
    assert other.types() == [
        "Hello", *["Phase"] * 4, "AwaitWeights", "GetSlabs", *["Phase"] * 3,
    ]  # fmt: skip
    for phases in (agent.phases(), other.phases()):
        assert list(phases) == LOADING_PHASES
        times = list(phases.values())
        assert times[0] == 1234567 and times == sorted(times)


def test_nobody_can_write_to_what_was_published(load: Load, moe: Path, tmp_path: Path) -> None:
    with FakeAgent(tmp_path / "s") as agent:
        load(moe, agent.path)
        assert agent.published is not None
        before = agent.published.content()
    assert agent.writable_at_publish == []
    for link in loader._open_links:
        link.close()
    assert agent.published.content() == before  # post-processing is over by now


def test_a_pull_that_takes_long_is_waited_for(
    load: Load, moe: Path, bare: Path, tmp_path: Path
) -> None:
    source, published = publish(load, moe, tmp_path)
    waits = [3]

    def not_yet(request: dict[str, Any], answer: Answer) -> Answer:
        waits[0] -= 1
        if waits[0] < 0:
            return answer
        return {"type": "Error", "code": "DeadlineExceeded", "message": "on their way"}, []

    agent = FakeAgent(
        tmp_path / "s", weights=published.pulled(), overrides={"AwaitWeights": not_yet}
    )
    with agent:
        assert same(load(bare, agent.path), source)
    assert agent.types().count("AwaitWeights") == 4


def test_slabs_beyond_one_message_are_fetched_in_batches(
    load: Load, moe: Path, tmp_path: Path
) -> None:
    import fake_agent

    source, published = publish(load, moe, tmp_path)
    content = published.content()
    cut = fake_agent.create_slabs(len(content), slab_bytes=16 * 1024)
    for i, fd in enumerate(cut.slabs):
        os.pwrite(fd, content[i * 16 * 1024 :][: cut.slab_bytes[i]], 0)
    cut.manifest = published.manifest
    assert len(cut.slabs) > 64
    with FakeAgent(tmp_path / "s", weights=cut) as agent:
        assert same(load(moe, agent.path), source)
    asked = [(r["first"], r["count"]) for r in agent.requests if r["type"] == "GetSlabs"]
    assert asked == [(i, min(64, len(cut.slabs) - i)) for i in range(0, len(cut.slabs), 64)]


# ---- Processed weights -----------------------------------------------------------------------------


def test_processed_weights_are_exchanged_after_post_processing(
    load: Load, moe: Path, bare: Path, tmp_path: Path, processed_form: dict[str, torch.nn.Module]
) -> None:
    source, published = publish(load, moe, tmp_path)
    expected = values(processed_form["model"])
    assert "model.embed_tokens.weight" in expected
    assert json.loads(published.manifest)["form"] == "Processed"
    with FakeAgent(tmp_path / "s", weights=published.pulled()) as agent:
        before = load(bare, agent.path)
    assert agent.errors == []
    assert not same(before, source)  # post-processing saw dummy weights
    got = values(processed_form["model"])
    assert got.keys() == expected.keys()
    assert equal(got, expected)


def test_processed_weights_that_do_not_fit_are_replaced_by_a_load_from_storage(
    load: Load, moe: Path, tmp_path: Path, processed_form: dict[str, torch.nn.Module]
) -> None:
    _, published = publish(load, moe, tmp_path)
    expected = values(processed_form["model"])

    def change(manifest: dict[str, Any]) -> None:
        manifest["scalars"]["model.norm.unknown"] = 1

    with FakeAgent(tmp_path / "s", weights=published.pulled(change)) as agent:
        load(moe, agent.path)
    assert agent.errors == []
    got = values(processed_form["model"])
    assert equal(got, expected)
    assert agent.types().count("Publish") == 1


# ---- Without weights ------------------------------------------------------------------------------


@pytest.mark.parametrize("processed", [False, True])
def test_an_engine_may_begin_without_weights(
    load: Load, moe: Path, bare: Path, tmp_path: Path, processed: bool, request: Any
) -> None:
    if processed:
        request.getfixturevalue("processed_form")
    source, published = publish(load, moe, tmp_path)
    with FakeAgent(tmp_path / "s", begin_without=True) as agent:
        begun = load(bare, agent.path)  # There are no weight files to read.
    assert agent.errors == [] and published_as(agent) == [True]
    assert not same(begun, source)
    assert processed or guard.problem(None) == ""
    # What a peer has fits in.
    assert agent.published is not None
    ours, theirs = json.loads(agent.published.manifest), json.loads(published.manifest)
    assert {k: ours[k] for k in ("tensors", "allocations", "scalars", "form")} == {
        k: theirs[k] for k in ("tensors", "allocations", "scalars", "form")
    }


def test_numbers_made_of_weights_need_weights(
    load: Load,
    moe: Path,
    tmp_path: Path,
    processed_form: dict[str, torch.nn.Module],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, published = publish(load, moe, tmp_path)
    expected = values(processed_form["model"])
    scalar = {"model.norm.scale": 1.5}
    monkeypatch.setattr(tensors, "changed", lambda before, after: scalar)
    with FakeAgent(tmp_path / "s", begin_without=True) as agent:
        load(moe, agent.path)
    assert agent.errors == [] and published_as(agent) == [False]
    got = values(processed_form["model"])
    assert equal(got, expected)


# ---- Settings and registration --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"socket": ""}, "needs the path of the engine socket"),
        ({"socket": 5}, "needs the path of the engine socket"),
        ({"weightsTimeoutS": "5"}, "weightsTimeoutS: expected seconds, found '5'"),
        ({"connectTimeoutS": 0}, "connectTimeoutS: expected seconds, found 0"),
        ({"graphCapture": "lazy"}, "graphCapture: expected Eager or Lazy, found 'lazy'"),
        (
            {"graphCaptureTrigger": 1},
            "graphCaptureTrigger: expected Idle or FirstRequest, found 1",
        ),
        ({"unknown": 1}, "Unexpected extra config keys.*unknown"),
    ],
)
def test_wrong_settings_are_refused_by_name(
    load: Load, moe: Path, tmp_path: Path, extra: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        load(moe, tmp_path / "s", extra=extra)


def test_vllms_own_loader_settings_still_work(load: Load, moe: Path, tmp_path: Path) -> None:
    with FakeAgent(tmp_path / "s") as agent:
        loaded = load(moe, agent.path, extra={"enable_multithread_load": True, "num_threads": 2})
    assert same(loaded, load(moe, None))


def test_lazy_capture_of_graphs_is_not_for_a_cpu(load: Load, moe: Path, tmp_path: Path) -> None:
    from vllm.v1.worker.gpu_worker import Worker

    with FakeAgent(tmp_path / "s") as agent:
        extra = {"graphCapture": "Lazy", "graphCaptureTrigger": "FirstRequest"}
        loaded = load(moe, agent.path, extra=extra)
    assert same(loaded, load(moe, None))
    assert not hasattr(Worker.execute_model, "_rouse_wraps")


def test_registering_twice_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.config.load import LoadConfig

    monkeypatch.setenv(rouse_vllm.IMPORTED_AT_VARIABLE, "123")
    rouse_vllm.register()
    rouse_vllm.register()
    assert os.environ[rouse_vllm.IMPORTED_AT_VARIABLE] == "123"
    config = LoadConfig(load_format="rouse", model_loader_extra_config={"socket": "/s"})
    assert type(get_model_loader(config)) is loader.RouseModelLoader
    assert config.model_loader_extra_config == {"socket": "/s"}


# ---- What can sleep ------------------------------------------------------------------------------


def test_who_computes_with_the_agents_memory_can_sleep(
    load: Load, moe: Path, tmp_path: Path
) -> None:
    def strange(manifest: dict[str, Any]) -> None:
        manifest["scalars"]["model.nothing"] = 1.0

    def refuse(_: Any, __: Any) -> Answer:
        return {"type": "Error", "code": "ResourceExhausted", "message": "no memory"}, []

    _, published = publish(load, moe, tmp_path)
    assert guard.problem(None) == ""
    with FakeAgent(tmp_path / "s", weights=published.pulled()) as agent:
        load(moe, agent.path)
        assert guard.problem(None) == ""
    # Taken, found not to fit at the very end, and then read from storage but not published.
    with FakeAgent(
        tmp_path / "t", weights=published.pulled(strange), overrides={"CreateArena": refuse}
    ) as agent:
        load(moe, agent.path)
        assert "GetSlabs" in agent.types() and "CreateArena" in agent.types()
        assert "memory of its own" in guard.problem(None)
    load(moe, tmp_path / "nobody")
    assert "the agent was not there" in guard.problem(None)
