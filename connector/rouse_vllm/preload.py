"""What the launcher imports and finds out before it forks, so that no engine has to."""

from __future__ import annotations

import functools
import gc
import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rouse_vllm import fork, patches

#: What `vllm serve` and its engine import at some time, much of it late, in their own words or inside
#: of functions. A module that is missing here costs its import at every start, no more.
_MODULES = (
    "vllm.entrypoints.cli.main",
    "vllm.entrypoints.cli.benchmark.main",
    "vllm.entrypoints.cli.collect_env",
    "vllm.entrypoints.cli.launch",
    "vllm.entrypoints.cli.openai",
    "vllm.entrypoints.cli.run_batch",
    "vllm.entrypoints.cli.serve",
    "vllm.entrypoints.anthropic.api_router",
    "vllm.entrypoints.generate.api_router",
    "vllm.entrypoints.generate.generative_scoring.api_router",
    "vllm.entrypoints.openai.chat_completion.api_router",
    "vllm.entrypoints.openai.completion.api_router",
    "vllm.entrypoints.openai.models.api_router",
    "vllm.entrypoints.openai.responses.api_router",
    "vllm.entrypoints.scale_out.derender.api_router",
    "vllm.entrypoints.scale_out.render.api_router",
    "vllm.entrypoints.scale_out.token_in_token_out.api_router",
    "vllm.entrypoints.serve.elastic_ep.api_router",
    "vllm.entrypoints.serve.instrumentator.metrics",
    "vllm.entrypoints.serve.lora.api_router",
    "vllm.entrypoints.serve.profile.api_router",
    "vllm.entrypoints.serve.tokenize.api_router",
    "uvicorn.protocols.http.httptools_impl",
    "uvicorn.protocols.websockets.websockets_sansio_impl",
    "vllm.v1.core.sched.scheduler",
    "vllm.v1.engine.async_llm",
    "vllm.v1.engine.core",
    "vllm.v1.executor.multiproc_executor",
    "vllm.v1.executor.uniproc_executor",
    "vllm.v1.metrics.loggers",
    "vllm.v1.worker.gpu_model_runner",
    "vllm.compilation.backends",
    "vllm.compilation.caching",
    "vllm.compilation.decorators",
    "vllm.distributed.elastic_ep.elastic_execute",
    "vllm.model_executor.layers.fused_moe",
    "vllm.transformers_utils.chat_templates.registry",
    "torch._dynamo",
    "torch._functorch.aot_autograd",
    "torch._inductor.compile_fx",
)
_MODULES_CPU = (
    "vllm.model_executor.layers.fused_moe.cpu_fused_moe",
    "vllm.v1.worker.cpu_worker",
)
_MODULES_CUDA = (
    "triton",
    "vllm.device_allocator.cumem",
    "vllm.model_executor.warmup.kernel_warmup",
    "vllm.v1.attention.backends.flash_attn",
    "vllm.v1.attention.backends.triton_attn",
    "vllm.v1.worker.gpu.model_runner",
    "vllm.v1.worker.gpu.warmup",
    "vllm.v1.worker.gpu_worker",
    "vllm.vllm_flash_attn",
)


def registered_models(folder: str) -> list[Any]:
    """The models, in vLLM's registry, whose folder this is; none where vLLM does not have them."""
    try:
        architectures = json.loads(Path(folder, "config.json").read_text())["architectures"]
    except (OSError, ValueError, LookupError, TypeError):
        return []
    from vllm.model_executor.models import ModelRegistry

    models = [ModelRegistry.models.get(str(name)) for name in architectures]
    return [m for m in models if hasattr(m, "module_name")]


def inspect_model(model: Any) -> None:
    """Answers early what vLLM asks a new process about a model, which imports all of vLLM for that lest
    CUDA is initialised here. vLLM keeps the answer in a file, which a new container does not have."""
    from vllm.model_executor.models import registry

    with patches.replaced(registry, "_run_in_subprocess", lambda function: function()):
        model.inspect_model_cls()


def import_all(model: str, say: Callable[[str], None]) -> list[str]:
    """Returns why this process may not fork now. What could not be imported is said."""
    # Of what modules hold nothing is garbage, but each full collection goes through all of it: a fifth
    # of the processor's time that the imports take.
    gc.disable()
    try:
        return _import_all(model, say)
    finally:
        gc.enable()


def _import_all(model: str, say: Callable[[str], None]) -> list[str]:
    import torch  # noqa: F401
    import vllm  # noqa: F401

    fork.tell_flashinfer()
    from vllm.platforms import current_platform

    _find_process_title()
    modules = [*_MODULES, *(_MODULES_CUDA if current_platform.is_cuda() else _MODULES_CPU)]
    models = registered_models(model)
    names = [*modules, *(m.module_name for m in models), "rouse_vllm.loader"]
    steps: list[tuple[str, Callable[[], object]]] = [
        (f"the import of {name}", functools.partial(importlib.import_module, name))
        for name in names
    ]
    steps += [
        (f"the inspection of {m.class_name}", functools.partial(inspect_model, m)) for m in models
    ]
    for what, step in steps:
        try:
            step()
        except Exception as error:
            # The engine will not need it, or say it better.
            say(f"{what} failed: {error}")
        reasons = fork.parent_refusals(fork.observe_parent())
        if reasons:
            return [f"{reason} (since {what})" for reason in reasons]
    return []


def _find_process_title() -> None:
    """vLLM names its processes, if it can. Where in memory the name is can only be found out as long
    as the environment is in its first place, which it is not in a forked process."""
    try:
        import setproctitle
    except ImportError:
        return
    setproctitle.getproctitle()
