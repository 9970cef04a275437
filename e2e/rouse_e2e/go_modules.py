"""Files of others' Go modules, at pinned versions and contents, by the Go toolchain's own cache.

The kinds of other projects that our samples and our chart hold objects of are read from there, so
that what is tested against is theirs and no copy of ours.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from pathlib import Path

from . import paths

KEDA = "github.com/kedacore/keda/v2"
#: Version and go.sum's hash of its content.
MODULES = {
    KEDA: (
        "v2.21.0",
        "h1:R6z2HZvstK4RLUMxroNACzBj74xGxt3kG59b5Xc+Xps=",
    ),
    "github.com/prometheus-operator/prometheus-operator": (
        "v0.85.0",
        "h1:M5xLCLEoaW2IJfnuCwFzzpL+jSVQu3KGT84Pye+fW8s=",
    ),
    "sigs.k8s.io/gateway-api-inference-extension": (
        "v1.3.0",
        "h1:Ng2Qs1Oum4WycuWyi3rOkAC7pZ2aDqgN2ku6Lr/mryQ=",
    ),
}


def module(name: str) -> Path:
    """The module's folder, fetched if it is not there."""
    version, wanted = MODULES[name]
    with tempfile.TemporaryDirectory() as outside:  # no go.mod has a say in it
        answer = subprocess.run(
            [paths.go(), "mod", "download", "-json", f"{name}@{version}"],
            cwd=outside,
            env=dict(os.environ, GOFLAGS="", GOTOOLCHAIN="local"),
            capture_output=True,
            text=True,
            timeout=300,
        )
    found = json.loads(answer.stdout or "{}")
    if answer.returncode or "Dir" not in found:
        raise RuntimeError(f"{name}@{version}: {found.get('Error') or answer.stderr}")
    if found["Sum"] != wanted:
        raise RuntimeError(f"{name}@{version} is {found['Sum']}, not {wanted}")
    return Path(found["Dir"])


def build(source: Path, package: str, target: Path) -> None:
    """A program of the module in `source`. With the flags that e2e/tools/build.py has, whose own text
    names its cache: what they share is in Go's cache then. `target` is there once it is whole."""
    environment = dict(os.environ, CGO_ENABLED="0", GOTOOLCHAIN="local")
    environment["GOFLAGS"] = "-mod=readonly -trimpath -buildvcs=false"
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_suffix(".partial")
    command = [paths.go(), "build", "-gcflags=all=-dwarf=false", "-ldflags=-s -w"]
    command += ["-o", str(partial), package]
    subprocess.run(command, cwd=source, env=environment, check=True)
    partial.rename(target)


def keda_crds() -> list[Path]:
    return [module(KEDA) / "config/crd/bases/keda.sh_scaledobjects.yaml"]


def inference_crds() -> list[Path]:
    folder = module("sigs.k8s.io/gateway-api-inference-extension") / "config/crd/bases"
    return [folder / "inference.networking.k8s.io_inferencepools.yaml"]


def prometheus_operator_crds() -> list[Path]:
    folder = module("github.com/prometheus-operator/prometheus-operator")
    kinds = ("servicemonitors", "podmonitors", "prometheusrules")
    return [
        folder / f"example/prometheus-operator-crd/monitoring.coreos.com_{x}.yaml" for x in kinds
    ]
