"""Who a rank is to the agent: its number, and what its weights are."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING

import vllm

from rouse_vllm import identity, manifest
from rouse_vllm.fork import SPAWNED_VARIABLE
from rouse_vllm.link import Rank

if TYPE_CHECKING:
    from vllm.config import VllmConfig


def form_for(device_type: str) -> str:
    """In which form weights change hands. CPU layers pack theirs into opaque handles that cannot
    travel, and packing is cheap; everywhere else a target is spared the post-processing."""
    return manifest.LOADED if device_type == "cpu" else manifest.PROCESSED


def served(vllm_config: VllmConfig) -> Rank:
    """Of the model that is served. The agent serves one pod: its ranks are those of all data-parallel
    replicas in it, and then those of their draft models."""
    parallel = vllm_config.parallel_config
    device = vllm_config.device_config.device_type
    form = form_for(device)
    replica = parallel.data_parallel_rank_local or 0
    models = 1 if identity.draft_of(vllm_config) is None else 2
    return Rank(
        rank=replica * parallel.world_size + parallel.rank,
        world_size=models * parallel.data_parallel_size_local * parallel.world_size,
        models=models,
        engine_version=vllm.__version__,
        identity=identity.build(vllm_config, form, vllm.__version__),
        form=form,
        gpu=identity.gpu_uuid(device),
        spawned=os.environ.get(SPAWNED_VARIABLE, ""),
    )


def draft(main: Rank) -> Rank:
    """Of the model that drafts for `main`. Their weights are one set, so they have one identity."""
    described = main.identity | {"rank": f"draft {main.identity['rank']}"}
    return replace(main, rank=main.rank + main.world_size // 2, identity=described, spawned="")
