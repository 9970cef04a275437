"""What gpu_guard.py asks of the workers of its engines, which are told --worker-extension-cls."""

import json

import torch

_PIECE_BYTES = 16 << 20


class Checks:
    """Mixed into vLLM's worker."""

    def rouse_checksums(self) -> str:
        """The sum of the bytes of every parameter and buffer, by name; of a draft model's too."""
        sums = {}
        models = {"": self.model_runner.model}
        drafts = getattr(getattr(self.model_runner, "drafter", None), "model", None)
        if drafts is not None:
            models["draft."] = drafts
        for at, model in models.items():
            for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
                data = tensor.data.contiguous().reshape(-1).view(torch.uint8)
                # By pieces: torch makes eight bytes of each to add them up.
                pieces = data.split(_PIECE_BYTES)
                sums[at + name] = sum(int(piece.sum(dtype=torch.int64)) for piece in pieces)
        return json.dumps(sums)
