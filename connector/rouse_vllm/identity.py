"""The weight identity: everything that makes two ranks' bytes interchangeable.

Every field but one can be computed by an engine that has no weight file, because a target has none:
the checkpoint takes part through the small files that describe it, which travel between agents. The
one, WEIGHT_FILES, is there where weight files are, and is compared where both sides have it: an
engine whose files are another checkpoint's, though of the same names and shapes, takes no weights.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from rouse_vllm import manifest as manifests

if TYPE_CHECKING:
    from vllm.config import ModelConfig, SpeculativeConfig, VllmConfig

#: Fields of a Hugging Face configuration that say where it came from, and nothing of the weights.
_PROVENANCE = ("_name_or_path", "transformers_version")

#: The field that an engine without weight files leaves out (see common/manifest.cpp, too).
WEIGHT_FILES = "weightFiles"

#: A safetensors header's bound, as in agent/storage: what is longer is no checkpoint that loads.
_MAX_HEADER_BYTES = 100 << 20
#: Methods of speculative decoding whose model has weights of its own in a checkpoint, as vLLM 0.26 and
#: 0.33 call them.
_DRAFTING = ("draft_model", "eagle", "eagle3", "mtp")

_SAMPLES = 16
_SAMPLE_BYTES = 4096


def canonical(value: Any) -> bytes:
    """Canonical JSON: keys sorted, no white space, UTF-8."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def config_digest(config: dict[str, Any]) -> str:
    """The digest of a Hugging Face configuration, wherever it was read from."""
    return digest(canonical({k: v for k, v in config.items() if k not in _PROVENANCE}))


def checkpoint_digest(folder: str) -> str:
    """The digest of the checkpoint's index (which tensor is in which file); empty without one."""
    indexes = sorted(Path(folder).glob("*.index.json")) if Path(folder).is_dir() else []
    if not indexes:
        return ""
    return digest(canonical([[path.name, digest(path.read_bytes())] for path in indexes]))


def weight_files_digest(folder: str) -> str:
    """The digest of the checkpoint's safetensors files; empty without any, or if one is damaged.

    Covers each file's name, size and header (names, types, shapes and places of its tensors), and 16
    pieces of 4 KiB, evenly spread over its data: training on or converting a checkpoint changes
    nearly every tensor, and with them nearly every piece. A change to a few tensors can escape it;
    reading hundreds of gigabytes to find that would cost more than the start that is saved. Times do
    not count, so that copies of a checkpoint are equal.
    """
    files = sorted(Path(folder).glob("*.safetensors")) if Path(folder).is_dir() else []
    try:
        covered = [_weight_file(path) for path in files]
    except (OSError, ValueError):
        return ""  # loading says what is wrong, if it comes to that
    return digest(canonical(covered)) if covered else ""


def _weight_file(path: Path) -> list[Any]:
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        start = file.read(8)
        length = int.from_bytes(start, "little")
        if len(start) < 8 or length > min(_MAX_HEADER_BYTES, size - 8):
            raise ValueError(f"{path} has no safetensors header")
        header = digest(file.read(length))
        first, last = 8 + length, max(8 + length, size - _SAMPLE_BYTES)
        sample = hashlib.sha256()
        for i in range(_SAMPLES):
            file.seek(first + (last - first) * i // (_SAMPLES - 1))
            sample.update(file.read(_SAMPLE_BYTES))
    return [path.name, size, header, sample.hexdigest()]


def differing(ours: dict[str, str], theirs: dict[str, str]) -> list[str]:
    """The fields that keep two identities from being equal, in order."""
    return sorted(
        name
        for name in ours.keys() | theirs.keys()
        if ours.get(name) != theirs.get(name)
        and not (name == WEIGHT_FILES and (name not in ours or name not in theirs))
    )


def device_name(device_type: str) -> str:
    """The kind of processor, as far as it decides over the bytes: "cuda sm_90", "cpu x86_64"."""
    if device_type == "cuda":
        major, minor = torch.cuda.get_device_capability()
        return f"cuda sm_{major}{minor}"
    return f"{device_type} {platform.machine()}"


def gpu_uuid(device_type: str) -> str:
    """The UUID of the GPU that this process computes with, as NVIDIA's tools write it; else empty."""
    if device_type != "cuda" or torch.version.cuda is None:
        return ""
    return f"GPU-{torch.cuda.get_device_properties(torch.cuda.current_device()).uuid}"


def is_draft(vllm_config: VllmConfig, model_config: ModelConfig) -> bool:
    """Whether it is not the served model. vLLM may call either one the configuration's model."""
    speculative = vllm_config.speculative_config
    if speculative is not None and speculative.draft_model_config is model_config:
        return model_config is not speculative.target_model_config
    return model_config is not vllm_config.model_config


def draft_of(vllm_config: VllmConfig) -> ModelConfig | None:
    """The model that drafts tokens for the served one, if each rank loads it after that one, by the same
    loader."""
    speculative = vllm_config.speculative_config
    if speculative is None or speculative.draft_load_config is not None:
        return None
    if speculative.method not in _DRAFTING or vllm_config.parallel_config.pipeline_parallel_size > 1:
        return None
    return speculative.draft_model_config


def build(vllm_config: VllmConfig, form: str, engine_version: str) -> dict[str, str]:
    """The identity of the weights that this rank holds in this form, a draft model's among them."""
    model_config, draft = vllm_config.model_config, draft_of(vllm_config)
    parallel = vllm_config.parallel_config
    config = _config(model_config)
    identity = {
        "model": ",".join(config.get("architectures") or [str(config.get("model_type"))]),
        "config": config_digest(config),
        "revision": model_config.revision or "",
        "checkpoint": checkpoint_digest(model_config.model),
        "dtype": str(model_config.dtype).removeprefix("torch."),
        "quantization": str(model_config.quantization or ""),
        "kvCacheDtype": str(vllm_config.cache_config.cache_dtype),
        "maxModelLen": str(model_config.max_model_len),
        "tensorParallel": str(parallel.tensor_parallel_size),
        "pipelineParallel": str(parallel.pipeline_parallel_size),
        "expertParallel": str(bool(parallel.enable_expert_parallel)).lower(),
        "dataParallel": str(parallel.data_parallel_size),
        "rank": str(parallel.data_parallel_rank * parallel.world_size + parallel.rank),
        "engine": "vllm",
        "engineVersion": engine_version,
        "torchVersion": torch.__version__,
        "device": device_name(vllm_config.device_config.device_type),
        "form": form,
    }
    folders = [model_config.model]
    if draft is not None:
        identity["draft"] = _draft_digest(draft, vllm_config.speculative_config)
        folders += [draft.model] if draft.model != model_config.model else []
    files = [weight_files_digest(folder) for folder in folders]
    if all(files):
        identity[WEIGHT_FILES] = files[0] if len(files) == 1 else digest(canonical(files))
    if form == manifests.PROCESSED:
        identity["kernels"] = _kernel_digest(vllm_config)
    return identity


def _config(model_config: ModelConfig) -> dict[str, Any]:
    return json.loads(model_config.hf_config.to_json_string(use_diff=False))


def _draft_digest(draft: ModelConfig, speculative: SpeculativeConfig) -> str:
    described = [config_digest(_config(draft)), checkpoint_digest(draft.model)]
    chosen = (draft.dtype, draft.quantization, speculative.moe_backend, speculative.kv_cache_dtype)
    return digest(canonical([*described, *[str(x or "") for x in chosen]]))


def _kernel_digest(vllm_config: VllmConfig) -> str:
    """What chooses kernels, and with them the layout that post-processing gives to weights.

    vLLM's own keys of its kernel settings and of its environment variables: more than needed, but no
    paths of models, so that instances with and without a storage volume are equal.
    """
    from vllm.envs import compile_factors

    factors = {name: str(value) for name, value in compile_factors().items()}
    return digest(canonical([vllm_config.kernel_config.compute_hash(), factors]))
