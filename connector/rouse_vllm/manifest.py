"""Weight manifests (rouse-manifest 1): where each tensor of a rank lies in its arena.

Pure data: no torch, no I/O. docs/protocols.md, section 4, is the contract.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from rouse_vllm.errors import ManifestError
from rouse_vllm.version import MANIFEST_PROTOCOL, MANIFEST_VERSION

#: Allocations begin at multiples of this, in bytes.
ALIGNMENT = 512
CHUNK_BYTES = 4 << 20

LOADED = "Loaded"
PROCESSED = "Processed"
FORMS = (LOADED, PROCESSED)
KINDS = ("Parameter", "Buffer", "Attribute", "Kernel")

#: Bytes of one element. The names are torch's.
ITEM_BYTES = {
    "bool": 1,
    "uint8": 1,
    "int8": 1,
    "float8_e4m3fn": 1,
    "float8_e4m3fnuz": 1,
    "float8_e5m2": 1,
    "float8_e5m2fnuz": 1,
    "float8_e8m0fnu": 1,
    "float4_e2m1fn_x2": 1,
    "uint16": 2,
    "int16": 2,
    "float16": 2,
    "bfloat16": 2,
    "uint32": 4,
    "int32": 4,
    "float32": 4,
    "uint64": 8,
    "int64": 8,
    "float64": 8,
}

Scalar = bool | int | float | str | None


def align(value: int) -> int:
    """The next multiple of ALIGNMENT."""
    return (value + ALIGNMENT - 1) // ALIGNMENT * ALIGNMENT


@dataclass(frozen=True)
class Allocation:
    """A piece of the arena that one storage takes; bytes from the start of the arena."""

    offset: int
    bytes: int


@dataclass(frozen=True)
class Tensor:
    """A tensor and its place; `offset` is in bytes from the start of its allocation."""

    name: str
    kind: str
    allocation: int
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: str

    def extent(self) -> int:
        """How many bytes its elements span."""
        last = sum((size - 1) * step for size, step in zip(self.shape, self.stride))
        return (last + 1) * ITEM_BYTES[self.dtype]


@dataclass(frozen=True)
class Manifest:
    form: str
    identity: dict[str, str]
    rank: int
    arena_bytes: int
    allocations: tuple[Allocation, ...]
    tensors: tuple[Tensor, ...]
    scalars: dict[str, Scalar]

    def encode(self) -> bytes:
        """The JSON document, UTF-8."""
        document = {
            "protocol": MANIFEST_PROTOCOL,
            "version": MANIFEST_VERSION,
            "form": self.form,
            "identity": self.identity,
            "rank": self.rank,
            "arenaBytes": self.arena_bytes,
            "chunkBytes": CHUNK_BYTES,
            "allocations": [{"offset": a.offset, "bytes": a.bytes} for a in self.allocations],
            "tensors": [
                {
                    "name": t.name,
                    "kind": t.kind,
                    "allocation": t.allocation,
                    "offset": t.offset,
                    "shape": list(t.shape),
                    "stride": list(t.stride),
                    "dtype": t.dtype,
                }
                for t in self.tensors
            ],
            "scalars": self.scalars,
        }
        return json.dumps(document, separators=(",", ":"), allow_nan=False).encode()


def decode(document: bytes) -> Manifest:
    """Reads and checks a manifest. ManifestError names the field that is wrong."""
    try:
        root = json.loads(document)
    except ValueError as error:
        raise ManifestError(f"the manifest is no JSON: {error}") from error
    if not isinstance(root, dict):
        raise ManifestError("the manifest is no JSON object")
    spoken = (root.get("protocol"), root.get("version"))
    if spoken != (MANIFEST_PROTOCOL, MANIFEST_VERSION):
        raise ManifestError(
            f"the manifest speaks {spoken[0]} {spoken[1]}, this plugin {MANIFEST_PROTOCOL} "
            f"{MANIFEST_VERSION}; run the same Rouse version on both sides"
        )
    form = _field(root, "form", str, "")
    if form not in FORMS:
        raise ManifestError(f'form: unknown value "{form}", expected one of {", ".join(FORMS)}')
    identity = _field(root, "identity", dict, "")
    for name, value in identity.items():
        if not isinstance(value, str):
            raise ManifestError(f"identity.{name}: expected a string")
    scalars = _field(root, "scalars", dict, "") if "scalars" in root else {}
    for name, value in scalars.items():
        if not isinstance(value, (bool, int, float, str, type(None))):
            raise ManifestError(f"scalars.{name}: expected a scalar")
    arena_bytes = _field(root, "arenaBytes", int, "")
    allocations = _allocations(_field(root, "allocations", list, ""), arena_bytes)
    return Manifest(
        form=form,
        identity=identity,
        rank=_field(root, "rank", int, ""),
        arena_bytes=arena_bytes,
        allocations=allocations,
        tensors=_tensors(_field(root, "tensors", list, ""), allocations),
        scalars=scalars,
    )


def differing(before: Manifest, after: Manifest) -> str:
    """What has another place, shape or value in the second manifest, in words; empty: nothing has."""
    if before.arena_bytes != after.arena_bytes:
        return f"arenaBytes is {after.arena_bytes} and was {before.arena_bytes}"
    if before.allocations != after.allocations:
        return "allocations differ"
    for what, old, new in (
        ("tensor", {t.name: t for t in before.tensors}, {t.name: t for t in after.tensors}),
        ("scalar", before.scalars, after.scalars),
    ):
        for name in [*old, *new]:
            if old.get(name) != new.get(name):
                return f"{what} {name} is {new.get(name)} and was {old.get(name)}"
    return ""


def _field(parent: Any, name: str, kind: type, path: str) -> Any:
    if not isinstance(parent, dict):
        raise ManifestError(f"{path.rstrip('.')}: expected an object")
    if name not in parent:
        raise ManifestError(f"{path}{name}: missing")
    value = parent[name]
    # bool is an int in Python and none here.
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ManifestError(f"{path}{name}: expected {kind.__name__}, found {type(value).__name__}")
    if kind is int and value < 0:
        raise ManifestError(f"{path}{name}: {value} is negative")
    return value


def _allocations(rows: list[Any], arena_bytes: int) -> tuple[Allocation, ...]:
    result: list[Allocation] = []
    end = 0
    for i, row in enumerate(rows):
        path = f"allocations[{i}]."
        allocation = Allocation(_field(row, "offset", int, path), _field(row, "bytes", int, path))
        if allocation.offset % ALIGNMENT != 0:
            raise ManifestError(f"{path}offset: {allocation.offset} is no multiple of {ALIGNMENT}")
        if allocation.offset + allocation.bytes > arena_bytes:
            raise ManifestError(f"{path}bytes: reaches beyond the arena of {arena_bytes} bytes")
        if allocation.offset < end:
            raise ManifestError(
                f"{path}offset: overlaps the allocation before it, or is out of order"
            )
        end = allocation.offset + allocation.bytes
        result.append(allocation)
    return tuple(result)


def _tensors(rows: list[Any], allocations: tuple[Allocation, ...]) -> tuple[Tensor, ...]:
    result, names = [], set()
    for i, row in enumerate(rows):
        path = f"tensors[{i}]."
        name = _field(row, "name", str, path)
        path = f"tensors[{i}] ({name})."
        tensor = Tensor(
            name=name,
            kind=_field(row, "kind", str, path),
            allocation=_field(row, "allocation", int, path),
            offset=_field(row, "offset", int, path),
            shape=_numbers(_field(row, "shape", list, path), path + "shape"),
            stride=_numbers(_field(row, "stride", list, path), path + "stride"),
            dtype=_field(row, "dtype", str, path),
        )
        if name in names:
            raise ManifestError(f"{path}name: occurs twice")
        names.add(name)
        if tensor.kind not in KINDS:
            raise ManifestError(
                f'{path}kind: unknown value "{tensor.kind}", expected one of {", ".join(KINDS)}'
            )
        if tensor.dtype not in ITEM_BYTES:
            raise ManifestError(f'{path}dtype: unknown value "{tensor.dtype}"')
        if len(tensor.shape) != len(tensor.stride):
            raise ManifestError(
                f"{path}stride: has {len(tensor.stride)} entries, shape {len(tensor.shape)}"
            )
        if 0 in tensor.shape:
            raise ManifestError(f"{path}shape: an empty tensor has no place in an arena")
        if tensor.allocation >= len(allocations):
            raise ManifestError(f"{path}allocation: there are only {len(allocations)}")
        if tensor.offset % ITEM_BYTES[tensor.dtype] != 0:
            raise ManifestError(f"{path}offset: {tensor.offset} splits a {tensor.dtype}")
        room = allocations[tensor.allocation].bytes
        if tensor.offset + tensor.extent() > room:
            raise ManifestError(f"{path}shape: reaches beyond its allocation of {room} bytes")
        result.append(tensor)
    return tuple(result)


def _numbers(values: list[Any], path: str) -> tuple[int, ...]:
    for value in values:
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise ManifestError(f"{path}: expected non-negative integers")
    return tuple(values)
