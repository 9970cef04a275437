"""Manifests: what is written is read back, and everything that is wrong is refused by name."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from rouse_vllm import manifest as manifests
from rouse_vllm.errors import ManifestError
from rouse_vllm.manifest import Allocation, Manifest, Tensor

GOOD = Manifest(
    form="Loaded",
    identity={"dtype": "bfloat16", "model": "m"},
    rank=3,
    arena_bytes=4096,
    allocations=(Allocation(0, 600), Allocation(1024, 64)),
    tensors=(
        Tensor("a.weight", "Parameter", 0, 0, (10, 30), (30, 1), "bfloat16"),
        Tensor("a.row", "Attribute", 0, 60, (30,), (1,), "bfloat16"),
        Tensor("b", "Buffer", 1, 4, (), (), "float32"),
        Tensor("b.repeated", "Buffer", 1, 8, (1000, 2), (0, 1), "float32"),
    ),
    scalars={"a.scale": 1.5, "a.on": True, "a.none": None},
)


def test_a_manifest_is_read_back_as_it_was_written() -> None:
    assert manifests.decode(GOOD.encode()) == GOOD


def test_what_an_agent_adds_is_ignored() -> None:
    document = json.loads(GOOD.encode())
    document["digest"] = {"algorithm": "xxh3-128/64KiB", "chunks": ["00"]}
    assert manifests.decode(json.dumps(document).encode()) == GOOD


def test_what_is_no_json_object_is_refused() -> None:
    for document in (b"", b"{", b"[1]", b"\xff\xfe", b"null"):
        with pytest.raises(ManifestError, match="no JSON"):
            manifests.decode(document)


def test_another_version_is_refused_with_both_versions() -> None:
    document = json.loads(GOOD.encode()) | {"version": 2}
    with pytest.raises(ManifestError, match="rouse-manifest 2.*rouse-manifest 1"):
        manifests.decode(json.dumps(document).encode())


def set_at(*path: Any) -> Callable[[dict[str, Any]], None]:
    """Sets the value at path[:-1] to path[-1]."""

    def change(document: dict[str, Any]) -> None:
        here: Any = document
        for step in path[:-2]:
            here = here[step]
        here[path[-2]] = path[-1]

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_at("form", "Raw"), 'form: unknown value "Raw", expected one of Loaded, Processed'),
        (set_at("rank", "3"), "rank: expected int, found str"),
        (set_at("rank", True), "rank: expected int, found bool"),
        (set_at("arenaBytes", -1), "arenaBytes: -1 is negative"),
        (set_at("identity", "dtype", 5), "identity.dtype: expected a string"),
        (set_at("scalars", "x", [1]), "scalars.x: expected a scalar"),
        (set_at("allocations", {}), "allocations: expected list, found dict"),
        (set_at("allocations", 0, 7), "allocations.0.: expected an object"),
        (
            set_at("allocations", 1, "offset", 1000),
            "allocations.1..offset: 1000 is no multiple of 512",
        ),
        (set_at("allocations", 1, "offset", 512), "allocations.1..offset: overlaps"),
        (set_at("allocations", 1, "bytes", 4000), "allocations.1..bytes: reaches beyond the arena"),
        (set_at("tensors", 0, "kind", "Weight"), 'kind: unknown value "Weight"'),
        (set_at("tensors", 0, "dtype", "complex64"), 'a.weight..dtype: unknown value "complex64"'),
        (set_at("tensors", 0, "dtype", "load"), 'dtype: unknown value "load"'),
        (set_at("tensors", 0, "shape", [10, 31]), "a.weight..shape: reaches beyond its allocation"),
        (set_at("tensors", 0, "shape", [10, -1]), "shape: expected non-negative integers"),
        (set_at("tensors", 0, "shape", [10, 0]), "shape: an empty tensor"),
        (set_at("tensors", 0, "stride", [1]), "stride: has 1 entries, shape 2"),
        (set_at("tensors", 0, "offset", 1), "offset: 1 splits a bfloat16"),
        (set_at("tensors", 0, "allocation", 2), "allocation: there are only 2"),
        (set_at("tensors", 1, "name", "a.weight"), "a.weight..name: occurs twice"),
        (lambda d: d.pop("tensors"), "tensors: missing"),
        (lambda d: d["tensors"][2].pop("stride"), "tensors.2. .b..stride: missing"),
    ],
)
def test_a_wrong_field_is_named(change: Callable[[dict[str, Any]], None], message: str) -> None:
    document = json.loads(GOOD.encode())
    change(document)
    with pytest.raises(ManifestError, match=message):
        manifests.decode(json.dumps(document).encode())


def test_what_lies_elsewhere_is_named() -> None:
    assert manifests.differing(GOOD, GOOD) == ""
    moved = replace(GOOD.tensors[0], offset=GOOD.tensors[0].offset + 512)
    for change, message in (
        ({"arena_bytes": 8192}, "arenaBytes is 8192 and was 4096"),
        ({"allocations": ()}, "allocations differ"),
        ({"tensors": (moved, *GOOD.tensors[1:])}, f"tensor {moved.name} is .*offset"),
        ({"tensors": GOOD.tensors[1:]}, f"tensor {moved.name} is None and was "),
        ({"scalars": {"new": 1.5}}, "scalar"),
    ):
        assert re.search(message, manifests.differing(GOOD, replace(GOOD, **change)))
