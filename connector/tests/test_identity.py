from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rouse_vllm.identity import differing, draft_of, is_draft, weight_files_digest


def write(path: Path, data: bytes, name: str = "w") -> None:
    header = json.dumps({name: {"dtype": "U8", "shape": [len(data)], "data_offsets": [0, len(data)]}})
    path.write_bytes(len(header).to_bytes(8, "little") + header.encode() + data)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i in range(2):
        write(tmp_path / f"model-{i}.safetensors", bytes((i + j) % 251 for j in range(200_000)))
    return tmp_path


def test_copies_are_equal_whatever_their_times(folder: Path) -> None:
    before = weight_files_digest(str(folder))
    assert len(before) == 64
    os.utime(folder / "model-0.safetensors", (1, 1))
    (folder / "config.json").write_text("{}")
    assert weight_files_digest(str(folder)) == before


@pytest.mark.parametrize("what", ["data", "name", "size", "file", "last byte", "fewer"])
def test_another_checkpoint_has_another_digest(folder: Path, what: str) -> None:
    before = weight_files_digest(str(folder))
    shard = folder / "model-1.safetensors"
    if what == "data":  # as after training on: everything changes a little
        write(shard, bytes((2 + j) % 251 for j in range(200_000)))
    elif what == "name":
        write(shard, bytes((1 + j) % 251 for j in range(200_000)), name="v")
    elif what == "size":
        write(shard, bytes((1 + j) % 251 for j in range(200_001)))
    elif what == "file":
        shard.rename(folder / "model-2.safetensors")
    elif what == "last byte":
        content = bytearray(shard.read_bytes())
        content[-1] ^= 1
        shard.write_bytes(content)
    else:
        shard.unlink()
    assert weight_files_digest(str(folder)) != before


def test_links_into_a_cache_are_followed(folder: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    for path in folder.glob("*.safetensors"):
        (snapshot / path.name).symlink_to(path)
    assert weight_files_digest(str(snapshot)) == weight_files_digest(str(folder))


@pytest.mark.parametrize("content", [b"", b"1234567", b"\xff" * 64, (65).to_bytes(8, "little")])
def test_what_is_no_checkpoint_has_none(folder: Path, content: bytes) -> None:
    (folder / "model-3.safetensors").write_bytes(content)
    assert weight_files_digest(str(folder)) == ""
    assert weight_files_digest(str(folder / "nothing")) == ""


def test_a_checkpoint_without_data_is_one(tmp_path: Path) -> None:
    write(tmp_path / "model.safetensors", b"")
    assert len(weight_files_digest(str(tmp_path))) == 64


def test_only_two_that_have_weight_files_can_differ_in_them() -> None:
    one, other = {"model": "m", "weightFiles": "a"}, {"model": "m", "weightFiles": "b"}
    assert differing(one, {"model": "m"}) == []
    assert differing({"model": "m"}, one) == []
    assert differing(one, other) == ["weightFiles"]
    assert differing(one, {"weightFiles": "b"}) == ["model", "weightFiles"]


# ---- Draft models ------------------------------------------------------------------------------------


def configuration(method: str | None = "draft_model", stages: int = 1, own: bool = False) -> Any:
    """What of vLLM's configuration is looked at; `own`: the draft model has a load format of its own."""
    served, drafts = SimpleNamespace(model="/m"), SimpleNamespace(model="/d")
    speculative = SimpleNamespace(
        method=method,
        draft_model_config=drafts,
        target_model_config=served,
        draft_load_config=object() if own else None,
    )
    return SimpleNamespace(
        model_config=served,
        speculative_config=None if method is None else speculative,
        parallel_config=SimpleNamespace(pipeline_parallel_size=stages),
    )


def test_a_draft_model_is_told_from_the_served_one() -> None:
    config = configuration()
    drafts = config.speculative_config.draft_model_config
    assert is_draft(config, drafts) and draft_of(config) is drafts
    assert not is_draft(config, config.model_config)
    # As vLLM calls the loader with the method draft_model: the whole configuration is the draft's.
    config.model_config = drafts
    assert is_draft(config, drafts)
    # Methods without a model of their own name the served one.
    config = configuration("ngram")
    config.speculative_config.draft_model_config = config.model_config
    assert not is_draft(config, config.model_config) and draft_of(config) is None
    assert draft_of(configuration(None)) is None


@pytest.mark.parametrize(
    "config", [configuration("medusa"), configuration(stages=2), configuration(own=True)]
)
def test_a_draft_model_that_not_every_rank_loads_with_us_comes_from_storage(config: Any) -> None:
    assert is_draft(config, config.speculative_config.draft_model_config)
    assert draft_of(config) is None
