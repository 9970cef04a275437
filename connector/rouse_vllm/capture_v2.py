"""Late capture in `vllm.v1.worker.gpu.model_runner`: ModelCudaGraphManager captures graphs, and says
which one a batch is given to."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from vllm.config import CUDAGraphMode

from rouse_vllm import patches
from rouse_vllm.capture_common import (
    forget_in_wrappers,
    graphs_of,
    graphs_to_start,
    late_capture,
    on_stream,
    wrap_capture_model,
)
from rouse_vllm.capture_plan import FULL, PIECEWISE, Graph
from rouse_vllm.lazy_graphs import LazyGraphs


def wrap_runner() -> None:
    from vllm.v1.worker.gpu.cudagraph_utils import ModelCudaGraphManager
    from vllm.v1.worker.gpu.model_runner import GPUModelRunner

    def capture(original: Callable[..., Any]) -> Callable[..., Any]:
        def capture_largest(self: Any, *arguments: Any, **named: Any) -> None:
            as_ever = functools.partial(original, self, *arguments, **named)
            # 0.33 profiles the graphs' memory this way.
            if getattr(self, "_capture_mem_samples", None) is not None:
                return as_ever()
            graphs = graphs_to_start(self, named.get("kv_cache_config") or arguments[6])
            if graphs is None:
                return as_ever()
            runner = RunnerV2(self, as_ever)
            # In vLLM's order: the first one fills the memory pool that the second finds room in.
            for mode in (PIECEWISE, FULL):
                descriptors = self._capture_descs.get(CUDAGraphMode[mode])
                if descriptors:
                    graphs.start(runner, [Graph(mode, d.num_tokens, d) for d in descriptors])

        return capture_largest

    def dispatch(original: Callable[..., Any]) -> Callable[..., Any]:
        def to_a_graph_that_is_there(
            self: Any, num_reqs: int, num_tokens: int, *arguments: Any, **named: Any
        ) -> Any:
            graphs = graphs_of(self)
            wanted = original(self, num_reqs, num_tokens, *arguments, **named)
            if graphs is None or _is_there(graphs, wanted):
                return wanted
            graphs.pending.miss(wanted.cg_mode.name, wanted)
            key = (num_tokens, wanted.num_active_loras)
            candidates = self._candidates
            self._candidates = {key: [c for c in candidates[key] if _is_there(graphs, c)]}
            try:
                other = original(self, num_reqs, num_tokens, *arguments, **named)
            finally:
                self._candidates = candidates
            if other.cg_mode != CUDAGraphMode.NONE:
                return other
            # Padded like a PIECEWISE batch: tokens are, requests are not.
            return replace(other, num_tokens=wanted.num_tokens)

        return to_a_graph_that_is_there

    arguments = (
        "has_lora=False, use_aux_hidden_state_outputs=False, lora_capture_hook=None, "
        "progress_bar_desc='Capturing CUDA graphs'"
    )
    model = (
        "self, model, model_state, input_buffers, intermediate_tensors, block_tables, attn_groups, "
        "kv_cache_config"
    )
    patches.wrap(
        ModelCudaGraphManager,
        "capture",
        (f"{model}, {arguments}", f"{model}, pcp_manager=None, {arguments}"),
        capture,
    )
    batch = "self, num_reqs, num_tokens, uniform_token_count, num_active_loras"
    patches.wrap(
        ModelCudaGraphManager,
        "dispatch",
        (batch, f"{batch}, max_query_len=None, num_ubatches=1"),
        dispatch,
    )
    wrap_capture_model(GPUModelRunner, ("self", "self, *, profile_only=False"))


def _is_there(graphs: LazyGraphs, descriptor: Any) -> bool:
    return graphs.pending.is_there(descriptor.cg_mode.name, descriptor)


class RunnerV2:
    def __init__(self, manager: Any, capture: Callable[[], None]) -> None:
        self._manager = manager
        self._capture = capture
        self._stream = torch.cuda.Stream(device=manager.device)

    def capture(self, graph: Graph) -> None:
        everything = self._manager._capture_descs
        self._manager._capture_descs = {CUDAGraphMode[graph.mode]: [graph.descriptor]}
        try:
            with on_stream(self._stream):
                self._capture()
        finally:
            self._manager._capture_descs = everything

    @contextmanager
    def late(self) -> Iterator[None]:
        from vllm.v1.worker.gpu import cudagraph_utils

        with late_capture(cudagraph_utils):
            yield

    def forget(self, graph: Graph) -> None:
        from vllm.forward_context import BatchDescriptor

        self._manager.graphs.pop(graph.descriptor, None)
        forget_in_wrappers(graph.mode, BatchDescriptor(num_tokens=graph.tokens))
