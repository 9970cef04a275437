"""Processing weights once more, on a CPU, after others have come into the same memory.

vLLM's layers for CPUs pack their weights into oneDNN handles or into another order when the model has
been loaded. What they made of the weights before is of no use when other bytes have come.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import nn
from vllm.config import CompilationMode, ModelConfig, VllmConfig, set_current_vllm_config
from vllm.model_executor.layers.fused_moe import unquantized_fused_moe_method
from vllm.model_executor.layers.linear import UnquantizedLinearMethod
from vllm.model_executor.layers.quantization.base_config import QuantizeMethodBase
from vllm.model_executor.layers.vocab_parallel_embedding import UnquantizedEmbeddingMethod
from vllm.model_executor.model_loader.utils import process_weights_after_loading
from vllm.utils.torch_utils import set_default_torch_dtype

from rouse_vllm import library
from rouse_vllm.tensors import Named

#: Those that make the same of the same weights however often they are asked.
_REPEATABLE = (
    UnquantizedLinearMethod,
    UnquantizedEmbeddingMethod,
    unquantized_fused_moe_method.UnquantizedFusedMoEMethod,
)


class Unprocessed:
    """A model as it is between loading and processing: which tensor is where.

    Holds no memory but the arena's, which every one of its tensors lies in.
    """

    def __init__(
        self, model: nn.Module, named: list[Named], model_config: ModelConfig, config: VllmConfig
    ) -> None:
        self._model = model
        self._model_config = model_config
        self._config = config
        # Not what a module gets later on, as its KV cache.
        ours = {id(entry.tensor) for entry in named}
        self._places = [(entry.tensor, entry.tensor.data) for entry in named]
        self._modules: list[tuple[nn.Module, dict[str, Any], dict[str, Any], dict[str, Any]]] = [
            (
                module,
                dict(module._parameters),
                dict(module._buffers),
                {k: v for k, v in vars(module).items() if id(v) in ours},
            )
            for module in model.modules()
        ]

    def problem(self) -> str:
        """Why it cannot be processed again; empty: it can."""
        compiled = self._config.compilation_config.mode != CompilationMode.NONE
        if compiled and os.environ.get("TORCHDYNAMO_DISABLE") != "1":
            return (
                "on a CPU the compiled model refers to packed weights, which cannot be made anew under "
                "it; start the engine with --enforce-eager"
            )
        for name, module in self._model.named_modules():
            method = getattr(module, "quant_method", None)
            if isinstance(method, QuantizeMethodBase) and type(method) not in _REPEATABLE:
                return f"{name} is processed by {type(method).__name__}, which is not known to do so twice"
        return ""

    def process(self) -> None:
        """Puts the model together as it was loaded, and processes it."""
        for tensor, place in self._places:
            tensor.data = place
        for module, parameters, buffers, attributes in self._modules:
            module._parameters = dict(parameters)
            module._buffers = dict(buffers)
            vars(module).update(attributes)
        with (
            set_current_vllm_config(self._config),
            set_default_torch_dtype(self._model_config.dtype),
            torch.device("cpu"),
        ):
            process_weights_after_loading(self._model, self._model_config, torch.device("cpu"))
        # Each layer's old packed weights have gone while its new ones were made.
        library.release_free_memory()
