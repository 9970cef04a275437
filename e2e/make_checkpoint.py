#!/usr/bin/env python3
"""Writes a small but real Qwen3-MoE checkpoint with random weights and a local tokenizer.

    make_checkpoint.py FOLDER

Four layers of 32 experts each, 324 MB in four safetensors shards with an index, bfloat16. The same
bytes every time (one seed, one numpy version), so that two runs can be compared. Needs numpy only.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy

SEED = 20
SHARD_BYTES = 100_000_000
CONFIG = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "dtype": "bfloat16",
    "torch_dtype": "bfloat16",
    "hidden_size": 512,
    "intermediate_size": 1536,
    "moe_intermediate_size": 640,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "num_experts": 32,
    "num_experts_per_tok": 4,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "norm_topk_prob": True,
    "output_router_logits": False,
    "router_aux_loss_coef": 0.001,
    "vocab_size": 32000,
    "max_position_embeddings": 2048,
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 256,
    "eos_token_id": 257,
    "pad_token_id": 257,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "tie_word_embeddings": False,
    "use_cache": True,
    "use_sliding_window": False,
    "sliding_window": None,
}
TOKENIZER_CONFIG = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "bos_token": "<|bos|>",
    "eos_token": "<|eos|>",
    "pad_token": "<|eos|>",
    "model_max_length": 2048,
    "clean_up_tokenization_spaces": False,
    "chat_template": "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}",
}


def tensors() -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes as Hugging Face's Qwen3-MoE has them."""
    hidden, head = CONFIG["hidden_size"], CONFIG["head_dim"]
    queries, keys = CONFIG["num_attention_heads"], CONFIG["num_key_value_heads"]
    yield "model.embed_tokens.weight", (CONFIG["vocab_size"], hidden)
    for layer in range(CONFIG["num_hidden_layers"]):
        prefix = f"model.layers.{layer}"
        yield f"{prefix}.input_layernorm.weight", (hidden,)
        yield f"{prefix}.self_attn.q_proj.weight", (queries * head, hidden)
        yield f"{prefix}.self_attn.k_proj.weight", (keys * head, hidden)
        yield f"{prefix}.self_attn.v_proj.weight", (keys * head, hidden)
        yield f"{prefix}.self_attn.o_proj.weight", (hidden, queries * head)
        yield f"{prefix}.self_attn.q_norm.weight", (head,)
        yield f"{prefix}.self_attn.k_norm.weight", (head,)
        yield f"{prefix}.post_attention_layernorm.weight", (hidden,)
        yield f"{prefix}.mlp.gate.weight", (CONFIG["num_experts"], hidden)
        inner = CONFIG["moe_intermediate_size"]
        for expert in range(CONFIG["num_experts"]):
            yield f"{prefix}.mlp.experts.{expert}.gate_proj.weight", (inner, hidden)
            yield f"{prefix}.mlp.experts.{expert}.up_proj.weight", (inner, hidden)
            yield f"{prefix}.mlp.experts.{expert}.down_proj.weight", (hidden, inner)
    yield "model.norm.weight", (hidden,)
    yield "lm_head.weight", (CONFIG["vocab_size"], hidden)


def size(shape: tuple[int, ...]) -> int:
    return 2 * int(numpy.prod(shape))


def values(shape: tuple[int, ...], random: numpy.random.Generator) -> bytes:
    if len(shape) == 1:  # norms
        return numpy.full(shape, 0x3F80, numpy.uint16).tobytes()  # 1.0
    bits = (random.standard_normal(shape, numpy.float32) * numpy.float32(0.02)).view(numpy.uint32)
    rounded = bits + 0x7FFF + ((bits >> 16) & 1)  # to nearest, ties to even
    return (rounded >> 16).astype(numpy.uint16).tobytes()


def write_shard(path: Path, content: list[tuple[str, tuple[int, ...]]], seed: int) -> None:
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name, shape in content:
        end = offset + size(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    random = numpy.random.default_rng([SEED, seed])
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, shape in content:
            file.write(values(shape, random))


def byte_alphabet() -> list[str]:
    """The printable stand-ins of the 256 bytes in byte-level BPE (as GPT-2 chose them)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    stand_in = {byte: chr(byte) for byte in printable}
    stand_in.update({byte: chr(256 + number) for number, byte in enumerate(others)})
    return [stand_in[byte] for byte in range(256)]


def tokenizer() -> dict:
    """Byte-level BPE without merges: a token a byte, two specials, then words to fill up."""
    vocabulary = {letter: number for number, letter in enumerate(sorted(byte_alphabet()))}
    vocabulary.update({"<|bos|>": 256, "<|eos|>": 257})
    vocabulary.update({f"w{number}": number for number in range(258, CONFIG["vocab_size"])})
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": vocabulary[text], "content": text, **special, "special": True}
            for text in ("<|bos|>", "<|eos|>")
        ],
        "normalizer": None,
        "pre_tokenizer": {**byte_level, "use_regex": True},
        "post_processor": None,
        "decoder": {**byte_level, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": vocabulary,
            "merges": [],
        },
    }


def weight_bytes() -> int:
    return sum(size(shape) for _, shape in tensors())


def make(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)

    def write(name: str, document: dict) -> None:
        (folder / name).write_text(json.dumps(document, indent=1) + "\n")

    write("config.json", CONFIG)
    write("tokenizer.json", tokenizer())
    write("tokenizer_config.json", TOKENIZER_CONFIG)
    write("generation_config.json", {"bos_token_id": 256, "eos_token_id": 257})
    shards: list[list[tuple[str, tuple[int, ...]]]] = [[]]
    filled = 0
    for name, shape in tensors():
        if shards[-1] and filled + size(shape) > SHARD_BYTES:
            shards.append([])
            filled = 0
        shards[-1].append((name, shape))
        filled += size(shape)
    weight_map = {}
    for number, content in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        write_shard(folder / file, content, number)
        weight_map.update({name: file for name, _ in content})
    write(
        "model.safetensors.index.json",
        {"metadata": {"total_size": weight_bytes()}, "weight_map": weight_map},
    )


def cached() -> Path:
    """The checkpoint in the cache folder, made if it is not there yet."""
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    from rouse_e2e import paths

    key = hashlib.sha256(Path(__file__).read_bytes() + numpy.__version__.encode()).hexdigest()[:16]
    folder = paths.cache("models", f"qwen3-moe-{key}")
    with paths.locked("checkpoint"):
        if not folder.exists():
            partial = folder.with_suffix(".partial")
            shutil.rmtree(partial, ignore_errors=True)
            make(partial)
            partial.rename(folder)
    return folder


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    make(Path(sys.argv[1]))
