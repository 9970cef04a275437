"""Parts of cache keys: what differs is named, and nothing else is told."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from rouse_vllm import cache_key, cache_use
from rouse_vllm.cache_use import Recorder


def test_what_differs_is_named_by_its_finest_part() -> None:
    ours = {
        "env.A": "1",
        "env.B": "2",
        "config.model": "x",
        "config.model.dtype": "3",
        "config.lora": "y",
    }
    assert cache_key.differences(ours, ours) == []
    theirs = ours | {"env.B": "other", "config.model": "z", "config.model.dtype": "4"}
    assert cache_key.differences(ours, theirs) == ["config.model.dtype", "env.B"]
    # Nothing finer is known of it.
    assert cache_key.differences(ours, ours | {"config.lora": "z"}) == ["config.lora"]
    assert cache_key.differences(ours, {k: v for k, v in ours.items() if k != "env.A"}) == ["env.A"]


def test_parts_keep_the_names_and_not_the_values(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "hunter2-hunter2")
    parts = cache_key.environment()
    assert "env.VLLM_API_KEY" in parts and "env.VLLM_PLUGINS" in parts
    cache_key.write(tmp_path, parts)
    text = (tmp_path / cache_key.FILE_NAME).read_text()
    assert "hunter2" not in text
    assert cache_key.read(tmp_path / cache_key.FILE_NAME) == parts
    monkeypatch.setenv("VLLM_PLUGINS", "rouse,other")
    assert cache_key.differences(cache_key.environment(), parts) == ["env.VLLM_PLUGINS"]
    # The per-pod values that vLLM leaves out of its keys are left out here.
    monkeypatch.setenv("VLLM_HOST_IP", "10.0.0.7")
    assert cache_key.differences(cache_key.environment(), parts) == ["env.VLLM_PLUGINS"]


def test_whoever_made_a_cache_has_said_what_its_key_is(tmp_path: Path) -> None:
    cache_key.write(tmp_path, {"env.A": "1"})
    cache_key.write(tmp_path, {"env.A": "2"})
    assert cache_key.read(tmp_path / cache_key.FILE_NAME) == {"env.A": "1"}
    cache_key.write(tmp_path / "missing", {"env.A": "1"})
    assert not (tmp_path / "missing").exists()


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", "null", '{"version": 2, "parts": {}}', '{"version": 1, "parts": {"a": 1}}'],
)
def test_a_file_that_holds_no_parts_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "x").write_text(text)
    assert cache_key.read(tmp_path / "x") is None


def test_the_nearest_of_several_caches_is_compared_with(tmp_path: Path) -> None:
    paths = []
    for name, parts in (("a", {"x": "1", "y": "1"}), ("b", {"x": "1", "y": "2"})):
        (tmp_path / name).mkdir()
        cache_key.write(tmp_path / name, parts)
        paths.append(tmp_path / name / cache_key.FILE_NAME)
    (tmp_path / "junk").write_text("{")
    paths.append(tmp_path / "junk")
    assert cache_key.nearest({"x": "1", "y": "3"}, paths) == ["y"]
    assert cache_key.nearest({"x": "1", "y": "1"}, paths) == []
    assert cache_key.nearest({"x": "1"}, []) is None


def test_inner_caches_take_over_what_differed_in_the_outermost(tmp_path: Path) -> None:
    recorder = Recorder("socket", 0)
    recorder.miss("aot_compile", tmp_path, "it differs", ["env.A"])
    recorder.count("fx_graph", 0, 3, "no entry")
    recorder.count("triton", 2, 0, "")
    recorder.count("aot_autograd", 0, 0, "")
    found = {
        lookup.cache: lookup for lookup in recorder.finish() if lookup.cache != "compiled_artifact"
    }
    assert found["fx_graph"].factors == ["env.A"] and found["fx_graph"].misses == 3
    assert found["triton"].factors == [] and found["triton"].hits == 2
    assert "aot_autograd" not in found
    json.dumps([vars(lookup) for lookup in found.values()])


def test_graphs_alike_are_compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a model of 48 equal layers, whose three compiled graphs were found."""
    from vllm.compilation.counter import compilation_counter

    recorder = Recorder("socket", 0, counters_before=cache_use._counters())
    for name, more in (("num_compiled_artifacts_loaded", 3), ("num_inductor_compiles", 46)):
        monkeypatch.setattr(compilation_counter, name, getattr(compilation_counter, name) + more)
    (found,) = (x for x in recorder.finish() if x.cache == "compiled_artifact")
    assert (found.hits, found.misses) == (3, 0)


#: A platform that says it is a GPU's: everything else of it is this machine's.
_AS_ON_A_GPU = """
import torch
import vllm.platforms
here = vllm.platforms.current_platform
fake = type("FakeGpuPlatform", (type(here),), {"is_cpu": lambda self: False})
vllm.platforms._current_platform = fake()
before = torch.Event, torch.cuda.Event, torch.cuda.Stream, torch.cuda.current_stream
from rouse_vllm import cache_use
cache_use.install("/nowhere", 0)
assert cache_use._recorder is not None
assert before == (torch.Event, torch.cuda.Event, torch.cuda.Stream, torch.cuda.current_stream)
"""


def test_watching_caches_leaves_torchs_events_and_streams_alone_on_a_gpu() -> None:
    """Importing vLLM's worker for CPUs replaces them by placeholders, for the whole process."""
    done = subprocess.run(
        [sys.executable, "-c", _AS_ON_A_GPU], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
