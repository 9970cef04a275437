"""Sleep backend "rouse", for who calls vLLM's own sleep mode with --sleep-mode-backend rouse.

The agent needs none of it: its commands do more, and without --enable-sleep-mode, which changes the
compile key. Only they can have the agent give up the weights: here it keeps them, and serves them to
peers, while the engine sleeps.
"""

from __future__ import annotations

import torch
from vllm.device_allocator.sleep_mode_backend import SleepModeBackend

from rouse_vllm import guard
from rouse_vllm.errors import Unsupported


class RouseSleepBackend(SleepModeBackend):
    """Unmaps the weights, and gives the KV cache's memory back to the GPU."""

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
        for model in rank.models:
            model.unmap()

    def resume(self, tags: list[str] | None = None) -> None:
        self._state = "RESUMING"
        rank = guard.served()
        if (tags is None or "weights" in tags) and not rank.has_weights:
            for model in rank.models:
                model.map_kept()
        if (tags is None or "kv_cache" in tags) and not rank.has_kv:
            rank.restore_kv()
            torch.cuda.synchronize()
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
