"""GPU memory that vLLM's second model runner holds for requests that might come.

Its sampler has rows for each request that may run at a time, the largest a count for each word of the
vocabulary: 0.6 GiB with 1,024 requests and 151,936 words. While no request is under way nothing in
them is of use: vLLM writes or clears a row's parts when it gives the row to a request that reads them
(PenaltiesState.apply_staged_writes, StagedWriteTensor), and writes masks of grammars in each step
(StructuredOutputsWorker). vLLM's own sleep mode drops them too.
"""

from __future__ import annotations

from typing import Any

import torch
from vllm.logger import init_logger

from rouse_vllm import patches

logger = init_logger("vllm.rouse")

#: What is smaller is not worth an allocation of its own.
_LEAST_BYTES = 1 << 20
_MASKS = "structured_outputs_worker"
_STATES = ("penalties_state", "logit_bias_state", "bad_words_state", "logprob_token_ids_state")
_KNOWN = {
    "add_request": ("self, req_idx, prompt_len, sampling_params",),
    "apply_grammar_bitmask": ("self, logits, input_batch, grammar_req_ids, grammar_bitmask",),
}


def _known(owner: Any, method: str) -> bool:
    function = getattr(type(owner), method, None)
    return function is not None and patches.parameters(function) in _KNOWN[method]


def _tensors(state: Any) -> list[torch.Tensor]:
    """Of one state; some are within a StagedWriteTensor."""
    found = [getattr(value, "gpu", value) for value in vars(state).values()]
    return [tensor for tensor in found if isinstance(tensor, torch.Tensor)]


class RequestSlots:
    """Those of one model runner. give_up() and take_back() may be called again after a failure."""

    def __init__(self, runner: Any) -> None:
        self._given: list[tuple[torch.Tensor, int]] = []
        self._tensors: list[torch.Tensor] = []
        sampler, masks = getattr(runner, "sampler", None), getattr(runner, _MASKS, None)
        holders = [getattr(sampler, name, None) for name in _STATES]
        if all(holder is None for holder in holders):
            return  # The first model runner has them in the host's memory.
        if not (_known(sampler, "add_request") and _known(masks, "apply_grammar_bitmask")):
            return logger.info(
                "Rouse: this vLLM's sampler is another one than this plugin knows, so a guard holds "
                "its memory while it sleeps"
            )
        self._tensors = [
            tensor
            for holder in [*holders, masks]
            for tensor in ([] if holder is None else _tensors(holder))
            if tensor.device == runner.device
            and tensor.dim() == 2
            and tensor.shape[0] % runner.max_num_reqs == 0
            and tensor.untyped_storage().resizable()  # Not the host's memory, seen from the GPU.
            and tensor.untyped_storage().nbytes() == tensor.nbytes >= _LEAST_BYTES
        ]

    def give_up(self) -> None:
        for tensor in self._tensors:
            storage = tensor.untyped_storage()
            if storage.nbytes() > 0:
                self._given.append((tensor, storage.nbytes()))
                storage.resize_(0)

    def take_back(self) -> None:
        """Cleared, as they were at the start."""
        while self._given:
            tensor, size = self._given[-1]
            tensor.untyped_storage().resize_(size)
            with torch.inference_mode():
                tensor.zero_()
            self._given.pop()
