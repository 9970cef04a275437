"""What vLLM learns from weight files before it builds a model, it learns without them too."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from vllm.model_executor.layers.quantization.auto_gptq import AutoGPTQConfig
from vllm.transformers_utils.config import get_safetensors_params_metadata

from rouse_vllm.checkpoint_tensors import FILE, install

install()

_TENSORS = {
    "model.layers.0.mlp.down_proj.qweight": torch.zeros(4, 8, dtype=torch.int32),
    "model.layers.0.mlp.down_proj.scales": torch.zeros(1, 8, dtype=torch.float16),
    "model.layers.1.mlp.down_proj.weight": torch.zeros(8, 8, dtype=torch.bfloat16),
}


def source_and_target(folder: Path) -> tuple[Path, Path]:
    """A folder with weight files, and one with what an agent makes of them."""
    source, target = folder / "source", folder / "target"
    source.mkdir(parents=True)
    target.mkdir()
    save_file(_TENSORS, source / "model.safetensors")
    told = {
        name: {"dtype": info["dtype"], "shape": info["shape"]}
        for name, info in get_safetensors_params_metadata(str(source)).items()
        if name in _TENSORS
    }
    assert told.keys() == _TENSORS.keys()
    (target / FILE).write_text(json.dumps(told))
    return source, target


def quantised_layers(model: Path) -> set[str]:
    config = AutoGPTQConfig.from_config(
        {"bits": 4, "group_size": 128, "desc_act": False, "quant_method": "gptq", "sym": True}
    )
    config.maybe_update_config(str(model))
    return set(config.modules_in_block_to_quantize)


def test_a_target_quantises_the_layers_that_the_source_does(tmp_path: Path) -> None:
    source, target = source_and_target(tmp_path)
    assert quantised_layers(source) == {"model.layers.0.mlp.down_proj"}
    assert quantised_layers(target) == {"model.layers.0.mlp.down_proj"}


def test_weight_files_count_more_than_what_a_peer_has(tmp_path: Path) -> None:
    source, _ = source_and_target(tmp_path)
    (source / FILE).write_text(json.dumps({"other.qweight": {"dtype": "I32", "shape": [1]}}))
    assert quantised_layers(source) == {"model.layers.0.mlp.down_proj"}


def test_without_either_nothing_is_known(tmp_path: Path) -> None:
    assert get_safetensors_params_metadata(str(tmp_path)) == {}
