"""Weights that the loader does not take: of another identity, or with a manifest that does not fit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_agent import FakeAgent
from loading import Load, publish, same
from tiny_models import make_moe

pytest_plugins = ["loading"]

# ---- Identities ---------------------------------------------------------------------------------


def test_the_identity_is_the_same_with_and_without_weight_files(
    load: Load, moe: Path, bare: Path, tmp_path: Path
) -> None:
    hellos = []
    for i, model in enumerate((moe, bare)):
        with FakeAgent(tmp_path / f"s{i}") as agent:
            try:
                load(model, agent.path)
            except RuntimeError:
                assert model is bare  # nothing to load from; the identity was said before
        hellos.append(agent.requests[0])
    assert hellos[0]["identity"].pop("weightFiles")
    assert hellos[0]["identity"] == hellos[1]["identity"]
    assert hellos[0]["identity"]["dtype"] == "bfloat16"
    assert hellos[0]["identity"]["engineVersion"] == hellos[0]["engineVersion"]
    assert (hellos[0]["rank"], hellos[0]["worldSize"]) == (0, 1)


@pytest.mark.parametrize(
    ("arguments", "field"), [({"dtype": "float32"}, "dtype"), ({"revision": "v2"}, "revision")]
)
def test_weights_of_another_identity_are_not_taken(
    load: Load, moe: Path, bare: Path, tmp_path: Path, arguments: dict[str, str], field: str
) -> None:
    stock = load(moe, None, **arguments)
    _, published = publish(load, moe, tmp_path)
    with FakeAgent(tmp_path / "s", weights=published.pulled()) as agent:
        assert same(load(moe, agent.path, **arguments), stock)
        assert "AwaitWeights" not in agent.types()
        assert agent.published is not None
        with pytest.raises(
            RuntimeError, match=f"no weights for .*another identity: {field}.*volume"
        ):
            load(bare, agent.path, **arguments)


def test_other_weights_of_the_same_shapes_are_another_identity(
    load: Load, moe: Path, bare: Path, tmp_path: Path
) -> None:
    other = make_moe(tmp_path / "other", seed=2)
    stock = load(other, None)
    _, published = publish(load, moe, tmp_path)
    with FakeAgent(tmp_path / "s", weights=published.pulled()) as agent:
        assert same(load(other, agent.path), stock)
    assert "AwaitWeights" not in agent.types()
    with FakeAgent(tmp_path / "t", weights=published.pulled()) as agent:
        load(bare, agent.path)  # has no files that could say otherwise
    assert "AwaitWeights" in agent.types()


def test_another_models_configuration_is_another_identity(
    load: Load, moe: Path, tmp_path: Path
) -> None:
    _, published = publish(load, moe, tmp_path)
    other = make_moe(tmp_path / "other", seed=1)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"rope_theta": 5000.0}))
    with FakeAgent(tmp_path / "s", weights=published.pulled()) as agent:
        load(other, agent.path)
    assert "AwaitWeights" not in agent.types()


def test_a_manifest_of_another_identity_is_not_taken(
    load: Load, moe: Path, bare: Path, tmp_path: Path
) -> None:
    """The agent compares identities before; a manifest that got past it is still looked at."""
    _, published = publish(load, moe, tmp_path)
    identity = json.loads(published.manifest)["identity"]

    def change(manifest: dict[str, Any]) -> None:
        manifest["identity"]["torchVersion"] = "1.0"

    with FakeAgent(tmp_path / "s", weights=published.pulled(change), identity=identity) as agent:
        with pytest.raises(RuntimeError, match="identity.torchVersion: the manifest has '1.0'"):
            load(bare, agent.path)


# ---- Manifests that do not fit --------------------------------------------------------------------


def drop_tensor(manifest: dict[str, Any]) -> None:
    manifest["tensors"] = [t for t in manifest["tensors"] if t["name"] != "model.norm.weight"]


def add_tensor(manifest: dict[str, Any]) -> None:
    manifest["tensors"].append(manifest["tensors"][0] | {"name": "model.surprise"})


def reshape(manifest: dict[str, Any]) -> None:
    row = next(t for t in manifest["tensors"] if t["name"] == "model.norm.weight")
    row["shape"], row["stride"] = [64], [1]


def beyond(manifest: dict[str, Any]) -> None:
    manifest["allocations"][-1]["bytes"] += 1 << 30


def other_rank(manifest: dict[str, Any]) -> None:
    manifest["rank"] = 1


def processed(manifest: dict[str, Any]) -> None:
    manifest["form"] = "Processed"


def next_version(manifest: dict[str, Any]) -> None:
    manifest["version"] = 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop_tensor, "the manifest lacks model.norm.weight"),
        (add_tensor, "the manifest has model.surprise, which this model has not"),
        (reshape, r"model.norm.weight: .*\[64\], this model a Parameter of bfloat16 \[128\]"),
        (beyond, "reaches beyond the arena"),
        (other_rank, "the manifest is of rank 1, this is 0"),
        (processed, "the manifest holds weights in Processed form"),
        (next_version, "rouse-manifest 2, this plugin rouse-manifest 1"),
    ],
)
def test_a_manifest_that_does_not_fit_is_an_error_or_sends_the_engine_to_storage(
    load: Load,
    moe: Path,
    bare: Path,
    tmp_path: Path,
    change: Callable[[dict[str, Any]], None],
    message: str,
) -> None:
    source, published = publish(load, moe, tmp_path)
    with FakeAgent(tmp_path / "s", weights=published.pulled(change)) as agent:
        with pytest.raises(RuntimeError, match=message):
            load(bare, agent.path)
        assert "GetSlabs" not in agent.types()
        assert same(load(moe, agent.path), source)
        assert agent.published is not None
