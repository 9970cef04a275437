"""The loader on real vLLM models, against agents that do what they should, and agents that do not.

No engine is started: the loader loads into a model that vLLM built in this process, and what it left
is looked at right before vLLM post-processes it.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from agents import LOADING_PHASES
from fake_agent import Answer, Die, FakeAgent, Weights
from tiny_models import make_moe, make_tied, without_weights

os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from vllm.config import set_current_vllm_config  # noqa: E402
from vllm.engine.arg_utils import EngineArgs  # noqa: E402
from vllm.model_executor.model_loader import base_loader, get_model, get_model_loader  # noqa: E402

import rouse_vllm  # noqa: E402
from rouse_vllm import guard, identity, library, loader, ranks, stand_in, tensors  # noqa: E402


@dataclass
class Loaded:
    """What the loader left, before post-processing."""

    values: dict[str, torch.Tensor]
    places: dict[str, str]  # name -> line of /proc/self/maps that its memory is in


def mapping_of(address: int) -> str:
    for line in Path("/proc/self/maps").read_text().splitlines():
        low, high = (int(x, 16) for x in line.split()[0].split("-"))
        if low <= address < high:
            return line
    return "nothing"


@pytest.fixture(scope="session")
def parallel_state(tmp_path_factory: pytest.TempPathFactory) -> None:
    from vllm.distributed import ensure_model_parallel_initialized, init_distributed_environment

    folder = tmp_path_factory.mktemp("parallel")
    config = EngineArgs(
        model=str(make_moe(folder / "m")), skip_tokenizer_init=True
    ).create_engine_config()
    with set_current_vllm_config(config):
        init_distributed_environment(1, 0, f"file://{folder}/rendezvous", 0, backend="gloo")
        ensure_model_parallel_initialized(1, 1)


@pytest.fixture(scope="session")
def moe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_moe(tmp_path_factory.mktemp("checkpoints") / "moe", seed=1)


@pytest.fixture(scope="session")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tied(tmp_path_factory.mktemp("checkpoints") / "tied", seed=2)


@pytest.fixture
def bare(moe: Path, tmp_path: Path) -> Path:
    """The MoE model without weight files."""
    return without_weights(moe, tmp_path / "bare")


Load = Callable[..., Loaded]


@pytest.fixture
def load(parallel_state: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Load]:
    """load(model, agent or None for stock vLLM, **engine arguments) -> Loaded"""
    seen: list[Loaded] = []
    process = base_loader.process_weights_after_loading

    def look(model: torch.nn.Module, *arguments: Any) -> None:
        named = tensors.collect(model, "Loaded")
        values = {n.name: n.tensor.detach().clone() for n in named}
        seen.append(Loaded(values, {n.name: mapping_of(n.tensor.data_ptr()) for n in named}))
        process(model, *arguments)

    monkeypatch.setattr(base_loader, "process_weights_after_loading", look)

    def load_one(model: Path, socket: Path | None, **arguments: Any) -> Loaded:
        extra = {"connectTimeoutS": 0.3} | arguments.pop("extra", {})
        rouse = dict(load_format="rouse", model_loader_extra_config={"socket": str(socket)} | extra)
        config = EngineArgs(
            model=str(model),
            enforce_eager=True,
            skip_tokenizer_init=True,
            max_model_len=256,
            **(rouse if socket is not None else {}),
            **arguments,
        ).create_engine_config()
        try:
            with set_current_vllm_config(config):
                get_model(vllm_config=config)
        finally:
            torch.set_default_dtype(torch.float32)  # vLLM leaves the model's when loading fails
        assert config.load_config.load_format == ("rouse" if socket is not None else "auto")
        return seen[-1]

    yield load_one
    for link in loader._open_links:
        link.close()
    loader._open_links.clear()


def same(left: Loaded, right: Loaded) -> bool:
    assert left.values.keys() == right.values.keys()
    return all(torch.equal(left.values[n], right.values[n]) for n in left.values)


def publish(load: Load, model: Path, folder: Path, **arguments: Any) -> tuple[Loaded, Weights]:
    with FakeAgent(folder / "publisher.sock") as agent:
        result = load(model, agent.path, **arguments)
    assert agent.errors == []
    assert agent.published is not None
    return result, agent.published


# ---- Weights that change hands -------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["moe", "tied"])
def test_a_target_has_the_sources_weights_in_the_agents_memory(
    load: Load, kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    checkpoint = request.getfixturevalue(kind)
    stock = load(checkpoint, None)
    source, published = publish(load, checkpoint, tmp_path)
    assert same(source, stock)
    target_folder = without_weights(checkpoint, tmp_path / "target")
    with FakeAgent(tmp_path / "target.sock", weights=published.pulled()) as agent:
        target = load(target_folder, agent.path)
    assert agent.errors == []
    assert same(target, stock)
    # Neither side computes with a second copy: private mappings of the agent's own memory.
    for loaded, memfd in ((source, "/memfd:slab"), (target, "/memfd:pulled")):
        for name, line in loaded.places.items():
            assert memfd in line and line.split()[1] == "rw-p", f"{name}: {line}"
    if kind == "tied":
        rows = {t["name"]: t for t in json.loads(published.manifest)["tensors"]}
        embed = rows["model.embed_tokens.weight"]
        assert rows["lm_head.weight"] == embed | {"name": "lm_head.weight"}


def test_a_source_and_a_target_say_what_the_protocol_has_them_say(
    load: Load, moe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(rouse_vllm.IMPORTED_AT_VARIABLE, "1234567")
    with FakeAgent(tmp_path / "s0") as agent:
        load(moe, agent.path)
    assert agent.stream is not None
    batches = ["NextBatch"] * (len(agent.stream.batches) + 1)
    assert agent.types() == [
        "Hello", *["Phase"] * 4, "OpenStream", *batches, "CloseStream",
        "CreateArena", "GetSlabs", "Publish", *["Phase"] * 3,
    ]  # fmt: skip
    assert agent.published is not None
    with FakeAgent(tmp_path / "s1", weights=agent.published.pulled()) as other:
        load(moe, other.path)
    assert other.types() == [
        "Hello", *["Phase"] * 4, "AwaitWeights", "GetSlabs", *["Phase"] * 3,
    ]  # fmt: skip
    for phases in (agent.phases(), other.phases()):
        assert list(phases) == LOADING_PHASES
        times = list(phases.values())
        assert times[0] == 1234567 and times == sorted(times)


def test_nobody_can_write_to_what_was_published(load: Load, moe: Path, tmp_path: Path) -> None:
    with FakeAgent(tmp_path / "s") as agent:
        load(moe, agent.path)
        assert agent.published is not None
        before = agent.published.content()
    assert agent.writable_at_publish == []
    for link in loader._open_links:
        link.close()
    assert agent.published.content() == before  # post-processing is over by now


def test_a_pull_that_takes_long_is_waited_for(
    load: Load, moe: Path, bare: Path, tmp_path: Path
) -> None:
    source, published = publish(load, moe, tmp_path)
    waits = [3]

    def not_yet(request: dict[str, Any], answer: Answer) -> Answer:
        waits[0] -= 1
        if waits[0] < 0:
            return answer
        return {"type": "Error", "code": "DeadlineExceeded", "message": "on their way"}, []

    agent = FakeAgent(
        tmp_path / "s", weights=published.pulled(), overrides={"AwaitWeights": not_yet}
    )
    with agent:
        assert same(load(bare, agent.path), source)
    assert agent.types().count("AwaitWeights") == 4


def test_slabs_beyond_one_message_are_fetched_in_batches(
    load: Load, moe: Path, tmp_path: Path
) -> None:
    import fake_agent

    source, published = publish(load, moe, tmp_path)
    content = published.content()
    cut = fake_agent.create_slabs(len(content), slab_bytes=16 * 1024)
    for i, fd in enumerate(cut.slabs):
        os.pwrite(fd, content[i * 16 * 1024 :][: cut.slab_bytes[i]], 0)
    cut.manifest = published.manifest
    assert len(cut.slabs) > 64
    with FakeAgent(tmp_path / "s", weights=cut) as agent:
        assert same(load(moe, agent.path), source)
    asked = [(r["first"], r["count"]) for r in agent.requests if r["type"] == "GetSlabs"]
    assert asked == [(i, min(64, len(cut.slabs) - i)) for i in range(0, len(cut.slabs), 64)]


# ---- Processed weights -----------------------------------------------------------------------------


@pytest.fixture
def processed_form(monkeypatch: pytest.MonkeyPatch) -> dict[str, torch.nn.Module]:
    """Weights change hands after post-processing, as on CUDA, though this is a CPU.

    Linear layers hide theirs in opaque handles here, so only what can be seen is compared: the
    embeddings, norms and experts. Yields the model that was loaded last, under "model".
    """
    monkeypatch.setattr(ranks, "form_for", lambda device_type: "Processed")
    last: dict[str, torch.nn.Module] = {}
    finish = loader.RouseModelLoader._finish

    def look(self: loader.RouseModelLoader, model: torch.nn.Module) -> bool:
        done = finish(self, model)
        last["model"] = model
        return done

    monkeypatch.setattr(loader.RouseModelLoader, "_finish", look)
    return last


def values(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {n.name: n.tensor.detach().clone() for n in tensors.collect(model, "Processed")}


def test_processed_weights_are_exchanged_after_post_processing(
    load: Load, moe: Path, bare: Path, tmp_path: Path, processed_form: dict[str, torch.nn.Module]
) -> None:
    source, published = publish(load, moe, tmp_path)
    expected = values(processed_form["model"])
    assert "model.embed_tokens.weight" in expected
    assert json.loads(published.manifest)["form"] == "Processed"
    with FakeAgent(tmp_path / "s", weights=published.pulled()) as agent:
        before = load(bare, agent.path)
    assert agent.errors == []
    assert not same(before, source)  # post-processing saw dummy weights
    got = values(processed_form["model"])
    assert got.keys() == expected.keys()
    assert all(torch.equal(got[n], expected[n]) for n in got)


def test_processed_weights_that_do_not_fit_are_replaced_by_a_load_from_storage(
    load: Load, moe: Path, tmp_path: Path, processed_form: dict[str, torch.nn.Module]
) -> None:
    _, published = publish(load, moe, tmp_path)
    expected = values(processed_form["model"])

    def change(manifest: dict[str, Any]) -> None:
        manifest["scalars"]["model.norm.unknown"] = 1

    with FakeAgent(tmp_path / "s", weights=published.pulled(change)) as agent:
        load(moe, agent.path)
    assert agent.errors == []
    got = values(processed_form["model"])
    assert all(torch.equal(got[n], expected[n]) for n in expected)
    assert agent.types().count("Publish") == 1


# ---- Without weights ------------------------------------------------------------------------------


def published_as(agent: FakeAgent) -> list[bool]:
    """For each Publish whether it was of placeholders."""
    return [r.get("placeholders", False) for r in agent.requests if r["type"] == "Publish"]


@pytest.mark.parametrize("processed", [False, True])
def test_an_engine_may_begin_without_weights(
    load: Load, moe: Path, bare: Path, tmp_path: Path, processed: bool, request: Any
) -> None:
    if processed:
        request.getfixturevalue("processed_form")
    source, published = publish(load, moe, tmp_path)
    with FakeAgent(tmp_path / "s", begin_without=True) as agent:
        begun = load(bare, agent.path)  # There are no weight files to read.
    assert agent.errors == [] and published_as(agent) == [True]
    assert not same(begun, source)
    assert processed or guard.problem(None) == ""
    # What a peer has fits in.
    assert agent.published is not None
    ours, theirs = json.loads(agent.published.manifest), json.loads(published.manifest)
    assert {k: ours[k] for k in ("tensors", "allocations", "scalars", "form")} == {
        k: theirs[k] for k in ("tensors", "allocations", "scalars", "form")
    }


def test_numbers_made_of_weights_need_weights(
    load: Load,
    moe: Path,
    tmp_path: Path,
    processed_form: dict[str, torch.nn.Module],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, published = publish(load, moe, tmp_path)
    expected = values(processed_form["model"])
    scalar = {"model.norm.scale": 1.5}
    monkeypatch.setattr(tensors, "changed", lambda before, after: scalar)
    with FakeAgent(tmp_path / "s", begin_without=True) as agent:
        load(moe, agent.path)
    assert agent.errors == [] and published_as(agent) == [False]
    got = values(processed_form["model"])
    assert all(torch.equal(got[n], expected[n]) for n in expected)


def test_an_engine_whose_agent_goes_never_serves_with_placeholders(
    load: Load, moe: Path, tmp_path: Path
) -> None:
    source = load(moe, None)
    with FakeAgent(tmp_path / "s", begin_without=True, overrides={"CreateArena": die}) as agent:
        assert same(load(moe, agent.path), source)
    assert published_as(agent) == []


# ---- Arenas in GPU memory -----------------------------------------------------------------------


class StandInForGpuArena(library.Arena):
    """Host memory, mapped as a GPU's is: writes reach the slabs until they are forbidden."""

    def map(self, offset: int, size: int, fd: int, access: int) -> None:
        super().map(offset, size, fd, library.MAP_SHARED)
        if access == library.GPU_READ:
            self.protect()

    def protect(self) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.mprotect(ctypes.c_void_p(self.address), ctypes.c_size_t(self.size), 1) == 0


@pytest.fixture
def on_gpu(
    processed_form: dict[str, torch.nn.Module], monkeypatch: pytest.MonkeyPatch
) -> dict[str, torch.nn.Module]:
    """The engine takes the CPU for the GPU "GPU-1"."""
    monkeypatch.setattr(identity, "gpu_uuid", lambda device_type: "GPU-1")
    monkeypatch.setattr(library, "GpuArena", StandInForGpuArena)
    monkeypatch.setattr("rouse_vllm.link._release_gpu_memory", lambda: None)
    monkeypatch.setattr("rouse_vllm.gpu_pools.empty_cache", lambda: None)
    monkeypatch.setattr(stand_in, "memory", contextlib.nullcontext)
    monkeypatch.setattr(
        tensors,
        "GpuArenaView",
        lambda arena, allocations: tensors.ArenaView(arena.buffer(), allocations),
    )
    return processed_form


def places(model: torch.nn.Module) -> dict[str, str]:
    """Each tensor's kind, and the mapping that it is in."""
    named = tensors.collect(model, "Processed")
    return {n.name: f"{n.kind} {mapping_of(n.tensor.data_ptr())}" for n in named}


def test_on_a_gpu_what_began_without_weights_has_all_of_a_peers_when_it_wakes(
    load: Load, moe: Path, bare: Path, tmp_path: Path, on_gpu: dict[str, torch.nn.Module]
) -> None:
    with FakeAgent(tmp_path / "source.sock", gpu="GPU-1") as agent:
        load(moe, agent.path)
    assert agent.published is not None
    source = agent.published
    expected = values(on_gpu["model"])
    with FakeAgent(tmp_path / "guard.sock", gpu="GPU-1", begin_without=True) as agent:
        load(bare, agent.path)
        assert published_as(agent) == [True]
        model = on_gpu["model"]
        begun, where = values(model), places(model)
        # Also what is no parameter, and so not in the arena.
        differing = {n for n in expected if not torch.equal(begun[n], expected[n])}
        assert {n for n in differing if "rouse-rank" not in where[n]}
        (held,) = guard.served().models
        held.release()
        agent.weights = source.pulled()
        held.map_new()
        held.await_new()
        got = values(model)
        assert all(torch.equal(got[n], expected[n]) for n in expected)
        assert places(model).keys() == where.keys()
    assert agent.errors == []


@pytest.mark.parametrize("kind", ["moe", "tied"])
def test_on_a_gpu_both_sides_compute_with_the_arenas_parameters(
    load: Load,
    kind: str,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    on_gpu: dict[str, torch.nn.Module],
) -> None:
    checkpoint = request.getfixturevalue(kind)
    with FakeAgent(tmp_path / "source.sock", gpu="GPU-1") as agent:
        load(checkpoint, agent.path)
    assert agent.errors == [] and agent.published is not None
    assert agent.requests[0]["gpu"] == "GPU-1"
    expected = values(on_gpu["model"])
    source = places(on_gpu["model"])
    target_folder = without_weights(checkpoint, tmp_path / "target")
    pulled = agent.published.pulled()
    with FakeAgent(tmp_path / "target.sock", weights=pulled, gpu="GPU-1") as agent:
        load(target_folder, agent.path)
    assert agent.errors == []
    got = values(on_gpu["model"])
    assert got.keys() == expected.keys()
    assert all(torch.equal(got[n], expected[n]) for n in got)
    for side, memfd in ((source, "/memfd:slab"), (places(on_gpu["model"]), "/memfd:pulled")):
        for name, place in side.items():
            # Nobody can change what peers read; what an engine may write to is its own. (vLLM keeps
            # rotary embeddings for the process: an earlier test's may lie in a private mapping.)
            if place.startswith("Parameter"):
                assert memfd in place and " r--s " in place, f"{name}: {place}"
            else:
                assert " r--s " not in place, f"{name}: {place}"
        assert any(place.startswith("Buffer") for place in side.values())
    model = on_gpu["model"]
    if kind == "tied":
        assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()


class StandInMemory:
    """Stands in for the library's: the large tensors of models that are built in it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, found: dict[str, torch.nn.Module]) -> None:
        self.entered = 0
        self.left = [0]
        self._open = False
        self._places = set[int]()
        make = torch.empty

        def empty(*size: Any, **more: Any) -> torch.Tensor:
            tensor = make(*size, **more)
            if self._open and tensor.numel() > 1000:
                self._places.add(tensor.untyped_storage().data_ptr())
                self._kept.append(tensor)  # So that nothing else comes to lie there.
            return tensor

        self._kept = list[torch.Tensor]()
        monkeypatch.setattr(torch, "empty", empty)
        monkeypatch.setattr(stand_in, "memory", self.memory)
        monkeypatch.setattr(stand_in, "holds", self.holds)
        monkeypatch.setattr(
            stand_in, "bytes_in_use", lambda: self.left.pop() if len(self.left) > 1 else 0
        )

    @contextlib.contextmanager
    def memory(self) -> Iterator[None]:
        self.entered += 1
        self._open = True
        yield
        self._open = False
        for tensor in self._kept:
            tensor.fill_(0)  # Nothing of it may be used.

    def holds(self, tensor: torch.Tensor) -> bool:
        return tensor.untyped_storage().data_ptr() in self._places


def test_a_model_on_a_gpu_is_built_without_memory_for_the_weights_that_come(
    load: Load,
    moe: Path,
    bare: Path,
    tmp_path: Path,
    on_gpu: dict[str, torch.nn.Module],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    memory = StandInMemory(monkeypatch, on_gpu)
    with FakeAgent(tmp_path / "source.sock", gpu="GPU-1") as agent:
        load(moe, agent.path)
    assert agent.published is not None
    assert memory.entered == 0, "weights from storage need memory"
    # Each slab is asked for when what comes before it has been moved.
    asked = [(x["first"], x["count"]) for x in agent.requests if x["type"] == "GetSlabs"]
    assert asked == [(i, 1) for i in range(len(asked))]
    expected = values(on_gpu["model"])
    for gpu in ("GPU-1", "GPU-2"):  # whose memory the weights are in
        with FakeAgent(tmp_path / gpu, weights=agent.published.pulled(), gpu=gpu) as target:
            load(bare, target.path)
        assert target.errors == []
        named = tensors.collect(on_gpu["model"], "Processed")
        assert memory.entered > 0 and not [n.name for n in named if memory.holds(n.tensor)]
        got = values(on_gpu["model"])
        assert all(torch.equal(got[n], expected[n]) for n in expected), gpu


def test_a_model_that_keeps_tensors_which_are_not_found_is_built_with_memory_of_its_own(
    load: Load,
    moe: Path,
    bare: Path,
    tmp_path: Path,
    on_gpu: dict[str, torch.nn.Module],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, published = publish(load, moe, tmp_path)
    expected = values(on_gpu["model"])
    memory = StandInMemory(monkeypatch, on_gpu)
    memory.left = [0, 4096]  # after the first load
    with FakeAgent(tmp_path / "target", weights=published.pulled(), gpu="GPU-1") as agent:
        load(bare, agent.path)
    assert agent.errors == [] and memory.entered == 1
    assert agent.types().count("AwaitWeights") == 2
    got = values(on_gpu["model"])
    assert all(torch.equal(got[n], expected[n]) for n in expected)


def test_on_another_gpu_than_the_arenas_an_engine_keeps_its_own_memory(
    load: Load, moe: Path, bare: Path, tmp_path: Path, on_gpu: dict[str, torch.nn.Module]
) -> None:
    with FakeAgent(tmp_path / "source.sock", gpu="GPU-1") as agent:
        load(moe, agent.path)
    assert agent.published is not None
    expected = values(on_gpu["model"])
    with FakeAgent(tmp_path / "s", weights=agent.published.pulled(), gpu="GPU-2") as agent:
        load(bare, agent.path)
    assert agent.errors == []
    got = values(on_gpu["model"])
    assert all(torch.equal(got[n], expected[n]) for n in expected)
    assert not any(" r--s " in place for place in places(on_gpu["model"]).values())


# ---- Identities ---------------------------------------------------------------------------------


def test_the_identity_is_the_same_with_and_without_weight_files(
    load: Load, moe: Path, bare: Path, tmp_path: Path
) -> None:
    hellos = []
    for i, model in enumerate((moe, bare)):
        with FakeAgent(tmp_path / f"s{i}") as agent:
            try:
                load(model, agent.path)
            except RuntimeError:
                assert model is bare  # nothing to load from; the identity was said before
        hellos.append(agent.requests[0])
    assert hellos[0]["identity"].pop("weightFiles")
    assert hellos[0]["identity"] == hellos[1]["identity"]
    assert hellos[0]["identity"]["dtype"] == "bfloat16"
    assert hellos[0]["identity"]["engineVersion"] == hellos[0]["engineVersion"]
    assert (hellos[0]["rank"], hellos[0]["worldSize"]) == (0, 1)


@pytest.mark.parametrize(
    ("arguments", "field"), [({"dtype": "float32"}, "dtype"), ({"revision": "v2"}, "revision")]
)
def test_weights_of_another_identity_are_not_taken(
    load: Load, moe: Path, bare: Path, tmp_path: Path, arguments: dict[str, str], field: str
) -> None:
    stock = load(moe, None, **arguments)
    _, published = publish(load, moe, tmp_path)
    with FakeAgent(tmp_path / "s", weights=published.pulled()) as agent:
        assert same(load(moe, agent.path, **arguments), stock)
        assert "AwaitWeights" not in agent.types()
        assert agent.published is not None
        with pytest.raises(
            RuntimeError, match=f"no weights for .*another identity: {field}.*volume"
        ):
            load(bare, agent.path, **arguments)


def test_other_weights_of_the_same_shapes_are_another_identity(
    load: Load, moe: Path, bare: Path, tmp_path: Path
) -> None:
    other = make_moe(tmp_path / "other", seed=2)
    stock = load(other, None)
    _, published = publish(load, moe, tmp_path)
    with FakeAgent(tmp_path / "s", weights=published.pulled()) as agent:
        assert same(load(other, agent.path), stock)
    assert "AwaitWeights" not in agent.types()
    with FakeAgent(tmp_path / "t", weights=published.pulled()) as agent:
        load(bare, agent.path)  # has no files that could say otherwise
    assert "AwaitWeights" in agent.types()


def test_another_models_configuration_is_another_identity(
    load: Load, moe: Path, tmp_path: Path
) -> None:
    _, published = publish(load, moe, tmp_path)
    other = make_moe(tmp_path / "other", seed=1)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"rope_theta": 5000.0}))
    with FakeAgent(tmp_path / "s", weights=published.pulled()) as agent:
        load(other, agent.path)
    assert "AwaitWeights" not in agent.types()


def test_a_manifest_of_another_identity_is_not_taken(
    load: Load, moe: Path, bare: Path, tmp_path: Path
) -> None:
    """The agent compares identities before; a manifest that got past it is still looked at."""
    _, published = publish(load, moe, tmp_path)
    identity = json.loads(published.manifest)["identity"]

    def change(manifest: dict[str, Any]) -> None:
        manifest["identity"]["torchVersion"] = "1.0"

    with FakeAgent(tmp_path / "s", weights=published.pulled(change), identity=identity) as agent:
        with pytest.raises(RuntimeError, match="identity.torchVersion: the manifest has '1.0'"):
            load(bare, agent.path)


# ---- Manifests that do not fit --------------------------------------------------------------------


def drop_tensor(manifest: dict[str, Any]) -> None:
    manifest["tensors"] = [t for t in manifest["tensors"] if t["name"] != "model.norm.weight"]


def add_tensor(manifest: dict[str, Any]) -> None:
    manifest["tensors"].append(manifest["tensors"][0] | {"name": "model.surprise"})


def reshape(manifest: dict[str, Any]) -> None:
    row = next(t for t in manifest["tensors"] if t["name"] == "model.norm.weight")
    row["shape"], row["stride"] = [64], [1]


def beyond(manifest: dict[str, Any]) -> None:
    manifest["allocations"][-1]["bytes"] += 1 << 30


def other_rank(manifest: dict[str, Any]) -> None:
    manifest["rank"] = 1


def processed(manifest: dict[str, Any]) -> None:
    manifest["form"] = "Processed"


def next_version(manifest: dict[str, Any]) -> None:
    manifest["version"] = 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop_tensor, "the manifest lacks model.norm.weight"),
        (add_tensor, "the manifest has model.surprise, which this model has not"),
        (reshape, r"model.norm.weight: .*\[64\], this model a Parameter of bfloat16 \[128\]"),
        (beyond, "reaches beyond the arena"),
        (other_rank, "the manifest is of rank 1, this is 0"),
        (processed, "the manifest holds weights in Processed form"),
        (next_version, "rouse-manifest 2, this plugin rouse-manifest 1"),
    ],
)
def test_a_manifest_that_does_not_fit_is_an_error_or_sends_the_engine_to_storage(
    load: Load,
    moe: Path,
    bare: Path,
    tmp_path: Path,
    change: Callable[[dict[str, Any]], None],
    message: str,
) -> None:
    source, published = publish(load, moe, tmp_path)
    with FakeAgent(tmp_path / "s", weights=published.pulled(change)) as agent:
        with pytest.raises(RuntimeError, match=message):
            load(bare, agent.path)
        assert "GetSlabs" not in agent.types()
        assert same(load(moe, agent.path), source)
        assert agent.published is not None


# ---- Agents that misbehave -------------------------------------------------------------------------


def die(request: dict[str, Any], answer: Answer) -> Answer:
    raise Die


def says(body: dict[str, Any] | bytes, fds: list[int] | None = None) -> Callable[..., Answer]:
    return lambda request, answer: (body, fds or [])


def changed(**fields: Any) -> Callable[..., Answer]:
    return lambda request, answer: (answer[0] | fields, answer[1])


def without_fds(request: dict[str, Any], answer: Answer) -> Answer:
    return answer[0], []


def with_one_more(request: dict[str, Any], answer: Answer) -> Answer:
    return answer[0], [*answer[1], 0]


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


ASKED_OF_A_SOURCE = ["Hello", "Phase", "OpenStream", "CreateArena", "GetSlabs", "Publish"]
ASKED_OF_A_TARGET = ["Hello", "Phase", "AwaitWeights", "GetSlabs"]
NONSENSE = [
    pytest.param(die, id="dies"),
    pytest.param(says(b"\x00\xff"), id="no JSON"),
    pytest.param(says(b"[1]"), id="no object"),
    pytest.param(says(b"x" * 131072), id="a message of the largest size"),
    pytest.param(says(b"x" * 131073), id="a message that is too long"),
    pytest.param(says({"type": "Surprise"}), id="unknown type"),
    pytest.param(says({}), id="no type"),
    pytest.param(says({"type": "Error"}), id="an error without a code"),
    pytest.param(says({"type": "Error", "code": "Internal", "message": "no"}), id="an error"),
    pytest.param(with_one_more, id="a descriptor too many"),
]


@pytest.mark.parametrize("fault", NONSENSE)
@pytest.mark.parametrize("asked", ASKED_OF_A_SOURCE)
def test_a_source_loads_whatever_its_agent_does(
    load: Load, moe: Path, tmp_path: Path, asked: str, fault: Callable[..., Answer]
) -> None:
    stock = load(moe, None)
    before = descriptors()
    agent = FakeAgent(tmp_path / "s", overrides={asked: fault})
    with agent:
        loaded = load(moe, agent.path)
    assert same(loaded, stock)
    assert agent.errors == []
    assert asked in agent.types()
    for link in loader._open_links:
        link.close()
    if agent.published is not None:
        agent.published.close()
    elif agent._arena is not None:
        agent._arena.close()
    assert descriptors() == before


@pytest.mark.parametrize("fault", NONSENSE)
@pytest.mark.parametrize("asked", ASKED_OF_A_TARGET)
def test_a_target_loads_from_storage_or_says_why_not(
    load: Load, moe: Path, bare: Path, tmp_path: Path, asked: str, fault: Callable[..., Answer]
) -> None:
    source, published = publish(load, moe, tmp_path)
    with FakeAgent(tmp_path / "s1", weights=published.pulled(), overrides={asked: fault}) as agent:
        with pytest.raises(RuntimeError, match="there are no weights for .*volume"):
            load(bare, agent.path)
    with FakeAgent(tmp_path / "s2", weights=published.pulled(), overrides={asked: fault}) as agent:
        assert same(load(moe, agent.path), source)
    assert asked in agent.types()


@pytest.mark.parametrize(
    ("asked", "fault", "message"),
    [
        ("Hello", changed(version=2), "rouse-engine 2, this plugin rouse-engine 1"),
        ("Hello", changed(protocol="other"), "other 1, this plugin rouse-engine 1"),
        ("Hello", changed(source="Wake"), "unknown value .Wake., expected one of Peer, Storage"),
        ("AwaitWeights", changed(slabBytes=[]), "Weights.slabBytes"),
        ("AwaitWeights", changed(slabBytes=[1, -1]), "expected positive integers"),
        ("AwaitWeights", changed(slabBytes=[4096]), "4096 in all, the arena has"),
        (
            "AwaitWeights",
            changed(slabBytes=[1 << 20, 100, 2 << 20]),
            "cannot be mapped at offset 1048676",
        ),
        ("AwaitWeights", changed(slabBytes=[1 << 30]), "1073741824 were announced"),
        ("AwaitWeights", changed(manifestBytes=10), "10 were announced"),
        ("AwaitWeights", changed(manifestBytes=1 << 40), "manifestBytes: .* is more than"),
        ("AwaitWeights", changed(arenaBytes=4096), "arenaBytes: the manifest has"),
        ("AwaitWeights", without_fds, "Weights came with 0 descriptors"),
        ("GetSlabs", without_fds, "got 0 descriptors"),
        ("GetSlabs", changed(first=1), "announced as first 1"),
    ],
)
def test_an_answer_that_lies_is_named(
    load: Load,
    moe: Path,
    bare: Path,
    tmp_path: Path,
    asked: str,
    fault: Callable[..., Answer],
    message: str,
) -> None:
    source, published = publish(load, moe, tmp_path)
    agent = FakeAgent(tmp_path / "s", weights=published.pulled(), overrides={asked: fault})
    with agent:
        with pytest.raises(RuntimeError, match=message):
            load(bare, agent.path)
        assert same(load(moe, agent.path), source)


def test_weights_that_will_not_come_send_the_engine_to_storage_when_the_agent_says_so(
    load: Load, moe: Path, tmp_path: Path
) -> None:
    source, published = publish(load, moe, tmp_path)
    agent = FakeAgent(tmp_path / "s", weights=published.pulled())

    def lost(request: dict[str, Any], answer: Answer) -> Answer:
        agent.weights = None
        return {"type": "Error", "code": "DataLoss", "message": "chunk 3 is wrong"}, []

    agent.overrides["AwaitWeights"] = lost
    with agent:
        assert same(load(moe, agent.path), source)
    assert [t for t in agent.types() if t != "Phase" and "Stream" not in t and t != "NextBatch"] == [
        "Hello", "AwaitWeights", "Hello", "CreateArena", "GetSlabs", "Publish",
    ]  # fmt: skip
    assert agent.published is not None


def test_what_nobody_foresaw_still_ends_in_a_load_from_storage(
    load: Load, moe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, published = publish(load, moe, tmp_path)
    calls: list[str] = []
    adopt = tensors.adopt

    def fail_half_way(pairs: list[Any], view: tensors.ArenaView) -> None:
        calls.append("adopt")
        adopt(pairs[: len(pairs) // 2], view)
        raise RuntimeError("torch does not like this")

    monkeypatch.setattr(tensors, "adopt", fail_half_way)
    with FakeAgent(tmp_path / "s", weights=published.pulled()) as agent:
        assert same(load(moe, agent.path), source)
    assert len(calls) == 2  # taking, and then publishing what came from storage
    assert agent.errors == []


def test_an_agent_that_refuses_is_obeyed_though_there_are_weight_files(
    load: Load, moe: Path, tmp_path: Path
) -> None:
    _, published = publish(load, moe, tmp_path)
    agent = FakeAgent(tmp_path / "s", weights=published.pulled(), storage_allowed=False)
    with agent:
        with pytest.raises(
            RuntimeError, match="agent refuses this engine.*identity: dtype; no storage"
        ):
            load(moe, agent.path, dtype="float32")


def test_without_an_agent_weights_come_from_storage_or_the_error_says_what_to_do(
    load: Load, moe: Path, bare: Path, tmp_path: Path
) -> None:
    stock = load(moe, None)
    assert same(load(moe, tmp_path / "nobody.sock"), stock)
    with pytest.raises(RuntimeError, match="holds no weight files .*nobody.sock.* storage volume"):
        load(bare, tmp_path / "nobody.sock")


# ---- Settings and registration --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"socket": ""}, "needs the path of the engine socket"),
        ({"socket": 5}, "needs the path of the engine socket"),
        ({"weightsTimeoutS": "5"}, "weightsTimeoutS: expected seconds, found '5'"),
        ({"connectTimeoutS": 0}, "connectTimeoutS: expected seconds, found 0"),
        ({"graphCapture": "lazy"}, "graphCapture: expected Eager or Lazy, found 'lazy'"),
        (
            {"graphCaptureTrigger": 1},
            "graphCaptureTrigger: expected Idle or FirstRequest, found 1",
        ),
        ({"unknown": 1}, "Unexpected extra config keys.*unknown"),
    ],
)
def test_wrong_settings_are_refused_by_name(
    load: Load, moe: Path, tmp_path: Path, extra: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        load(moe, tmp_path / "s", extra=extra)


def test_vllms_own_loader_settings_still_work(load: Load, moe: Path, tmp_path: Path) -> None:
    with FakeAgent(tmp_path / "s") as agent:
        loaded = load(moe, agent.path, extra={"enable_multithread_load": True, "num_threads": 2})
    assert same(loaded, load(moe, None))


def test_lazy_capture_of_graphs_is_not_for_a_cpu(load: Load, moe: Path, tmp_path: Path) -> None:
    from vllm.v1.worker.gpu_worker import Worker

    with FakeAgent(tmp_path / "s") as agent:
        extra = {"graphCapture": "Lazy", "graphCaptureTrigger": "FirstRequest"}
        loaded = load(moe, agent.path, extra=extra)
    assert same(loaded, load(moe, None))
    assert not hasattr(Worker.execute_model, "_rouse_wraps")


def test_registering_twice_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.config.load import LoadConfig

    monkeypatch.setenv(rouse_vllm.IMPORTED_AT_VARIABLE, "123")
    rouse_vllm.register()
    rouse_vllm.register()
    assert os.environ[rouse_vllm.IMPORTED_AT_VARIABLE] == "123"
    config = LoadConfig(load_format="rouse", model_loader_extra_config={"socket": "/s"})
    assert type(get_model_loader(config)) is loader.RouseModelLoader
    assert config.model_loader_extra_config == {"socket": "/s"}


# ---- What can sleep ------------------------------------------------------------------------------


def test_who_computes_with_the_agents_memory_can_sleep(
    load: Load, moe: Path, tmp_path: Path
) -> None:
    def strange(manifest: dict[str, Any]) -> None:
        manifest["scalars"]["model.nothing"] = 1.0

    def refuse(_: Any, __: Any) -> Answer:
        return {"type": "Error", "code": "ResourceExhausted", "message": "no memory"}, []

    _, published = publish(load, moe, tmp_path)
    assert guard.problem(None) == ""
    with FakeAgent(tmp_path / "s", weights=published.pulled()) as agent:
        load(moe, agent.path)
        assert guard.problem(None) == ""
    # Taken, found not to fit at the very end, and then read from storage but not published.
    with FakeAgent(
        tmp_path / "t", weights=published.pulled(strange), overrides={"CreateArena": refuse}
    ) as agent:
        load(moe, agent.path)
        assert "GetSlabs" in agent.types() and "CreateArena" in agent.types()
        assert "memory of its own" in guard.problem(None)
    load(moe, tmp_path / "nobody")
    assert "the agent was not there" in guard.problem(None)
