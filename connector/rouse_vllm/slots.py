"""The slots that a checkpoint streams through (stream.py), and how tensors come of what is in them.

HostSlots: tensors are views into the slots, so what was read is not copied once more on its way into
a model on the host. A view that the model keeps would change under it when its slot is filled again,
so no slot is given back before that is excluded:

- Each tensor is made over a buffer object of its own. The tensor's storage refers to it, and every
  view of the tensor, however made, refers to the storage. When the buffer object has gone, nothing in
  this process can read those bytes any more.
- Of a slot that is to be given back, what is still referred to gets memory of its own at the same
  addresses: the slot is mapped privately (copy-on-write), and every page of it is written to.

DeviceSlots: a batch is copied to the device in one piece, by the device itself from the slot's own
memory, and tensors are views into the copy. A model gets its thousands of tensors from the device's
memory then, instead of one after the other from memory that the driver first copies elsewhere. A slot
is given back when the copy is over; the copy lives for as long as a tensor of it is referred to.
"""

from __future__ import annotations

import mmap
import os
import weakref

import torch
from vllm.logger import init_logger

from rouse_vllm import library
from rouse_vllm.errors import RouseError

# Below "vllm", whose logging is the one that vLLM sets up.
logger = init_logger("vllm.rouse")


class HostBatch:
    """One batch in its slot, mapped for as long as anything refers to it."""

    device = torch.device("cpu")

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
        """Whether its slot may be filled again."""
        self._used = [use for use in self._used if use[0]() is not None]
        return not self._used

    def keep(self) -> int:
        """Sees to it that its slot may be filled again: what is still referred to gets memory of its
        own. Returns how many bytes that took.
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


class HostSlots:
    """Their descriptors are its own."""

    def __init__(self, fds: list[int], slot_bytes: int) -> None:
        self._fds = fds
        self._slot_bytes = slot_bytes

    def batch(self, slot: int, size: int) -> HostBatch:
        return HostBatch(self._fds[slot], self._slot_bytes)

    def close(self) -> None:
        for fd in self._fds:
            os.close(fd)
        self._fds = []


class DeviceBatch:
    """One batch, copied to a device; what HostBatch has."""

    def __init__(self, slot: torch.Tensor, device: torch.device) -> None:
        self.device = device
        self._bytes = torch.empty(slot.numel(), dtype=torch.uint8, device=device)
        self._bytes.copy_(slot, non_blocking=True)
        self._copied: torch.cuda.Event | None = None
        if device.type == "cuda":
            self._copied = torch.cuda.Event()
            self._copied.record()

    def view(self, at: int, size: int) -> torch.Tensor:
        return self._bytes[at : at + size]

    def is_unused(self) -> bool:
        return self._copied is None or self._copied.query()

    def keep(self) -> int:
        if self._copied is not None:
            self._copied.synchronize()
        return 0


class DeviceSlots:
    """Their descriptors are its own. No copy of a batch is under way any more when it is closed:
    every batch has answered keep(), or that it is unused."""

    def __init__(self, fds: list[int], slot_bytes: int, device: torch.device) -> None:
        self._device = device
        self._slot_bytes = slot_bytes
        try:
            self._arena: library.Arena | None = library.Arena(slot_bytes * len(fds))
            for i, fd in enumerate(fds):
                self._arena.map(i * slot_bytes, slot_bytes, fd, library.MAP_READ)
        finally:
            for fd in fds:
                os.close(fd)
        if device.type == "cuda":
            try:
                self._arena.pin()
            except RouseError as error:
                logger.info("Rouse: the checkpoint goes to the GPU by way of the driver: %s", error)

    def batch(self, slot: int, size: int) -> DeviceBatch:
        """The first `size` bytes of the slot."""
        assert self._arena is not None
        buffer = self._arena.buffer(slot * self._slot_bytes, size)
        return DeviceBatch(torch.frombuffer(buffer, dtype=torch.uint8), self._device)

    def close(self) -> None:
        self._arena = None
