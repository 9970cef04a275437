"""Building a model without memory for its weights, whose bytes come from the agent.

On a GPU the weights are there already, or arrive, in the agent's arena: a model that is built with
memory of its own needs them twice until it is pointed there, which is too much for a model of more than
half of the GPU. So the large tensors that vLLM makes while it builds and processes the model share a few
megabytes (library: "GPU memory that stands in for weights"): their values are never used. What is not
pointed at the arena afterwards is copied to memory of its own, and when something else still looks into
this memory, which we did not find, the model is not used.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from vllm.config import ModelConfig

from rouse_vllm import library
from rouse_vllm.gpu_pools import pool


def possible(model_config: ModelConfig) -> bool:
    """Whether torch's memory is ours to arrange: vLLM's sleep mode has a pool of its own for weights."""
    return not model_config.enable_cumem_allocator


@contextlib.contextmanager
def memory() -> Iterator[None]:
    """Large tensors made meanwhile share their memory."""
    try:
        with pool(library.GPU_STAND_IN_ALLOCATE, library.GPU_STAND_IN_FREE, keep=False):
            yield
    finally:
        # Torch keeps one for each stream, and it must not be here. What computes next gets another.
        torch._C._cuda_clearCublasWorkspaces()


def holds(tensor: torch.Tensor) -> bool:
    """Whether it lies there, so that its values mean nothing."""
    return tensor.is_cuda and library.gpu_stand_in_holds(tensor.untyped_storage().data_ptr())


def bytes_in_use() -> int:
    """What something still looks at, when torch's cache has been emptied."""
    return library.gpu_stand_in_bytes()
