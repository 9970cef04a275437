"""Processes that the launcher forks for the engine, asked for in multiprocessing's own terms.

The launcher (launch.py) has imported everything. Whoever descends from it by forks alone starts a
process with CONTEXT as with a context of "spawn": what it is to run is pickled, and the new process
has none of the memory of the one that asked. It is a fork of the launcher instead of a new
interpreter, so nothing is imported again, and nothing that the asking process has done (threads,
CUDA, open files) can hurt it. What a program has from the one that starts it is given to it:
environment, limit of open files, processors.

Between the two is one pair of sockets that forks inherit and other programs do not. A request is one
message without content and these descriptors: the pipe with what to run, the pipe on which the
asking process awaits the new one's pid and later its exit code, multiprocessing's resource tracker,
and what the pickled objects refer to.
"""

from __future__ import annotations

import io
import logging
import os
import resource
import socket
import struct
from dataclasses import dataclass
from multiprocessing import (
    context,
    forkserver,
    popen_fork,
    popen_forkserver,
    popen_spawn_posix,
    process,
    reduction,
    resource_tracker,
    spawn,
    util,
)
from typing import Any

MAX_FDS = 253  # in one message, by the kernel

_FIRST_FDS = 3
_NUMBER = struct.Struct("q")

#: The asking end, in the launcher and in every process that it forked. Never closed.
_channel: socket.socket | None = None

#: Who sets another one wants it to be used.
_executable = spawn.get_executable()

#: The environment that the modules of the launcher were imported in.
_environment: dict[str, str] = {}


def open_channel() -> socket.socket:
    """In the launcher, once all is imported: from now on its children can ask. Returns the end that
    requests arrive at."""
    global _channel
    _channel, server = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    _environment.update(os.environ)
    return server


def available() -> bool:
    """Is this process the launcher's fork?"""
    return _channel is not None


def variables_changed() -> list[str]:
    """Names of the variables that this process has otherwise than the launcher had."""
    names = _environment.keys() | os.environ.keys()
    return sorted(n for n in names if os.environ.get(n) != _environment.get(n))


@dataclass(frozen=True)
class Request:
    """One process to be forked. The descriptors are its owner's to close."""

    work: int
    answer: int
    tracker: int
    others: tuple[int, ...]

    def close(self) -> None:
        for fd in (self.work, self.answer, self.tracker, *self.others):
            os.close(fd)


def receive(server: socket.socket) -> Request | None:
    """The next request; None if it is none."""
    _, fds, _, _ = socket.recv_fds(server, 1, MAX_FDS)
    if len(fds) < _FIRST_FDS:
        for fd in fds:
            os.close(fd)
        return None
    return Request(fds[0], fds[1], fds[2], tuple(fds[_FIRST_FDS:]))


def tell(answer: int, number: int) -> None:
    """Writes a pid or an exit code; nobody may be there any more."""
    try:
        os.write(answer, _NUMBER.pack(number))
    except OSError:
        pass


def become(request: Request) -> int:
    """In the forked process: runs what was asked for; returns the exit code."""
    os.close(request.answer)
    # What multiprocessing's own fork server does, and its spawn: there is no other way in.
    forkserver._forkserver._inherited_fds = list(request.others)  # type: ignore[attr-defined]
    resource_tracker._resource_tracker._fd = request.tracker  # type: ignore[attr-defined]
    return spawn._main(request.work, os.dup(request.work))  # type: ignore[attr-defined]


@dataclass(frozen=True)
class _Surroundings:
    """What a program inherits from the one that starts it."""

    environment: dict[str, str]
    open_files: tuple[int, int]  # soft and hard limit
    processors: frozenset[int]


def _surroundings() -> _Surroundings:
    return _Surroundings(
        dict(os.environ),
        resource.getrlimit(resource.RLIMIT_NOFILE),
        frozenset(os.sched_getaffinity(0)),
    )


def _inherit(process_class: type[Process], surroundings: _Surroundings) -> Process:
    """The first thing that a forked process unpickles."""
    os.environ.clear()
    os.environ.update(surroundings.environment)
    resource.setrlimit(resource.RLIMIT_NOFILE, surroundings.open_files)
    os.sched_setaffinity(0, surroundings.processors)
    threads = os.environ.get("OMP_NUM_THREADS", "")
    if threads != _environment.get("OMP_NUM_THREADS", "") and threads.isdecimal():
        import torch

        torch.set_num_threads(int(threads))  # OpenMP has read the variable long ago.
    return process_class.__new__(process_class)


class Process(process.BaseProcess):
    """multiprocessing.Process, forked from the launcher."""

    _start_method = "forkserver"

    def __reduce__(self) -> tuple[Any, ...]:
        return _inherit, (type(self), _surroundings()), self.__dict__

    @staticmethod
    def _Popen(process_object: process.BaseProcess) -> popen_fork.Popen:
        executable = spawn.get_executable()
        if executable == _executable:
            return _Popen(process_object)
        # So vLLM binds a process to a NUMA node.
        logging.getLogger("vllm.rouse").warning(
            "Rouse: %s is spawned, not forked: it is started by %s", process_object.name, executable
        )
        return popen_spawn_posix.Popen(process_object)


class _Popen(popen_forkserver.Popen):
    """As multiprocessing's own for its fork server, with another server."""

    def _launch(self, process_object: process.BaseProcess) -> None:
        work = io.BytesIO()
        context.set_spawning_popen(self)
        try:
            reduction.dump(spawn.get_preparation_data(process_object._name), work)
            reduction.dump(process_object, work)
        finally:
            context.set_spawning_popen(None)
        self.sentinel, writer = _ask(self._fds)
        # The new process takes the end of this pipe for the end of this process.
        self.finalizer = util.Finalize(self, util.close_fds, (os.dup(writer), self.sentinel))
        with open(writer, "wb") as file:
            file.write(work.getbuffer())
        self.pid = forkserver.read_signed(self.sentinel)  # type: ignore[attr-defined]


def _ask(others: list[int]) -> tuple[int, int]:
    """Returns the pipe of the answers, and the one for what to run."""
    assert _channel is not None
    answer_r, answer_w = os.pipe()
    work_r, work_w = os.pipe()
    try:
        fds = [work_r, answer_w, resource_tracker.getfd(), *others]
        if len(fds) > MAX_FDS:
            raise ValueError(f"a process with {len(others)} descriptors cannot be forked")
        socket.send_fds(_channel, [b"\0"], fds)
    except BaseException:
        os.close(answer_r)
        os.close(work_w)
        raise
    finally:
        os.close(answer_w)
        os.close(work_r)
    return answer_r, work_w


class _Context(context.BaseContext):
    _name = "forkserver"
    Process = Process


CONTEXT = _Context()
