"""A checkpoint that the agent reads from storage, as vLLM's loaders take it: names and tensors.

The agent reads into a few slots of memory, one batch after the other, and fills a slot again when
nobody needs what it held. slots.py has how tensors come of a slot, and when it is not needed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator
from math import prod

import torch

from rouse_vllm.errors import ProtocolError, RouseError, Unsupported
from rouse_vllm.session import Piece, Session
from rouse_vllm.slots import DeviceBatch, DeviceSlots, HostBatch, HostSlots

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


class CheckpointStream:
    """One load of a checkpoint. close() it in every case."""

    def __init__(
        self,
        session: Session,
        folder: str,
        files: list[tuple[str, int]],
        device: torch.device | None = None,
    ) -> None:
        """Asks the agent for the files (name and size) of the checkpoint in `folder`. `device`: whose
        memory the tensors shall come in; None: in the agent's own memory, on the host.

        AgentRefused when the agent will not read them, Unsupported when they hold what we cannot
        take; load them in another way then.
        """
        self._session = session
        self._closed = False
        self._reading: Generator[tuple[str, torch.Tensor], None, None] | None = None
        self.shape, fds = session.open_stream(folder, files)
        self.bytes_kept = 0
        self.tensors = 0
        self._slots: HostSlots | DeviceSlots | None = None
        try:
            self._slots = (
                HostSlots(fds, self.shape.slot_bytes)
                if device is None
                else DeviceSlots(fds, self.shape.slot_bytes, device)
            )
            if unknown := [dtype for dtype in self.shape.dtypes if dtype not in DTYPES]:
                raise Unsupported(f"the checkpoint holds tensors of the type {', '.join(unknown)}")
        except RouseError as error:
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
        if self._slots is not None:
            self._slots.close()
        self._session.close_stream(reason)

    def read(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Every tensor of the checkpoint once, in the order of the files. Once.

        Valid for as long as it is referred to. The iterator ends only after the agent has said that
        all of it was right. RouseError when the agent fails.
        """
        self._reading = self._read()
        return self._reading

    def _read(self) -> Generator[tuple[str, torch.Tensor], None, None]:
        assert self._slots is not None
        used: deque[HostBatch | DeviceBatch] = deque()  # not given back yet
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
                size = max(piece.at + piece.size for piece in pieces)
                batch = self._slots.batch(slot, max(size, 1))  # All may be empty.
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


def _whole(batch: HostBatch | DeviceBatch, piece: Piece) -> torch.Tensor:
    if piece.size == 0:
        return torch.empty(piece.shape, dtype=DTYPES[piece.dtype], device=batch.device)
    view = batch.view(piece.at, piece.size)
    if piece.at % DTYPES[piece.dtype].itemsize != 0:  # Files may place them anywhere.
        return _typed(view.clone(), piece)
    return _typed(view, piece)


def _add_part(batch: HostBatch | DeviceBatch, piece: Piece, parts: dict[str, torch.Tensor]) -> bool:
    """Adds a part of a tensor; True when it is the last. They come in order, without others between."""
    whole, end = _size(piece), piece.begin + piece.size
    known = parts.get(piece.name)
    if (known is None) != (piece.begin == 0) or not piece.size or end > whole:
        raise ProtocolError(f"tensor {piece.name}: its parts do not fit together")
    if known is None:
        known = parts[piece.name] = torch.empty(whole, dtype=torch.uint8, device=batch.device)
    known[piece.begin : end].copy_(batch.view(piece.at, piece.size))
    return end == whole
