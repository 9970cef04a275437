"""One rank's link to its agent: what is said when, and how weights change hands."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from rouse_vllm import identity, library, manifest, tensors
from rouse_vllm.errors import ManifestError
from rouse_vllm.manifest import Manifest, Scalar
from rouse_vllm.session import Session, Welcome
from rouse_vllm.stream import CheckpointStream


def now_us() -> int:
    """Microseconds since the epoch."""
    return time.time_ns() // 1000


@dataclass(frozen=True)
class Settings:
    """What model_loader_extra_config says to us; times are seconds."""

    socket: str
    connect_timeout_s: float = 30.0  # An agent that was killed is back within seconds.
    weights_timeout_s: float = 600.0
    storage_format: str = "auto"

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
        return Settings(socket, **values)


@dataclass(frozen=True)
class Rank:
    """Who this rank is."""

    rank: int
    world_size: int
    engine_version: str
    identity: dict[str, str]
    form: str

    @property
    def adopts(self) -> bool:
        """Whether the model computes with the arena itself. Slabs are host memory: a device copies."""
        return self.form == manifest.LOADED


@dataclass
class Link:
    """The conversation of one rank over one connection; open() begins it."""

    settings: Settings
    rank: Rank
    #: (phase, microseconds) pairs that a new connection begins with.
    moments: list[tuple[str, int]] = field(default_factory=list)
    _session: Session | None = None

    def open(self) -> Welcome:
        """Connects anew and says who we are."""
        self.close()
        self._session = Session(
            self.settings.socket, self.rank.rank, self.settings.connect_timeout_s
        )
        welcome = self._session.hello(
            self.rank.world_size, self.rank.engine_version, self.rank.identity
        )
        for name, at_us in self.moments:
            self._session.phase(name, at_us)
        return welcome

    def close(self) -> None:
        if self._session is not None:
            self._session.close()
            self._session = None

    def phase(self, name: str) -> None:
        self._connected().phase(name, now_us())

    def stream(self, folder: str, files: list[tuple[str, int]]) -> CheckpointStream:
        """Has the agent read the checkpoint."""
        return CheckpointStream(self._connected(), folder, files)

    def take(self, model: nn.Module) -> Manifest:
        """Fills the model with the weights that the agent pulled. Nothing is changed when it fails
        before every tensor has been found in the manifest."""
        session = self._connected()
        plan, document = session.await_weights(self.settings.weights_timeout_s)
        described = manifest.decode(document)
        self._check_for_us(described, plan.arena_bytes)
        named = tensors.collect(model, self.rank.form)
        tensors.check(named, described)
        (arena,) = session.map_slabs(plan, library.MAP_PRIVATE)
        view = tensors.ArenaView(arena.buffer(), described.allocations)
        pairs = tensors.pair(named, described.tensors)
        if self.rank.adopts:
            tensors.adopt(pairs, view)
        else:
            tensors.copy_out(pairs, view)
        tensors.set_scalars(model, described.scalars)
        return described

    def give(self, model: nn.Module, scalars: dict[str, Scalar]) -> Manifest:
        """Publishes the model's weights. Where it can, the model goes on computing with the arena,
        mapped privately, so that its memory is not needed twice."""
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
        if self.rank.adopts:
            shared, private = session.map_slabs(plan, library.MAP_SHARED, library.MAP_PRIVATE)
            tensors.move_in(
                named,
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
        session.publish(described.encode())
        return described

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
