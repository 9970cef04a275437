"""Versions of the plugin, of what it speaks, and of the vLLM it was tried with."""

PLUGIN_VERSION = "0.1.0"

PROTOCOL = "rouse-engine"
PROTOCOL_VERSION = 1

MANIFEST_PROTOCOL = "rouse-manifest"
MANIFEST_VERSION = 1

#: Must equal ROUSE_ABI_VERSION in rouse_connector.h.
LIBRARY_ABI_VERSION = 1

#: vLLM versions (major.minor) that the plugin was tested with.
TESTED_VLLM = ("0.26",)


def is_tested_vllm(version: str) -> bool:
    """Whether the plugin was tested with this vLLM version, for example "0.26.0+cpu"."""
    return ".".join(version.split(".")[:2]) in TESTED_VLLM
