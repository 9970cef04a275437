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
import time

from rouse_vllm.version import PLUGIN_VERSION

__version__ = PLUGIN_VERSION

#: When the plugin was first called in this engine, in microseconds since the epoch. The environment
#: carries it from the API server to the workers, which are the ones that talk to the agent.
IMPORTED_AT_VARIABLE = "ROUSE_IMPORTED_AT_US"

LOAD_FORMAT = "rouse"


_registered = False


def register() -> None:
    """Entry point of the group vllm.general_plugins."""
    global _registered
    os.environ.setdefault(IMPORTED_AT_VARIABLE, str(time.time_ns() // 1000))
    if _registered:
        return
    # Imported only now: importing this package must not import vLLM.
    from vllm.model_executor.model_loader import register_model_loader

    from rouse_vllm import fork
    from rouse_vllm.loader import RouseModelLoader

    register_model_loader(LOAD_FORMAT)(RouseModelLoader)
    fork.install()
    _registered = True
