"""What gpu_lazy_engine.py has workers do, on each rank, by collective_rpc: look at CUDA graphs, and take memory away."""

from __future__ import annotations

import functools
import gc
from collections import Counter
from typing import Any

#: Batches by mode and tokens, and replays by graph, since clear().
dispatched: Counter[tuple[str, int]] = Counter()
replayed: Counter[int] = Counter()
_taken: list[Any] = []
_hooks: list[Any] = []


def _unwrapped(worker):
    return getattr(worker, "worker", worker)


def watch(worker) -> None:
    """Counts from now on what batches are given to, and what is replayed."""
    import torch
    from vllm.v1.cudagraph_dispatcher import CudagraphDispatcher
    from vllm.v1.worker.gpu.cudagraph_utils import ModelCudaGraphManager

    replay = torch.cuda.CUDAGraph.replay

    @functools.wraps(replay)
    def counting_replay(graph):
        replayed[id(graph)] += 1
        return replay(graph)

    torch.cuda.CUDAGraph.replay = counting_replay

    v1 = CudagraphDispatcher.dispatch

    @functools.wraps(v1)
    def dispatch(self, *arguments, **named):
        mode, descriptor = v1(self, *arguments, **named)
        dispatched[mode.name, descriptor.num_tokens] += 1
        return mode, descriptor

    CudagraphDispatcher.dispatch = dispatch

    v2 = ModelCudaGraphManager.dispatch

    @functools.wraps(v2)
    def dispatch_v2(self, *arguments, **named):
        descriptor = v2(self, *arguments, **named)
        dispatched[descriptor.cg_mode.name, descriptor.num_tokens] += 1
        return descriptor

    ModelCudaGraphManager.dispatch = dispatch_v2


def clear(worker) -> None:
    dispatched.clear()
    replayed.clear()


def _graphs(runner) -> dict[tuple[str, int], list[int]]:
    """The captured graphs of each mode and size, by id: a PIECEWISE one is as many as it has pieces."""
    from vllm.compilation.cuda_graph import CUDAGraphWrapper

    found: dict[tuple[str, int], list[int]] = {}
    for wrapper in list(CUDAGraphWrapper._all_instances):
        for descriptor, entry in wrapper.concrete_cudagraph_entries.items():
            if entry.cudagraph is not None:
                key = wrapper.runtime_mode.name, descriptor.num_tokens
                found.setdefault(key, []).append(id(entry.cudagraph))
    manager = getattr(runner, "cudagraph_manager", None)
    for descriptor, graph in getattr(manager, "graphs", {}).items():
        found.setdefault(("FULL", descriptor.num_tokens), []).append(id(graph))
    return found


def look(worker) -> dict[str, Any]:
    """Graphs by mode and size with how often each was replayed (all its pieces), and steps without one by tokens."""
    found = _graphs(_unwrapped(worker).model_runner)
    return {
        "replays": {key: min(replayed[graph] for graph in ids) for key, ids in found.items()},
        "withoutGraph": {n: count for (mode, n), count in dispatched.items() if mode == "NONE"},
        "steps": dispatched.total(),
    }


def memory(worker) -> dict[str, int]:
    import torch

    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info()
    return {
        "usedBytes": total - free,
        "torchReserved": torch.cuda.memory_reserved(),
        "torchAllocated": torch.cuda.memory_allocated(),
    }


def take_memory(worker) -> None:
    """Takes all GPU memory that is left, what the engine holds for graphs too."""
    import torch

    from rouse_vllm import capture_common

    capture_common.graphs_of(_unwrapped(worker))._held = None
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    size = torch.cuda.mem_get_info()[0]
    while size >= 2 << 20:  # The driver gives less in one piece than it says is free.
        try:
            _taken.append(torch.empty(size, dtype=torch.uint8, device="cuda"))
        except torch.OutOfMemoryError:
            size //= 2


def give_memory_back(worker) -> None:
    import torch

    _taken.clear()
    torch.cuda.empty_cache()


def fail_captures(worker) -> None:
    """From now on FULL graphs run out of memory in mid-capture."""
    import torch

    def out_of_memory(module, arguments, output):
        if torch.cuda.is_current_stream_capturing():
            raise torch.OutOfMemoryError("CUDA out of memory (not really)")

    _hooks.append(_unwrapped(worker).get_model().register_forward_hook(out_of_memory))


def let_captures_be(worker) -> None:
    while _hooks:
        _hooks.pop().remove()
