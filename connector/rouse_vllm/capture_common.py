"""What the capture of both model runners needs (capture.py, capture_v1.py, capture_v2.py)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from vllm.config import CUDAGraphMode, VllmConfig
from vllm.logger import init_logger

from rouse_vllm import patches
from rouse_vllm.lazy_graphs import LazyGraphs

logger = init_logger("vllm.rouse")

#: The engine of this process that captures late, and its configuration: there is one worker in a
#: process. Everything that is wrapped knows its configuration, and leaves other engines alone.
_engine: tuple[VllmConfig, LazyGraphs] | None = None


def set_engine(vllm_config: VllmConfig, graphs: LazyGraphs) -> None:
    global _engine
    _engine = (vllm_config, graphs)


def say_why_not(reason: str) -> None:
    logger.warning("Rouse: graphCapture Lazy has no effect: %s", reason)


def graphs_of(owner: Any) -> LazyGraphs | None:
    """Of a worker, a model runner, or what belongs to one."""
    if _engine is not None and owner.vllm_config is _engine[0]:
        return _engine[1]
    return None


def graphs_to_start(owner: Any, kv_cache_config: Any) -> LazyGraphs | None:
    """As above, when the graphs are about to be captured: only now it is known what is cached."""
    global _engine
    graphs = graphs_of(owner)
    if graphs is not None and (other := _not_by_slot(kv_cache_config)) is not None:
        say_why_not(f"capturing may write to what live requests have in a cache of kind {other}")
        _engine = graphs = None
    return graphs


def _not_by_slot(kv_cache_config: Any) -> str | None:
    """A kind of cache that is not written by slot only, if there is one. Runs that capture have no
    slots, but tables that name blocks of live requests."""
    from vllm.v1 import kv_cache_interface

    names = ("FullAttention", "MLAAttention", "SlidingWindow", "ChunkedLocalAttention")
    by_slot = tuple(getattr(kv_cache_interface, f"{name}Spec") for name in names)
    for group in kv_cache_config.kv_cache_groups:
        inner = getattr(group.kv_cache_spec, "kv_cache_specs", None)
        for spec in [group.kv_cache_spec] if inner is None else inner.values():
            if type(spec) not in by_slot:
                return type(spec).__name__
    return None


def wrap_capture_model(runner: type, expected: tuple[str, ...]) -> None:
    """Its answer is the memory that graphs take. A start-up plan is made from it, with which another
    start of this engine sizes its KV cache: the graphs that are left count too."""

    def capture_model(original: Callable[..., Any]) -> Callable[..., Any]:
        def capture(self: Any, **arguments: Any) -> int:
            graphs = graphs_of(self)
            used = original(self, **arguments)
            return used if graphs is None else used + graphs.bytes_to_come

        return capture

    patches.wrap(runner, "capture_model", expected, capture_model)


@contextmanager
def late_capture(module: Any) -> Iterator[None]:
    """What differs from capturing at start, when nothing else went on: output of the last step may be
    fetched by another thread, which must neither fail nor end the capture; memory that the next steps
    use again stays torch's (LazyGraphs gives it back where it must); and no progress bar for each
    graph. `module`: of vLLM, where the capture is."""
    graph = functools.partial(torch.cuda.graph, capture_error_mode="thread_local")
    with (
        patches.replaced(torch.cuda, "graph", graph),
        patches.replaced(torch.cuda, "empty_cache", lambda: None),
        patches.replaced(module, "tqdm", _no_progress_bar),
    ):
        yield


@contextmanager
def on_stream(stream: Any) -> Iterator[None]:
    """Has vLLM's graph_capture() use this stream. It takes a new one each time; but the memory that
    one stream has left in the graphs' pool is for the same stream only, and later graphs shall find
    it."""
    from vllm.distributed import parallel_state

    context = parallel_state.GraphCaptureContext(stream)
    with patches.replaced(parallel_state, "GraphCaptureContext", lambda stream: context):
        yield


def _no_progress_bar(items: Any, **_: Any) -> Any:
    return items


def forget_in_wrappers(mode: str, descriptor: Any) -> None:
    """Drops the parts of a graph that were captured before the capture failed."""
    from vllm.compilation.cuda_graph import CUDAGraphWrapper

    for wrapper in list(CUDAGraphWrapper._all_instances):
        if wrapper.runtime_mode == CUDAGraphMode[mode]:
            wrapper.concrete_cudagraph_entries.pop(descriptor, None)
