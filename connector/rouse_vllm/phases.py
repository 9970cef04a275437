"""What an engine's start consists of once its model is there, told to the agent as it happens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vllm.logger import init_logger

from rouse_vllm import patches
from rouse_vllm.errors import Unsupported
from rouse_vllm.link import now_us

logger = init_logger("vllm.rouse")

#: Takes a phase's name and when it was reached, in microseconds since the epoch.
Tell = Callable[[str, int], None]

_tell: Tell | None = None


def install(tell: Tell) -> None:
    """Has the worker of this process tell what comes after its model is loaded, instead of whoever was
    told before."""
    global _tell
    _tell = tell
    try:
        wrap_workers("determine_available_memory", "self", _profiled)
        wrap_workers("initialize_from_config", "self, kv_cache_config", _cache_ready)
        wrap_workers("compile_or_warm_up_model", "self", _captured)
    except (Unsupported, ImportError) as error:
        logger.warning("Rouse: the phases after loading are not told apart: %s", error)


def wrap_workers(
    name: str, parameters: str, make: Callable[[Callable[..., Any]], Callable[..., Any]]
) -> None:
    """patches.wrap() for this method of those of vLLM's workers that have one of their own, and that can
    be imported here without harm."""
    from vllm.platforms import current_platform
    from vllm.v1.worker.gpu_worker import Worker

    workers: list[Any] = [Worker]
    # Its import puts placeholders in the place of torch.cuda's events and streams.
    if current_platform.is_cpu():
        from vllm.v1.worker.cpu_worker import CPUWorker

        workers.append(CPUWorker)
    for worker in workers:
        if name in vars(worker):
            patches.wrap(worker, name, (parameters,), make)


def _say(phase: str, at_us: int) -> None:
    if _tell is not None:
        _tell(phase, at_us)


def _profiled(original: Callable[..., Any]) -> Callable[..., Any]:
    def profile(self: Any) -> Any:
        began_us = now_us()
        available = original(self)
        config = self.vllm_config.compilation_config
        # vLLM says how long, not when: it is the first thing that profiling does.
        seconds = config.compilation_time + getattr(config, "encoder_compilation_time", 0.0)
        if seconds > 0:
            _say("Compiled", began_us + int(seconds * 1e6))
        _say("Profiled", now_us())
        return available

    return profile


def _cache_ready(original: Callable[..., Any]) -> Callable[..., Any]:
    def initialize(self: Any, kv_cache_config: Any) -> Any:
        result = original(self, kv_cache_config)
        _say("KvCacheReady", now_us())
        return result

    return initialize


def _captured(original: Callable[..., Any]) -> Callable[..., Any]:
    def warm_up(self: Any) -> Any:
        result = original(self)
        _say("Captured", now_us())
        return result

    return warm_up
