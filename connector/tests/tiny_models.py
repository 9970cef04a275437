"""Small real checkpoints with random weights, written without a download."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

_BASE = dict(
    attention_bias=False,
    attention_dropout=0.0,
    bos_token_id=256,
    eos_token_id=257,
    head_dim=64,
    hidden_act="silu",
    hidden_size=128,
    initializer_range=0.02,
    intermediate_size=256,
    max_position_embeddings=2048,
    num_attention_heads=4,
    num_hidden_layers=2,
    num_key_value_heads=2,
    pad_token_id=257,
    rms_norm_eps=1e-6,
    rope_theta=1000000.0,
    sliding_window=None,
    torch_dtype="bfloat16",
    use_cache=True,
    use_sliding_window=False,
    vocab_size=512,
)

_MOE = dict(
    architectures=["Qwen3MoeForCausalLM"],
    decoder_sparse_step=1,
    mlp_only_layers=[],
    model_type="qwen3_moe",
    moe_intermediate_size=128,
    norm_topk_prob=True,
    num_experts=8,
    num_experts_per_tok=2,
    output_router_logits=False,
    router_aux_loss_coef=0.001,
    tie_word_embeddings=False,
)

_DENSE_TIED = dict(
    architectures=["Qwen3ForCausalLM"],
    max_window_layers=2,
    model_type="qwen3",
    tie_word_embeddings=True,
)


def make_moe(folder: Path, seed: int = 0) -> Path:
    """A Qwen3-MoE of two layers and eight experts, in two shards."""
    return _make(folder, _BASE | _MOE, seed)


def make_tied(folder: Path, seed: int = 0) -> Path:
    """A dense Qwen3 of two layers whose output layer is the embedding."""
    return _make(folder, _BASE | _DENSE_TIED, seed)


def make_wide(folder: Path, seed: int = 0) -> Path:
    """A Qwen3-MoE like make_moe's of some 70 MiB, most of it in the embedding and the output layer."""
    return _make(folder, _BASE | _MOE | dict(hidden_size=512, vocab_size=32768), seed)


def without_weights(source: Path, folder: Path) -> Path:
    """The same model folder as a target gets it: every file but the weight files."""
    folder.mkdir(parents=True)
    for file in source.iterdir():
        if file.suffix != ".safetensors":
            (folder / file.name).write_bytes(file.read_bytes())
    return folder


def _make(folder: Path, config: dict, seed: int) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    (folder / "generation_config.json").write_text(
        json.dumps(dict(bos_token_id=256, eos_token_id=257))
    )
    _write_tokenizer(folder, config["vocab_size"])
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in _shapes(config):
        if len(shape) == 1:
            weights[name] = torch.ones(shape, dtype=torch.bfloat16)
        else:
            # Wide enough that the greedy token depends on every layer.
            weights[name] = (torch.randn(shape, generator=generator) * 0.2).to(torch.bfloat16)
    names = list(weights)
    index = {}
    for i, part in enumerate((names[::2], names[1::2])):
        file = f"model-{i + 1:05d}-of-00002.safetensors"
        save_file({name: weights[name] for name in part}, folder / file, metadata={"format": "pt"})
        index |= {name: file for name in part}
    total = sum(w.numel() * w.element_size() for w in weights.values())
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": total}, "weight_map": index})
    )
    return folder


def _write_tokenizer(folder: Path, vocabulary_size: int) -> None:
    """A token a byte, two special ones, then words to fill up."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*letters, "<|bos|>", "<|eos|>", *(f"w{i}" for i in range(258, vocabulary_size))]
    tokenizer = Tokenizer(models.BPE(vocab={w: i for i, w in enumerate(words)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|bos|>", "<|eos|>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|eos|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(names))


def _shapes(c: dict) -> list[tuple[str, tuple[int, ...]]]:
    h, d, v = c["hidden_size"], c["head_dim"], c["vocab_size"]
    q, kv = c["num_attention_heads"] * d, c["num_key_value_heads"] * d
    shapes = [("model.embed_tokens.weight", (v, h)), ("model.norm.weight", (h,))]
    for i in range(c["num_hidden_layers"]):
        p = f"model.layers.{i}."
        shapes += [
            (p + "input_layernorm.weight", (h,)),
            (p + "post_attention_layernorm.weight", (h,)),
            (p + "self_attn.q_proj.weight", (q, h)),
            (p + "self_attn.k_proj.weight", (kv, h)),
            (p + "self_attn.v_proj.weight", (kv, h)),
            (p + "self_attn.o_proj.weight", (h, q)),
            (p + "self_attn.q_norm.weight", (d,)),
            (p + "self_attn.k_norm.weight", (d,)),
        ]
        if "num_experts" in c:
            m = c["moe_intermediate_size"]
            shapes.append((p + "mlp.gate.weight", (c["num_experts"], h)))
            mlps = [p + f"mlp.experts.{e}." for e in range(c["num_experts"])]
        else:
            m, mlps = c["intermediate_size"], [p + "mlp."]
        for mlp in mlps:
            shapes += [
                (mlp + "gate_proj.weight", (m, h)),
                (mlp + "up_proj.weight", (m, h)),
                (mlp + "down_proj.weight", (h, m)),
            ]
    if not c["tie_word_embeddings"]:
        shapes.append(("lm_head.weight", (v, h)))
    return shapes
