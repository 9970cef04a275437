"""A checkpoint streamed through a few slots of memory, as the agent does it, in a few lines of Python.

A slot is filled when its batch is asked for, and not before the batch that it held was given back, so
what an engine still reads by then shows.
"""

from __future__ import annotations

import fcntl
import json
import mmap
import os
from pathlib import Path
from typing import Any

BLOCK = 4096
F_ADD_SEALS, F_SEAL_FUTURE_WRITE = 1033, 0x10


class FakeStream:
    def __init__(self, folder: Path, files: list[str], slot_bytes: int, slots: int = 4) -> None:
        self.slot_bytes = slot_bytes
        self.folder = folder
        self.dtypes: set[str] = set()
        self.batches: list[tuple[str, int, list[dict[str, Any]]]] = []  # file, offset, pieces
        self.tensors = self.bytes = 0
        for file in sorted(files):
            self._plan(file)
        self.slots = [os.memfd_create("stream", os.MFD_ALLOW_SEALING) for _ in range(slots)]
        self._writable = []
        for fd in self.slots:
            os.truncate(fd, slot_bytes)
            self._writable.append(mmap.mmap(fd, slot_bytes))
            fcntl.fcntl(fd, F_ADD_SEALS, F_SEAL_FUTURE_WRITE)  # For all but the mapping above.
        self.next = self.released = 0

    def close(self) -> None:
        for fd, memory in zip(self.slots, self._writable):
            memory.close()
            os.close(fd)
        self.slots, self._writable = [], []

    def _plan(self, file: str) -> None:
        with (self.folder / file).open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            header = json.loads(opened.read(length))
        header.pop("__metadata__", None)
        pieces: list[dict[str, Any]] = []
        start = None

        def emit() -> None:
            nonlocal pieces, start
            if pieces:
                self.batches.append((file, start, pieces))
            pieces, start = [], None

        for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            begin, end = (8 + length + x for x in entry["data_offsets"])
            self.dtypes.add(entry["dtype"])
            self.tensors += 1
            self.bytes += end - begin
            at = begin
            while True:
                if start is not None and end - start > self.slot_bytes:
                    emit()
                if start is None:
                    start = at // BLOCK * BLOCK
                stop = min(end, start + self.slot_bytes)
                pieces.append(
                    {
                        "name": name,
                        "dtype": entry["dtype"],
                        "shape": entry["shape"],
                        "begin": at - begin,
                        "bytes": stop - at,
                        "at": at - start,
                    }
                )
                at = stop
                if at == end:
                    break
                emit()
        emit()

    def shape(self) -> dict[str, Any]:
        return {
            "type": "Stream",
            "slots": len(self.slots),
            "slotBytes": self.slot_bytes,
            "batches": len(self.batches),
            "tensors": self.tensors,
            "bytes": self.bytes,
            "dtypes": sorted(self.dtypes),
        }

    def batch(self, request: dict[str, Any]) -> dict[str, Any]:
        number, released = request["batch"], request["released"]
        assert number == self.next, f"batch {number} was asked for, {self.next} is next"
        assert self.released <= released <= number, f"released {released} of {number}"
        self.released = released
        if number == len(self.batches):
            return {"type": "Batch", "batch": number, "slot": 0, "pieces": []}
        if number >= released + len(self.slots):
            raise AssertionError("the engine waits for a batch and gives back no slot")
        file, start, pieces = self.batches[number]
        slot = number % len(self.slots)
        memory = self._writable[slot]
        memory[:] = b"\xee" * self.slot_bytes  # nothing of what it held before
        with (self.folder / file).open("rb") as opened:
            opened.seek(start)
            content = opened.read(self.slot_bytes)
        memory[: len(content)] = content
        self.next += 1
        return {"type": "Batch", "batch": number, "slot": slot, "pieces": pieces}
