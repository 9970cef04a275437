"""Fork or spawn: may a process fork, and what has to be done before it does.

A fork copies one thread and all memory. CUDA does not work in a copy, and a lock that another thread
held stays locked there for ever. So the launcher, which forks the engine's processes (forkserver.py),
is one that has neither; and a process that is to be what only a fresh interpreter can be is spawned.
The rules are pure; what they are told is observed here too.
"""

from __future__ import annotations

import ctypes
import gc
import os
import sys
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from rouse_vllm import forkserver, patches
from rouse_vllm.errors import Unsupported

CUDA_ERROR_NOT_INITIALIZED = 3

#: Why this process was spawned although it was to be forked, in its environment. The worker tells it
#: to the agent, which counts.
SPAWNED_VARIABLE = "ROUSE_SPAWNED_BECAUSE"

#: Variables that may be set after the imports: they are read when they are needed (or, as with
#: LD_PRELOAD, which vLLM sets for its CPU workers' allocator, only make a process faster).
_READ_LATE = (
    "CUBLAS", "CUDA_VISIBLE_DEVICES", "DG_JIT_", "LD_PRELOAD", "LOCAL_WORLD_SIZE", "NCCL_",
    "NUMEXPR_MAX_THREADS", "OMP_NUM_THREADS", "OTEL_", "PROMETHEUS_MULTIPROC_DIR", "ROUSE_",
    "TORCHINDUCTOR_CPP_DYNAMIC_THREADS", "VLLM_",
)  # fmt: skip


@dataclass(frozen=True)
class Parent:
    """What a process that would fork sees of itself."""

    torch_uses_cuda: bool = False
    driver_answer: int | None = None  # of cuDeviceGetCount; None: there is no libcuda
    threads: tuple[str, ...] = ()  # of Python, besides the main one


def parent_refusals(parent: Parent) -> list[str]:
    """Why this process may not fork; empty: it may."""
    reasons = []
    if parent.torch_uses_cuda:
        reasons.append("torch has initialised CUDA in this process")
    if parent.driver_answer not in (None, CUDA_ERROR_NOT_INITIALIZED):
        reasons.append(
            f"CUDA is initialised in this process: cuDeviceGetCount answers {parent.driver_answer}, "
            f"not CUDA_ERROR_NOT_INITIALIZED"
        )
    if parent.threads:
        reasons.append(f"this process has other threads: {', '.join(parent.threads)}")
    return reasons


@dataclass(frozen=True)
class Request:
    """What the process sees that needs another one."""

    platform: str = "cuda"
    ray_actor: bool = False
    numa_bind: bool = False
    wsl: bool = False
    variables_changed: tuple[str, ...] = ()  # since the imports


def request_refusals(request: Request) -> list[str]:
    """Why the other process has to be spawned; empty: it may be forked."""
    reasons = []
    if request.platform not in ("cuda", "cpu"):
        reasons.append(f"forks are not known to work on the platform {request.platform}")
    if request.ray_actor:
        reasons.append("this is a Ray actor")
    if request.numa_bind:
        reasons.append("--numa-bind is done by what a fresh process is started with")
    if request.wsl:
        reasons.append("NVML cannot be forked under WSL")
    early = [name for name in request.variables_changed if not name.startswith(_READ_LATE)]
    if early:
        reasons.append(
            f"only a fresh process reads what was set after the imports: {', '.join(early)}"
        )
    return reasons


def driver_answer() -> int | None:
    """What cuDeviceGetCount says; None when there is no libcuda. Initialises nothing."""
    try:
        library = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    count = ctypes.c_int()
    return int(library.cuDeviceGetCount(ctypes.byref(count)))


def observe_parent() -> Parent:
    torch = sys.modules.get("torch")
    main = threading.main_thread()
    return Parent(
        torch_uses_cuda=torch is not None and bool(torch.cuda.is_initialized()),
        driver_answer=driver_answer(),
        threads=tuple(sorted(t.name for t in threading.enumerate() if t is not main)),
    )


def _observe_request() -> Request:
    from vllm.platforms import current_platform
    from vllm.utils.system_utils import in_wsl, is_in_ray_actor

    return Request(
        platform=current_platform.device_type,
        ray_actor=is_in_ray_actor(),
        numa_bind="--numa-bind" in sys.argv,
        wsl=in_wsl(),
        variables_changed=tuple(forkserver.variables_changed()),
    )


def arch_list(capabilities: Iterable[tuple[int, int]]) -> str:
    """As FLASHINFER_CUDA_ARCH_LIST has it. Without the suffixes of an architecture ("9.0a"):
    FlashInfer adds those as it does to what a device says of itself."""
    return " ".join(f"{major}.{minor}" for major, minor in sorted(set(capabilities)))


def tell_flashinfer() -> None:
    """When FlashInfer is imported, as vLLM's compilation does, it asks each device for its capability
    and thereby initialises CUDA, unless this says it. NVML does not initialise CUDA."""
    if "FLASHINFER_CUDA_ARCH_LIST" in os.environ:
        return
    from vllm.third_party import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return  # There is no GPU.
    try:
        devices = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        listed = arch_list(pynvml.nvmlDeviceGetCudaComputeCapability(d) for d in devices)
    finally:
        pynvml.nvmlShutdown()
    if listed:
        os.environ["FLASHINFER_CUDA_ARCH_LIST"] = listed


def prepare_to_fork() -> None:
    """The last thing before the first fork."""
    _end_openmp_threads()
    # What is there now is left alone by the children's garbage collection, and so stays shared.
    gc.collect()
    gc.freeze()


def _end_openmp_threads() -> None:
    """A child would wait for ever for the threads of libgomp, which it does not have. (Intel's
    runtime looks after itself.)"""
    with open("/proc/self/maps") as maps:
        paths = {line.split(maxsplit=5)[-1].strip() for line in maps if "libgomp" in line}
    for path in sorted(paths):
        try:
            ctypes.CDLL(path).omp_pause_resource_all(ctypes.c_int(2))  # hard
        except (OSError, AttributeError):
            pass  # Replaced on the disk, or older than OpenMP 5.0.


#: Where vLLM starts processes: the coordinator of data parallelism, engine cores, workers.
_EDGES = (
    "vllm.v1.engine.coordinator",
    "vllm.v1.engine.utils",
    "vllm.v1.executor.multiproc_executor",
)

_said: list[str] | None = None


def install() -> None:
    """In a process that the launcher forked: has vLLM start its other processes there too."""
    if not forkserver.available():
        return
    import importlib

    from vllm.logger import init_logger

    logger = init_logger("vllm.rouse")

    def choose(original: Any) -> Any:
        def get_mp_context() -> Any:
            global _said
            reasons = request_refusals(_observe_request())
            if reasons != _said:
                _said = reasons
                if reasons:
                    os.environ[SPAWNED_VARIABLE] = "; ".join(reasons)
                    logger.warning(
                        "Rouse: processes are spawned, not forked: %s", os.environ[SPAWNED_VARIABLE]
                    )
                else:
                    logger.info("Rouse: processes are forked from the launcher")
            return original() if reasons else forkserver.CONTEXT

        return get_mp_context

    try:
        for name in _EDGES:
            patches.wrap(importlib.import_module(name), "get_mp_context", ("",), choose)
    except Unsupported as error:
        os.environ[SPAWNED_VARIABLE] = str(error)
        logger.warning("Rouse: processes are spawned, not forked: %s", error)
