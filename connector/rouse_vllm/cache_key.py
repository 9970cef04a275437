"""What vLLM's keys of its compile caches are made of, name by name, so that two of them can be compared.

vLLM says of a key only what it hashes to. Here each part of it gets a name ("env.VLLM_PLUGINS",
"config.model.max_model_len", "code./path/of/a/file.py", "compiler.inductor.max_autotune") and a digest
of its value. Values stay here: the environment holds secrets. The parts lie beside a cache in a file,
and travel with it; whoever finds no cache compares its own with those that are there.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from rouse_vllm import patches

#: Beside vLLM's own files of a cache.
FILE_NAME = "rouse_key_parts.json"

MAX_NAMED = 8

_VERSION = 1
_MAX_FILE_BYTES = 4 << 20

Parts = dict[str, str]


def digest(value: object) -> str:
    if not isinstance(value, bytes):
        value = json.dumps(value, sort_keys=True, default=repr).encode()
    return hashlib.sha256(value).hexdigest()[:16]


def environment() -> Parts:
    """The variables that are in the keys."""
    from vllm import envs

    return {f"env.{name}": digest(value) for name, value in envs.compile_factors().items()}


def configuration(vllm_config: Any) -> Parts:
    """The configuration, by the fields that its parts are hashed over. A part that does not hash
    fields is one value."""
    import vllm

    parts = {"config.vllm": digest(vllm.__version__)}
    for name in sorted(vars(vllm_config)):
        part = getattr(vllm_config, name)
        if name == "additional_config":
            parts["config.additional_config"] = digest(part)
        elif part is not None and callable(getattr(part, "compute_hash", None)):
            prefix = f"config.{name.removesuffix('_config')}"
            whole, fields = _hashed(part.compute_hash)
            parts[prefix] = digest(whole)
            for field, value in fields.items():
                parts[f"{prefix}.{field}"] = digest(value)
    return parts


def _hashed(compute_hash: Callable[[], object]) -> tuple[object, dict[str, object]]:
    """What it returns, and what vLLM's hash function was given meanwhile."""
    import vllm.config.utils

    original = vllm.config.utils.hash_factors
    seen: dict[str, object] = {}

    def hash_factors(items: dict[str, object]) -> str:
        seen.update(items)
        return original(items)

    with patches.replaced(vllm.config.utils, "hash_factors", hash_factors):
        return compute_hash(), seen


def code(files: Iterable[str]) -> Parts:
    """Source files that were compiled."""
    parts = {}
    for file in files:
        if file == "<string>":
            continue
        try:
            parts[f"code.{file}"] = digest(Path(file).read_bytes())
        except OSError:
            parts[f"code.{file}"] = ""
    return parts


def function(forward: Callable[..., Any]) -> Parts:
    """The function that is compiled, as the outermost cache knows it."""
    where = f"{forward.__qualname__}:{forward.__code__.co_firstlineno}"
    return {"code.forward": digest(where)}


def compiler() -> Parts:
    from vllm.compilation.compiler_interface import get_inductor_factors

    names = ("system", "torch", "inductor", "functorch")
    parts = {}
    for name, factors in zip(names, get_inductor_factors()):
        if isinstance(factors, dict) and name != "system":
            for key, value in factors.items():
                parts[f"compiler.{name}.{key}"] = digest(value)
        else:
            parts[f"compiler.{name}"] = digest(factors)
    return parts


def common(vllm_config: Any) -> Parts:
    """What every cache's key is made of. (The compiler is in the outermost one's only if that is the
    whole artefact; what differs in it, differs in the ones below in any case.)"""
    return environment() | configuration(vllm_config) | compiler()


def differences(ours: Parts, theirs: Parts) -> list[str]:
    """Names of what differs; of a part and its fields only the fields."""
    names = sorted(
        name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name)
    )
    return [name for name in names if not any(other.startswith(f"{name}.") for other in names)]


def write(folder: Path, parts: Parts) -> None:
    """Unless there are some already: those of whoever made the cache."""
    path = folder / FILE_NAME
    if folder.is_dir() and not path.exists():
        partial = folder / f"{FILE_NAME}.tmp"
        partial.write_text(json.dumps({"version": _VERSION, "parts": parts}, sort_keys=True))
        partial.rename(path)


def read(path: Path) -> Parts | None:
    """None when there are none, or they are no such file."""
    try:
        if path.stat().st_size > _MAX_FILE_BYTES:
            return None
        document = json.loads(path.read_text())
        parts = document["parts"] if document["version"] == _VERSION else None
    except (OSError, ValueError, LookupError, TypeError):
        return None
    if not isinstance(parts, dict) or not all(isinstance(v, str) for v in parts.values()):
        return None
    return parts


def nearest(ours: Parts, others: Iterable[Path]) -> list[str] | None:
    """What differs from that of the other caches which differs least; None when there is none."""
    found = [differences(ours, theirs) for path in others if (theirs := read(path)) is not None]
    return min(found, key=len, default=None)
