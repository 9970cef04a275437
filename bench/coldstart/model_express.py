"""The row `modelexpress`: NVIDIA ModelExpress brings weights and compile caches from an instance that serves.

vLLM knows its load format, and imports it as a plugin too wherever it is installed: so it is on the path of its own
instances alone. They find each other at its server (crate modelexpress-server, feature memory-backend), because its
serverless way, MX_METADATA_BACKEND=k8s-service, looks up weights only.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import row_names
from bench import Bench
from server import Server
from servers import free_port

PROBE = """
from importlib.metadata import version
import modelexpress.metadata.artifact_transfer
from modelexpress.nixl_transfer import is_nixl_available
assert is_nixl_available(), "nixl_cu13 is not there"
print(version("modelexpress"))
"""
#: What its log has once a cache is offered, and once one is in place; and of the weights.
SCHEDULED = re.compile(r"Scheduled vLLM artifact publisher: name=(\w+) roots=\['([^']+)'")
PUBLISHED = re.compile(r"vLLM artifact publish complete: name=(\w+) ")
INSTALLED = re.compile(
    r"vLLM artifact install complete: name=(\w+) .*size=([\d.]+) MiB elapsed=([\d.]+)s"
)
WEIGHTS = re.compile(r"RDMA transfer complete: (\d+) tensors, ([\d.]+) GB, ([\d.]+)s")
READY = "Status -> READY"  # once for each cache, and once for the weights
#: What vLLM says of the code that it found or did not, and ModelExpress of vLLM's choice.
SAID = {
    "outermostLoaded": "Directly load AOT compilation from path",
    "outermostRefused": "Compiling model again due to a load failure",
    "graphsLoaded": "Directly load the compiled graph(s)",
    "graphsCompiled": "Compiling a graph for compile range",
    "folderWasInstalled": "which ModelExpress installed",
    "folderWasAnother": "so the transferred cache was not reused",
}


def _paths(packages: Path) -> dict[str, str]:
    before = {"PYTHONPATH": packages, "PATH": packages / "bin"}
    return {name: f"{path}:{os.environ.get(name, '')}" for name, path in before.items()}


def _run(packages: Path, *command: str | Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | _paths(packages)
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def _probe(packages: Path) -> subprocess.CompletedProcess[str]:
    return _run(packages, sys.executable, "-c", PROBE)


def _server_program(packages: Path) -> Path:
    return packages / "bin" / "modelexpress-server"


def _versions(packages: Path) -> dict[str, str]:
    server = _run(packages, _server_program(packages), "--version")
    server.check_returncode()
    return {"version": _probe(packages).stdout.strip(), "metadataServer": server.stdout.strip()}


def missing(packages: Path | None) -> str:
    """What the row lacks, empty for nothing."""
    if packages is None:
        return "--modelexpress names no folder"
    if not os.access(_server_program(packages), os.X_OK):
        return f"{_server_program(packages)} is no program"
    probe = _probe(packages)
    return "" if probe.returncode == 0 else probe.stderr.strip().rpartition("\n")[2]


def _listens(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), 1):
            return True
    except OSError:
        return False


@contextlib.contextmanager
def _metadata_server(bench: Bench, packages: Path) -> Iterator[str]:
    port = free_port()
    environment = os.environ | _paths(packages) | {"MX_METADATA_BACKEND": "memory"}
    with (bench.logs / "modelexpress-server.log").open("w") as log:
        process = subprocess.Popen(
            [
                _server_program(packages), "--host", "127.0.0.1", "--port", str(port), "--metrics-port", "0",
                "--cache-directory", str(bench.work / "modelexpress-cache"),
            ],
            env=environment, stdout=log, stderr=subprocess.STDOUT,
        )  # fmt: skip
    try:
        deadline = time.monotonic() + 60
        while not _listens(port):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(
                    f"modelexpress-server: {process.returncode or 'does not listen'}"
                )
            time.sleep(0.01)
        yield f"127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def _instance(bench: Bench, name: str, address: str, packages: Path) -> Iterator[Server]:
    """With ports and a folder for temporary files of its own, as a pod has them: what it has tried to
    get and what it offers is noted there."""
    port, temporary = free_port(), bench.work / name
    temporary.mkdir()
    cache = bench.work / "cache"
    environment = _paths(packages) | {
        "MX_SERVER_ADDRESS": address,
        "MX_WORKER_HOST": "127.0.0.1",
        "MX_METADATA_PORT": str(free_port()),
        "MX_WORKER_GRPC_PORT": str(free_port()),
        "MX_ARTIFACT_TRANSFER": "1",
        "MX_ARTIFACT_READY_URL": f"http://127.0.0.1:{port}/health",
        "TILELANG_CACHE_DIR": str(cache / "tilelang"),
        "CUTE_DSL_CACHE_DIR": str(cache / "cute_dsl"),
        "TMPDIR": str(temporary),
        # As in gpu_rivals.py: with no active NVLink UCX else answers a get by a slow path.
        "UCX_CUDA_IPC_ENABLE_GET_ZCOPY": "on",
    }
    more = ("--load-format", "modelexpress")
    try:
        with bench.stock(name, *more, environment=environment, port=port) as server:
            yield server
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _await_published(server: Server, limit_s: float = 120) -> None:
    """Until it offers its weights and each of its caches that has files."""
    deadline = time.monotonic() + limit_s
    while True:
        log = server.log.read_text(errors="replace")
        due = {
            name
            for name, root in SCHEDULED.findall(log)
            if any(x.is_file() for x in Path(root).rglob("*"))
        }
        published = set(PUBLISHED.findall(log))
        if due and due <= published and log.count(READY) > len(published):
            return
        if time.monotonic() > deadline:
            raise RuntimeError(f"{server.name} offers {published} of {due}:\n{server.tail()}")
        time.sleep(0.1)


def _said(server: Server) -> dict[str, Any]:
    log = server.log.read_text(errors="replace")
    out: dict[str, Any] = {
        "installed": {
            name: {"MiB": float(size), "seconds": float(seconds)}
            for name, size, seconds in INSTALLED.findall(log)
        },
        "log": {name: log.count(text) for name, text in SAID.items()},
    }
    if weights := WEIGHTS.search(log):
        tensors, gigabytes, seconds = weights.groups()
        out["weights"] = {
            "tensors": int(tensors), "GB": float(gigabytes), "seconds": float(seconds),
        }  # fmt: skip
    return out


def measure(bench: Bench, packages: Path) -> None:
    """An instance that reads storage and compiles, and one beside it that has all of it from the first."""
    versions = _versions(packages)
    with _metadata_server(bench, packages) as address:
        bench.caches()
        with _instance(bench, "mx-source", address, packages) as source:
            seconds = source.first_token()
            _await_published(source)
            bench.measured(
                row_names.MODELEXPRESS_FIRST,
                source,
                seconds,
                speed=False,
                **versions,
                **_said(source),
            )
            bench.hold_caches()
            bench.caches()
            with _instance(bench, "mx-target", address, packages) as target:
                seconds = target.first_token()
                # What it does after its first token is not to be in its speed: it offers its caches too.
                _await_published(target)
                said = _said(target)
                if "weights" not in said:
                    raise RuntimeError(f"weights did not come from the first instance: {said}")
                bench.measured(row_names.MODELEXPRESS, target, seconds, **versions, **said)
