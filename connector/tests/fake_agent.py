"""A fake agent: speaks rouse-engine 1 over a real socket with real memfds, and misbehaves on demand.

It stands in for rouse-agent where a fault is wanted that a real one cannot be made to commit.
"""

from __future__ import annotations

import array
import json
import os
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fake_stream import FakeStream

from rouse_vllm.identity import differing

SLAB_BYTES = 1 << 20


class Die(Exception):
    """Raised by an override: the agent closes the connection and its socket at once."""


@dataclass
class Weights:
    """Slabs and manifest of one rank, as published or as pulled."""

    slabs: list[int]
    slab_bytes: list[int]
    manifest: bytes = b""

    def pulled(self, change: Callable[[dict[str, Any]], None] | None = None) -> Weights:
        """A copy in memory of its own, as a pull makes it; `change` may edit the manifest."""
        slabs = []
        for fd, size in zip(self.slabs, self.slab_bytes):
            copy = os.memfd_create("pulled", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            os.truncate(copy, size)
            os.pwrite(copy, os.pread(fd, size, 0), 0)
            slabs.append(copy)
        manifest = json.loads(self.manifest)
        if change is not None:
            change(manifest)
        return Weights(slabs, list(self.slab_bytes), json.dumps(manifest).encode())

    def arena_bytes(self) -> int:
        return json.loads(self.manifest)["arenaBytes"]

    def content(self) -> bytes:
        return b"".join(os.pread(fd, size, 0) for fd, size in zip(self.slabs, self.slab_bytes))

    def close(self) -> None:
        for fd in self.slabs:
            os.close(fd)
        self.slabs = []


def create_slabs(size: int, slab_bytes: int = SLAB_BYTES) -> Weights:
    sizes = [min(slab_bytes, size - at) for at in range(0, size, slab_bytes)]
    slabs = []
    for n in sizes:
        fd = os.memfd_create("slab", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.truncate(fd, n)
        slabs.append(fd)
    return Weights(slabs, sizes)


Answer = tuple[dict[str, Any] | bytes, list[int]]


@dataclass
class FakeAgent:
    """Serves one socket on a thread of its own until close().

    `weights` is what it offers as pulled. `overrides[type]` answers a request in place of the agent:
    it gets the request and what the agent would have answered (not yet sent).
    """

    path: Path
    weights: Weights | None = None
    identity: dict[str, str] | None = None
    overrides: dict[str, Callable[[dict[str, Any], Answer], Answer]] = field(default_factory=dict)
    storage_allowed: bool = True
    #: Whether an engine that would load from storage is to begin without weights.
    begin_without: bool = False
    #: Whose memory it says its slabs are, to engines on that GPU.
    gpu: str = ""
    #: How much of that GPU's memory it holds, in bytes.
    held: int = 0
    #: Of the slots that checkpoints stream through.
    slot_bytes: int = 256 * 1024

    #: Whether AwaitArena is answered: until then it is Pending.
    arena_ready: bool = True

    requests: list[dict[str, Any]] = field(default_factory=list)
    published: Weights | None = None
    writable_at_publish: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def __enter__(self) -> FakeAgent:
        self._arena: Weights | None = None
        self._changed = threading.Condition()
        self._command: dict[str, Any] | None = None
        self._commands = 0
        self.stream: FakeStream | None = None
        self._connections: list[socket.socket] = []
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(str(self.path))
        self._listener.listen(8)
        self._threads = [threading.Thread(target=self._accept, name="fake-agent", daemon=True)]
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        self.die()
        for thread in self._threads:
            thread.join(timeout=10)
        if self.stream is not None:
            self.stream.close()

    def die(self) -> None:
        """Everything that the kernel does when an agent is killed."""
        for open_socket in [self._listener, *self._connections]:
            try:
                open_socket.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            open_socket.close()
        self.path.unlink(missing_ok=True)

    def command(self, name: str, limit_s: float = 120, **fields: Any) -> dict[str, Any]:
        """Gives the engine core a command; returns its CommandDone."""
        with self._changed:
            self._commands += 1
            self._command = {"type": "Command", "id": self._commands, "command": name} | fields
            self._changed.notify_all()

            def answers() -> list[dict[str, Any]]:
                done = [r for r in self.requests if r["type"] == "CommandDone"]
                return [r for r in done if r["id"] == self._commands]

            assert self._changed.wait_for(answers, limit_s), f"{name} has no end: {self.types()}"
            return answers()[0]

    def wait_for(self, kind: str, limit_s: float = 60) -> dict[str, Any]:
        """The first request of this type, when it has come."""
        with self._changed:
            assert self._changed.wait_for(lambda: kind in self.types(), limit_s), self.types()
        return next(r for r in self.requests if r["type"] == kind)

    def phases(self) -> dict[str, int]:
        return {r["name"]: r["atUs"] for r in self.requests if r["type"] == "Phase"}

    def types(self) -> list[str]:
        """Of all requests but those that only tell of caches, which an engine sends when it likes."""
        return [r["type"] for r in self.requests if r["type"] != "CacheUse"]

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._connections.append(connection)
            thread = threading.Thread(target=self._serve, args=(connection,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        while True:
            try:
                raw, fds = self._receive(connection)
                if not raw:
                    return
                request = json.loads(raw)
                with self._changed:
                    self.requests.append(request)
                    self._changed.notify_all()
                answer = self._answer(request, fds)
                override = self.overrides.get(request["type"])
                if override is not None:
                    answer = override(request, answer)
                body, out = answer
                raw_answer = body if isinstance(body, bytes) else json.dumps(body).encode()
                rights = (
                    [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", out))] if out else []
                )
                connection.sendmsg([raw_answer], rights)
            except Die:
                self.die()
                return
            except OSError:
                return
            except Exception as error:  # Would otherwise vanish with the thread.
                self.errors.append(repr(error))
                self.die()
                return

    @staticmethod
    def _receive(connection: socket.socket) -> tuple[bytes, list[int]]:
        fds = array.array("i")
        raw, control, _, _ = connection.recvmsg(128 * 1024, socket.CMSG_SPACE(64 * fds.itemsize))
        for level, kind, data in control:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
        return raw, list(fds)

    def _answer(self, request: dict[str, Any], fds: list[int]) -> Answer:
        kind = request["type"]
        if kind == "Hello":
            return self._hello(request), []
        if kind == "Phase":
            return {"type": "Ok"}, []
        if kind == "AwaitWeights":
            assert self.weights is not None
            self._arena = self.weights
            document = os.memfd_create("manifest")
            os.write(document, self.weights.manifest)
            return {
                "type": "Weights",
                "arenaBytes": self.weights.arena_bytes(),
                "slabBytes": self.weights.slab_bytes,
                "manifestBytes": len(self.weights.manifest),
            } | self._whose(), [document]
        if kind == "CreateArena":
            self._arena = create_slabs(request["bytes"])
            return {
                "type": "Arena",
                "arenaBytes": request["bytes"],
                "slabBytes": self._arena.slab_bytes,
            } | self._whose(), []
        if kind == "GetSlabs":
            assert self._arena is not None
            first, count = request["first"], request["count"]
            return {"type": "Slabs", "first": first, "count": count}, self._arena.slabs[
                first : first + count
            ]
        if kind == "Publish":
            return self._publish(request, fds), []
        if kind == "OpenStream":
            if self.stream is not None:
                self.stream.close()
            names = [file["name"] for file in request["files"]]
            self.stream = FakeStream(Path(request["folder"]), names, self.slot_bytes)
            return self.stream.shape(), self.stream.slots
        if kind == "NextBatch":
            assert self.stream is not None
            return self.stream.batch(request), []
        if kind == "CloseStream":
            return {"type": "Ok"}, []
        if kind == "HeldMemory":
            return {"type": "Held", "bytes": self.held if request["gpu"] == self.gpu else 0}, []
        if kind == "Attach":
            return {"type": "Attached", "protocol": "rouse-engine", "version": 1}, []
        if kind == "AwaitCommand":
            return self._next_command(), []
        if kind == "CommandDone":
            return {"type": "Ok"}, []
        if kind == "ReleaseArena":
            self._arena = None
            return {"type": "Ok"}, []
        if kind == "AwaitArena":
            return self._await_arena(), []
        if kind == "CacheUse":
            return {"type": "Ok"}, []
        raise AssertionError(f"unknown request {kind}")

    def _next_command(self) -> dict[str, Any]:
        with self._changed:
            self._changed.wait_for(lambda: self._command is not None, 0.5)
            command, self._command = self._command, None
        return command or {"type": "Pending"}

    def _await_arena(self) -> dict[str, Any]:
        if not self.arena_ready:
            time.sleep(0.05)
            return {"type": "Pending"}
        if self.weights is None:
            return {"type": "Error", "code": "Unavailable", "message": "no peer has weights"}
        self._arena = self.weights
        return {
            "type": "Arena",
            "arenaBytes": self._arena.arena_bytes(),
            "slabBytes": self._arena.slab_bytes,
        } | self._whose()

    def _whose(self) -> dict[str, str]:
        named = [r.get("gpu", "") for r in self.requests if r["type"] == "Hello"][-1:]
        return {"gpu": self.gpu} if self.gpu and any(named) else {}

    def _hello(self, request: dict[str, Any]) -> dict[str, Any]:
        welcome = {"type": "Welcome", "protocol": "rouse-engine", "version": 1}
        reason = "no peer has them"
        if self.weights is not None:
            ours = self.identity or json.loads(self.weights.manifest)["identity"]
            theirs = request["identity"]
            differences = differing(theirs, ours)
            if not differences:
                return welcome | {"source": "Peer", "reason": "pulled from a peer"}
            reason = "the weights at hand have another identity: " + ", ".join(differences)
        if not self.storage_allowed:
            return {
                "type": "Error",
                "code": "FailedPrecondition",
                "message": f"{reason}; no storage",
            }
        source = "Nowhere" if self.begin_without else "Storage"
        return welcome | {"source": source, "reason": reason}

    def _publish(self, request: dict[str, Any], fds: list[int]) -> dict[str, Any]:
        assert self._arena is not None and len(fds) == 1
        self._arena.manifest = os.pread(fds[0], request["manifestBytes"] + 1, 0)
        os.close(fds[0])
        assert len(self._arena.manifest) == request["manifestBytes"]
        for fd, size in zip(self._arena.slabs, self._arena.slab_bytes):
            if _is_writable_elsewhere(fd, size):
                self.writable_at_publish.append(f"slab {fd}")
        self.published = self._arena
        return {"type": "Ok"}


def _is_writable_elsewhere(fd: int, size: int) -> bool:
    """Whether a shared writable mapping of the memfd exists: F_SEAL_WRITE is refused while one does."""
    import fcntl

    F_ADD_SEALS, F_SEAL_SHRINK, F_SEAL_GROW, F_SEAL_WRITE = 1033, 0x2, 0x4, 0x8
    try:
        fcntl.fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE)
    except OSError:
        return True
    return False
