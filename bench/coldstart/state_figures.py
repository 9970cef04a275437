"""What reused caches save, out of the samples of run.py: docs/benchmarks/state-h200.json."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import row_names as rows

import figures

Sample = dict[str, Any]

#: What vLLM's log says of a start (server.py), and what the agent did before it.
_PARTS: list[tuple[str, Callable[[Sample], float | None]]] = [
    ("torch.compile", lambda x: x.get("compileSeconds")),
    (
        "torch.compile, kernels compiled at first use, autotuning, warm-up and graph capture",
        lambda x: x.get("initSeconds"),
    ),
    ("start to first token", lambda x: x["seconds"]),
]


def _median(samples: list[Sample], take: Callable[[Sample], float | None]) -> float | None:
    values = [value for x in samples if (value := take(x)) is not None]
    return statistics.median(values) if values else None


def _lookups(samples: list[Sample]) -> tuple[int, int]:
    """Found and asked for, over all caches that the plugin watches."""
    pairs = [pair for x in samples for pair in x.get("cacheLookups", {}).values()]
    return sum(hits for hits, _ in pairs), sum(hits + misses for hits, misses in pairs)


def _hydrated(samples: list[Sample]) -> list[Sample]:
    """Of those that say what they found: the first runs' samples do not."""
    return [x for x in samples if x["row"] == rows.STATE and x.get("cacheLookups")]


def of_model(model: str, samples: list[Sample]) -> list[figures.Figure]:
    hydrated = _hydrated(samples)
    if not hydrated:
        return []
    found, asked = _lookups(hydrated)
    out = [
        figures.Figure(
            f"{model}: caches found, of {asked} looked up in {len(hydrated)} hydrated starts",
            found,
            "",
        )
    ]
    # Of the runs that say all of it: machines differ, and the older ones had another.
    cold_starts = [x for x in samples if x["row"] == rows.VLLM_COLD and "compileSeconds" in x]
    for what, take in _PARTS:
        cold, warm = _median(cold_starts, take), _median(hydrated, take)
        if cold is None or warm is None:
            continue
        out.append(figures.Figure(f"{model}: {what}, cold", round(cold, 2), "s"))
        ratio = round(warm / cold, 4)
        out.append(figures.Figure(f"{model}: {what}, hydrated", round(warm, 2), "s", "cold", ratio))
    shared = _median([x for x in samples if x["row"] == rows.SHARED], lambda x: x["seconds"])
    if shared is not None:
        what = "start to first token, caches on a volume shared with the first instance"
        out.append(figures.Figure(f"{model}: {what}", round(shared, 2), "s"))
    hydrating = _median(hydrated, lambda x: x.get("hydrateSeconds"))
    if hydrating is not None:
        what = "agent's start until the engine may start, caches there"
        out.append(figures.Figure(f"{model}: {what}", round(hydrating, 3), "s"))
    return out


def of_all(by_model: dict[str, list[Sample]]) -> list[figures.Figure]:
    found, asked = _lookups([x for samples in by_model.values() for x in _hydrated(samples)])
    if asked == 0:
        return []
    rate = round(found / asked, 6)
    out = [figures.Figure("hash-matched cache hit rate, hydrated", rate, "", f"{asked} lookups")]
    return out + [
        figure for model, samples in by_model.items() for figure in of_model(model, samples)
    ]
