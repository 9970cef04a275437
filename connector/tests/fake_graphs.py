"""Fakes of what captures CUDA graphs, and of the memory that they take: there is no GPU."""

from __future__ import annotations

import gc
from contextlib import contextmanager

import torch

from rouse_vllm.capture_plan import Graph

MIB = 1 << 20
SIZES = [1, 2, 4, 8, 16, 24, 32, 40, 48, 56, 64]
MAX_REQUESTS = 32


class FakeDevice:
    """GPU memory in which each graph takes 10 MiB, and 50 MiB more the first time."""

    def __init__(self, free_mib: int = 4000) -> None:
        self.free = free_mib * MIB
        self.pool = 0
        self.held: list[int] = []
        self.settled: list[bool] = []  # whether memory was given back

    def settle(self, give_back: bool = True) -> None:
        self.settled.append(give_back)

    def free_bytes(self) -> int:
        return self.free

    def reserved_bytes(self) -> int:
        return self.pool

    def hold(self, size: int) -> torch.Tensor:
        self.held.append(size)
        return torch.empty(size, dtype=torch.uint8, device="meta")

    def capture(self) -> None:
        if self.pool == 0:
            self.pool = 50 * MIB
            self.free -= 50 * MIB
        if self.free < 10 * MIB:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 10.00 MiB")
        self.free -= 10 * MIB


class FakeRunner:
    def __init__(self, device: FakeDevice) -> None:
        self.device = device
        self.captured: list[tuple[str, int]] = []
        self.late_ones = 0
        self.forgotten: list[Graph] = []
        self.failing: dict[int, Exception] = {}

    def capture(self, graph: Graph) -> None:
        self.device.capture()
        if graph.tokens in self.failing:
            raise self.failing[graph.tokens]
        assert self.late_ones == 0 or not gc.isenabled()
        self.captured.append((graph.mode, graph.tokens))

    @contextmanager
    def late(self):
        self.late_ones += 1
        yield

    def forget(self, graph: Graph) -> None:
        self.forgotten.append(graph)


class FakeRanks:
    """This rank and others, whose answers are given: a list for each question asked."""

    def __init__(self, others: list[bool] | None = None, first: bool = True) -> None:
        self.count = 1 if others is None else 2
        self.first = first
        self.others = others or []
        self.said: list[bool] = []

    def all_agree(self, yes: bool) -> bool:
        self.said.append(yes)
        return yes if self.count == 1 else yes and self.others.pop(0)
