"""librouse_connector (src/rouse_connector.h), with Python's errors and ownership."""

from __future__ import annotations

import ctypes
import errno
import os
import sys
import time
from pathlib import Path

from rouse_vllm.errors import AgentUnreachable, ProtocolError, RouseError
from rouse_vllm.version import LIBRARY_ABI_VERSION

MAX_MESSAGE_BYTES = 128 * 1024
MAX_MESSAGE_FDS = 64

MAP_SHARED = 1
MAP_PRIVATE = 2
MAP_READ = 3

GPU_READ = 1
GPU_READ_WRITE = 2

_c_size = ctypes.c_size_t
_c_pointer = ctypes.c_void_p
_c_address = ctypes.c_uint64  # of a GPU

_PROTOTYPES = {
    "rouse_abi_version": (ctypes.c_int, []),
    "rouse_last_error": (ctypes.c_char_p, []),
    "rouse_connect": (ctypes.c_int, [ctypes.c_char_p, ctypes.c_int]),
    "rouse_send": (
        ctypes.c_int,
        [
            ctypes.c_int,
            ctypes.c_char_p,
            _c_size,
            ctypes.POINTER(ctypes.c_int),
            _c_size,
            ctypes.c_int,
        ],
    ),
    "rouse_receive": (
        ctypes.c_int,
        [
            ctypes.c_int,
            _c_pointer,
            _c_size,
            ctypes.POINTER(_c_size),
            ctypes.POINTER(ctypes.c_int),
            _c_size,
            ctypes.POINTER(_c_size),
            ctypes.c_int,
        ],
    ),
    "rouse_document_create": (ctypes.c_int, [ctypes.c_char_p, _c_size]),
    "rouse_document_read": (ctypes.c_int, [ctypes.c_int, _c_pointer, _c_size]),
    "rouse_arena_reserve": (ctypes.c_int, [_c_size, _c_pointer, ctypes.POINTER(_c_pointer)]),
    "rouse_arena_address": (_c_pointer, [_c_pointer]),
    "rouse_arena_map": (ctypes.c_int, [_c_pointer, _c_size, _c_size, ctypes.c_int, ctypes.c_int]),
    "rouse_arena_pin": (ctypes.c_int, [_c_pointer]),
    "rouse_arena_unmap": (ctypes.c_int, [_c_pointer]),
    "rouse_arena_free": (None, [_c_pointer]),
    "rouse_gpu_arena_reserve": (ctypes.c_int, [_c_size, _c_address, ctypes.POINTER(_c_pointer)]),
    "rouse_gpu_arena_address": (_c_address, [_c_pointer]),
    "rouse_gpu_arena_map": (
        ctypes.c_int,
        [_c_pointer, _c_size, _c_size, ctypes.c_int, ctypes.c_int],
    ),
    "rouse_gpu_arena_protect": (ctypes.c_int, [_c_pointer]),
    "rouse_gpu_arena_unmap": (ctypes.c_int, [_c_pointer]),
    "rouse_gpu_arena_free": (None, [_c_pointer]),
    "rouse_gpu_pool_release": (ctypes.c_int, []),
    "rouse_gpu_pool_restore": (ctypes.c_int, []),
    "rouse_gpu_pool_bytes": (_c_size, []),
    "rouse_gpu_stand_in_holds": (ctypes.c_int, [_c_address]),
    "rouse_gpu_stand_in_bytes": (_c_size, []),
    "rouse_gpu_set_stack": (ctypes.c_int, [_c_size, ctypes.POINTER(_c_size)]),
}

#: What torch calls by name, with its own types.
GPU_POOL_ALLOCATE = "rouse_gpu_pool_allocate"
GPU_POOL_FREE = "rouse_gpu_pool_free"
GPU_STAND_IN_ALLOCATE = "rouse_gpu_stand_in_allocate"
GPU_STAND_IN_FREE = "rouse_gpu_stand_in_free"

_library: ctypes.CDLL | None = None


def path() -> Path:
    """The library lies beside the package, in the plugin folder."""
    return Path(__file__).resolve().parent.parent / "librouse_connector.so"


def load() -> ctypes.CDLL:
    """The library, loaded at the first call. RouseError when it is missing or of another ABI."""
    global _library
    if _library is not None:
        return _library
    file = path()
    try:
        library = ctypes.CDLL(str(file))
        for name, (result, arguments) in _PROTOTYPES.items():
            function = getattr(library, name)
            function.restype = result
            function.argtypes = arguments
    except (OSError, AttributeError) as error:
        raise RouseError(
            f"the connector library {file} cannot be loaded ({error}); the plugin folder is "
            "incomplete: copy it again from the agent's image"
        ) from error
    version = library.rouse_abi_version()
    if version != LIBRARY_ABI_VERSION:
        raise RouseError(
            f"the connector library {file} has ABI version {version}, the plugin needs "
            f"{LIBRARY_ABI_VERSION}; copy both from the same agent image"
        )
    _library = library
    return library


def _message(library: ctypes.CDLL) -> str:
    return library.rouse_last_error().decode("utf-8", "replace")


def connect(path: str, timeout_s: float) -> int:
    """Connects to the engine socket; returns a descriptor that the caller closes."""
    library = load()
    fd = library.rouse_connect(os.fsencode(path), int(timeout_s * 1000))
    if fd < 0:
        raise AgentUnreachable(_message(library))
    return fd


def send(socket: int, message: bytes, fds: list[int], timeout_s: float) -> None:
    """Sends one message. The descriptors stay the caller's."""
    library = load()
    array = (ctypes.c_int * len(fds))(*fds)
    result = library.rouse_send(
        socket, message, len(message), array, len(fds), int(timeout_s * 1000)
    )
    if result == -errno.EMSGSIZE:
        raise ProtocolError(_message(library))
    if result < 0:
        raise AgentUnreachable(_message(library))


def receive(socket: int, timeout_s: float) -> tuple[bytes, list[int]]:
    """Receives one message and the descriptors beside it, which the caller closes."""
    library = load()
    buffer = ctypes.create_string_buffer(MAX_MESSAGE_BYTES)
    fds = (ctypes.c_int * MAX_MESSAGE_FDS)()
    size, count = _c_size(), _c_size()
    deadline = time.monotonic() + timeout_s
    while True:
        left_ms = max(0, int((deadline - time.monotonic()) * 1000))
        result = library.rouse_receive(
            socket,
            buffer,
            len(buffer),
            ctypes.byref(size),
            fds,
            len(fds),
            ctypes.byref(count),
            left_ms,
        )
        # After EINTR Python runs its signal handlers, which may raise; else we wait on.
        if result != -errno.EINTR:
            break
    if result == -errno.EMSGSIZE:
        raise ProtocolError(_message(library))
    if result < 0:
        raise AgentUnreachable(_message(library))
    return buffer.raw[: size.value], list(fds[: count.value])


def document_create(document: bytes) -> int:
    """A sealed memfd with this content; the caller closes it."""
    library = load()
    fd = library.rouse_document_create(document, len(document))
    if fd < 0:
        raise RouseError(_message(library))
    return fd


def document_read(fd: int, size: int) -> bytes:
    """The whole content of the descriptor, which must be `size` bytes."""
    library = load()
    buffer = ctypes.create_string_buffer(max(size, 1))
    if library.rouse_document_read(fd, buffer, size) < 0:
        raise ProtocolError(_message(library))
    return buffer.raw[:size]


def release_free_memory() -> None:
    """Has the C library give freed heap memory back to the system, where it knows how."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(_c_size(0))


class Arena:
    """One contiguous range of addresses with slabs mapped into it.

    The range lives as long as this object or any buffer() of it: unmapping under a live tensor
    would kill the process, so nobody unmaps by hand what tensors use.
    """

    def __init__(self, size: int) -> None:
        self._library = load()
        self._handle = _c_pointer()
        self.size = size
        if self._library.rouse_arena_reserve(size, None, ctypes.byref(self._handle)) < 0:
            raise RouseError(_message(self._library))
        self.address: int = self._library.rouse_arena_address(self._handle)

    def map(self, offset: int, size: int, fd: int, mapping: int) -> None:
        """Maps a slab at `offset`; the descriptor stays the caller's."""
        if self._library.rouse_arena_map(self._handle, offset, size, fd, mapping) < 0:
            raise ProtocolError(_message(self._library))

    def pin(self) -> None:
        """Has the current GPU read the range, which is MAP_READ all over, at the speed of its link, until
        it is unmapped. Nothing may be mapped in it after that."""
        if self._library.rouse_arena_pin(self._handle) < 0:
            raise RouseError(_message(self._library))

    def unmap(self) -> None:
        """Unmaps all slabs; what still points into the range must not be touched any more."""
        if self._library.rouse_arena_unmap(self._handle) < 0:
            raise RouseError(_message(self._library))

    def map_nothing(self, offset: int, size: int) -> None:
        """Lets go of the memory that is mapped in [offset, offset + size); it reads as zeros then."""
        if size <= 0:
            return
        fd = os.memfd_create("rouse-nothing", os.MFD_CLOEXEC)
        try:
            os.truncate(fd, size)  # No page of it is ever taken.
            self.map(offset, size, fd, MAP_PRIVATE)
        finally:
            os.close(fd)

    def buffer(self, offset: int = 0, size: int | None = None) -> ctypes.Array[ctypes.c_ubyte]:
        """A part of the range (default: all of it) as a writable buffer, which keeps the whole range
        alive. Each call makes an object of its own. Where MAP_READ is mapped, it must not be written to."""
        size = self.size - offset if size is None else size
        if offset < 0 or size <= 0 or size > self.size - offset:
            raise ValueError(f"[{offset}, {offset + size}) is not in an arena of {self.size} bytes")
        buffer = (ctypes.c_ubyte * size).from_address(self.address + offset)
        buffer.arena = self  # ctypes' own objects take attributes
        return buffer

    def __del__(self) -> None:
        handle = getattr(self, "_handle", None)
        # While the interpreter ends, other threads may still compute with the tensors.
        if handle and not sys.is_finalizing():
            self._library.rouse_arena_free(handle)
            self._handle = None


class GpuArena:
    """One contiguous range of addresses of the current GPU with slabs of its memory mapped into it.

    The range lives as long as this object or anything that bytes_at() returned.
    """

    def __init__(self, size: int) -> None:
        self._library = load()
        self._handle = _c_pointer()
        self.size = size
        if self._library.rouse_gpu_arena_reserve(size, 0, ctypes.byref(self._handle)) < 0:
            raise RouseError(_message(self._library))
        self.address: int = self._library.rouse_gpu_arena_address(self._handle)

    def map(self, offset: int, size: int, fd: int, access: int) -> None:
        """Maps a slab at `offset`; the descriptor stays the caller's. Nobody is kept from reading what
        is written, as there is no copy-on-write on a GPU."""
        if self._library.rouse_gpu_arena_map(self._handle, offset, size, fd, access) < 0:
            raise RouseError(_message(self._library))

    def protect(self) -> None:
        """Waits until the GPU is idle; from then on whoever writes to the arena here faults."""
        if self._library.rouse_gpu_arena_protect(self._handle) < 0:
            raise RouseError(_message(self._library))

    def unmap(self) -> None:
        """Waits until the GPU is idle, then unmaps all slabs; the addresses stay reserved."""
        if self._library.rouse_gpu_arena_unmap(self._handle) < 0:
            raise RouseError(_message(self._library))

    def bytes_at(self, offset: int, size: int) -> GpuBytes:
        """A part of the range, for torch.as_tensor()."""
        if offset < 0 or size <= 0 or size > self.size - offset:
            raise ValueError(f"[{offset}, {offset + size}) is not in an arena of {self.size} bytes")
        return GpuBytes(self, offset, size)

    def __del__(self) -> None:
        handle = getattr(self, "_handle", None)
        # While the interpreter ends, CUDA may be gone already.
        if handle and not sys.is_finalizing():
            self._library.rouse_gpu_arena_free(handle)
            self._handle = None


class GpuBytes:
    """Bytes of a GPU, as numpy, torch and others take them. Keeps their arena alive."""

    def __init__(self, arena: GpuArena, offset: int, size: int) -> None:
        self._arena = arena
        # Said to be writable, because torch takes nothing else.
        self.__cuda_array_interface__ = {
            "version": 3,
            "shape": (size,),
            "typestr": "|u1",
            "data": (arena.address + offset, False),
            "strides": None,
        }


def gpu_pool_release() -> None:
    """Waits until the GPU is idle, then gives back the memory of all that was allocated in the pool.
    Nothing may touch it until gpu_pool_restore()."""
    library = load()
    if library.rouse_gpu_pool_release() < 0:
        raise RouseError(_message(library))


def gpu_pool_restore() -> None:
    """Takes that memory again, at the same addresses. The GPU is filling it with zeros when this
    returns."""
    library = load()
    if library.rouse_gpu_pool_restore() < 0:
        raise RouseError(_message(library))


def gpu_pool_bytes() -> int:
    """Bytes allocated in the pool, be they given back or not."""
    return load().rouse_gpu_pool_bytes()


def gpu_stand_in_holds(address: int) -> bool:
    """Whether an address of the GPU is in memory that only stands in for weights."""
    return load().rouse_gpu_stand_in_holds(address) == 1


def gpu_stand_in_bytes() -> int:
    """Bytes of such memory that have not been freed."""
    return load().rouse_gpu_stand_in_bytes()


def gpu_set_stack(size: int) -> int:
    """Waits until the GPU is idle; each thread on it has a stack of so many bytes then, for all of which
    the context holds memory. Returns what it was."""
    library = load()
    before = _c_size()
    if library.rouse_gpu_set_stack(size, ctypes.byref(before)) < 0:
        raise RouseError(_message(library))
    return before.value
