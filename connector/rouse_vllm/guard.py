"""Sleep and wake of one rank: its weights and its KV cache go, and come back at the same addresses.

So does what holds nothing while no request is under way (request_slots). Everything else (buffers,
workspaces, compiled code, captured graphs) stays as it is. The functions run
in the worker's main thread, between steps, and take vLLM's worker (or its wrapper) because that is
what a collective call passes.
"""

from __future__ import annotations

import gc
import time
from dataclasses import dataclass
from typing import Any

import torch
from vllm.config import VllmConfig
from vllm.logger import init_logger

from rouse_vllm import capture, library
from rouse_vllm.errors import RouseError, Unsupported
from rouse_vllm.link import Link
from rouse_vllm.reprocess import Unprocessed
from rouse_vllm.request_slots import RequestSlots

logger = init_logger("vllm.rouse")

#: Of a rank that sleeps, each thread on the GPU, in bytes: the least that there is.
_STACK_ASLEEP = 16


@dataclass
class Model:
    """A model of this process: the served one, or the one that drafts for it."""

    link: Link | None
    #: On a CPU, where processed weights must be made anew.
    unprocessed: Unprocessed | None = None
    has_weights: bool = True
    #: Whether the agent was told that it may free the arena.
    released: bool = False

    @property
    def arena_bytes(self) -> int:
        """What the weights take of the memory that they are in."""
        mapped = None if self.link is None else self.link.mapped
        return 0 if mapped is None else mapped.plan.mapped_bytes

    def problem(self) -> str:
        """Why it cannot give its weights up; empty: it can."""
        if self.link is None:
            return "the agent was not there when the model was loaded"
        if self.link.mapped is None:
            return (
                "the engine computes with memory of its own, not with the agent's: its weights were "
                "not published, or the agent has them in the memory of the host or of another GPU"
            )
        return "" if self.unprocessed is None else self.unprocessed.problem()

    def unmap(self) -> None:
        """The agent keeps them."""
        assert self.link is not None
        self.has_weights = False
        self.link.unmap_weights()

    def map_kept(self) -> None:
        """Those that unmap() unmapped."""
        assert self.link is not None
        if self.released:
            raise Unsupported("the agent has this instance sleep, and only it can wake it")
        self.link.map_weights()
        self.has_weights = True

    def release(self) -> None:
        """Again after a failure: what was done then is not done twice."""
        assert self.link is not None
        self.unmap()
        if not self.released:
            self.link.release_weights()
            self.released = True

    def map_new(self) -> float:
        """Maps the new slabs as soon as they are there. Returns how many seconds the mapping took."""
        assert self.link is not None
        return self.link.map_new_weights()

    def await_new(self) -> None:
        assert self.link is not None
        self.link.await_new_weights()
        if self.unprocessed is not None:
            self.unprocessed.process()
        self.has_weights = True
        self.released = False

    def let_go(self) -> None:
        """What has come of a wake that failed goes again."""
        self.has_weights = False
        if self.link is not None:
            self.link.unmap_weights()


@dataclass
class Rank:
    """What this process holds."""

    models: list[Model]
    config: VllmConfig
    #: Why the KV cache is not in the pool, on a GPU.
    kv_problem: str = ""
    has_kv: bool = True
    #: On a GPU, once it has slept.
    slots: RequestSlots | None = None
    #: What each thread on the GPU has for a stack while this rank is awake, known while it is not.
    stack: int | None = None

    @property
    def on_gpu(self) -> bool:
        return self.config.device_config.device_type == "cuda"

    @property
    def has_weights(self) -> bool:
        return all(model.has_weights for model in self.models)

    @property
    def arena_bytes(self) -> int:
        return sum(model.arena_bytes for model in self.models)

    def problem(self) -> str:
        """Why it cannot sleep; empty: it can."""
        for model in self.models:
            if problem := model.problem():
                return problem
        if self.config.kv_transfer_config is not None or self.config.ec_transfer_config is not None:
            return "a KV or encoder cache connector knows the addresses of memory that would go"
        if self.config.parallel_config.enable_eplb:
            return "experts change their places (EPLB), so no peer has the same weights"
        if self.on_gpu and library.gpu_pool_bytes() == 0:
            return f"the KV cache was not allocated in the pool: {self.kv_problem or 'it is empty'}"
        return ""

    def release_kv(self) -> None:
        if self.on_gpu:
            self.has_kv = False
            library.gpu_pool_release()

    def restore_kv(self) -> None:
        """The memory is cleared, as it was at the start: attention multiplies what lies behind the end
        of a sequence in its last block by zero, which must not be NaN, and vLLM clears blocks
        (_init_kv_zero_meta) only for some models. That is under way when this returns."""
        if self.on_gpu:
            library.gpu_pool_restore()
            self.has_kv = True

    def give_up_slots(self) -> None:
        if self.slots is not None:
            self.slots.give_up()

    def take_slots_back(self) -> None:
        if self.slots is not None:
            self.slots.take_back()

    def shrink_stacks(self) -> None:
        """The stacks are most of what CUDA itself takes of the GPU, and nothing runs on them now."""
        if self.on_gpu and self.stack is None:
            self.stack = library.gpu_set_stack(_STACK_ASLEEP)

    def restore_stacks(self) -> None:
        if self.stack is not None:
            library.gpu_set_stack(self.stack)
            self.stack = None

    def sleep_on(self) -> None:
        """What has come of a wake that failed goes again."""
        for model in self.models:
            model.let_go()
        self.release_kv()
        self.give_up_slots()
        self.shrink_stacks()


_rank: Rank | None = None


def register(rank: Rank) -> None:
    global _rank
    _rank = rank


def add(draft: Model) -> None:
    """It sleeps and wakes with the model that it drafts for."""
    served().models.append(draft)


def served() -> Rank:
    if _rank is None:
        raise Unsupported("no model was loaded with load format rouse in this process")
    return _rank


def problem(_: Any) -> str:
    """Why this rank cannot sleep; empty: it can."""
    try:
        return served().problem()
    except RouseError as error:
        return str(error)


def sleep(worker: Any) -> dict[str, float]:
    """Gives up the arena and the KV cache. Nothing may be computed until wake()."""
    rank = served()
    # Capturing runs the model, and needs its memory.
    capture.finish(worker)
    kv_bytes = library.gpu_pool_bytes() if rank.on_gpu else 0
    rank.release_kv()
    for model in rank.models:
        model.release()
    used = 0
    if rank.on_gpu:
        if rank.slots is None:
            rank.slots = RequestSlots(capture.unwrapped(worker).model_runner)
        rank.give_up_slots()
        gc.collect()
        torch.cuda.empty_cache()
        rank.shrink_stacks()
        free, total = torch.cuda.mem_get_info()
        # The agent gives the arena's memory back when it hears of this.
        used = max(0, total - free - rank.arena_bytes)
    return {"kvBytes": kv_bytes, "gpuUsedBytes": used}


def wake(_: Any) -> dict[str, float]:
    """Takes them back: the new slabs are mapped as soon as they are there, and the KV cache comes back
    while the weights arrive. When it fails the rank sleeps on."""
    rank = served()
    if rank.has_weights and rank.has_kv:
        return {"mapSeconds": 0.0, "kvSeconds": 0.0}
    try:
        rank.restore_stacks()  # While the agent takes memory for the weights.
        mapped_s = sum(model.map_new() for model in rank.models)
        begun = time.monotonic()
        rank.restore_kv()
        rank.take_slots_back()
        kv_s = time.monotonic() - begun
        for model in rank.models:
            model.await_new()
        if rank.on_gpu:
            torch.cuda.synchronize()
    except BaseException:
        sleep_on(None)
        raise
    return {"mapSeconds": mapped_s, "kvSeconds": kv_s}


def sleep_on(_: Any) -> None:
    """After a wake that failed, here or on another rank."""
    try:
        served().sleep_on()
    except RouseError as error:
        logger.warning("Rouse: memory of a wake that failed may not be free: %s", error)
