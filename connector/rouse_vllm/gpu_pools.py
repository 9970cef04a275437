"""Having torch allocate GPU memory with functions of ours."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator
from typing import Any

import torch

from rouse_vllm import library

#: Torch's destructors of allocators are not to be relied on (pytorch #145168, #146431), and what was
#: allocated may be freed at any time.
_immortal: list[Any] = []


@contextlib.contextmanager
def pool(allocate: str, free: str, keep: bool) -> Iterator[None]:
    """What torch allocates meanwhile comes from these functions of the library. Afterwards torch keeps
    what is freed for later (keep), or has the library free it when torch's cache is emptied."""
    allocator = torch.cuda.memory.CUDAPluggableAllocator(str(library.path()), allocate, free)
    memory = torch.cuda.memory.MemPool(allocator._allocator)
    for thing in (allocator, memory) if keep else (allocator,):
        _immortal.append(thing)
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))
    # Torch's expandable segments and pools exclude each other (pytorch #147851).
    expandable = "expandable_segments:True" in os.environ.get("PYTORCH_CUDA_ALLOC_CONF", "")
    if expandable:
        torch.cuda.memory._set_allocator_settings("expandable_segments:False")
    try:
        with torch.cuda.memory.use_mem_pool(memory):
            yield
    finally:
        if expandable:
            torch.cuda.memory._set_allocator_settings("expandable_segments:True")


def empty_cache() -> None:
    """Gives what torch has not in use back to the GPU."""
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
