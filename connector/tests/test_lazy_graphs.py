"""When which graph is captured. The captures are fakes: there is no GPU."""

from __future__ import annotations

import gc
import multiprocessing
from types import SimpleNamespace
from typing import Any

import torch
from fake_graphs import MAX_REQUESTS, MIB, SIZES, FakeDevice, FakeRanks, FakeRunner
from vllm.distributed import parallel_state

from rouse_vllm.capture_plan import FIRST_REQUEST, FULL, IDLE, PATIENCE_STEPS, PIECEWISE, Graph
from rouse_vllm.lazy_graphs import LazyGraphs, Ranks


def started(trigger: str = IDLE, device: FakeDevice | None = None, ranks: FakeRanks | None = None):
    """Graphs of an engine that is up, with the largest of both modes captured; and its runner."""
    device = device or FakeDevice()
    runner = FakeRunner(device)
    graphs = LazyGraphs(trigger, device, lambda: ranks or FakeRanks())
    for mode, sizes in ((PIECEWISE, SIZES), (FULL, [s for s in SIZES if s <= MAX_REQUESTS])):
        graphs.start(runner, [Graph(mode, size, (mode, size)) for size in sizes])
    return graphs, runner


def test_at_start_the_largest_graph_of_each_mode_is_captured_and_memory_held_for_the_others():
    device = FakeDevice()
    graphs, runner = started(device=device)
    assert runner.captured == [(PIECEWISE, 64), (FULL, 32)] and runner.late_ones == 0
    assert graphs.pending.left == 16
    # Of the first graph's 60 MiB the pool's 50 serve the others too.
    assert graphs.bytes_to_come == 16 * 10 * MIB
    assert device.held == []  # Not before vLLM has warmed up.
    assert graphs.step(9.0) == (0, 16)
    graphs.serve(step_bytes=100 * MIB)
    assert device.held == [160 * MIB] and graphs.held_bytes == 160 * MIB


def test_head_room_is_vllms_own_estimate_where_it_has_one():
    device = FakeDevice()
    graphs = LazyGraphs(IDLE, device, FakeRanks)
    graphs.expect(60 * MIB + 3 * 25 * MIB)
    graphs.start(FakeRunner(device), [Graph(FULL, size, size) for size in (1, 2, 4, 8)])
    assert graphs.bytes_to_come == 75 * MIB


def test_a_step_captures_one_graph_and_more_only_while_there_is_time(monkeypatch):
    graphs, runner = started()
    graphs.serve(None)
    assert graphs.step(0.0) == (1, 15)
    assert runner.captured[-1] == (FULL, 24)
    now = 100.0
    monkeypatch.setattr("rouse_vllm.lazy_graphs.time.monotonic", lambda: now)
    capture_one = runner.capture

    def in_a_tenth(graph):
        nonlocal now
        now += 0.1
        capture_one(graph)

    runner.capture = in_a_tenth
    assert graphs.step(0.35) == (3, 12)
    assert graphs.step(0.05) == (1, 11)
    assert graphs.held_bytes == 11 * 10 * MIB
    assert graphs.step(60.0) == (11, 0)
    assert graphs.step(60.0) == (0, 0)
    assert graphs.held_bytes == 0 and graphs.pending.all_there
    assert gc.isenabled()


def test_memory_is_given_back_for_the_first_late_graph_of_a_mode_and_where_it_is_short():
    device = FakeDevice()
    graphs, runner = started(device=device)
    graphs.serve(None)
    device.settled.clear()
    graphs.finish()
    late = [mode for mode, _ in runner.captured[2:]]
    first = {late.index(FULL), late.index(PIECEWISE)}
    assert len(late) == 16
    assert device.settled == [i in first for i in range(16) for _ in ("before", "after")]

    device = FakeDevice(free_mib=600)
    graphs, _ = started(device=device)
    graphs.serve(None)
    graphs.step(0.0)
    device.settled.clear()
    device.free = 300 * MIB  # less than the graphs at start took and a step's slack
    graphs.step(0.0)
    assert device.settled == [True, False]
    assert graphs.bytes_to_come == 14 * 10 * MIB


def test_steps_between_captures_that_the_agent_asks_for_do_not_add_up():
    graphs, runner = started()
    graphs.serve(None)
    for _ in range(PATIENCE_STEPS):
        graphs.before_step()
    assert graphs.step(0.0) == (1, 15)
    for _ in range(PATIENCE_STEPS):
        graphs.before_step()
    assert graphs.pending.left == 15
    graphs.before_step()
    assert graphs.pending.left == 14


def test_only_the_first_ranks_clock_says_whether_there_is_time():
    # The first rank goes on once more than this one's clock would; then it stops. For each graph
    # the question whether to go on, whether there is memory, and whether it worked.
    ranks = FakeRanks([True, True, True, True, True, True, False], first=False)
    graphs, runner = started(ranks=ranks)
    graphs.serve(None)
    assert graphs.step(0.0) == (2, 14)
    assert all(ranks.said)


def test_a_graph_that_fails_on_another_rank_is_used_on_none():
    graphs, runner = started(ranks=FakeRanks([True, True, False, False]))
    graphs.serve(None)
    assert graphs.step(0.0) == (0, 15)
    assert [graph.tokens for graph in runner.forgotten] == [24]
    assert not graphs.pending.is_there(FULL, (FULL, 24))


def test_ranks_do_not_begin_a_graph_for_which_one_of_them_has_no_memory():
    graphs, runner = started(ranks=FakeRanks([True, False, False]))
    graphs.serve(None)
    assert graphs.step(0.0) == (0, 15)
    assert runner.captured == [(PIECEWISE, 64), (FULL, 32)] and len(graphs.pending.dropped) == 1


def test_a_graph_that_finds_no_memory_is_left_out_and_the_others_are_captured():
    graphs, runner = started()
    graphs.serve(None)
    runner.failing = {
        24: torch.OutOfMemoryError("CUDA out of memory"),
        2: RuntimeError("CUDA error: out of memory"),
    }
    graphs.finish()
    assert graphs.pending.left == 0 and len(graphs.pending.dropped) == 4
    assert runner.forgotten == graphs.pending.dropped
    for mode, size in ((FULL, 24), (FULL, 2), (PIECEWISE, 24), (PIECEWISE, 2)):
        dropped = (mode, size) not in runner.captured
        assert graphs.pending.is_there(mode, (mode, size)) != dropped
    assert gc.isenabled()


def test_the_first_request_waits_for_all_graphs():
    graphs, runner = started(FIRST_REQUEST)
    graphs.before_step()  # One of vLLM's own, for warming up.
    assert graphs.pending.left == 16
    graphs.serve(None)
    graphs.before_step()
    assert graphs.pending.left == 0 and len(runner.captured) == 18
    graphs.before_step()
    assert len(runner.captured) == 18


def _ask_the_other_rank(rank: int, store: str, answers: Any) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=2
    )
    parallel_state._WORLD = SimpleNamespace(
        world_size=2, rank_in_group=rank, cpu_group=torch.distributed.group.WORLD
    )
    with torch.inference_mode():  # As captures are.
        ranks = Ranks()
        asked = (True, ranks.first, not ranks.first, False)
        answers.put((ranks.count, [ranks.all_agree(yes) for yes in asked]))


def test_ranks_agree_only_when_all_of_them_say_yes(tmp_path):
    forking = multiprocessing.get_context("fork")
    answers = forking.Queue()
    processes = [
        forking.Process(target=_ask_the_other_rank, args=(rank, str(tmp_path / "store"), answers))
        for rank in range(2)
    ]
    for process in processes:
        process.start()
    found = [answers.get(timeout=60) for _ in processes]
    for process in processes:
        process.join(timeout=60)
        assert process.exitcode == 0
    assert found == [(2, [True, False, False, False])] * 2
