"""Checkpoints with random weights in the shapes of published models, written fast."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

SHARD_BYTES = 4_000_000_000
_COMMON: dict[str, Any] = dict(
    attention_bias=False, attention_dropout=0.0, bos_token_id=256, eos_token_id=257, pad_token_id=257,
    dtype="bfloat16", torch_dtype="bfloat16", head_dim=128, hidden_act="silu", initializer_range=0.02,
    max_position_embeddings=40960, num_attention_heads=32, rms_norm_eps=1e-6, rope_theta=1000000.0,
    sliding_window=None, tie_word_embeddings=False, use_cache=True, use_sliding_window=False, vocab_size=151936,
)  # fmt: skip
_DENSE: dict[str, Any] = dict(
    architectures=["Qwen3ForCausalLM"], model_type="qwen3", num_key_value_heads=8
)
_MOE: dict[str, Any] = dict(
    architectures=["Qwen3MoeForCausalLM"], model_type="qwen3_moe", decoder_sparse_step=1, mlp_only_layers=[],
    hidden_size=2048, intermediate_size=6144, moe_intermediate_size=768, norm_topk_prob=True, num_experts=128,
    num_experts_per_tok=8, num_key_value_heads=4, output_router_logits=False, router_aux_loss_coef=0.001,
)  # fmt: skip
#: By name: the configuration as published (Qwen3-8B, Qwen3-30B-A3B), and smaller ones to try things out.
MODELS: dict[str, dict[str, Any]] = {
    "0.6B": _COMMON | _DENSE | dict(
        hidden_size=1024, intermediate_size=3072, num_attention_heads=16, num_hidden_layers=28,
        max_window_layers=28, tie_word_embeddings=True),
    "8B": _COMMON | _DENSE | dict(
        hidden_size=4096, intermediate_size=12288, num_hidden_layers=36, max_window_layers=36),
    "MoE 8 layers": _COMMON | _MOE | dict(num_hidden_layers=8),
    "MoE 30B": _COMMON | _MOE | dict(num_hidden_layers=48),
}  # fmt: skip
#: Weights of four bits, as GPTQ's checkpoints have them.
MODELS["0.6B 4-bit"] = MODELS["0.6B"] | {
    "quantization_config": dict(
        quant_method="gptq", bits=4, group_size=128, desc_act=False, sym=True, lm_head=False
    )
}

DTYPES = {"BF16": ("bfloat16", 2), "F16": ("float16", 2), "I32": ("int32", 4)}
Tensor = tuple[str, str, tuple[int, ...]]  # name, type, shape


def tensors(config: dict[str, Any]) -> Iterator[Tensor]:
    """Names, types and shapes as Hugging Face's Qwen3 and Qwen3-MoE have them."""
    for name, shape in _matrices(config):
        at, _, kind = name.rpartition(".")
        if "quantization_config" in config and at.endswith("_proj") and kind == "weight":
            outputs, inputs = shape
            groups = inputs // config["quantization_config"]["group_size"]
            yield f"{at}.qweight", "I32", (inputs // 8, outputs)
            yield f"{at}.qzeros", "I32", (groups, outputs // 8)
            yield f"{at}.scales", "F16", (groups, outputs)
            yield f"{at}.g_idx", "I32", (inputs,)
        else:
            yield name, "BF16", shape


def _matrices(config: dict[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden, head, vocabulary = config["hidden_size"], config["head_dim"], config["vocab_size"]
    queries, keys = config["num_attention_heads"], config["num_key_value_heads"]
    yield "model.embed_tokens.weight", (vocabulary, hidden)
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}"
        yield f"{at}.input_layernorm.weight", (hidden,)
        yield f"{at}.self_attn.q_proj.weight", (queries * head, hidden)
        yield f"{at}.self_attn.k_proj.weight", (keys * head, hidden)
        yield f"{at}.self_attn.v_proj.weight", (keys * head, hidden)
        yield f"{at}.self_attn.o_proj.weight", (hidden, queries * head)
        yield f"{at}.self_attn.q_norm.weight", (head,)
        yield f"{at}.self_attn.k_norm.weight", (head,)
        yield f"{at}.post_attention_layernorm.weight", (hidden,)
        if "num_experts" in config:
            yield f"{at}.mlp.gate.weight", (config["num_experts"], hidden)
            parts = [f"{at}.mlp.experts.{expert}" for expert in range(config["num_experts"])]
            inner = config["moe_intermediate_size"]
        else:
            parts, inner = [f"{at}.mlp"], config["intermediate_size"]
        for part in parts:
            yield f"{part}.gate_proj.weight", (inner, hidden)
            yield f"{part}.up_proj.weight", (inner, hidden)
            yield f"{part}.down_proj.weight", (hidden, inner)
    yield "model.norm.weight", (hidden,)
    if not config["tie_word_embeddings"]:
        yield "lm_head.weight", (vocabulary, hidden)


def _size(tensor: Tensor) -> int:
    _, dtype, shape = tensor
    return math.prod(shape) * DTYPES[dtype][1]


def _shards(config: dict[str, Any]) -> list[list[Tensor]]:
    shards: list[list[Tensor]] = [[]]
    held = 0
    for tensor in tensors(config):
        if shards[-1] and held + _size(tensor) > SHARD_BYTES:
            shards.append([])
            held = 0
        shards[-1].append(tensor)
        held += _size(tensor)
    return shards


def _values(tensor: Tensor, device: str, random: Any) -> Any:
    import torch

    name, dtype, shape = tensor
    kind = name.rpartition(".")[2]
    if kind == "qweight":
        return torch.randint(
            -(1 << 31), (1 << 31) - 1, shape, generator=random, dtype=torch.int32, device=device
        )
    if kind == "qzeros":
        return torch.full(shape, 0x77777777, dtype=torch.int32, device=device)  # symmetric
    if kind == "g_idx":
        return torch.arange(shape[0], dtype=torch.int32, device=device) // 128
    values = torch.ones(shape, dtype=getattr(torch, DTYPES[dtype][0]), device=device)
    if kind == "scales":
        return values * 0.005
    if len(shape) > 1:  # not a norm
        values.normal_(0, 0.02, generator=random)
    return values


def _write_shard(path: Path, content: list[Tensor], seed: int) -> None:
    import torch

    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for tensor in content:
        name, dtype, shape = tensor
        end = offset + _size(tensor)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    random = torch.Generator(device=device).manual_seed(seed)
    with path.open("wb", buffering=0) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in content:
            values = _values(tensor, device, random)
            left = memoryview(values.cpu().view(torch.uint8).reshape(-1).numpy())
            while len(left):
                left = left[file.write(left) :]


def _write_tokenizer(folder: Path, vocabulary: int) -> None:
    """A byte a token, two specials, and words that fill the vocabulary."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    words = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    words |= {"<|bos|>": 256, "<|eos|>": 257} | {f"w{i}": i for i in range(258, vocabulary)}
    tokenizer = Tokenizer(models.BPE(vocab=words, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(x, special=True) for x in ("<|bos|>", "<|eos|>")])
    tokenizer.save(str(folder / "tokenizer.json"))
    names = dict(bos_token="<|bos|>", eos_token="<|eos|>", pad_token="<|eos|>")
    described = dict(tokenizer_class="PreTrainedTokenizerFast", model_max_length=40960, **names)
    (folder / "tokenizer_config.json").write_text(json.dumps(described))
    (folder / "generation_config.json").write_text(
        json.dumps(dict(bos_token_id=256, eos_token_id=257))
    )


def write(name: str, folder: Path, seed: int = 7) -> int:
    """Writes the checkpoint; the bytes of its weights."""
    config = MODELS[name]
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    _write_tokenizer(folder, config["vocab_size"])
    shards = _shards(config)
    files = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    with ThreadPoolExecutor(8) as pool:
        seeds = range(seed * 1000, seed * 1000 + len(shards))
        list(pool.map(_write_shard, [folder / file for file in files], shards, seeds))
    total = sum(_size(tensor) for shard in shards for tensor in shard)
    where = {name: file for file, shard in zip(files, shards) for name, _, _ in shard}
    index = {"metadata": {"total_size": total}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return total
