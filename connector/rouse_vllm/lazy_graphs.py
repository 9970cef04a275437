"""The CUDA graphs of one engine on one of its ranks, most of which are captured after its start.

Everything here runs on the worker's main thread. What vLLM's model runners do is behind Runner, the
GPU's memory behind Device, the other ranks behind Ranks.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol

import torch
from vllm.logger import init_logger

from rouse_vllm.capture_plan import (
    FIRST_REQUEST,
    SLACK_BYTES,
    Graph,
    HeadRoom,
    Pending,
    Trigger,
    bytes_to_hold,
)

# Below "vllm", whose logging is the one that vLLM sets up.
logger = init_logger("vllm.rouse")


class Runner(Protocol):
    """One of vLLM's model runners, as the capture of single graphs sees it."""

    def capture(self, graph: Graph) -> None:
        """Captures as vLLM does at start; later within late()."""

    def late(self) -> AbstractContextManager[None]:
        """In it graphs may be captured although vLLM is done with capturing."""

    def forget(self, graph: Graph) -> None:
        """Lets go of what a failed capture has left."""


class Device:
    """The GPU's memory, as far as capturing is concerned."""

    def settle(self, give_back: bool = True) -> None:
        """Waits for all work, and gives memory that is not in use back to the driver; the next steps
        have to ask for it anew."""
        torch.cuda.synchronize()
        if give_back:
            torch.cuda.empty_cache()

    def free_bytes(self) -> int:
        return torch.cuda.mem_get_info()[0]

    def reserved_bytes(self) -> int:
        """What torch has of the driver."""
        return torch.cuda.memory_reserved()

    def hold(self, size: int) -> torch.Tensor | None:
        """Memory that is taken as long as the answer lives; None when there is not so much."""
        try:
            return torch.empty(size, dtype=torch.uint8, device="cuda")
        except torch.OutOfMemoryError:
            return None


class Ranks:
    """The ranks of this instance, which capture together."""

    def __init__(self) -> None:
        from vllm.distributed.parallel_state import get_world_group

        self._group = get_world_group()

    @property
    def count(self) -> int:
        return self._group.world_size

    @property
    def first(self) -> bool:
        return self._group.rank_in_group == 0

    def all_agree(self, yes: bool) -> bool:
        if self.count == 1:
            return yes
        answer = torch.tensor([int(yes)], dtype=torch.int32)
        torch.distributed.all_reduce(
            answer, op=torch.distributed.ReduceOp.MIN, group=self._group.cpu_group
        )
        return bool(answer.item())


class LazyGraphs:
    """The CUDA graphs of one engine, on one of its ranks."""

    def __init__(self, trigger: str, device: Device, ranks: Callable[[], Ranks]) -> None:
        self.pending = Pending()
        self._trigger = Trigger(trigger)
        self._device = device
        self._make_ranks = ranks  # Called when they are there.
        self._ranks: Ranks | None = None
        self._runner: Runner | None = None
        self._room = HeadRoom()
        self._expected_bytes = 0
        self._start_bytes = 0
        self._measured_late: set[str] = set()  # modes
        self._step_bytes: int | None = None
        self._held: torch.Tensor | None = None
        self._captured_at_start = 0
        self._seconds = 0.0
        self._serving = False

    def expect(self, all_graphs_bytes: int) -> None:
        """Before start(): vLLM took this much off the KV cache for its graphs (0: it did not)."""
        self._expected_bytes = all_graphs_bytes

    def start(self, runner: Runner, graphs: list[Graph]) -> None:
        """Captures the largest graph of one mode; the others are left for later."""
        self._runner = runner
        self.pending.add(graphs)
        graph = self.pending.largest(graphs[0].mode)
        self._device.settle()
        free, reserved = self._device.free_bytes(), self._device.reserved_bytes()
        self.pending.begin(graph)
        runner.capture(graph)
        self.pending.end(graph, True)
        self._captured_at_start += 1
        self._device.settle()
        used = max(0, free - self._device.free_bytes())
        self._start_bytes += used
        # Smaller graphs find their memory in the pool; what the driver keeps for each is new.
        pool = max(0, self._device.reserved_bytes() - reserved)
        self._room.measured(graph.mode, used - pool)
        if self._expected_bytes > 0:
            rest = max(0, self._expected_bytes - self._start_bytes)
            self._room.estimated(rest, self.pending.left_by_mode())

    @property
    def held_bytes(self) -> int:
        return 0 if self._held is None else self._held.numel()

    @property
    def bytes_to_come(self) -> int:
        return self._room.bytes(self.pending.left_by_mode())

    def serve(self, step_bytes: int | None) -> None:
        """The engine is ready. `step_bytes`: the most that a step takes, None when not known."""
        if not self.pending.left:
            return
        self._step_bytes = step_bytes
        self._serving = True
        self._hold()
        logger.info(
            "Rouse: %d of %d CUDA graphs are captured; %d more will be %s. %d MiB of memory are "
            "held for them, %d MiB are expected",
            self.pending.captured,
            self.pending.captured + self.pending.left,
            self.pending.left,
            "with the first request"
            if self._trigger.kind == FIRST_REQUEST
            else "when the engine is idle, or when they are missed",
            self.held_bytes >> 20,
            self.bytes_to_come >> 20,
        )

    def before_step(self) -> None:
        """A step with requests in it is about to begin."""
        if self._serving and self.pending.left:
            due = self._trigger.due(self.pending.left, self.pending.missed is not None)
            if due:
                self._capture(lambda done, last_s: done < due)

    def step(self, budget_s: float) -> tuple[int, int]:
        """Captures one graph, and more while they fit into the budget by the first rank's clock.
        Returns how many, and how many are left."""
        if not self._serving:
            return 0, self.pending.left
        self._trigger.asked()
        end = time.monotonic() + budget_s
        captured = self._capture(lambda done, last_s: done == 0 or time.monotonic() + last_s <= end)
        return captured, self.pending.left

    def finish(self) -> None:
        """Captures all that are left."""
        if self._serving and self.pending.left:
            self._capture(lambda done, last_s: True)

    def _capture(self, more: Callable[[int, float], bool]) -> int:
        """Captures while more(graphs done, seconds the last one took) says so on the first rank."""
        if self._ranks is None:
            self._ranks = self._make_ranks()
        done, captured, last_s = 0, 0, 0.0
        begun = time.monotonic()
        self._held = None
        # Nothing may be freed by the garbage collector during a capture.
        collecting = gc.isenabled()
        gc.disable()
        try:
            with torch.inference_mode():
                while graph := self.pending.next():
                    if not self._ranks.all_agree(not self._ranks.first or more(done, last_s)):
                        break
                    before = time.monotonic()
                    captured += self._capture_one(graph)
                    last_s = time.monotonic() - before
                    done += 1
        finally:
            if collecting:
                gc.enable()
        self._seconds += time.monotonic() - begun
        if self.pending.left:
            self._hold()
        elif done:
            self._all_done()
        return captured

    def _capture_one(self, graph: Graph) -> bool:
        assert self._runner is not None and self._ranks is not None
        # Memory that torch keeps for the next step is given back only where it is needed, or where it
        # would be taken for the graph's: for the first late one of each mode.
        exact = graph.mode not in self._measured_late
        short = self._device.free_bytes() < self._start_bytes + SLACK_BYTES
        self._device.settle(exact or short)
        free = self._device.free_bytes()
        # Where a rank that runs out would leave the others waiting for it, ask first: what the
        # largest ones took covers a run of the model and one more graph.
        if self._ranks.count > 1 and not self._ranks.all_agree(free > self._start_bytes):
            self._drop(graph, "a rank has too little memory")
            return False
        self.pending.begin(graph)
        error: str | None = None
        try:
            with self._runner.late():
                self._runner.capture(graph)
        except Exception as exception:  # The engine serves without this graph as well.
            error = f"{type(exception).__name__}: {exception}"
            out_of_memory = "out of memory" in str(exception).lower()
            logger.debug("capture of %s failed", graph, exc_info=not out_of_memory)
        # Raises when the device itself has failed.
        self._device.settle(exact)
        captured = self._ranks.all_agree(error is None)
        self.pending.end(graph, captured)
        if captured and exact:
            self._measured_late.add(graph.mode)
            self._room.measured(graph.mode, free - self._device.free_bytes())
        if not captured:
            self._runner.forget(graph)
            self._warn(graph, error or "it failed on another rank")
        return captured

    def _drop(self, graph: Graph, reason: str) -> None:
        self.pending.begin(graph)
        self.pending.end(graph, False)
        self._warn(graph, reason)

    def _warn(self, graph: Graph, reason: str) -> None:
        logger.warning(
            "Rouse: no %s CUDA graph for %d tokens, such batches run without one: %s",
            graph.mode,
            graph.tokens,
            reason,
        )

    def _hold(self) -> None:
        size = bytes_to_hold(self.bytes_to_come, self._device.free_bytes(), self._step_bytes)
        self._held = self._device.hold(size) if size > 0 else None

    def _all_done(self) -> None:
        from vllm.utils.gc_utils import freeze_gc_heap

        freeze_gc_heap()  # As vLLM does when it has captured all of them.
        logger.info(
            "Rouse: all CUDA graphs are captured: %d, %d of them late, in %.1f s; %d batch sizes "
            "stay without one",
            self.pending.captured,
            self.pending.captured - self._captured_at_start,
            self._seconds,
            len(self.pending.dropped),
        )
