"""Sleep backend "rouse", for who calls vLLM's own sleep mode with --sleep-mode-backend rouse.

The agent needs none of it: its commands do the same, and without --enable-sleep-mode, which changes
the compile key.
"""

from __future__ import annotations

from vllm.device_allocator.sleep_mode_backend import SleepModeBackend

from rouse_vllm import guard
from rouse_vllm.errors import Unsupported


class RouseSleepBackend(SleepModeBackend):
    """Gives the weights to the agent, and the KV cache's memory back to the GPU."""

    def suspend(self, level: int = 1) -> None:
        if level != 2:
            raise Unsupported(
                f"sleep mode backend rouse keeps no copy of the weights, so it knows no level {level}: "
                "use level 2"
            )
        rank = guard.served()
        if problem := rank.problem():
            raise Unsupported(f"this instance cannot sleep: {problem}")
        self._state = "SUSPENDED"
        rank.release_kv()
        rank.release_weights()

    def resume(self, tags: list[str] | None = None) -> None:
        self._state = "RESUMING"
        rank = guard.served()
        if (tags is None or "weights" in tags) and not rank.has_weights:
            rank.map_weights()
            rank.await_weights()
        if (tags is None or "kv_cache" in tags) and not rank.has_kv:
            rank.restore_kv()
        if rank.has_weights and rank.has_kv:
            self._state = "RUNNING"

    @classmethod
    def preserves_communicators(cls) -> bool:
        return True

    @classmethod
    def preserves_compiled_artifacts(cls) -> bool:
        return True

    @classmethod
    def preserves_graphs_with_communicators(cls) -> bool:
        return True
