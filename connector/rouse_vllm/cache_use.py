"""Tells the agent whether the engine finds in its compile caches what it looks for there, and why not.

The caches, from the outermost, each of which is asked when the one before has missed or needs it:

- aot_compile: vLLM's artefact of the whole model, torch_compile_cache/torch_aot_compile/KEY
- torch_compile_cache: vLLM's folder of compiled graphs, torch_compile_cache/KEY
- compiled_artifact: what lies in that folder
- aot_autograd, fx_graph: Inductor's own
- triton: compiled kernels

vLLM has no extension point for any of this: its two lookups are wrapped, Inductor's counters are read
once the model is compiled, and Triton calls a listener.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vllm.logger import init_logger

from rouse_vllm import cache_key, patches, phases, session
from rouse_vllm.errors import RouseError, Unsupported

logger = init_logger("vllm.rouse")

_MAX_TEXT = 1024
_MAX_NAME = 200

#: Where the agent puts caches, as the operator tells the engine.
STATE_VARIABLE = "ROUSE_STATE_DIR"


@dataclass
class Lookup:
    """All lookups in one cache."""

    cache: str
    hits: int = 0
    misses: int = 0
    where: str = ""
    reason: str = ""
    factors: list[str] = field(default_factory=list)


@dataclass
class Recorder:
    """What one rank has looked for."""

    socket: str
    rank: int
    lookups: dict[str, Lookup] = field(default_factory=dict)
    #: Caches that are being made, and what their keys are made of.
    keys: dict[Path, cache_key.Parts] = field(default_factory=dict)
    counters_before: dict[str, int] = field(default_factory=dict)

    def lookup(self, cache: str) -> Lookup:
        return self.lookups.setdefault(cache, Lookup(cache))

    def hit(self, cache: str, where: Path) -> None:
        lookup = self.lookup(cache)
        lookup.hits += 1
        lookup.where = lookup.where or str(where)

    def miss(self, cache: str, where: Path, reason: str, factors: list[str] | None = None) -> None:
        lookup = self.lookup(cache)
        lookup.misses += 1
        lookup.where, lookup.reason = str(where)[:_MAX_TEXT], reason[:_MAX_TEXT]
        lookup.factors = [name[:_MAX_NAME] for name in (factors or [])[: cache_key.MAX_NAMED]]

    def count(self, cache: str, hits: int, misses: int, reason: str) -> None:
        """Of a cache that only counts."""
        if hits == 0 and misses == 0:
            return
        lookup = self.lookup(cache)
        lookup.hits += hits
        lookup.misses += misses
        if misses:
            lookup.reason = reason

    def finish(self) -> list[Lookup]:
        """Reads the counters, and leaves the keys with the caches that were made."""
        now = _counters()
        grown = {name: now[name] - self.counters_before.get(name, 0) for name in now}
        self.count(
            "compiled_artifact",
            grown["artifacts_loaded"],
            grown["artifacts_stored"],
            "it was compiled anew",
        )
        self.count(
            "aot_autograd",
            grown["autograd_cache_hit"],
            grown["autograd_cache_miss"] + grown["autograd_cache_bypass"],
            "no entry for the graph" if not grown["autograd_cache_bypass"] else "it was bypassed",
        )
        self.count(
            "fx_graph",
            grown["fxgraph_cache_hit"],
            grown["fxgraph_cache_miss"] + grown["fxgraph_cache_bypass"],
            "no entry for the graph" if not grown["fxgraph_cache_bypass"] else "it was bypassed",
        )
        for folder, parts in self.keys.items():
            try:
                cache_key.write(folder, parts)
            except OSError as error:
                logger.warning("Rouse: the parts of a cache's key are not kept: %s", error)
        self.keys.clear()
        lookups = list(self.lookups.values())
        # The inner caches lie below the outermost one's key: what differed there, differs here.
        outer = next((x.factors for x in lookups if x.factors), [])
        for lookup in lookups:
            if lookup.misses and not lookup.factors and outer:
                lookup.factors = outer
        return lookups


_recorder: Recorder | None = None


def install(socket: str, rank: int) -> None:
    """Has the engine of this process report. Called before its model is compiled."""
    global _recorder
    try:
        _wrap()
    except (Unsupported, ImportError) as error:
        logger.warning("Rouse: the use of compile caches is not reported: %s", error)
        return
    _recorder = Recorder(socket, rank, counters_before=_counters())


def _wrap() -> None:
    from vllm.compilation import decorators
    from vllm.compilation.backends import VllmBackend

    patches.wrap(
        decorators,
        "_try_load_aot_compiled_fn",
        ("model, aot_compilation_path",),
        _watch_aot,
    )
    patches.wrap(VllmBackend, "__call__", ("self, graph, example_inputs",), _watch_folder)
    phases.wrap_workers("compile_or_warm_up_model", "self", _then_report)
    _listen_to_triton()


def _then_report(original: Callable[..., Any]) -> Callable[..., Any]:
    def warm_up(self: Any) -> Any:
        result = original(self)
        report()
        return result

    return warm_up


def report() -> None:
    """Tells the agent, once."""
    global _recorder
    recorder, _recorder = _recorder, None
    if recorder is None:
        return
    try:
        lookups = recorder.finish()
        session.cache_use(recorder.socket, recorder.rank, [asdict(x) for x in lookups])
    except RouseError as error:
        logger.warning("Rouse: the agent was not told of the use of compile caches: %s", error)
        return
    for lookup in lookups:
        if lookup.misses:
            logger.info(
                "Rouse: %s: %d hits, %d misses: %s %s",
                lookup.cache,
                lookup.hits,
                lookup.misses,
                lookup.reason,
                ", ".join(lookup.factors),
            )
        else:
            logger.info("Rouse: %s: %d hits", lookup.cache, lookup.hits)


def _watch_aot(original: Callable[..., Any]) -> Callable[..., Any]:
    def load(model: Any, aot_compilation_path: str) -> Any:
        if _recorder is None:
            return original(model, aot_compilation_path)
        path = Path(aot_compilation_path)
        was_there = path.exists()
        with _warnings("vllm.compilation.decorators") as said:
            loaded = original(model, aot_compilation_path)
        if loaded is not None:
            _recorder.hit("aot_compile", path.parent)
            return loaded
        parts = cache_key.common(model.vllm_config) | cache_key.function(model.forward)
        _recorder.keys[path.parent] = parts
        if was_there:
            why = said[-1].partition("reason: ")[2] if said else "the engine's log says why"
            _recorder.miss("aot_compile", path.parent, f"it is there and does not load: {why}")
        else:
            others = path.parents[1].parent.glob(f"*/{path.parent.name}/{cache_key.FILE_NAME}")
            reason, factors = _why_nothing(parts, others)
            _recorder.miss("aot_compile", path.parent, reason, factors)
        return None

    return load


def _watch_folder(original: Callable[..., Any]) -> Callable[..., Any]:
    def compile_graph(self: Any, graph: Any, example_inputs: Any) -> Any:
        if _recorder is None:
            return original(self, graph, example_inputs)
        from vllm import envs

        root = Path(envs.VLLM_CACHE_ROOT, "torch_compile_cache")
        before = {path.parent for path in root.glob("*/rank_*/*/vllm_compile_cache.py")}
        traced = sorted(self.compilation_config.traced_files)  # vLLM clears it.
        result = original(self, graph, example_inputs)
        folder = Path(self.compilation_config.local_cache_dir)
        if folder in before:
            _recorder.hit("torch_compile_cache", folder)
            return result
        parts = cache_key.common(self.vllm_config) | cache_key.code(traced)
        _recorder.keys[folder] = parts
        inside = folder.relative_to(folder.parents[1])  # rank_0_0/backbone
        others = [path for path in root.glob(f"*/{inside}/{cache_key.FILE_NAME}")]
        reason, factors = _why_nothing(parts, others)
        _recorder.miss("torch_compile_cache", folder, reason, factors)
        return result

    return compile_graph


def _why_nothing(parts: cache_key.Parts, others: Any) -> tuple[str, list[str]]:
    from vllm import envs

    state = os.environ.get(STATE_VARIABLE, "")
    if state and not Path(envs.VLLM_CACHE_ROOT).is_relative_to(state):
        return (
            f"VLLM_CACHE_ROOT is {envs.VLLM_CACHE_ROOT}, the agent's caches are in {state}",
            ["place.VLLM_CACHE_ROOT"],
        )
    factors = cache_key.nearest(parts, others)
    if factors is None:
        return "there is no cache yet", []
    if not factors:
        return "a cache of the same key parts has another key: one of them has no name here", []
    return f"{len(factors)} parts of the key differ from the nearest cache", factors


class _Collector(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


@contextlib.contextmanager
def _warnings(name: str) -> Iterator[list[str]]:
    """What this logger warns of in the with block."""
    collector = _Collector()
    watched = logging.getLogger(name)
    watched.addHandler(collector)
    try:
        yield collector.messages
    finally:
        watched.removeHandler(collector)


def _counters() -> dict[str, int]:
    from torch._dynamo.utils import counters
    from vllm.compilation.counter import compilation_counter

    autograd, inductor = counters["aot_autograd"], counters["inductor"]
    return {
        "artifacts_loaded": compilation_counter.num_compiled_artifacts_loaded,
        # Not num_inductor_compiles: of graphs alike, each is asked for, and one is compiled.
        "artifacts_stored": compilation_counter.num_cache_entries_updated,
        **{
            name: autograd[name]
            for name in ("autograd_cache_hit", "autograd_cache_miss", "autograd_cache_bypass")
        },
        **{
            name: inductor[name]
            for name in ("fxgraph_cache_hit", "fxgraph_cache_miss", "fxgraph_cache_bypass")
        },
    }


def _listen_to_triton() -> None:
    """Counts the kernels that this process compiles, or finds compiled. Inductor compiles some of its
    in processes of their own, which are not counted."""
    try:
        from triton import knobs

        before = knobs.compilation.listener
    except (ImportError, AttributeError):
        return  # None here (CPU), or an older one.
    if getattr(before, "_rouse", False):
        return

    def listen(**about: Any) -> Any:
        if _recorder is not None:
            if about.get("cache_hit"):
                _recorder.count("triton", 1, 0, "")
            else:
                _recorder.count("triton", 0, 1, "the kernel was compiled")
        return before(**about) if before is not None else None

    listen._rouse = True  # type: ignore[attr-defined]
    knobs.compilation.listener = listen
