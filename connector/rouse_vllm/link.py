"""One rank's link to its agent: what is said when, and how weights change hands."""

from __future__ import annotations

import gc
import time
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from rouse_vllm import capture_plan, gpu_pools, identity, library, manifest, stand_in, tensors
from rouse_vllm.errors import AgentUnreachable, ManifestError
from rouse_vllm.manifest import Manifest, Scalar, Tensor
from rouse_vllm.session import Session, SlabPlan, Welcome
from rouse_vllm.stream import CheckpointStream


def now_us() -> int:
    """Microseconds since the epoch."""
    return time.time_ns() // 1000


def _release_gpu_memory() -> None:
    """Gives what the model has left of its own back to the GPU: torch would keep it, as much as the
    weights are."""
    gc.collect()
    gpu_pools.empty_cache()


def _adopt_copies(pairs: list[tuple[tensors.Named, Tensor]], view: tensors.ArenaView) -> None:
    """Gives tensors of the GPU that had no memory of their own some, with the arena's bytes."""
    tensors.adopt(pairs, tensors.CopiedView(view, pairs[0][0].tensor.device))


@dataclass(frozen=True)
class Settings:
    """What model_loader_extra_config says to us; times are seconds."""

    socket: str
    connect_timeout_s: float = 30.0  # An agent that was killed is back within seconds.
    weights_timeout_s: float = 600.0
    storage_format: str = "auto"
    graph_capture: str = capture_plan.EAGER
    graph_capture_trigger: str = capture_plan.IDLE

    @staticmethod
    def take(extra: dict[str, Any]) -> Settings:
        """Takes our keys out of `extra`. ValueError names the one that is wrong."""
        socket = extra.pop("socket", None)
        if not isinstance(socket, str) or not socket:
            raise ValueError(
                "load format rouse needs the path of the engine socket: "
                """--model-loader-extra-config '{"socket": "/rouse/run/engine.sock"}'"""
            )
        values: dict[str, Any] = {}
        for key, name in (
            ("connectTimeoutS", "connect_timeout_s"),
            ("weightsTimeoutS", "weights_timeout_s"),
        ):
            if key in extra:
                value = extra.pop(key)
                if not isinstance(value, (int, float)) or isinstance(value, bool) or value <= 0:
                    raise ValueError(
                        f"model_loader_extra_config.{key}: expected seconds, found {value!r}"
                    )
                values[name] = float(value)
        if "storageFormat" in extra:
            values["storage_format"] = str(extra.pop("storageFormat"))
        for key, name, known in (
            ("graphCapture", "graph_capture", (capture_plan.EAGER, capture_plan.LAZY)),
            (
                "graphCaptureTrigger",
                "graph_capture_trigger",
                (capture_plan.IDLE, capture_plan.FIRST_REQUEST),
            ),
        ):
            if key in extra:
                value = extra.pop(key)
                if value not in known:
                    raise ValueError(
                        f"model_loader_extra_config.{key}: expected {' or '.join(known)}, "
                        f"found {value!r}"
                    )
                values[name] = value
        return Settings(socket, **values)


@dataclass(frozen=True)
class Rank:
    """Who this rank is."""

    rank: int
    world_size: int
    #: How many models each worker loads: 2 with one that drafts tokens for the served one.
    models: int
    engine_version: str
    identity: dict[str, str]
    form: str
    gpu: str = ""  # UUID
    spawned: str = ""  # why this process was spawned although it was to be forked

    @property
    def adopts(self) -> bool:
        """Whether the model computes with an arena in host memory itself; a device copies from it."""
        return self.form == manifest.LOADED


@dataclass(frozen=True)
class Mapped:
    """An arena that the model computes with, and what lies in it."""

    arena: library.Arena | library.GpuArena
    plan: SlabPlan
    how: int  # library.MAP_…, or library.GPU_…
    described: Manifest
    document: bytes


@dataclass
class Link:
    """The conversation of one rank over one connection; open() begins it."""

    settings: Settings
    rank: Rank
    #: (phase, microseconds) pairs that a new connection begins with.
    moments: list[tuple[str, int]] = field(default_factory=list)
    _session: Session | None = None
    #: None while the agent has no weights of ours, or the model computes with memory of its own.
    mapped: Mapped | None = None
    #: Of a model without weights: what is not in the arena, and has its values to come from there too.
    _without: list[tuple[tensors.Named, Tensor]] = field(default_factory=list)

    def open(self) -> Welcome:
        """Connects anew and says who we are."""
        self.close()
        self._session = Session(
            self.settings.socket, self.rank.rank, self.settings.connect_timeout_s
        )
        welcome = self._session.hello(
            self.rank.world_size,
            self.rank.engine_version,
            self.rank.identity,
            self.rank.gpu,
            self.rank.spawned,
            self.rank.models,
        )
        for name, at_us in self.moments:
            self._session.phase(name, at_us)
        return welcome

    def close(self) -> None:
        if self._session is not None:
            self._session.close()
            self._session = None

    def phase(self, name: str, at_us: int) -> None:
        self._connected().phase(name, at_us)

    def stream(
        self, folder: str, files: list[tuple[str, int]], device: torch.device | None
    ) -> CheckpointStream:
        """Has the agent read the checkpoint, for a model in the memory of `device` (None: the host)."""
        return CheckpointStream(self._connected(), folder, files, device)

    def take(self, model: nn.Module) -> Manifest:
        """Fills the model with the weights that the agent pulled. Nothing is changed when it fails
        before every tensor has been found in the manifest."""
        self.mapped = None
        session = self._connected()
        plan, document = session.await_weights(self.settings.weights_timeout_s)
        described = manifest.decode(document)
        self._check_for_us(described, plan.arena_bytes)
        named = tensors.collect(model, self.rank.form)
        tensors.check(named, described)
        pairs = tensors.pair(named, described.tensors)
        if plan.gpu:
            on_gpu = self._take_on_gpu(plan, described, pairs)
            if on_gpu is not None:
                self.mapped = Mapped(on_gpu, plan, library.GPU_READ, described, document)
        else:
            (arena,) = session.map_slabs(plan, library.MAP_PRIVATE)
            view = tensors.ArenaView(arena.buffer(), described.allocations)
            if self.rank.adopts:
                tensors.adopt(pairs, view)
                self.mapped = Mapped(arena, plan, library.MAP_PRIVATE, described, document)
            else:
                standing, owned = tensors.split(pairs, stand_in.holds)
                tensors.copy_out(owned, view)
                if standing:
                    _adopt_copies(standing, view)
                    _release_gpu_memory()
        tensors.set_scalars(model, described.scalars)
        return described

    def _take_on_gpu(
        self, plan: SlabPlan, described: Manifest, pairs: list[tuple[tensors.Named, Tensor]]
    ) -> library.GpuArena | None:
        """Returns the arena if the model computes with it."""
        arena = library.GpuArena(plan.mapped_bytes)
        self._connected().map_into(plan, arena, library.GPU_READ)
        view = tensors.GpuArenaView(arena, described.allocations)
        standing, owned = tensors.split(pairs, stand_in.holds)
        # All of it, before parameters are pointed elsewhere: should the model hold a view of one that
        # was not found, its bytes are right too. Takes a thousandth of a second a gigabyte.
        tensors.copy_out(owned, view)
        # Another GPU's memory would be read over the link between the two each time.
        ours = plan.gpu == self.rank.gpu
        if ours:
            in_place = tensors.read_only(pairs, view.device)
            tensors.adopt(in_place, view)
            found = {id(entry) for entry, _ in in_place}
            standing = [pair for pair in standing if id(pair[0]) not in found]
        if standing:
            _adopt_copies(standing, view)
        _release_gpu_memory()
        return arena if ours else None

    def give(
        self, model: nn.Module, scalars: dict[str, Scalar], placeholders: bool = False
    ) -> Manifest:
        """Publishes the model's weights, or what stands for them. Where it can, the model goes on
        computing with the arena, mapped privately, so that its memory is not needed twice."""
        self.mapped = None
        session = self._connected()
        named = tensors.collect(model, self.rank.form)
        layout = tensors.lay_out(named)
        plan = session.create_arena(layout.arena_bytes)
        described = Manifest(
            form=self.rank.form,
            identity=self.rank.identity,
            rank=self.rank.rank,
            arena_bytes=plan.arena_bytes,
            allocations=tuple(storage.allocation for storage in layout.storages if storage),
            tensors=layout.tensors,
            scalars=scalars,
        )
        document = described.encode()
        if plan.gpu:
            arena, owned = self._give_on_gpu(plan, described, named, layout)
            session.publish(document, placeholders)
            self._without = owned if placeholders else []
            self.mapped = Mapped(arena, plan, library.GPU_READ, described, document)
            return described
        if self.rank.adopts:
            shared, private = session.map_slabs(plan, library.MAP_SHARED, library.MAP_PRIVATE)
            tensors.move_in(
                tensors.pair(named, layout.tensors),
                layout,
                tensors.ArenaView(shared.buffer(), described.allocations),
                tensors.ArenaView(private.buffer(), described.allocations),
            )
            # Else as much as the weights may stay in the heap, free but ours.
            library.release_free_memory()
        else:
            (shared,) = session.map_slabs(plan, library.MAP_SHARED)
            writable = tensors.ArenaView(shared.buffer(), described.allocations)
            for i in range(len(layout.storages)):
                tensors.copy_in(layout, writable, i)
        # The agent seals the slabs only when nobody can write to them any more.
        shared.unmap()
        session.publish(document, placeholders)
        if self.rank.adopts:
            self.mapped = Mapped(private, plan, library.MAP_PRIVATE, described, document)
        return described

    def _give_on_gpu(
        self,
        plan: SlabPlan,
        described: Manifest,
        named: list[tensors.Named],
        layout: tensors.Layout,
    ) -> tuple[library.GpuArena, list[tuple[tensors.Named, Tensor]]]:
        """Slab by slab: the agent takes the memory of the next one when it is asked for, and what was
        moved is given back before that. So the weights are never there twice. Returns what stays in the
        model's own memory, too."""
        arena = library.GpuArena(plan.mapped_bytes)
        view = tensors.GpuArenaView(arena, described.allocations)
        all_pairs = tensors.pair(named, layout.tensors)
        pairs = tensors.read_only(all_pairs, view.device)
        moved = {id(entry) for entry, _ in pairs}
        slabs = self._connected().slabs(plan, at_once=1)
        mapped = 0

        def reach(end: int) -> None:
            nonlocal mapped
            while mapped < end:
                gpu_pools.empty_cache()
                offset, size, fd = next(slabs)
                arena.map(offset, size, fd, library.GPU_READ_WRITE)
                mapped = offset + size

        tensors.move_in(pairs, layout, view, view, reach)
        reach(plan.mapped_bytes)
        slabs.close()
        _release_gpu_memory()
        # Peers are promised that nobody changes what was published.
        arena.protect()
        return arena, [pair for pair in all_pairs if id(pair[0]) not in moved]

    def unmap_weights(self) -> None:
        """Lets go of the arena that the model computes with. Its addresses stay reserved, so that
        captured graphs are valid again when it is back; until then nothing may compute."""
        if self.mapped is not None:
            self.mapped.arena.unmap()

    def map_weights(self) -> None:
        """Maps the arena again where it was, with what the agent has in it now."""
        if self.mapped is not None:
            self._connected().map_into(self.mapped.plan, self.mapped.arena, self.mapped.how)

    def release_weights(self) -> None:
        """Lets the agent free the arena, which unmap_weights() has unmapped."""
        self._connected().release_arena()

    def map_new_weights(self) -> float:
        """Waits for the slabs that the agent has instead, and maps them where the old ones were. Their
        bytes may still be arriving. Returns how many seconds the mapping took."""
        mapped = self._mapped()
        try:
            plan = self._connected().await_arena(self.settings.weights_timeout_s)
        except AgentUnreachable:
            self.open()  # The agent may have been restarted while the engine slept.
            plan = self._connected().await_arena(self.settings.weights_timeout_s)
        if (plan.arena_bytes, plan.gpu) != (mapped.plan.arena_bytes, mapped.plan.gpu):
            raise ManifestError(
                f"the new arena has {plan.arena_bytes} bytes on {plan.gpu or 'the host'}, this engine was "
                f"built over one of {mapped.plan.arena_bytes} on {mapped.plan.gpu or 'the host'}"
            )
        started = time.monotonic()
        self._connected().map_into(plan, mapped.arena, mapped.how)
        return time.monotonic() - started

    def await_new_weights(self) -> None:
        """Waits until all of their bytes have arrived and are verified. ManifestError when they lie in
        another way than those before."""
        mapped = self._mapped()
        plan, document = self._connected().await_weights(self.settings.weights_timeout_s)
        if document != mapped.document:
            described = manifest.decode(document)
            self._check_for_us(described, plan.arena_bytes)
            if difference := manifest.differing(mapped.described, described):
                raise ManifestError(f"the new weights are laid out in another way: {difference}")
        if self._without:
            arena = mapped.arena
            assert isinstance(arena, library.GpuArena)
            tensors.copy_out(self._without, tensors.GpuArenaView(arena, mapped.described.allocations))
            self._without = []
        self.mapped = replace(mapped, plan=plan, document=document)

    def _mapped(self) -> Mapped:
        if self.mapped is None:
            raise RuntimeError("the model does not compute with the agent's memory")
        return self.mapped

    def _connected(self) -> Session:
        if self._session is None:
            raise RuntimeError("the link to the agent is not open")
        return self._session

    def _check_for_us(self, described: Manifest, arena_bytes: int) -> None:
        if described.arena_bytes != arena_bytes:
            raise ManifestError(
                f"arenaBytes: the manifest has {described.arena_bytes}, the arena {arena_bytes}"
            )
        if described.rank != self.rank.rank:
            raise ManifestError(
                f"rank: the manifest is of rank {described.rank}, this is {self.rank.rank}"
            )
        if described.form != self.rank.form:
            raise ManifestError(
                f"form: the manifest holds weights in {described.form} form, this engine takes "
                f"{self.rank.form}"
            )
        for name in identity.differing(self.rank.identity, described.identity):
            theirs, ours = described.identity.get(name), self.rank.identity.get(name)
            raise ManifestError(
                f"identity.{name}: the manifest has {theirs!r}, this engine {ours!r}"
            )
