"""Lazy capture of CUDA graphs: the largest of each mode at start, the others once the engine serves.

Switched on by the loader (install) before vLLM captures anything; without it nothing of vLLM is
wrapped. The list of capture sizes stays as it is, it is part of the compile cache's key. What holds:

- A batch is never given to a graph that is not captured. It runs as the compiled model does without
  a graph, padded as for the graph, so that it is computed by the same kernels.
- All ranks capture the same graphs at the same place in the sequence of engine steps: when the agent
  asks by way of collective_rpc (step), or before a step with requests in it (capture_plan.Trigger).
- The KV cache is sized before any graph is captured, as ever, and memory for the graphs that are
  left is held until they come. A graph that cannot be captured is left out, and the engine lives.

vLLM has no extension point for any of this, so its worker is wrapped here, and its two model runners
in capture_v1.py and capture_v2.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vllm.config import CUDAGraphMode, VllmConfig

from rouse_vllm import capture_v1, capture_v2, patches
from rouse_vllm.capture_common import graphs_of, say_why_not, set_engine
from rouse_vllm.capture_plan import Facts, refusal
from rouse_vllm.errors import Unsupported
from rouse_vllm.lazy_graphs import Device, LazyGraphs, Ranks


def install(vllm_config: VllmConfig, trigger: str) -> bool:
    """Has the engine with this configuration, which loads its model now, capture late. False when
    it cannot: then all graphs are captured at start, and the log says why."""
    reason = refusal(facts(vllm_config))
    if reason is None:
        try:
            wrap_worker()
            if vllm_config.use_v2_model_runner:
                capture_v2.wrap_runner()
            else:
                capture_v1.wrap_runner()
        except Unsupported as error:
            reason = str(error)
    if reason is not None:
        say_why_not(reason)
        return False
    set_engine(vllm_config, LazyGraphs(trigger, Device(), Ranks))
    return True


def step(worker: Any, budget_s: float = 0.0) -> tuple[int, int]:
    """Captures the next graph, and more while they fit into `budget_s` seconds. For collective_rpc:
    it runs on all ranks between two engine steps, and the first rank's clock decides for all.

    Returns how many were captured and how many are left; (0, 0) where nothing is captured late.
    """
    worker = unwrapped(worker)
    graphs = graphs_of(worker)
    if graphs is None:
        return 0, 0
    if worker.model_runner.execute_model_state is not None:
        return 0, graphs.pending.left  # A step's sampling is due, and needs what its run has left.
    return graphs.step(budget_s)


def finish(worker: Any) -> None:
    """Captures all that are left, on all ranks, as step() does."""
    graphs = graphs_of(unwrapped(worker))
    if graphs is not None:
        graphs.finish()


def status(worker: Any) -> dict[str, int]:
    """How many graphs are captured, are left, and could not be captured; and the bytes held."""
    graphs = graphs_of(unwrapped(worker))
    if graphs is None:
        return {}
    return {
        "captured": graphs.pending.captured,
        "left": graphs.pending.left,
        "dropped": len(graphs.pending.dropped),
        "heldBytes": graphs.held_bytes,
    }


def facts(vllm_config: VllmConfig) -> Facts:
    from vllm.compilation.breakable_cudagraph import is_breakable_cudagraph_enabled
    from vllm.platforms import current_platform

    model, parallel = vllm_config.model_config, vllm_config.parallel_config
    return Facts(
        cuda=current_platform.is_cuda(),
        graphs=not model.enforce_eager
        and vllm_config.compilation_config.cudagraph_mode != CUDAGraphMode.NONE,
        data_parallel=parallel.data_parallel_size > 1,
        expert_parallel=parallel.enable_expert_parallel,
        pipeline_parallel=parallel.pipeline_parallel_size > 1,
        other_executor=parallel.distributed_executor_backend not in (None, "uni", "mp"),
        lora=vllm_config.lora_config is not None,
        speculative=vllm_config.speculative_config is not None,
        recurrent_state=model.is_hybrid or model.is_attention_free,
        encoder_decoder=model.is_encoder_decoder,
        microbatches=parallel.use_ubatching,
        breakable_graphs=is_breakable_cudagraph_enabled(),
        jit_is_an_error=vllm_config.observability_config.jit_monitor_mode == "error",
    )


def unwrapped(worker: Any) -> Any:
    """collective_rpc hands functions the wrapper of the worker that executors have."""
    return getattr(worker, "worker", worker)


def wrap_worker() -> None:
    from vllm.v1.worker.gpu_worker import Worker

    def compile_or_warm_up_model(original: Callable[..., Any]) -> Callable[..., Any]:
        def warm_up(self: Any) -> Any:
            graphs = graphs_of(self)
            if graphs is None:
                return original(self)
            graphs.expect(getattr(self, "cudagraph_memory_estimate", 0))
            times = original(self)
            # Only from here on are steps those of requests: warming up makes some of its own.
            graphs.serve(getattr(self, "peak_activation_memory", None))
            return times

        return warm_up

    def execute_model(original: Callable[..., Any]) -> Callable[..., Any]:
        def execute(self: Any, scheduler_output: Any) -> Any:
            if scheduler_output.total_num_scheduled_tokens > 0:
                graphs = graphs_of(self)
                if graphs is not None:
                    graphs.before_step()
            return original(self, scheduler_output)

        return execute

    def sleep(original: Callable[..., Any]) -> Callable[..., Any]:
        def fall_asleep(self: Any, level: int = 1) -> Any:
            # Capturing runs the model, and needs its memory.
            finish(self)
            return original(self, level)

        return fall_asleep

    patches.wrap(Worker, "compile_or_warm_up_model", ("self",), compile_or_warm_up_model)
    patches.wrap(Worker, "execute_model", ("self, scheduler_output",), execute_model)
    patches.wrap(Worker, "sleep", ("self, level=1",), sleep)
