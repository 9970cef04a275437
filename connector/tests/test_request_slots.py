"""What vLLM's second model runner holds for requests goes while an engine sleeps, and comes back empty.

Its sampler cannot be made without a GPU: the classes here stand in for its own, which the last two tests read.
"""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from vllm.v1.worker.gpu.sample import penalties
from vllm.v1.worker.gpu.sample.sampler import Sampler
from vllm.v1.worker.gpu.structured_outputs import StructuredOutputsWorker

from rouse_vllm import patches, request_slots
from rouse_vllm.request_slots import RequestSlots

SLOTS, WORDS = 16, 1 << 15


class StandInSampler:
    def __init__(self) -> None:
        self.penalties_state = SimpleNamespace(
            output_bin_counts=torch.ones(SLOTS, WORDS, dtype=torch.int32),
            prompt_bin_mask=torch.ones(SLOTS, WORDS // 32, dtype=torch.int32),  # too small
        )
        self.bad_words_state = SimpleNamespace(
            bad_word_token_ids=SimpleNamespace(gpu=torch.ones(SLOTS, 1 << 14, dtype=torch.int32)),
            max_num_reqs=SLOTS,
        )
        self.other_state = SimpleNamespace(tensor=torch.ones(SLOTS, WORDS, dtype=torch.int32))

    def add_request(self, req_idx: int, prompt_len: int, sampling_params: Any) -> None: ...


class StandInMasks:
    def __init__(self) -> None:
        # Three tokens a request may be drafted.
        self.grammar_bitmask = torch.ones(SLOTS * 4, 1 << 12, dtype=torch.int32)

    def apply_grammar_bitmask(
        self, logits: Any, input_batch: Any, grammar_req_ids: Any, grammar_bitmask: Any
    ) -> None: ...


def runner(sampler: Any, masks: Any = None) -> Any:
    return SimpleNamespace(
        sampler=sampler, structured_outputs_worker=masks or StandInMasks(), max_num_reqs=SLOTS,
        device=torch.device("cpu"),
    )  # fmt: skip


def held(sampler: StandInSampler, masks: StandInMasks | None = None) -> dict[str, int]:
    tensors = {} if masks is None else {"masks": masks.grammar_bitmask}
    tensors |= {
        "counts": sampler.penalties_state.output_bin_counts,
        "mask": sampler.penalties_state.prompt_bin_mask,
        "words": sampler.bad_words_state.bad_word_token_ids.gpu,
        "other": sampler.other_state.tensor,
    }
    return {name: tensor.untyped_storage().nbytes() for name, tensor in tensors.items()}


def test_they_go_and_come_back_cleared() -> None:
    sampler, masks = StandInSampler(), StandInMasks()
    counts = sampler.penalties_state.output_bin_counts
    row = counts[3]
    before = held(sampler, masks)
    slots = RequestSlots(runner(sampler, masks))
    for _ in range(2):
        slots.give_up()
        slots.give_up()
        assert held(sampler, masks) == before | {"counts": 0, "words": 0, "masks": 0}
        slots.take_back()
        slots.take_back()
        assert held(sampler, masks) == before
        assert not counts.any() and counts.shape == (SLOTS, WORDS)
        counts[3, 7] = 5
        assert row[7] == 5  # Whoever has a part of one still has it.
    assert sampler.penalties_state.prompt_bin_mask.all() and sampler.other_state.tensor.all()


def test_those_that_are_no_memory_of_the_gpu_stay() -> None:
    sampler = StandInSampler()
    whole = torch.ones(SLOTS + 1, WORDS, dtype=torch.int32)
    sampler.penalties_state.output_bin_counts = whole[1:]
    sampler.bad_words_state.bad_word_token_ids.gpu = torch.frombuffer(
        bytearray(SLOTS << 16), dtype=torch.int32
    ).view(SLOTS, 1 << 14)
    before = held(sampler)
    RequestSlots(runner(sampler)).give_up()
    assert held(sampler) == before


def test_the_first_model_runner_has_none() -> None:
    first = SimpleNamespace(
        sampler=SimpleNamespace(topk_topp_sampler=None), max_num_reqs=SLOTS, device="cpu"
    )
    slots = RequestSlots(first)
    slots.give_up()
    slots.take_back()


def test_those_of_an_unknown_sampler_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    class Other(StandInSampler):
        def add_request(self, req_idx: int, prompt_len: int) -> None: ...

    said: list[str] = []
    monkeypatch.setattr(request_slots.logger, "info", said.append)
    sampler = Other()
    before = held(sampler)
    for other in (runner(sampler), runner(StandInSampler(), SimpleNamespace())):
        RequestSlots(other).give_up()
        assert "another one than this plugin knows" in said.pop()
    assert held(sampler) == before


def test_vllm_clears_a_row_before_it_counts_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    class NoKernel:
        def __getitem__(self, grid: Any) -> Any:
            return lambda *args, **kwargs: None

    monkeypatch.setattr(penalties, "_bincount_kernel", NoKernel())
    rows, counts = (torch.ones(4, 8, dtype=torch.int32) for _ in range(2))
    tokens, length = torch.zeros(4, 8, dtype=torch.int32), torch.ones(4, dtype=torch.int32)
    penalties.bincount(
        torch.tensor([1, 3], dtype=torch.int32), tokens, length, length, rows, counts, 1
    )
    assert rows.any(1).tolist() == counts.any(1).tolist() == [True, False, True, False]


def test_the_classes_of_vllm_are_the_ones_that_are_known() -> None:
    for owner, method in ((Sampler, "add_request"), (StructuredOutputsWorker, "apply_grammar_bitmask")):
        assert patches.parameters(getattr(owner, method)) in request_slots._KNOWN[method]
