"""Real engines and real agents: one instance loads from storage, the next one from the first.

Only the operator is missing; a few lines answer the agents' reports in its place. The first instance
has the plugin as its agent gives it to a pod, the other engines are forked.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from agents import LOADING_PHASES, Agent, FakeOperator
from engines import Engine, run_engine
from tiny_models import make_moe, make_tied, without_weights


@pytest.fixture
def operator() -> Iterator[FakeOperator]:
    operator = FakeOperator()
    yield operator
    operator.close()


def test_a_second_instance_takes_its_weights_from_the_first(
    operator: FakeOperator, tmp_path: Path
) -> None:
    checkpoint = make_moe(tmp_path / "model", seed=5)
    stock = run_engine(checkpoint, None)
    assert stock.status == 0 and len(stock.tokens) == 24
    assert len(set(stock.tokens)) > 3  # A constant answer would compare nothing.

    open_things: list[Agent | Engine] = []
    try:
        first = Agent(tmp_path / "a0", operator, "demo-0", "--model-dir", str(checkpoint))
        open_things.append(first)
        operator.wait("demo-0", lambda r: True)
        source = Engine(checkpoint, first.socket, plugin=first.plugin)
        open_things.append(source)
        assert source.tokens() == stock.tokens
        report = operator.wait("demo-0", lambda r: (r["weights"] or {}).get("servable", False))
        assert report["weights"]["form"] == "Loaded"
        assert report["bytesBySource"]["peer"] == 0
        # Read by the agent: what the files hold, and of each batch a part of a block more.
        held = sum(file.stat().st_size for file in checkpoint.glob("*.safetensors"))
        assert 0.9 * held < report["bytesBySource"]["storage"] < 1.1 * held
        assert report["transport"] in ("storage/io_uring", "storage/threads")
        assert "the agent read" in source.log

        folder = tmp_path / "target"
        folder.mkdir()
        second = Agent(
            tmp_path / "a1", operator, "demo-1",
            "--path", "Peer", "--model-files", "Peer", "--model-dir", str(folder),
        )  # fmt: skip
        open_things.append(second)
        operator.wait(
            "demo-1", lambda r: r["bytesBySource"]["peer"] > 0 and (folder / "config.json").exists()
        )
        assert not list(folder.glob("*.safetensors"))
        target = Engine(folder, second.socket)
        open_things.append(target)
        assert target.tokens() == stock.tokens
        assert "processes are forked" in target.log and "spawned" not in target.log
        got = operator.reports["demo-1"]
        assert got["bytesBySource"] == {"peer": report["weights"]["bytes"], "storage": 0}
        assert got["weights"]["identity"] == report["weights"]["identity"]

        for phases in (first.phases(), second.phases()):
            assert list(phases) == [*LOADING_PHASES, "Profiled", "KvCacheReady", "Captured"]
            times = list(phases.values())
            assert times == sorted(times)
        # Imported by the first process, seconds before the worker that tells the agent.
        phases = first.phases()
        assert phases["LoadStarted"] - phases["EngineImported"] > 1_000_000

        # The agent keeps the weights when its engine goes: the next one takes them from it.
        assert source.close() == 0
        again = Engine(checkpoint, first.socket)
        open_things[1] = again
        assert again.tokens() == stock.tokens
        assert "took" in again.log and "from the agent" in again.log
    except BaseException:
        for thing in open_things:
            if isinstance(thing, Agent):
                print(thing.log_path.read_text()[-6000:])
        raise
    finally:
        for thing in reversed(open_things):
            thing.close()


def test_a_draft_model_goes_the_way_of_the_model_that_it_drafts_for(
    operator: FakeOperator, tmp_path: Path
) -> None:
    checkpoint, drafts = make_moe(tmp_path / "model", seed=5), make_tied(tmp_path / "draft", seed=6)
    bare, bare_drafts = tmp_path / "bare", without_weights(drafts, tmp_path / "bare-draft")

    def drafted_by(folder: Path) -> dict[str, object]:
        return {"method": "draft_model", "model": str(folder), "num_speculative_tokens": 2}

    stock = run_engine(checkpoint, None, speculative_config=drafted_by(drafts))
    assert stock.status == 0 and len(stock.tokens) == 24

    open_things: list[Agent | Engine] = []
    try:
        first = Agent(tmp_path / "a0", operator, "demo-0", "--model-dir", str(checkpoint))
        open_things.append(first)
        operator.wait("demo-0", lambda r: True)
        source = Engine(checkpoint, first.socket, speculative_config=drafted_by(drafts))
        open_things.append(source)
        assert source.tokens() == stock.tokens
        report = operator.wait("demo-0", lambda r: (r["weights"] or {}).get("servable", False))
        assert report["weights"]["ranks"] == 2

        bare.mkdir()
        second = Agent(
            tmp_path / "a1", operator, "demo-1", "--path", "Peer", "--model-files", "Peer",
            "--model-dir", str(bare),
        )  # fmt: skip
        open_things.append(second)
        operator.wait("demo-1", lambda r: (bare / "config.json").exists())
        target = Engine(bare, second.socket, speculative_config=drafted_by(bare_drafts))
        open_things.append(target)
        assert target.tokens() == stock.tokens
        got = operator.wait("demo-1", lambda r: r["bytesBySource"]["peer"] > 0)
        assert got["bytesBySource"] == {"peer": report["weights"]["bytes"], "storage": 0}
    except BaseException:
        for thing in open_things:
            print(thing.log_path.read_text()[-6000:] if isinstance(thing, Agent) else thing.log)
        raise
    finally:
        for thing in reversed(open_things):
            thing.close()
