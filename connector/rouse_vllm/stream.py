"""A checkpoint that the agent reads from storage, as vLLM's loaders take it: names and tensors.

The agent reads into a few slots of memory, one batch after the other, and fills a slot again when
nobody needs what it held. Tensors are views into the slots, so what was read is not copied once more
on its way into the model. A view that the model keeps would change under it when its slot is filled
again, so no slot is given back before that is excluded:

- Each tensor is made over a buffer object of its own. The tensor's storage refers to it, and every
  view of the tensor, however made, refers to the storage. When the buffer object has gone, nothing in
  this process can read those bytes any more.
- Of a slot that is to be given back, what is still referred to gets memory of its own at the same
  addresses: the slot is mapped privately (copy-on-write), and every page of it is written to.

Two batches stay as they are: the one that is being read, and the one before, which loop variables
refer to for a moment.
"""

from __future__ import annotations

import mmap
import os
import weakref
from collections import deque
from collections.abc import Generator, Iterator
from math import prod

import torch

from rouse_vllm import library
from rouse_vllm.errors import ProtocolError, Unsupported
from rouse_vllm.session import Piece, Session

#: What safetensors calls them, as safetensors gives them to torch.
DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "U16": torch.uint16,
    "I16": torch.int16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "U32": torch.uint32,
    "I32": torch.int32,
    "F32": torch.float32,
    "C64": torch.complex64,
    "U64": torch.uint64,
    "I64": torch.int64,
    "F64": torch.float64,
}

#: Batches that the engine uses at a time.
_HELD_BATCHES = 2


class _Batch:
    """One batch in its slot, mapped for as long as anything refers to it."""

    def __init__(self, slot: int, slot_bytes: int) -> None:
        self._arena = library.Arena(slot_bytes)
        self._arena.map(0, slot_bytes, slot, library.MAP_PRIVATE)
        self._used: list[tuple[weakref.ref, int, int]] = []  # (buffer, begin, end)

    def view(self, at: int, size: int) -> torch.Tensor:
        """These bytes, without a copy."""
        buffer = self._arena.buffer(at, size)
        self._used.append((weakref.ref(buffer), at, at + size))
        return torch.frombuffer(buffer, dtype=torch.uint8)

    def is_unused(self) -> bool:
        self._used = [use for use in self._used if use[0]() is not None]
        return not self._used

    def keep(self) -> int:
        """Gives what is still referred to memory of its own, and lets go of the slot.

        Returns how many bytes that took.
        """
        kept, at = 0, 0
        for begin, end in self._used_pages():
            page_view = torch.frombuffer(self._arena.buffer(begin, end - begin), dtype=torch.uint8)
            page_view.bitwise_or_(0)  # Changes nothing, but writes.
            kept += end - begin
            self._arena.map_nothing(at, begin - at)
            at = end
        self._arena.map_nothing(at, self._arena.size - at)
        return kept

    def _used_pages(self) -> list[tuple[int, int]]:
        pages: list[tuple[int, int]] = []
        for buffer, begin, end in sorted(self._used, key=lambda use: use[1]):
            if buffer() is None:
                continue
            first = begin // mmap.PAGESIZE * mmap.PAGESIZE
            last = min(-(-end // mmap.PAGESIZE) * mmap.PAGESIZE, self._arena.size)
            if pages and first <= pages[-1][1]:
                pages[-1] = (pages[-1][0], max(last, pages[-1][1]))
            else:
                pages.append((first, last))
        return pages


class CheckpointStream:
    """One load of a checkpoint. close() it in every case."""

    def __init__(self, session: Session, folder: str, files: list[tuple[str, int]]) -> None:
        """Asks the agent for the files (name and size) of the checkpoint in `folder`.

        AgentRefused when the agent will not read them, Unsupported when they hold what we cannot
        take; load them in another way then.
        """
        self._session = session
        self._closed = False
        self._reading: Generator[tuple[str, torch.Tensor], None, None] | None = None
        self.shape, self._slots = session.open_stream(folder, files)
        self.bytes_kept = 0
        self.tensors = 0
        try:
            if unknown := [dtype for dtype in self.shape.dtypes if dtype not in DTYPES]:
                raise Unsupported(f"the checkpoint holds tensors of the type {', '.join(unknown)}")
        except Unsupported as error:
            self.close(str(error))
            raise

    def close(self, reason: str = "") -> None:
        """Ends it; `reason` says why the rest is loaded in another way. RouseError when the agent
        does not hear it, which changes nothing here."""
        if self._closed:
            return
        self._closed = True
        if self._reading is not None:
            self._reading.close()  # First: what is still in use gets memory of its own there.
        for fd in self._slots:
            os.close(fd)
        self._session.close_stream(reason)

    def read(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Every tensor of the checkpoint once, in the order of the files. Once.

        Valid for as long as it is referred to. The iterator ends only after the agent has said that
        all of it was right. RouseError when the agent fails.
        """
        self._reading = self._read()
        return self._reading

    def _read(self) -> Generator[tuple[str, torch.Tensor], None, None]:
        used: deque[_Batch] = deque()  # not given back yet
        parts: dict[str, torch.Tensor] = {}  # of tensors that are larger than a slot
        released = 0
        try:
            for number in range(self.shape.batches + 1):
                while used and (used[0].is_unused() or len(used) >= _HELD_BATCHES):
                    self.bytes_kept += used.popleft().keep()
                    released += 1
                answer = self._session.next_batch(number, released, self.shape)
                if number == self.shape.batches:
                    if answer is not None or parts:
                        raise ProtocolError("the stream goes on, or lacks a part, at its end")
                    return
                if answer is None:
                    raise ProtocolError(
                        f"the stream ended at batch {number} of {self.shape.batches}"
                    )
                slot, pieces = answer
                batch = _Batch(self._slots[slot], self.shape.slot_bytes)
                used.append(batch)
                for piece in pieces:
                    # In one expression: a variable of ours would keep the tensor in use.
                    if _is_whole(piece):
                        self.tensors += 1
                        yield piece.name, _whole(batch, piece)
                    elif _add_part(batch, piece, parts):
                        self.tensors += 1
                        yield piece.name, _typed(parts.pop(piece.name), piece)
        finally:
            for batch in used:
                self.bytes_kept += batch.keep()


def _size(piece: Piece) -> int:
    return prod(piece.shape) * DTYPES[piece.dtype].itemsize


def _is_whole(piece: Piece) -> bool:
    return piece.begin == 0 and piece.size == _size(piece)


def _typed(data: torch.Tensor, piece: Piece) -> torch.Tensor:
    return data.view(DTYPES[piece.dtype]).view(piece.shape)


def _whole(batch: _Batch, piece: Piece) -> torch.Tensor:
    if piece.size == 0:
        return torch.empty(piece.shape, dtype=DTYPES[piece.dtype], device="cpu")
    view = batch.view(piece.at, piece.size)
    if piece.at % DTYPES[piece.dtype].itemsize != 0:  # Files may place them anywhere.
        return _typed(view.clone(), piece)
    return _typed(view, piece)


def _add_part(batch: _Batch, piece: Piece, parts: dict[str, torch.Tensor]) -> bool:
    """Adds a part of a tensor; True when it is the last. They come in order, without others between."""
    whole, end = _size(piece), piece.begin + piece.size
    known = parts.get(piece.name)
    if (known is None) != (piece.begin == 0) or not piece.size or end > whole:
        raise ProtocolError(f"tensor {piece.name}: its parts do not fit together")
    if known is None:
        known = parts[piece.name] = torch.empty(whole, dtype=torch.uint8, device="cpu")
    known[piece.begin : end].copy_(batch.view(piece.at, piece.size))
    return end == whole
