"""What gpu_guard.py asks of the workers of its engines, which are told --worker-extension-cls."""

import json

import torch


class Checks:
    """Mixed into vLLM's worker."""

    def rouse_checksums(self) -> str:
        """The sum of the bytes of every parameter and buffer, by name."""
        sums = {}
        model = self.model_runner.model
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            data = tensor.data.contiguous().reshape(-1).view(torch.uint8)
            sums[name] = int(data.sum(dtype=torch.int64))
        return json.dumps(sums)
