"""Rouse's plugin for vLLM: load format "rouse" takes weights from the agent, or gives them to it.

vLLM calls register() in each of its processes (API server, engine core, workers), perhaps twice in
one. The engine is started with

    --load-format rouse --model-loader-extra-config '{"socket": "/rouse/run/engine.sock"}'

Further keys there, all optional: connectTimeoutS (seconds to wait for the agent, 30), weightsTimeoutS
(seconds to wait for weights that peers send, 600), storageFormat (the load format that is used for
storage; with "auto", the default, the agent reads safetensors files, with any other one vLLM reads),
graphCapture ("Eager", the default, or "Lazy": most CUDA graphs are captured after the start),
graphCaptureTrigger (when: "Idle", the default, or "FirstRequest"), and those that vLLM's own loader
takes.
"""

import os
import sys
import time
from collections.abc import Callable

from rouse_vllm.errors import Unsupported
from rouse_vllm.version import PLUGIN_VERSION

__version__ = PLUGIN_VERSION

#: When the plugin was first called in this engine, in microseconds since the epoch. The environment
#: carries it from the API server to the workers, which are the ones that talk to the agent.
IMPORTED_AT_VARIABLE = "ROUSE_IMPORTED_AT_US"

LOAD_FORMAT = "rouse"

_NO_COMMANDS = "this instance takes no commands of the agent, so it can neither sleep nor wake"

_registered = False

#: This process, and when vLLM first asked for its plugins in it, in microseconds since the epoch.
_process = (0, 0)


def register() -> None:
    """Entry point of the group vllm.general_plugins."""
    global _registered
    _note_process()
    os.environ.setdefault(IMPORTED_AT_VARIABLE, str(time.time_ns() // 1000))
    if _registered:
        return
    _registered = True
    # Imported only now: importing this package must not import vLLM.
    import vllm.plugins
    from vllm.device_allocator.sleep_mode_backend import SleepModeBackendFactory
    from vllm.model_executor.model_loader import register_model_loader

    from rouse_vllm import checkpoint_tensors, device_memory, fork, whole_artifact
    from rouse_vllm.loader import RouseModelLoader
    from rouse_vllm.patches import wrap

    register_model_loader(LOAD_FORMAT)(RouseModelLoader)
    whole_artifact.install()
    fork.install()
    SleepModeBackendFactory.register_backend(
        LOAD_FORMAT, "rouse_vllm.sleep_backend", "RouseSleepBackend"
    )
    try:
        device_memory.install(LOAD_FORMAT)
    except Unsupported as error:
        _complain("an engine that is started again finds no memory beside its weights", error)
    try:
        checkpoint_tensors.install()
    except Unsupported as error:
        _complain("GPTQ and AWQ models need their weight files in the pod", error)
    # Each engine core asks for its plugins when it is made, be they loaded already (before a fork).
    try:
        wrap(vllm.plugins, "load_general_plugins", ("",), _then_take_commands)
    except Unsupported as error:
        _complain(_NO_COMMANDS, error)
    _take_commands()


def _then_take_commands(load_general_plugins: Callable[[], None]) -> Callable[[], None]:
    def load() -> None:
        _note_process()
        load_general_plugins()
        _take_commands()

    return load


def _note_process() -> None:
    global _process
    if _process[0] != os.getpid():  # Else it has been noted, and this is no fork of one that had.
        _process = (os.getpid(), time.time_ns() // 1000)


def process_started_us() -> int:
    """When vLLM first asked for its plugins in this process: before it does anything else there."""
    _note_process()
    return _process[1]


def _take_commands() -> None:
    """Where this process has engine cores, they take commands. Else nothing is imported for it."""
    if "vllm.v1.engine.core" not in sys.modules:
        return
    from rouse_vllm import commands

    try:
        commands.install()
    except Unsupported as error:
        _complain(_NO_COMMANDS, error)


def _complain(what: str, error: Unsupported) -> None:
    from vllm.logger import init_logger

    init_logger("vllm.rouse").warning("Rouse: %s: %s", what, error)
