"""Has vLLM keep what it compiles of a model as one artefact.

With torch 2.11 vLLM 0.26 keeps the traced graph, and beside it what Inductor made of its parts; each
start reads the graph, splits it and looks each part up again. With torch 2.12 it keeps one artefact,
which is loaded as it is; it can do so with 2.11 too when it is told to. Measured on an H200 with a
Qwen3-MoE of 30 B: 0.3 s instead of 5.5 to 8.5 s of each start that finds its caches, and equal tokens at
equal speed (docs/state-reuse.md).
"""

import os

VARIABLE = "VLLM_USE_MEGA_AOT_ARTIFACT"


def install() -> None:
    """Unless the user says what to do, or has chosen ways to compile that rule it out. Before vLLM makes
    keys of its caches: the variable is in them. Processes that this one starts inherit it."""
    from vllm import envs

    if VARIABLE in os.environ or VARIABLE not in envs.environment_variables:
        return
    if envs.VLLM_USE_AOT_COMPILE and envs.VLLM_USE_STANDALONE_COMPILE:
        os.environ[VARIABLE] = "1"
