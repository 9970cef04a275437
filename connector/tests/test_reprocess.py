"""Which models can be processed once more on a CPU, and that nothing but what is processed is put back."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from vllm.config import CompilationMode
from vllm.model_executor.layers.linear import LinearMethodBase, UnquantizedLinearMethod

from rouse_vllm import reprocess, tensors


class OtherMethod(LinearMethodBase):
    def create_weights(self, *_: Any, **__: Any) -> None: ...

    def apply(self, *_: Any, **__: Any) -> Any: ...


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.register_buffer("table", torch.arange(4.0))
        self.scale = torch.tensor([2.0])
        self.kv_cache = torch.tensor([])


def unprocessed(model: nn.Module, mode: CompilationMode) -> reprocess.Unprocessed:
    config: Any = SimpleNamespace(compilation_config=SimpleNamespace(mode=mode))
    return reprocess.Unprocessed(model, tensors.collect(model, "Loaded"), SimpleNamespace(), config)  # type: ignore[arg-type]


def test_compiled_models_and_unknown_layers_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHDYNAMO_DISABLE", raising=False)
    model = Model()
    model.layer.quant_method = UnquantizedLinearMethod()
    assert unprocessed(model, CompilationMode.NONE).problem() == ""
    assert "--enforce-eager" in unprocessed(model, CompilationMode.VLLM_COMPILE).problem()
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")
    assert unprocessed(model, CompilationMode.VLLM_COMPILE).problem() == ""
    model.layer.quant_method = OtherMethod()
    assert "layer is processed by OtherMethod" in unprocessed(model, CompilationMode.NONE).problem()


def test_a_model_is_put_together_as_it_was_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model()
    loaded = {n.name: (n.tensor, n.tensor.data_ptr()) for n in tensors.collect(model, "Loaded")}
    before = unprocessed(model, CompilationMode.NONE)
    model.layer.weight = nn.Parameter(torch.empty(0))
    model.layer.bias.data = torch.zeros(4)
    model.table = torch.zeros(4)
    model.scale = torch.zeros(1)
    model.kv_cache = cache = torch.ones(8)

    seen = []
    monkeypatch.setattr(reprocess, "process_weights_after_loading", lambda *a: seen.append(a[0]))
    monkeypatch.setattr(reprocess, "set_current_vllm_config", lambda _: torch.no_grad())
    before._model_config.dtype = torch.float32  # type: ignore[misc]
    before.process()
    assert seen == [model]
    again = {n.name: (n.tensor, n.tensor.data_ptr()) for n in tensors.collect(model, "Loaded")}
    assert again.pop("kv_cache")[0] is cache
    assert again.keys() == loaded.keys() == {"layer.weight", "layer.bias", "table", "scale"}
    assert all(again[name] == loaded[name] for name in ("layer.weight", "layer.bias", "scale"))
