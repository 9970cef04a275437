"""What is captured when, without a GPU and without vLLM."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rouse_vllm.capture_plan import (
    FIRST_REQUEST,
    FULL,
    IDLE,
    MIN_GRAPH_BYTES,
    MISSES,
    PATIENCE_STEPS,
    PIECEWISE,
    SLACK_BYTES,
    STEPS_PER_GRAPH,
    STEPS_PER_MISSED_GRAPH,
    Facts,
    Graph,
    HeadRoom,
    Pending,
    Trigger,
    bytes_to_hold,
    refusal,
)

GIB = 1 << 30

CAN = Facts(
    cuda=True,
    graphs=True,
    data_parallel=False,
    expert_parallel=False,
    pipeline_parallel=False,
    other_executor=False,
    lora=False,
    speculative=False,
    recurrent_state=False,
    encoder_decoder=False,
    microbatches=False,
    breakable_graphs=False,
    jit_is_an_error=False,
)


def graphs(mode: str, *sizes: int) -> list[Graph]:
    return [Graph(mode, size, ("descriptor", size)) for size in sizes]


@pytest.mark.parametrize(
    ("difference", "reason"),
    [
        ({}, None),
        ({"cuda": False}, "NVIDIA GPUs only"),
        ({"graphs": False}, "captures no CUDA graphs"),
        ({"data_parallel": True}, "data parallelism"),
        ({"expert_parallel": True}, "expert parallelism"),
        ({"pipeline_parallel": True}, "pipeline stages"),
        ({"other_executor": True}, "uni and mp"),
        ({"lora": True}, "adapters"),
        ({"speculative": True}, "draft model"),
        ({"recurrent_state": True}, "recurrent state"),
        ({"encoder_decoder": True}, "cross-attention"),
        ({"microbatches": True}, "micro-batches"),
        ({"breakable_graphs": True}, "breakable"),
        ({"jit_is_an_error": True}, "jit_monitor_mode"),
    ],
)
def test_an_engine_that_cannot_capture_late_is_told_why(difference, reason):
    found = refusal(replace(CAN, **difference))
    assert found is None if reason is None else reason in found


def test_decode_graphs_come_first_and_the_largest_of_them():
    pending = Pending()
    pending.add(graphs(PIECEWISE, 1, 8, 4))
    pending.add(graphs(FULL, 2, 4))
    order = []
    while graph := pending.next():
        pending.begin(graph)
        pending.end(graph, True)
        order.append((graph.mode, graph.tokens))
    assert order == [(FULL, 4), (FULL, 2), (PIECEWISE, 8), (PIECEWISE, 4), (PIECEWISE, 1)]
    assert pending.captured == 5 and pending.left == 0 and pending.all_there


def test_a_graph_is_there_while_and_after_it_is_captured_but_not_when_that_failed():
    pending = Pending()
    large, small = graphs(FULL, 8, 4)
    pending.add([large, small])
    assert not pending.is_there(FULL, large.descriptor)
    assert pending.is_there("NONE", large.descriptor)  # Running without a graph is always possible.
    pending.begin(large)
    assert pending.is_there(FULL, large.descriptor)
    pending.end(large, False)
    assert not pending.is_there(FULL, large.descriptor)
    assert pending.dropped == [large] and pending.next() == small
    pending.begin(small)
    pending.end(small, True)
    assert pending.is_there(FULL, small.descriptor)
    assert pending.next() is None and not pending.all_there


def test_the_largest_of_each_mode_is_known():
    pending = Pending()
    pending.add(graphs(PIECEWISE, 4, 16))
    pending.add(graphs(FULL, 2, 8))
    assert (pending.largest(PIECEWISE).tokens, pending.largest(FULL).tokens) == (16, 8)


def test_the_first_request_triggers_all_at_once():
    assert Trigger(FIRST_REQUEST).due(7) == 7


def test_a_busy_engine_captures_between_steps_when_the_agent_does_not_ask():
    trigger = Trigger(IDLE)
    due = [trigger.due(9) for _ in range(PATIENCE_STEPS + 3 * STEPS_PER_GRAPH)]
    assert sum(due[:PATIENCE_STEPS]) == 0
    assert due[PATIENCE_STEPS:] == ([1] + [0] * (STEPS_PER_GRAPH - 1)) * 3
    trigger.asked()
    assert sum(trigger.due(9) for _ in range(PATIENCE_STEPS)) == 0
    assert trigger.due(9) == 1


def test_a_graph_that_is_missed_often_is_captured_before_any_other():
    pending = Pending()
    large, small, smaller = graphs(FULL, 8, 4, 2)
    pending.add([large, small, smaller])
    for _ in range(MISSES - 1):
        pending.miss(FULL, smaller.descriptor)
    assert pending.missed is None and pending.next() == large
    pending.miss(FULL, smaller.descriptor)
    assert pending.missed == smaller and pending.next() == smaller
    for _ in range(MISSES + 1):
        pending.miss(FULL, small.descriptor)
    assert pending.next() == small
    for graph in (small, smaller):
        assert pending.next() == graph
        pending.begin(graph)
        pending.end(graph, True)
    assert pending.missed is None and pending.next() == large


def test_a_graph_that_could_not_be_captured_is_missed_in_vain():
    pending = Pending()
    (graph,) = graphs(FULL, 8)
    pending.add([graph])
    pending.begin(graph)
    pending.end(graph, False)
    for _ in range(MISSES):
        pending.miss(FULL, graph.descriptor)
    assert pending.missed is None and pending.next() is None


def test_graphs_that_are_missed_are_captured_soon_with_steps_between_them():
    trigger = Trigger(IDLE)
    due = [trigger.due(9, missed=True) for _ in range(3 * STEPS_PER_MISSED_GRAPH)]
    assert due == ([0] * (STEPS_PER_MISSED_GRAPH - 1) + [1]) * 3
    assert sum(trigger.due(9) for _ in range(STEPS_PER_MISSED_GRAPH)) == 0


def test_head_room_follows_what_graphs_took():
    room = HeadRoom()
    pending = Pending()
    pending.add(graphs(FULL, 1, 2, 4))
    pending.add(graphs(PIECEWISE, 1, 2))
    left = pending.left_by_mode()
    assert room.bytes(left) == 5 * MIN_GRAPH_BYTES
    room.measured(FULL, 10 << 20)
    room.measured(PIECEWISE, 0)
    assert room.bytes(left) == (30 << 20) + 2 * MIN_GRAPH_BYTES
    room.estimated(100 << 20, left)
    assert room.bytes(left) == 100 << 20
    room.measured(FULL, 30 << 20)
    assert room.bytes(left) == 130 << 20


@pytest.mark.parametrize(
    ("wanted", "free", "step", "held"),
    [
        (GIB, 8 * GIB, 2 * GIB, GIB),
        (GIB, 8 * GIB, None, GIB),
        (6 * GIB, 8 * GIB, None, 4 * GIB),  # A step may need the other half.
        (6 * GIB, 8 * GIB, 2 * GIB, 6 * GIB - SLACK_BYTES),
        (GIB, 2 * GIB, 2 * GIB, 0),
        (0, 8 * GIB, GIB, 0),
    ],
)
def test_steps_keep_the_memory_that_they_need(wanted, free, step, held):
    assert bytes_to_hold(wanted, free, step) == held
