"""The conversation with the agent over the engine socket (rouse-engine 1).

Strict request and answer; docs/protocols.md, section 3, is the contract. A session belongs to one
thread. After any error but AgentRefused its connection is of no more use: close it.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from rouse_vllm import library
from rouse_vllm.errors import AgentRefused, AgentUnreachable, ProtocolError
from rouse_vllm.version import PROTOCOL, PROTOCOL_VERSION

PEER = "Peer"
STORAGE = "Storage"

#: How long the agent may take for an answer that needs no peer, in seconds. Creating an arena
#: touches all of its pages.
ANSWER_TIMEOUT_S = 120.0

#: One question for weights waits this long at the agent, so that a silent agent is noticed.
AWAIT_SLICE_S = 10.0

MAX_SPAWNED = 1024  # characters

_MAX_MANIFEST_BYTES = 1 << 30


@dataclass(frozen=True)
class Welcome:
    source: str
    reason: str


@dataclass(frozen=True)
class SlabPlan:
    """The slabs of an arena, in the order of their addresses."""

    arena_bytes: int
    slab_bytes: tuple[int, ...]
    gpu: str = ""  # the UUID of the GPU whose memory they are; empty: the host's


@dataclass(frozen=True)
class StreamShape:
    """A checkpoint that the agent reads for us."""

    slot_bytes: int
    slots: int
    batches: int
    bytes: int
    dtypes: tuple[str, ...]  # that occur, as safetensors calls them


@dataclass(frozen=True)
class Piece:
    """Bytes [begin, begin + size) of a tensor, at `at` in a slot."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    size: int
    at: int


class Session:
    """One connection of one rank."""

    def __init__(self, path: str, rank: int, connect_timeout_s: float) -> None:
        self.rank = rank
        self._socket = library.connect(path, connect_timeout_s)

    def close(self) -> None:
        if self._socket >= 0:
            os.close(self._socket)
            self._socket = -1

    def hello(
        self,
        world_size: int,
        engine_version: str,
        identity: dict[str, str],
        gpu: str = "",
        spawned: str = "",
    ) -> Welcome:
        """`gpu` is the UUID of the GPU that this rank computes with, if any; `spawned` why its process
        was not forked, if it was to be."""
        request: dict[str, Any] = {
            "type": "Hello",
            "protocol": PROTOCOL,
            "version": PROTOCOL_VERSION,
            "pid": os.getpid(),
            "rank": self.rank,
            "worldSize": world_size,
            "engine": "vllm",
            "engineVersion": engine_version,
            "identity": identity,
        }
        if gpu:
            request["gpu"] = gpu
        if spawned:
            request["spawned"] = spawned[:MAX_SPAWNED]
        answer = self._ask(request, "Welcome")
        spoken = (answer.get("protocol"), answer.get("version"))
        if spoken != (PROTOCOL, PROTOCOL_VERSION):
            raise ProtocolError(
                f"the agent speaks {spoken[0]} {spoken[1]}, this plugin {PROTOCOL} "
                f"{PROTOCOL_VERSION}; take the plugin folder from the agent's own image"
            )
        source = _text(answer, "source")
        if source not in (PEER, STORAGE):
            raise ProtocolError(
                f'Welcome.source: unknown value "{source}", expected one of Peer, Storage'
            )
        return Welcome(source, _text(answer, "reason"))

    def phase(self, name: str, at_us: int) -> None:
        """Reports a point of the start; `at_us` is microseconds since the epoch."""
        self._ask({"type": "Phase", "name": name, "atUs": at_us}, "Ok")

    def await_weights(self, timeout_s: float) -> tuple[SlabPlan, bytes]:
        """Waits until the agent has pulled and verified all weights; returns slabs and manifest."""
        deadline = time.monotonic() + timeout_s
        while True:
            wait_s = max(0.0, min(AWAIT_SLICE_S, deadline - time.monotonic()))
            request = {"type": "AwaitWeights", "rank": self.rank, "timeoutMs": int(wait_s * 1000)}
            try:
                answer, fds = self._ask_for_fds(request, "Weights", wait_s + ANSWER_TIMEOUT_S)
                break
            except AgentRefused as error:
                if error.code != "DeadlineExceeded" or time.monotonic() >= deadline:
                    raise
        try:
            if len(fds) != 1:
                raise ProtocolError(f"Weights came with {len(fds)} descriptors, expected 1")
            size = _count(answer, "manifestBytes")
            if size > _MAX_MANIFEST_BYTES:
                raise ProtocolError(
                    f"Weights.manifestBytes: {size} is more than {_MAX_MANIFEST_BYTES}"
                )
            return _slab_plan(answer), library.document_read(fds[0], size)
        finally:
            _close_all(fds)

    def create_arena(self, size: int) -> SlabPlan:
        """Asks for an empty arena of at least `size` bytes."""
        request = {"type": "CreateArena", "rank": self.rank, "bytes": size}
        plan = _slab_plan(self._ask(request, "Arena"))
        if plan.arena_bytes < size:
            raise ProtocolError(
                f"Arena.arenaBytes: {plan.arena_bytes} is less than the {size} asked for"
            )
        return plan

    def map_slabs(self, plan: SlabPlan, *mappings: int) -> list[library.Arena]:
        """Maps all slabs once for each kind of mapping (library.MAP_…), each in a range of its own."""
        arenas = [library.Arena(sum(plan.slab_bytes)) for _ in mappings]
        for offset, size, fd in self._slabs(plan):
            for arena, mapping in zip(arenas, mappings):
                arena.map(offset, size, fd, mapping)
        return arenas

    def map_gpu_slabs(self, plan: SlabPlan, arena: library.GpuArena, access: int) -> None:
        """Maps all slabs of GPU memory into an arena of that size, on the current GPU."""
        for offset, size, fd in self._slabs(plan):
            arena.map(offset, size, fd, access)

    def _slabs(self, plan: SlabPlan) -> Iterator[tuple[int, int, int]]:
        """Offset, size and descriptor of each slab; descriptors are good until the next slab is
        asked for."""
        offset, first = 0, 0
        while first < len(plan.slab_bytes):
            count = min(library.MAX_MESSAGE_FDS, len(plan.slab_bytes) - first)
            request = {"type": "GetSlabs", "rank": self.rank, "first": first, "count": count}
            answer, fds = self._ask_for_fds(request, "Slabs", ANSWER_TIMEOUT_S)
            try:
                came = (_count(answer, "first"), _count(answer, "count"), len(fds))
                if came != (first, count, count):
                    raise ProtocolError(
                        f"asked for slabs {first} to {first + count - 1}, got {len(fds)} descriptors "
                        f"announced as first {came[0]}, count {came[1]}"
                    )
                for fd, size in zip(fds, plan.slab_bytes[first:]):
                    yield offset, size, fd
                    offset += size
            finally:
                _close_all(fds)
            first += count

    def publish(self, manifest: bytes) -> None:
        """Publishes the arena. The caller has dropped every shared mapping of it before."""
        fd = library.document_create(manifest)
        try:
            self._ask(
                {"type": "Publish", "rank": self.rank, "manifestBytes": len(manifest)}, "Ok", [fd]
            )
        finally:
            os.close(fd)

    def open_stream(
        self, folder: str, files: list[tuple[str, int]]
    ) -> tuple[StreamShape, list[int]]:
        """Asks the agent to read these files of the folder; returns the slots' descriptors too, which
        are the caller's to close."""
        request = {
            "type": "OpenStream",
            "rank": self.rank,
            "folder": folder,
            "files": [{"name": name, "bytes": size} for name, size in files],
        }
        answer, fds = self._ask_until_ready(request, "Stream")
        try:
            shape = StreamShape(
                slot_bytes=_count(answer, "slotBytes"),
                slots=_count(answer, "slots"),
                batches=_count(answer, "batches"),
                bytes=_count(answer, "bytes"),
                dtypes=_texts(answer, "dtypes"),
            )
            if len(fds) != shape.slots or not fds or shape.slot_bytes == 0:
                raise ProtocolError(f"Stream came with {len(fds)} slots of {shape.slots}")
            return shape, fds
        except Exception:
            _close_all(fds)
            raise

    def next_batch(
        self, batch: int, released: int, shape: StreamShape
    ) -> tuple[int, list[Piece]] | None:
        """Waits for a batch; returns its slot and what lies there, None after the last. The slots of
        the first `released` batches are given back: nothing refers to them any more."""
        request = {"type": "NextBatch", "rank": self.rank, "batch": batch, "released": released}
        answer, fds = self._ask_until_ready(request, "Batch")
        if fds:
            _close_all(fds)
            raise ProtocolError(f"Batch came with {len(fds)} descriptors, expected none")
        slot, entries = _count(answer, "slot"), answer.get("pieces")
        if _count(answer, "batch") != batch or slot >= shape.slots or not isinstance(entries, list):
            raise ProtocolError(f"asked for batch {batch}, got something else")
        pieces = [_piece(entry, shape) for entry in entries]
        return (slot, pieces) if pieces else None

    def close_stream(self, reason: str) -> None:
        self._ask({"type": "CloseStream", "rank": self.rank, "reason": reason}, "Ok")

    def _ask_until_ready(
        self, request: dict[str, Any], expected: str
    ) -> tuple[dict[str, Any], list[int]]:
        """As _ask_for_fds, again and again while the agent says that the answer is on its way. How
        long that may be is the agent's to know, which reads; a silent agent is noticed."""
        request = request | {"timeoutMs": int(AWAIT_SLICE_S * 1000)}
        while True:
            answer, fds = self._ask_for_fds(
                request, expected, AWAIT_SLICE_S + ANSWER_TIMEOUT_S, pending=True
            )
            if answer["type"] == expected:
                return answer, fds
            _close_all(fds)

    def _ask(
        self, request: dict[str, Any], expected: str, fds: list[int] | None = None
    ) -> dict[str, Any]:
        """A question whose answer brings no descriptors."""
        answer, received = self._ask_for_fds(request, expected, ANSWER_TIMEOUT_S, fds)
        if received:
            _close_all(received)
            raise ProtocolError(f"{expected} came with {len(received)} descriptors, expected none")
        return answer

    def _ask_for_fds(
        self,
        request: dict[str, Any],
        expected: str,
        timeout_s: float,
        fds: list[int] | None = None,
        pending: bool = False,
    ) -> tuple[dict[str, Any], list[int]]:
        """Returns an answer of the expected type (or, if `pending`, Pending); its descriptors are the
        caller's to close."""
        if self._socket < 0:
            raise AgentUnreachable("the connection to the agent was closed before")
        library.send(self._socket, json.dumps(request).encode(), fds or [], timeout_s)
        raw, received = library.receive(self._socket, timeout_s)
        try:
            return _answer(raw, request["type"], expected, pending), received
        except Exception:
            _close_all(received)
            raise


def _answer(raw: bytes, asked: str, expected: str, pending: bool = False) -> dict[str, Any]:
    try:
        answer = json.loads(raw)
    except ValueError as error:
        raise ProtocolError(f"the agent's answer to {asked} is no JSON: {error}") from error
    if not isinstance(answer, dict):
        raise ProtocolError(f"the agent's answer to {asked} is no JSON object")
    kind = answer.get("type")
    if kind == "Error":
        raise AgentRefused(_text(answer, "code"), _text(answer, "message"))
    if kind != expected and not (pending and kind == "Pending"):
        raise ProtocolError(f"the agent answered {asked} with {kind!r}, expected {expected!r}")
    return answer


def _close_all(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)


def _text(answer: dict[str, Any], name: str) -> str:
    value = answer.get(name)
    if not isinstance(value, str):
        raise ProtocolError(f"{answer.get('type')}.{name}: missing, or no string")
    return value


def _texts(answer: dict[str, Any], name: str) -> tuple[str, ...]:
    values = answer.get(name)
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise ProtocolError(f"{answer.get('type')}.{name}: missing, or no list of strings")
    return tuple(values)


def _piece(entry: Any, shape: StreamShape) -> Piece:
    if not isinstance(entry, dict):
        raise ProtocolError("Batch.pieces: expected objects")
    sizes = entry.get("shape")
    if not isinstance(sizes, list) or not all(type(x) is int and x >= 0 for x in sizes):
        raise ProtocolError("Batch.pieces.shape: expected counts")
    piece = Piece(
        name=_text(entry, "name"),
        dtype=_text(entry, "dtype"),
        shape=tuple(sizes),
        begin=_count(entry, "begin"),
        size=_count(entry, "bytes"),
        at=_count(entry, "at"),
    )
    if piece.dtype not in shape.dtypes or piece.at + piece.size > shape.slot_bytes:
        raise ProtocolError(f"tensor {piece.name}: is not in its slot, or of an unknown type")
    return piece


def _count(answer: dict[str, Any], name: str) -> int:
    value = answer.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ProtocolError(f"{answer.get('type')}.{name}: missing, or no count")
    return value


def _slab_plan(answer: dict[str, Any]) -> SlabPlan:
    arena_bytes = _count(answer, "arenaBytes")
    sizes = answer.get("slabBytes")
    if not isinstance(sizes, list) or not sizes:
        raise ProtocolError(f"{answer['type']}.slabBytes: missing, or no list")
    for size in sizes:
        if not isinstance(size, int) or isinstance(size, bool) or size <= 0:
            raise ProtocolError(f"{answer['type']}.slabBytes: expected positive integers")
    if sum(sizes) < arena_bytes:
        raise ProtocolError(
            f"{answer['type']}.slabBytes: {sum(sizes)} in all, the arena has {arena_bytes}"
        )
    gpu = answer.get("gpu", "")
    if not isinstance(gpu, str):
        raise ProtocolError(f"{answer['type']}.gpu: expected a string")
    return SlabPlan(arena_bytes, tuple(sizes), gpu)
