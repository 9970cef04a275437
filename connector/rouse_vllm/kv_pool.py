"""The KV cache in memory that can be given back and taken again at the same addresses, on a GPU.

vLLM has that for its own sleep mode (cumem), but only with --enable-sleep-mode, which changes the
compile key, and one allocation a layer, which takes several times as long to come back.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from vllm.config import VllmConfig

from rouse_vllm import library
from rouse_vllm.gpu_pools import pool
from rouse_vllm.patches import wrap

#: Whether the worker is just now allocating what stays: it allocates a small cache before, to measure.
_allocating = False


def install(vllm_config: VllmConfig) -> None:
    """From now on this process's KV cache is allocated in the pool. Unsupported when this vLLM has not
    the functions that we know."""
    from vllm.v1.worker.gpu_worker import Worker

    wrap(Worker, "_maybe_get_memory_pool_context", ("self, tag",), _context_for)
    # Only these tensors: what else is allocated beside them (block tables, workspaces of attention
    # kernels) must be there after a wake as it was before.
    if vllm_config.use_v2_model_runner:
        from vllm.v1.worker.gpu import attn_utils

        wrap(attn_utils, "_allocate_kv_cache", ("kv_cache_config, shared_layers, device",), _pooled)
    else:
        from vllm.v1.worker.gpu_model_runner import GPUModelRunner

        wrap(GPUModelRunner, "_allocate_kv_cache_tensors", ("self, kv_cache_config",), _pooled)


def _context_for(original: Any) -> Any:
    def context_for(self: Any, tag: str) -> contextlib.AbstractContextManager[Any]:
        model_config = self.vllm_config.model_config
        # With another sleep backend it is that one's to allocate.
        ours = not model_config.enable_cumem_allocator or model_config.sleep_mode_backend == "rouse"
        return _allocation() if tag == "kv_cache" and ours else original(self, tag)

    return context_for


@contextlib.contextmanager
def _allocation() -> Iterator[None]:
    global _allocating
    _allocating = True
    try:
        yield
    finally:
        _allocating = False


def _pooled(original: Any) -> Any:
    def pooled(*arguments: Any, **named: Any) -> Any:
        if not _allocating:
            return original(*arguments, **named)
        with _pool():
            return original(*arguments, **named)

    return pooled


def _pool() -> contextlib.AbstractContextManager[None]:
    """What torch allocates meanwhile comes from the library's pool, which is never given up."""
    return pool(library.GPU_POOL_ALLOCATE, library.GPU_POOL_FREE, keep=True)
