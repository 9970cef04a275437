"""Which CUDA graphs are captured when: decisions only, without a GPU and without vLLM.

Every decision depends on the configuration and on the sequence of engine steps alone, which are the
same on all ranks of an instance: they capture the same graphs at the same step.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field

EAGER = "Eager"
LAZY = "Lazy"

IDLE = "Idle"
FIRST_REQUEST = "FirstRequest"

FULL = "FULL"
PIECEWISE = "PIECEWISE"

#: With IDLE, steps with requests in them that pass without the agent having had a graph captured,
#: before graphs are captured between the steps: 5 to 10 s of decoding.
PATIENCE_STEPS = 512
#: From then on one graph (0.03 to 0.1 s) is captured every so many steps: no request waits for more
#: than one, and even steps of a single token (4 ms) are slowed down by a tenth or two only.
STEPS_PER_GRAPH = 128

#: How often a batch has to do without a graph until that one is captured, before any other: in a few
#: steps a load that does not change much runs as if all were there.
MISSES = 8
#: At least so many steps lie between two graphs that are captured for that reason.
STEPS_PER_MISSED_GRAPH = 4

#: What vLLM itself takes for the least that a graph costs, in bytes.
MIN_GRAPH_BYTES = 1 << 20
#: Left free besides what a step needs when memory is held for graphs, in bytes.
SLACK_BYTES = 256 << 20


@dataclass(frozen=True)
class Facts:
    """What decides whether this engine can capture late."""

    cuda: bool
    graphs: bool  # It captures graphs at all.
    data_parallel: bool
    expert_parallel: bool
    pipeline_parallel: bool
    other_executor: bool  # Not one that has a worker execute each step when told to.
    lora: bool
    speculative: bool
    recurrent_state: bool  # Layers that keep a state by block, not only keys and values.
    encoder_decoder: bool
    microbatches: bool
    breakable_graphs: bool
    jit_is_an_error: bool


_REFUSALS = (
    (
        "data_parallel",
        "with data parallelism the replicas' steps are not the same, and capturing takes all of them",
    ),
    (
        "expert_parallel",
        "with expert parallelism capturing takes all ranks of all replicas at the same step",
    ),
    ("pipeline_parallel", "pipeline stages are at different steps"),
    ("other_executor", "graphs are captured between the steps of vLLM's own executors, uni and mp"),
    ("lora", "capturing puts dummy adapters in the place of the loaded ones"),
    ("speculative", "the draft model's graphs are captured with those of the model"),
    ("recurrent_state", "capturing would write to the recurrent state of live requests"),
    ("encoder_decoder", "capturing would write to the cross-attention cache of live requests"),
    ("microbatches", "graphs of micro-batches are not captured one by one"),
    ("breakable_graphs", "breakable CUDA graphs are captured by the model, not by the runner"),
    ("jit_is_an_error", "jit_monitor_mode is error, and late graphs compile their kernels late"),
)


def refusal(facts: Facts) -> str | None:
    """Why all graphs have to be captured at start, or None when they need not be."""
    if not facts.cuda:
        return "CUDA graphs are captured on NVIDIA GPUs only"
    if not facts.graphs:
        return "this engine captures no CUDA graphs"
    for name, reason in _REFUSALS:
        if getattr(facts, name):
            return reason
    return None


@dataclass(frozen=True)
class Graph:
    """One graph to capture. Two graphs with the same mode and descriptor are the same graph."""

    mode: str  # FULL or PIECEWISE
    tokens: int = field(compare=False)
    descriptor: Hashable


class Pending:
    """The graphs of one engine: captured ones, those that are left, and those that could not be."""

    def __init__(self) -> None:
        self._missing: set[tuple[str, Hashable]] = set()
        self._misses: Counter[tuple[str, Hashable]] = Counter()
        self._left: list[Graph] = []
        self.captured = 0
        self.dropped: list[Graph] = []

    def add(self, graphs: Iterable[Graph]) -> None:
        for graph in graphs:
            self._left.append(graph)
            self._missing.add((graph.mode, graph.descriptor))
        # The largest first: smaller ones find room in its memory. FULL ones first: they are the
        # decode steps of few requests, where launching kernels one by one costs most.
        self._left.sort(key=lambda graph: (graph.mode != FULL, -graph.tokens))

    def is_there(self, mode: str, descriptor: Hashable) -> bool:
        """Whether a batch may be given to this graph. True for whatever is not a graph of ours."""
        return (mode, descriptor) not in self._missing

    def miss(self, mode: str, descriptor: Hashable) -> None:
        """A batch that would have been given to this graph had to do without."""
        self._misses[mode, descriptor] += 1

    @property
    def missed(self) -> Graph | None:
        """The graph that is left whose lack was felt most, if it was often."""
        graph = max(self._left, key=self._misses_of, default=None)
        return graph if graph is not None and self._misses_of(graph) >= MISSES else None

    def _misses_of(self, graph: Graph) -> int:
        return self._misses[graph.mode, graph.descriptor]

    @property
    def all_there(self) -> bool:
        return not self._missing

    @property
    def left(self) -> int:
        return len(self._left)

    def left_by_mode(self) -> Counter[str]:
        return Counter(graph.mode for graph in self._left)

    def largest(self, mode: str) -> Graph:
        return next(graph for graph in self._left if graph.mode == mode)

    def next(self) -> Graph | None:
        return self.missed or (self._left[0] if self._left else None)

    def begin(self, graph: Graph) -> None:
        """Capturing runs the model as if the graph were there already."""
        self._left.remove(graph)
        self._missing.remove((graph.mode, graph.descriptor))

    def end(self, graph: Graph, captured: bool) -> None:
        if captured:
            self.captured += 1
        else:
            self._missing.add((graph.mode, graph.descriptor))
            self.dropped.append(graph)


class Trigger:
    """Says before each step with requests in it how many graphs are captured first."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._busy_steps = 0
        self._steps_since_missed = 0

    def due(self, left: int, missed: bool = False) -> int:
        """`missed`: one of those that are left is missed."""
        if self.kind == FIRST_REQUEST:
            return left
        self._busy_steps += 1
        self._steps_since_missed += 1
        if missed and self._steps_since_missed >= STEPS_PER_MISSED_GRAPH:
            self._steps_since_missed = 0
            return min(left, 1)
        late = self._busy_steps - PATIENCE_STEPS
        return min(left, 1) if late > 0 and late % STEPS_PER_GRAPH == 1 else 0

    def asked(self) -> None:
        """The agent had graphs captured: it finds idle moments."""
        self._busy_steps = 0


class HeadRoom:
    """How much GPU memory the graphs that are left will need, in bytes."""

    def __init__(self) -> None:
        self._each: dict[str, int] = {}

    def measured(self, mode: str, graph_bytes: int) -> None:
        """What one more graph of this mode took: the next ones will take as much."""
        self._each[mode] = max(graph_bytes, MIN_GRAPH_BYTES)

    def estimated(self, all_bytes: int, left: Counter[str]) -> None:
        """vLLM has an estimate of its own for the graphs that are left together."""
        for mode in left:
            self._each[mode] = max(all_bytes // left.total(), MIN_GRAPH_BYTES)

    def bytes(self, left: Counter[str]) -> int:
        return sum(self._each.get(mode, MIN_GRAPH_BYTES) * count for mode, count in left.items())


def bytes_to_hold(wanted: int, free: int, step: int | None) -> int:
    """How much of `free` memory to hold for later graphs. What a step needs (None: not known) is
    left, since running out there would end the engine, and here only leaves a size without graph.
    """
    spare = free // 2 if step is None else free - step - SLACK_BYTES
    return max(0, min(wanted, spare))
