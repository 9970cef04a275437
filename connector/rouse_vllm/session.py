"""The conversation with the agent over the engine socket (rouse-engine 1).

Strict request and answer; docs/protocols.md, section 3, is the contract. A session belongs to one
thread. After any error but AgentRefused its connection is of no more use: close it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

from rouse_vllm import library
from rouse_vllm.connection import (
    ANSWER_TIMEOUT_S,
    AWAIT_SLICE_S,
    Connection,
    check_spoken,
    close_all,
    count,
    refuse_all,
    text,
    texts,
)
from rouse_vllm.errors import AgentRefused, ProtocolError
from rouse_vllm.version import PROTOCOL, PROTOCOL_VERSION

PEER = "Peer"
STORAGE = "Storage"
#: No weights yet: the engine begins with placeholders, sleeps, and is woken with a peer's.
NOWHERE = "Nowhere"

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

    @property
    def mapped_bytes(self) -> int:
        return sum(self.slab_bytes)


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


class Session(Connection):
    """The connection of one rank."""

    def __init__(self, path: str, rank: int, connect_timeout_s: float) -> None:
        super().__init__(path, connect_timeout_s)
        self.rank = rank

    def hello(
        self,
        world_size: int,
        engine_version: str,
        identity: dict[str, str],
        gpu: str = "",
        spawned: str = "",
        models: int = 1,
    ) -> Welcome:
        """`gpu` is the UUID of the GPU that this rank computes with, if any; `spawned` why its process
        was not forked, if it was to be; `models` how many models each worker loads."""
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
        if models > 1:
            request["models"] = models
        if gpu:
            request["gpu"] = gpu
        if spawned:
            request["spawned"] = spawned[:MAX_SPAWNED]
        answer = self.ask(request, "Welcome")
        check_spoken(answer)
        source = text(answer, "source")
        if source not in (PEER, STORAGE, NOWHERE):
            raise ProtocolError(
                f'Welcome.source: unknown value "{source}", expected one of Peer, Storage, Nowhere'
            )
        return Welcome(source, text(answer, "reason"))

    def phase(self, name: str, at_us: int) -> None:
        """Reports a point of the start; `at_us` is microseconds since the epoch."""
        self.ask({"type": "Phase", "name": name, "atUs": at_us}, "Ok")

    def await_weights(self, timeout_s: float) -> tuple[SlabPlan, bytes]:
        """Waits until the agent has pulled and verified all weights; returns slabs and manifest."""
        deadline = time.monotonic() + timeout_s
        while True:
            wait_s = max(0.0, min(AWAIT_SLICE_S, deadline - time.monotonic()))
            request = {"type": "AwaitWeights", "rank": self.rank, "timeoutMs": int(wait_s * 1000)}
            try:
                answer, fds = self.ask_for_fds(request, "Weights", wait_s + ANSWER_TIMEOUT_S)
                break
            except AgentRefused as error:
                if error.code != "DeadlineExceeded" or time.monotonic() >= deadline:
                    raise
        try:
            if len(fds) != 1:
                raise ProtocolError(f"Weights came with {len(fds)} descriptors, expected 1")
            size = count(answer, "manifestBytes")
            if size > _MAX_MANIFEST_BYTES:
                raise ProtocolError(
                    f"Weights.manifestBytes: {size} is more than {_MAX_MANIFEST_BYTES}"
                )
            return _slab_plan(answer), library.document_read(fds[0], size)
        finally:
            close_all(fds)

    def create_arena(self, size: int) -> SlabPlan:
        """Asks for an empty arena of at least `size` bytes."""
        request = {"type": "CreateArena", "rank": self.rank, "bytes": size}
        plan = _slab_plan(self.ask(request, "Arena"))
        if plan.arena_bytes < size:
            raise ProtocolError(
                f"Arena.arenaBytes: {plan.arena_bytes} is less than the {size} asked for"
            )
        return plan

    def map_slabs(self, plan: SlabPlan, *mappings: int) -> list[library.Arena]:
        """Maps all slabs once for each kind of mapping (library.MAP_…), each in a range of its own."""
        arenas = [library.Arena(plan.mapped_bytes) for _ in mappings]
        for offset, size, fd in self.slabs(plan):
            for arena, mapping in zip(arenas, mappings):
                arena.map(offset, size, fd, mapping)
        return arenas

    def map_into(self, plan: SlabPlan, arena: library.Arena | library.GpuArena, how: int) -> None:
        """Maps all slabs into an arena of that size (library.MAP_…, or library.GPU_… for one in the
        memory of the current GPU)."""
        for offset, size, fd in self.slabs(plan):
            arena.map(offset, size, fd, how)

    def slabs(
        self, plan: SlabPlan, at_once: int = library.MAX_MESSAGE_FDS
    ) -> Generator[tuple[int, int, int], None, None]:
        """Offset, size and descriptor of each slab, of which so many are asked for at once. A descriptor
        is good until the next slab is asked for, or the generator is closed."""
        offset, first = 0, 0
        while first < len(plan.slab_bytes):
            number = min(at_once, len(plan.slab_bytes) - first)
            request = {"type": "GetSlabs", "rank": self.rank, "first": first, "count": number}
            answer, fds = self.ask_for_fds(request, "Slabs", ANSWER_TIMEOUT_S)
            try:
                came = (count(answer, "first"), count(answer, "count"), len(fds))
                if came != (first, number, number):
                    raise ProtocolError(
                        f"asked for slabs {first} to {first + number - 1}, got {len(fds)} descriptors "
                        f"announced as first {came[0]}, count {came[1]}"
                    )
                for fd, size in zip(fds, plan.slab_bytes[first:]):
                    yield offset, size, fd
                    offset += size
            finally:
                close_all(fds)
            first += number

    def publish(self, manifest: bytes, placeholders: bool = False) -> None:
        """Publishes the arena. The caller has dropped every shared mapping of it before. With
        `placeholders` it holds no weights, and the agent keeps it to itself."""
        request: dict[str, Any] = {
            "type": "Publish",
            "rank": self.rank,
            "manifestBytes": len(manifest),
        }
        if placeholders:
            request["placeholders"] = True
        fd = library.document_create(manifest)
        try:
            self.ask(request, "Ok", [fd])
        finally:
            os.close(fd)

    def release_arena(self) -> None:
        """Says that nothing of this rank's engine is mapped from its arena any more."""
        self.ask({"type": "ReleaseArena", "rank": self.rank}, "Ok")

    def await_arena(self, timeout_s: float) -> SlabPlan:
        """Waits for the slabs that come after release_arena(); their bytes may still be arriving."""
        request = {"type": "AwaitArena", "rank": self.rank}
        answer, fds = self.ask_until_ready(request, "Arena", timeout_s)
        refuse_all(fds, "Arena")
        return _slab_plan(answer)

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
        answer, fds = self.ask_until_ready(request, "Stream")
        try:
            shape = StreamShape(
                slot_bytes=count(answer, "slotBytes"),
                slots=count(answer, "slots"),
                batches=count(answer, "batches"),
                bytes=count(answer, "bytes"),
                dtypes=texts(answer, "dtypes"),
            )
            if len(fds) != shape.slots or not fds or shape.slot_bytes == 0:
                raise ProtocolError(f"Stream came with {len(fds)} slots of {shape.slots}")
            return shape, fds
        except Exception:
            close_all(fds)
            raise

    def next_batch(
        self, batch: int, released: int, shape: StreamShape
    ) -> tuple[int, list[Piece]] | None:
        """Waits for a batch; returns its slot and what lies there, None after the last. The slots of
        the first `released` batches are given back: nothing refers to them any more."""
        request = {"type": "NextBatch", "rank": self.rank, "batch": batch, "released": released}
        answer, fds = self.ask_until_ready(request, "Batch")
        refuse_all(fds, "Batch")
        slot, entries = count(answer, "slot"), answer.get("pieces")
        if count(answer, "batch") != batch or slot >= shape.slots or not isinstance(entries, list):
            raise ProtocolError(f"asked for batch {batch}, got something else")
        pieces = [_piece(entry, shape) for entry in entries]
        return (slot, pieces) if pieces else None

    def close_stream(self, reason: str) -> None:
        self.ask({"type": "CloseStream", "rank": self.rank, "reason": reason}, "Ok")


def held_memory(path: str, gpu: str, timeout_s: float) -> int:
    """How much of the GPU with this UUID the agent holds for the engine of its pod, in bytes."""
    return count(_ask_alone(path, {"type": "HeldMemory", "gpu": gpu}, "Held", timeout_s), "bytes")


def cache_use(path: str, rank: int, lookups: list[dict[str, Any]], timeout_s: float = 30.0) -> None:
    """Tells the agent what this rank has looked for in its compile caches."""
    _ask_alone(path, {"type": "CacheUse", "rank": rank, "lookups": lookups}, "Ok", timeout_s)


def _ask_alone(
    path: str, request: dict[str, Any], expected: str, timeout_s: float
) -> dict[str, Any]:
    """The answer to a request that has a connection of its own."""
    connection = Connection(path, timeout_s)
    try:
        spoken = {"protocol": PROTOCOL, "version": PROTOCOL_VERSION}
        return connection.ask(request | spoken, expected)
    finally:
        connection.close()


def _piece(entry: Any, shape: StreamShape) -> Piece:
    if not isinstance(entry, dict):
        raise ProtocolError("Batch.pieces: expected objects")
    sizes = entry.get("shape")
    if not isinstance(sizes, list) or not all(type(x) is int and x >= 0 for x in sizes):
        raise ProtocolError("Batch.pieces.shape: expected counts")
    piece = Piece(
        name=text(entry, "name"),
        dtype=text(entry, "dtype"),
        shape=tuple(sizes),
        begin=count(entry, "begin"),
        size=count(entry, "bytes"),
        at=count(entry, "at"),
    )
    if piece.dtype not in shape.dtypes or piece.at + piece.size > shape.slot_bytes:
        raise ProtocolError(f"tensor {piece.name}: is not in its slot, or of an unknown type")
    return piece


def _slab_plan(answer: dict[str, Any]) -> SlabPlan:
    arena_bytes = count(answer, "arenaBytes")
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
