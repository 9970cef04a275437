"""Tensors of toy models: shared, tied, strided and hidden ones, into an arena and out of it."""

from __future__ import annotations

import ctypes
import dataclasses
import types

import pytest
import torch
from torch import nn

from rouse_vllm import tensors
from rouse_vllm.errors import ManifestError, Unsupported
from rouse_vllm.manifest import LOADED, PROCESSED, Manifest
from rouse_vllm.tensors import ArenaView


class Toy(nn.Module):
    """One of each kind of tensor that models hold."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embed = nn.Linear(8, 16, bias=False, dtype=torch.bfloat16)
        self.head = nn.Linear(8, 16, bias=False, dtype=torch.bfloat16)
        self.head.weight = self.embed.weight  # tied
        self.transposed = nn.Parameter(torch.randn(6, 4).t(), requires_grad=False)
        fused = torch.randn(10, 4)
        self.first = nn.Parameter(fused[:3], requires_grad=False)  # two views of one storage
        self.second = nn.Parameter(fused[5:], requires_grad=False)
        self.register_buffer("scale", torch.tensor(float(seed)), persistent=False)
        self.register_buffer("mask", torch.ones(1, dtype=torch.bool).expand(5, 7))
        self.register_buffer("empty", torch.empty(0))
        self.bare = torch.randn(3)
        self.list_of = [torch.randn(2), "text", torch.arange(seed, seed + 5)]
        self.table = {"key": torch.randn(2, 2).to(torch.float8_e4m3fn)}
        self.view_of_first = self.first[1]


NAMES = [
    "transposed", "first", "second", "embed.weight", "head.weight", "scale", "mask",
    "bare", "list_of.0", "list_of.2", "table.key", "view_of_first",
]  # fmt: skip


def arena_of(layout: tensors.Layout) -> tuple[ctypes.Array, Manifest]:
    described = Manifest(
        form=LOADED,
        identity={},
        rank=0,
        arena_bytes=layout.arena_bytes,
        allocations=tuple(s.allocation for s in layout.storages if s),
        tensors=layout.tensors,
        scalars={},
    )
    return (ctypes.c_ubyte * layout.arena_bytes)(), described


def equal(left: torch.Tensor, right: torch.Tensor) -> bool:
    return left.dtype == right.dtype and torch.equal(left.float(), right.float())


def test_every_tensor_is_found_under_every_name() -> None:
    assert sorted(n.name for n in tensors.collect(Toy(1), LOADED)) == sorted(NAMES)


def test_one_storage_is_one_allocation_and_all_are_aligned() -> None:
    named = tensors.collect(Toy(1), LOADED)
    layout = tensors.lay_out(named)
    at = {t.name: t for t in layout.tensors}
    assert at["embed.weight"].allocation == at["head.weight"].allocation
    assert at["first"].allocation == at["second"].allocation == at["view_of_first"].allocation
    assert at["second"].offset == 5 * 4 * 4
    assert at["transposed"].stride == (1, 4)
    assert len(layout.storages) == len(NAMES) - 3
    assert layout.storages[at["mask"].allocation].allocation.bytes == 1
    places = [s.allocation for s in layout.storages]
    assert all(p.offset % 512 == 0 for p in places)
    assert all(a.offset + a.bytes <= b.offset for a, b in zip(places, places[1:]))
    assert layout.arena_bytes >= places[-1].offset + places[-1].bytes


def test_a_small_view_of_a_large_storage_takes_only_its_part() -> None:
    module = nn.Module()
    module.weight = nn.Parameter(torch.arange(100_000, dtype=torch.float32)[70_001:70_011])
    layout = tensors.lay_out(tensors.collect(module, LOADED))
    assert layout.arena_bytes <= 1024
    assert layout.tensors[0].offset % 4 == 0
    buffer, described = arena_of(layout)
    view = ArenaView(buffer, described.allocations)
    tensors.copy_in(layout, view, 0)
    assert view.tensor(layout.tensors[0]).tolist() == [float(x) for x in range(70_001, 70_011)]


def test_a_target_that_adopts_an_arena_has_the_sources_values_at_the_arenas_addresses() -> None:
    source, target = Toy(1), Toy(2)
    expected = {n.name: n.tensor.detach().clone() for n in tensors.collect(source, LOADED)}
    named = tensors.collect(source, LOADED)
    layout = tensors.lay_out(named)
    buffer, described = arena_of(layout)
    view = ArenaView(buffer, described.allocations)
    tensors.move_in(tensors.pair(named, layout.tensors), layout, view, view)

    theirs = tensors.collect(target, LOADED)
    assert not all(equal(n.tensor, expected[n.name]) for n in theirs)
    tensors.check(theirs, described)
    tensors.adopt(tensors.pair(theirs, described.tensors), view)
    low = ctypes.addressof(buffer)
    for model in (source, target):
        for entry in tensors.collect(model, LOADED):
            assert equal(entry.tensor, expected[entry.name]), entry.name
            assert low <= entry.tensor.data_ptr() < low + len(buffer), entry.name
    assert target.head.weight is target.embed.weight
    target.first.data[1, 0] = 42.0
    assert target.view_of_first[0] == 42.0


def test_tensors_keep_the_arena_alive() -> None:
    class Tracked:
        alive = True

        def __del__(self) -> None:
            Tracked.alive = False

    module = nn.Module()
    module.weight = nn.Parameter(torch.ones(4))
    named = tensors.collect(module, LOADED)
    layout = tensors.lay_out(named)
    buffer, described = arena_of(layout)
    buffer.arena = Tracked()
    view = ArenaView(buffer, described.allocations)
    tensors.move_in(tensors.pair(named, layout.tensors), layout, view, view)
    del view, buffer
    assert Tracked.alive
    assert module.weight.tolist() == [1.0] * 4
    del module, named
    assert not Tracked.alive


def test_parameters_and_what_shares_storages_with_them_are_only_read() -> None:
    named = tensors.collect(Toy(1), LOADED)
    pairs = tensors.pair(named, tensors.lay_out(named).tensors)
    kinds = {entry.name: entry.kind for entry in named}
    found = {entry.name for entry, _ in tensors.read_only(pairs, torch.device("cpu"))}
    assert {name for name, kind in kinds.items() if kind == "Parameter"} <= found
    assert "view_of_first" in found and kinds["view_of_first"] == "Attribute"
    assert "bare" not in found and "mask" not in found
    assert tensors.read_only(pairs, torch.device("cuda", 0)) == []


def test_processed_weights_are_copied_over_the_ones_that_are_there() -> None:
    source, target = Toy(1), Toy(2)
    source.mask[0, 0] = False  # all of it: one element is repeated
    layout = tensors.lay_out(tensors.collect(source, PROCESSED))
    buffer, described = arena_of(layout)
    view = ArenaView(buffer, described.allocations)
    for i in range(len(layout.storages)):
        tensors.copy_in(layout, view, i)
    theirs = tensors.collect(target, PROCESSED)
    addresses = {n.name: n.tensor.data_ptr() for n in theirs}
    tensors.check(theirs, described)
    tensors.copy_out(tensors.pair(theirs, described.tensors), view)
    expected = {n.name: n.tensor for n in tensors.collect(source, PROCESSED)}
    for entry in tensors.collect(target, PROCESSED):
        assert equal(entry.tensor, expected[entry.name])
        assert entry.tensor.data_ptr() == addresses[entry.name]


def test_tensors_hidden_in_kernel_objects_are_found_in_processed_form_only() -> None:
    kernel_module = types.ModuleType("vllm.model_executor.fake_kernels")
    method = type("Method", (), {"__module__": kernel_module.__name__})()
    method.kernel = type("Kernel", (), {"__module__": kernel_module.__name__})()
    method.kernel.packed = torch.ones(3)
    method.kernel.back = method  # a cycle
    communicator = type("Group", (), {"__module__": "vllm.distributed.parallel_state"})()
    communicator.addresses = torch.ones(2, dtype=torch.int64)
    method.group = communicator
    toy = Toy(1)
    toy.quant_method = method
    assert sorted(n.name for n in tensors.collect(toy, LOADED)) == sorted(NAMES)
    kinds = {n.name: n.kind for n in tensors.collect(toy, PROCESSED)}
    assert kinds.pop("quant_method.kernel.packed") == "Kernel"
    assert sorted(kinds) == sorted(NAMES)


def test_tensors_without_memory_are_refused_by_name() -> None:
    module = nn.Module()
    module.layer = nn.Linear(4, 4, device="meta")
    with pytest.raises(Unsupported, match="layer.weight holds no memory"):
        tensors.lay_out(tensors.collect(module, LOADED))
    module = nn.Module()
    module.sparse = torch.eye(3).to_sparse()
    with pytest.raises(Unsupported, match="sparse"):
        tensors.lay_out(tensors.collect(module, LOADED))
    module = nn.Module()
    module.rotations = torch.ones(3, dtype=torch.complex64)
    with pytest.raises(Unsupported, match="rotations has the dtype torch.complex64"):
        tensors.lay_out(tensors.collect(module, LOADED))


def described_toy() -> tuple[list[tensors.Named], Manifest]:
    layout = tensors.lay_out(tensors.collect(Toy(1), LOADED))
    return tensors.collect(Toy(2), LOADED), arena_of(layout)[1]


def replaced(described: Manifest, **tensors_by_name: object) -> Manifest:
    rows = tuple(
        dataclasses.replace(t, **tensors_by_name[t.name]) if t.name in tensors_by_name else t
        for t in described.tensors
    )
    return dataclasses.replace(described, tensors=rows)


def test_a_manifest_of_another_model_is_refused_and_names_the_tensor() -> None:
    named, good = described_toy()
    tensors.check(named, good)
    less = dataclasses.replace(good, tensors=good.tensors[1:])
    with pytest.raises(ManifestError, match=f"lacks {good.tensors[0].name} of this model"):
        tensors.check(named, less)
    with pytest.raises(ManifestError, match="has renamed, which this model has not|lacks bare"):
        tensors.check(named, replaced(good, bare=dict(name="renamed")))
    with pytest.raises(ManifestError, match="has transposed, which this model has not"):
        tensors.check([n for n in named if n.name != "transposed"], good)
    with pytest.raises(ManifestError, match="bare: the manifest has a Attribute of float32 .2."):
        tensors.check(named, replaced(good, bare=dict(shape=(2,))))
    with pytest.raises(ManifestError, match="bare: .* of int32"):
        tensors.check(named, replaced(good, bare=dict(dtype="int32")))
    with pytest.raises(ManifestError, match="scale: the manifest has a Parameter"):
        tensors.check(named, replaced(good, scale=dict(kind="Parameter")))
    with pytest.raises(ManifestError, match="head.weight: is the same tensor as embed.weight here"):
        tensors.check(named, replaced(good, **{"head.weight": dict(allocation=0)}))


def test_many_names_are_counted_in_an_error() -> None:
    named, good = described_toy()
    with pytest.raises(ManifestError, match="lacks .* and 7 more of this model"):
        tensors.check(named, dataclasses.replace(good, tensors=()))


def test_host_values_are_set_by_name() -> None:
    source, target = Toy(1), Toy(2)
    source.factor, target.factor = 2.5, 1.0
    source.embed.ready, target.embed.ready = True, False
    values = tensors.scalars(source)
    nan = float("nan")
    assert tensors.changed({"a": 1.0, "b": nan, "c": nan}, {"a": 1.0, "b": nan, "c": 2.0, "d": 3}) == {
        "c": 2.0,
        "d": 3,
    }
    assert values["factor"] == 2.5 and values["embed.ready"] is True
    tensors.set_scalars(target, {"factor": 2.5, "embed.ready": True})
    assert (target.factor, target.embed.ready) == (2.5, True)
    with pytest.raises(ManifestError, match="scalars.embed.unknown"):
        tensors.set_scalars(target, {"embed.unknown": 1})
    with pytest.raises(ManifestError, match="scalars.nowhere.x"):
        tensors.set_scalars(target, {"nowhere.x": 1})
