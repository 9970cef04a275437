"""The tensors of a model: finding them, laying them out, moving them into and out of arenas.

Source and target run the same code over models that vLLM built in the same way, so a tensor has
the same name on both sides. One storage is one allocation, however many tensors look into it.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from rouse_vllm import library
from rouse_vllm import manifest as manifests
from rouse_vllm.errors import ManifestError, Unsupported
from rouse_vllm.manifest import Allocation, Manifest, Scalar, Tensor

#: How far hidden tensors are searched for in objects that are no modules.
_MAX_DEPTH = 4

#: Names in one error message.
_MAX_NAMED = 5


@dataclass(frozen=True)
class Named:
    name: str
    kind: str
    tensor: torch.Tensor


def collect(model: nn.Module, form: str) -> list[Named]:
    """Every non-empty tensor of the model under each of its names, in a fixed order.

    Parameters and buffers under all their names, then tensors that are plain attributes of modules
    (also in lists, tuples and dicts). Post-processing leaves tensors in objects that are no modules
    (quantisation methods, kernels): those are searched only in processed form.
    """
    found: list[Named] = []
    for name, parameter in model.named_parameters(remove_duplicate=False):
        found.append(Named(name, "Parameter", parameter))
    for name, buffer in model.named_buffers(remove_duplicate=False):
        found.append(Named(name, "Buffer", buffer))
    seen = {id(named.tensor) for named in found}
    hidden = set[int]()
    for path, module in model.named_modules():
        for attribute, value in sorted(vars(module).items()):
            if attribute in ("_parameters", "_buffers", "_modules"):
                continue
            name = f"{path}.{attribute}" if path else attribute
            for inner, tensor in _plain(name, value):
                if id(tensor) not in seen:
                    seen.add(id(tensor))
                    found.append(Named(inner, "Attribute", tensor))
            if form == manifests.PROCESSED:
                for inner, tensor in _hidden(name, value, hidden, _MAX_DEPTH):
                    if id(tensor) not in seen:
                        seen.add(id(tensor))
                        found.append(Named(inner, "Kernel", tensor))
    return [named for named in found if named.tensor.numel() > 0]


def _plain(name: str, value: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """The value itself, or what a list, tuple or dict of it holds."""
    if isinstance(value, torch.Tensor):
        yield name, value
    elif isinstance(value, (list, tuple)):
        for i, item in enumerate(value):
            if isinstance(item, torch.Tensor):
                yield f"{name}.{i}", item
    elif isinstance(value, dict):
        for key, item in value.items():
            if isinstance(item, torch.Tensor):
                yield f"{name}.{key}", item


def _hidden(
    name: str, value: Any, seen: set[int], depth: int
) -> Iterator[tuple[str, torch.Tensor]]:
    """Tensors inside an object of the engine that is no module."""
    if depth == 0 or isinstance(value, (nn.Module, torch.Tensor, type)) or id(value) in seen:
        return
    # Only what layers are made of: communicators hold addresses, which mean nothing elsewhere.
    if not type(value).__module__.startswith("vllm.model_executor.") or not hasattr(
        value, "__dict__"
    ):
        return
    seen.add(id(value))
    for attribute, item in sorted(vars(value).items()):
        inner = f"{name}.{attribute}"
        yield from _plain(inner, item)
        yield from _hidden(inner, item, seen, depth - 1)


@dataclass(frozen=True)
class Storage:
    """The used part of one torch storage: [begin, begin + allocation.bytes)."""

    storage: torch.UntypedStorage
    device: torch.device
    begin: int
    allocation: Allocation

    def bytes_view(self) -> torch.Tensor:
        """The used part as bytes, without a copy."""
        view = torch.empty(0, dtype=torch.uint8, device=self.device)
        return view.set_(self.storage, self.begin, (self.allocation.bytes,), (1,))


@dataclass(frozen=True)
class Layout:
    """Where a model's tensors go: `storages[i]` goes to allocation i."""

    storages: list[Storage | None]
    tensors: tuple[Tensor, ...]
    arena_bytes: int


def lay_out(named: list[Named]) -> Layout:
    """Gives each storage a place in an arena. Unsupported when a tensor has no bytes to copy."""
    spans: dict[tuple[str, int], list[int]] = {}  # storage -> [begin, end)
    for entry in named:
        begin, end = _span(entry)
        span = spans.setdefault(_storage_key(entry.tensor), [begin, end])
        span[0], span[1] = min(span[0], begin), max(span[1], end)
    index = {key: i for i, key in enumerate(spans)}
    storages: list[Storage | None] = [None] * len(spans)
    tensors = []
    at = 0
    for entry in named:
        key = _storage_key(entry.tensor)
        # Rounded down, so that an element aligned in its storage is aligned in the arena too.
        begin = spans[key][0] // manifests.ALIGNMENT * manifests.ALIGNMENT
        if storages[index[key]] is None:
            allocation = Allocation(at, spans[key][1] - begin)
            tensor = entry.tensor
            storages[index[key]] = Storage(
                tensor.untyped_storage(), tensor.device, begin, allocation
            )
            at = manifests.align(at + allocation.bytes)
        tensors.append(
            Tensor(
                name=entry.name,
                kind=entry.kind,
                allocation=index[key],
                offset=entry.tensor.storage_offset() * entry.tensor.element_size() - begin,
                shape=tuple(entry.tensor.shape),
                stride=tuple(entry.tensor.stride()),
                dtype=_dtype_name(entry.tensor.dtype),
            )
        )
    return Layout(storages, tuple(tensors), at)


def _storage_key(tensor: torch.Tensor) -> tuple[str, int]:
    return str(tensor.device), tensor.untyped_storage().data_ptr()


def _span(entry: Named) -> tuple[int, int]:
    """First byte, and one past the last byte, in the tensor's storage."""
    tensor = entry.tensor
    if tensor.layout != torch.strided or hasattr(tensor, "__tensor_flatten__"):
        raise Unsupported(
            f"tensor {entry.name} is a {type(tensor).__name__} without a storage of its own"
        )
    if tensor.device.type == "meta" or tensor.untyped_storage().data_ptr() == 0:
        raise Unsupported(f"tensor {entry.name} holds no memory yet")
    if _dtype_name(tensor.dtype) not in manifests.ITEM_BYTES:
        raise Unsupported(
            f"tensor {entry.name} has the dtype {tensor.dtype}, which no manifest can name"
        )
    item = tensor.element_size()
    begin = tensor.storage_offset() * item
    last = sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride()))
    return begin, begin + (last + 1) * item


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


class ArenaView:
    """A mapped arena as tensors. What it hands out keeps the mapping alive."""

    def __init__(
        self, buffer: ctypes.Array[ctypes.c_ubyte], allocations: tuple[Allocation, ...]
    ) -> None:
        self._buffer = buffer
        self._allocations = allocations
        self._storages: dict[int, torch.Tensor] = {}

    device = torch.device("cpu")

    def allocation(self, index: int) -> torch.Tensor:
        """The bytes of one allocation, as a storage of its own."""
        if index not in self._storages:
            self._storages[index] = self._bytes(self._allocations[index])
        return self._storages[index]

    def _bytes(self, place: Allocation) -> torch.Tensor:
        return torch.frombuffer(
            self._buffer, dtype=torch.uint8, count=place.bytes, offset=place.offset
        )

    def tensor(self, place: Tensor) -> torch.Tensor:
        """The tensor that the manifest describes."""
        dtype = getattr(torch, place.dtype)
        item = manifests.ITEM_BYTES[place.dtype]
        view = torch.empty(0, dtype=dtype, device=self.device)
        storage = self.allocation(place.allocation).untyped_storage()
        return view.set_(storage, place.offset // item, place.shape, place.stride)


class GpuArenaView(ArenaView):
    """The same of an arena in the memory of the current GPU."""

    def __init__(self, arena: library.GpuArena, allocations: tuple[Allocation, ...]) -> None:
        self.device = torch.device("cuda", torch.cuda.current_device())
        self._arena = arena
        self._allocations = allocations
        self._storages = {}

    def _bytes(self, place: Allocation) -> torch.Tensor:
        return torch.as_tensor(self._arena.bytes_at(place.offset, place.bytes), device=self.device)


class CopiedView(ArenaView):
    """Copies of another view's allocations, in memory of the device that is the engine's own."""

    def __init__(self, view: ArenaView, device: torch.device) -> None:
        self.device = device
        self._view = view
        self._storages = {}

    def allocation(self, index: int) -> torch.Tensor:
        if index not in self._storages:
            self._storages[index] = self._view.allocation(index).to(self.device, copy=True)
        return self._storages[index]


def check(named: list[Named], manifest: Manifest) -> None:
    """Whether the manifest describes exactly these tensors. ManifestError names those that differ."""
    here = {entry.name: entry for entry in named}
    there = {place.name: place for place in manifest.tensors}
    if missing := [name for name in here if name not in there]:
        raise ManifestError(f"the manifest lacks {_some(missing)} of this model")
    if unknown := [name for name in there if name not in here]:
        raise ManifestError(f"the manifest has {_some(unknown)}, which this model has not")
    places: dict[
        int, Tensor
    ] = {}  # one object may have several names, and can be in one place only
    for name, entry in here.items():
        _span(entry)  # Also says whether the tensor can have a place at all.
        place, tensor = there[name], entry.tensor
        found = (place.kind, place.dtype, place.shape)
        expected = (entry.kind, _dtype_name(tensor.dtype), tuple(tensor.shape))
        if found != expected:
            raise ManifestError(
                f"{name}: the manifest has a {found[0]} of {found[1]} {list(found[2])}, "
                f"this model a {expected[0]} of {expected[1]} {list(expected[2])}"
            )
        first = places.setdefault(id(tensor), place)
        if (first.allocation, first.offset, first.stride) != (
            place.allocation,
            place.offset,
            place.stride,
        ):
            raise ManifestError(
                f"{name}: is the same tensor as {first.name} here and another one there"
            )


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:_MAX_NAMED])
    return shown if len(names) <= _MAX_NAMED else f"{shown} and {len(names) - _MAX_NAMED} more"


def pair(named: list[Named], places: tuple[Tensor, ...]) -> list[tuple[Named, Tensor]]:
    """Each tensor with its place. The names have been checked."""
    by_name = {place.name: place for place in places}
    return [(entry, by_name[entry.name]) for entry in named]


def adopt(pairs: list[tuple[Named, Tensor]], view: ArenaView) -> None:
    """Points each tensor at its place in the arena, without a copy: its old memory is given up.

    The tensor objects stay, so that everything that refers to them sees the arena.
    """
    for entry, place in pairs:
        entry.tensor.data = view.tensor(place)


def split(
    pairs: list[tuple[Named, Tensor]], of_first: Callable[[torch.Tensor], bool]
) -> tuple[list[tuple[Named, Tensor]], list[tuple[Named, Tensor]]]:
    """Those whose tensors are of the first kind, and the others."""
    first = [of_first(entry.tensor) for entry, _ in pairs]
    return (
        [pair for pair, yes in zip(pairs, first) if yes],
        [pair for pair, yes in zip(pairs, first) if not yes],
    )


def read_only(
    pairs: list[tuple[Named, Tensor]], device: torch.device
) -> list[tuple[Named, Tensor]]:
    """Those that a model only reads when it computes, on this device: parameters, and what shares
    storages with them. Buffers and the rest are small, and some are written to."""
    parameters = {
        place.allocation
        for entry, place in pairs
        if place.kind == "Parameter" and entry.tensor.device == device
    }
    return [pair for pair in pairs if pair[1].allocation in parameters]


def copy_in(layout: Layout, view: ArenaView, index: int) -> None:
    """Copies the bytes of one storage into the arena, from whatever device they are on."""
    view.allocation(index).copy_(layout.storages[index].bytes_view())


def move_in(
    pairs: list[tuple[Named, Tensor]],
    layout: Layout,
    writable: ArenaView,
    private: ArenaView,
    reach: Callable[[int], None] = lambda end: None,
) -> None:
    """Copies every storage through `writable` and points those of its tensors that are in `pairs` at
    the same bytes in `private`.

    One after the other, so that the old memory goes as the new one fills. `reach` is called before the
    arena's bytes up to `end` are used. Ends `layout.storages`.
    """
    users: list[list[tuple[Named, Tensor]]] = [[] for _ in layout.storages]
    for entry, place in pairs:
        users[place.allocation].append((entry, place))
    for i in range(len(users)):
        place = layout.storages[i].allocation
        reach(place.offset + place.bytes)
        copy_in(layout, writable, i)
        layout.storages[i] = None
        adopt(users[i], private)


def copy_out(pairs: list[tuple[Named, Tensor]], view: ArenaView) -> None:
    """Copies the arena's bytes over the model's, at the addresses the model has."""
    for entry, place in pairs:
        _distinct(entry.tensor.data).copy_(_distinct(view.tensor(place)))


def _distinct(tensor: torch.Tensor) -> torch.Tensor:
    """The part of an expanded tensor that has memory of its own (the rest repeats it)."""
    for dimension, step in enumerate(tensor.stride()):
        if step == 0:
            tensor = tensor.narrow(dimension, 0, 1)
    return tensor


def scalars(model: nn.Module) -> dict[str, Scalar]:
    """Plain host values that modules hold, by name (post-processing derives some from weights)."""
    found: dict[str, Scalar] = {}
    for path, module in model.named_modules():
        for attribute, value in sorted(vars(module).items()):
            # "training" is torch's own, and changes when the loader has finished.
            if attribute != "training" and type(value) in (bool, int, float):
                found[f"{path}.{attribute}" if path else attribute] = value
    return found


def changed(before: dict[str, Scalar], after: dict[str, Scalar]) -> dict[str, Scalar]:
    """The values that are new or another. What was no number and still is none has not changed."""
    nothing = object()
    return {
        name: value
        for name, value in after.items()
        if (was := before.get(name, nothing)) != value and not (was != was and value != value)
    }


def set_scalars(model: nn.Module, values: dict[str, Scalar]) -> None:
    """Sets host values by name. ManifestError when the model has no such module or value."""
    modules = dict(model.named_modules())
    for name, value in values.items():
        path, _, attribute = name.rpartition(".")
        module = modules.get(path)
        if module is None or attribute not in vars(module):
            raise ManifestError(f"scalars.{name}: this model has no such value")
        setattr(module, attribute, value)
