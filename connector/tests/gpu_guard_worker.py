"""What gpu_guard.py asks of the workers of its engines, which are told --worker-extension-cls."""

import json

import torch

_PIECE_BYTES = 16 << 20


class Checks:
    """Mixed into vLLM's worker."""

    def rouse_checksums(self) -> str:
        """The sum of the bytes of every parameter and buffer, by name."""
        sums = {}
        model = self.model_runner.model
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            data = tensor.data.contiguous().reshape(-1).view(torch.uint8)
            # By pieces: torch makes eight bytes of each to add them up.
            sums[name] = sum(int(piece.sum(dtype=torch.int64)) for piece in data.split(_PIECE_BYTES))
        return json.dumps(sums)
