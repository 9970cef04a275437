"""What an engine finds of its GPU's memory when it starts.

vLLM takes what is in use then for other programs': it refuses to start where less is free than it
wants, and sizes its KV cache as if that memory were not its own. An engine that is started again finds
its weights there, which the agent kept: they are this instance's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rouse_vllm.errors import RouseError, Unsupported
from rouse_vllm.patches import wrap

#: Agents answer at once; one that is not there holds nothing.
_TIMEOUT_S = 5.0


def install(load_format: str) -> None:
    """In every process: workers of engines with this load format count the agent's memory as theirs.
    Unsupported when this vLLM has not the functions that we know."""
    from vllm.v1.worker.worker_base import WorkerWrapperBase

    def with_our_memory(original: Callable[..., Any]) -> Callable[..., Any]:
        def init_device(self: Any) -> Any:
            config = self.vllm_config
            if config.load_config.load_format == load_format:
                extra = config.load_config.model_loader_extra_config
                _count_from_now_on(config.device_config.device_type, extra)
            return original(self)

        return init_device

    wrap(WorkerWrapperBase, "init_device", ("self",), with_our_memory)


def _count_from_now_on(device_type: str, extra: Any) -> None:
    if device_type != "cuda":
        return
    from vllm.v1.worker import gpu_worker

    from rouse_vllm.link import Settings

    settings = Settings.take(dict(extra or {}))

    def counting(original: Callable[..., int]) -> Callable[..., int]:
        def request_memory(init_snapshot: Any, cache_config: Any) -> int:
            count(init_snapshot, settings.socket)
            return original(init_snapshot, cache_config)

        return request_memory

    try:
        wrap(gpu_worker, "request_memory", ("init_snapshot, cache_config",), counting)
    except Unsupported as error:
        _logger().warning(
            "Rouse: an engine that is started again finds no memory beside its weights: %s", error
        )


def count(snapshot: Any, socket: str) -> None:
    """Has vLLM's snapshot of the memory say what it would if the agent held none."""
    from rouse_vllm import identity
    from rouse_vllm.session import held_memory

    try:
        held = held_memory(socket, identity.gpu_uuid("cuda"), _TIMEOUT_S)
    except RouseError as error:
        _logger().warning("Rouse: what the agent holds of the GPU is not known: %s", error)
        return
    if held:
        _logger().info(
            "Rouse: %.2f GiB of the memory in use are this instance's weights", held / 2**30
        )
    snapshot.free_memory += held
    snapshot.cuda_memory -= held
    snapshot.non_torch_memory -= held


def _logger() -> Any:
    from vllm.logger import init_logger

    return init_logger("vllm.rouse")
