"""Late capture in `vllm.v1.worker.gpu_model_runner`: graphs belong to wrappers of the model and of its
compiled pieces, CudagraphDispatcher says which one a batch is given to."""

from __future__ import annotations

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
from rouse_vllm.capture_plan import Graph


def wrap_runner() -> None:
    from vllm.v1.cudagraph_dispatcher import CudagraphDispatcher
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    def _capture_cudagraphs(original: Callable[..., Any]) -> Callable[..., Any]:
        def capture(
            self: Any, batch_descriptors: Any, cudagraph_runtime_mode: Any, profiler: Any = None
        ) -> None:
            # The profiling of graph memory does not come here.
            graphs = graphs_to_start(self, self.kv_cache_config)
            if graphs is None or not batch_descriptors:
                original(self, batch_descriptors, cudagraph_runtime_mode, profiler)
                return
            mode = cudagraph_runtime_mode.name
            graphs.start(
                RunnerV1(self, original),
                [
                    Graph(mode, descriptor.num_tokens, descriptor)
                    for descriptor in batch_descriptors
                ],
            )

        return capture

    def dispatch(original: Callable[..., Any]) -> Callable[..., Any]:
        def to_a_graph_that_is_there(
            self: Any,
            num_tokens: int,
            uniform_decode: bool = False,
            has_lora: bool = False,
            num_active_loras: int = 0,
            valid_modes: Any = None,
            invalid_modes: Any = None,
        ) -> tuple[Any, Any]:
            graphs = graphs_of(self)
            common = (num_tokens, uniform_decode, has_lora, num_active_loras, valid_modes)
            mode, descriptor = original(self, *common, invalid_modes)
            if graphs is None or graphs.pending.is_there(mode.name, descriptor):
                return mode, descriptor
            graphs.pending.miss(mode.name, descriptor)
            if mode == CUDAGraphMode.FULL:
                others = set(invalid_modes or ()) | {CUDAGraphMode.FULL}
                other, relaxed = original(self, *common, others)
                if other == CUDAGraphMode.PIECEWISE and graphs.pending.is_there(
                    other.name, relaxed
                ):
                    return other, relaxed
            # Padded like a PIECEWISE batch: tokens are, requests are not.
            return CUDAGraphMode.NONE, replace(descriptor, num_reqs=None, uniform=False)

        return to_a_graph_that_is_there

    patches.wrap(
        GPUModelRunner,
        "_capture_cudagraphs",
        ("self, batch_descriptors, cudagraph_runtime_mode, profiler=None",),
        _capture_cudagraphs,
    )
    patches.wrap(
        CudagraphDispatcher,
        "dispatch",
        (
            "self, num_tokens, uniform_decode=False, has_lora=False, num_active_loras=0, "
            "valid_modes=None, invalid_modes=None",
        ),
        dispatch,
    )
    wrap_capture_model(GPUModelRunner, ("self",))


class RunnerV1:
    def __init__(self, runner: Any, capture: Callable[..., Any]) -> None:
        self._runner = runner
        self._capture = capture
        self._stream = torch.cuda.current_stream()  # That of vLLM's capture, which goes on now.

    def capture(self, graph: Graph) -> None:
        self._capture(self._runner, [graph.descriptor], CUDAGraphMode[graph.mode])

    @contextmanager
    def late(self) -> Iterator[None]:
        from vllm.compilation.monitor import set_cudagraph_capturing_enabled
        from vllm.distributed.parallel_state import graph_capture
        from vllm.v1.worker import gpu_model_runner

        set_cudagraph_capturing_enabled(True)
        try:
            with (
                late_capture(gpu_model_runner),
                on_stream(self._stream),
                graph_capture(self._runner.device),
            ):
                yield
        finally:
            set_cudagraph_capturing_enabled(False)

    def forget(self, graph: Graph) -> None:
        forget_in_wrappers(graph.mode, graph.descriptor)
