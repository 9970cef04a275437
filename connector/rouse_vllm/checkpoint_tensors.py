"""Which tensors the checkpoint holds, where there is no checkpoint.

vLLM looks into the weight files before it builds a model: which layers of a GPTQ or AWQ checkpoint are
quantised, of what type the weights are when the configuration does not say. A target has no weight
files; its agent puts what a peer's hold beside the other small files, and vLLM is shown that.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rouse_vllm.patches import wrap

#: As in agent/state/model_files.h.
FILE = "rouse-tensors.json"

_Read = Callable[[Path], dict[str, Any]]


def install() -> None:
    """Unsupported when this vLLM looks into weight files in another way."""
    import vllm.transformers_utils.config

    wrap(
        vllm.transformers_utils.config,
        "_read_safetensors_metadata_in_dir",
        ("local_dir",),
        _or_what_a_peer_has,
    )


def _or_what_a_peer_has(read: _Read) -> _Read:
    def read_or_take(local_dir: Path) -> dict[str, Any]:
        found = read(local_dir)
        told = local_dir / FILE
        if found or not told.is_file():
            return found
        return json.loads(told.read_text())

    return read_or_take
