#!/usr/bin/env python3
"""Builds the cluster's programs from Go modules into the cache folder.

    build.py [--where] [program ...]

Prints the folder the programs are in. Each program is built once per version of this folder's
go.mod, go.sum and of this script, so an interrupted run goes on where it stopped. `--where` only
prints the folder. Needs nothing but Python's standard library and a Go toolchain.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import os
import re
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from rouse_e2e import paths  # noqa: E402

PROGRAMS = {
    "etcd": "go.etcd.io/etcd/server/v3",
    "kube-apiserver": "k8s.io/kubernetes/cmd/kube-apiserver",
    "kube-controller-manager": "k8s.io/kubernetes/cmd/kube-controller-manager",
    "kube-scheduler": "k8s.io/kubernetes/cmd/kube-scheduler",
    "kubelet": "k8s.io/kubernetes/cmd/kubelet",
    "kube-proxy": "k8s.io/kubernetes/cmd/kube-proxy",
    "kubectl": "k8s.io/kubernetes/cmd/kubectl",
    "kwok": "sigs.k8s.io/kwok/cmd/kwok",
    "helm": "helm.sh/helm/v4/cmd/helm",
    "kubeconform": "github.com/yannh/kubeconform/cmd/kubeconform",
}
# kwok starts only with stages given: its own, without artificial delays.
KWOK_STAGES = (
    "node/fast/node-initialize",
    "node/heartbeat-with-lease/node-heartbeat-with-lease",
    "pod/fast/pod-ready",
    "pod/fast/pod-complete",
    "pod/fast/pod-delete",
)


def module_version(module: str) -> str:
    found = re.search(rf"^\s*{re.escape(module)} (v\S+)", (HERE / "go.mod").read_text(), re.M)
    if not found:
        raise SystemExit(f"{HERE / 'go.mod'}: module {module} is missing")
    return found.group(1)


def linker_flags() -> str:
    kubernetes, helm = module_version("k8s.io/kubernetes"), module_version("helm.sh/helm/v4")
    minor = kubernetes.split(".")[1]
    values = []
    for package in ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version"):
        values += [
            f"{package}.gitVersion={kubernetes}",
            f"{package}.gitMajor=1",
            f"{package}.gitMinor={minor}",
            f"{package}.gitTreeState=clean",
            f"{package}.gitCommit=go-module-build",
            f"{package}.buildDate=2026-01-01T00:00:00Z",
        ]
    values += [
        f"helm.sh/helm/v4/internal/version.version={helm}",
        "helm.sh/helm/v4/internal/version.gitTreeState=clean",
    ]
    return "-s -w " + " ".join(f"-X {value}" for value in values)


def folder() -> Path:
    digest = hashlib.sha256()
    for name in ("go.mod", "go.sum", "build.py"):
        digest.update((HERE / name).read_bytes())
    return paths.cache("tools", digest.hexdigest()[:16])


def environment() -> dict[str, str]:
    return dict(
        os.environ,
        CGO_ENABLED="0",
        GOFLAGS="-mod=readonly -trimpath -buildvcs=false",
        GOTOOLCHAIN="local",
    )


def build(go: str, out: Path, program: str) -> None:
    target = out / program
    started = time.monotonic()
    partial = target.with_suffix(".partial")
    subprocess.run(
        [go, "build", "-gcflags=all=-dwarf=false", "-ldflags", linker_flags()]
        + ["-o", str(partial), PROGRAMS[program]],
        cwd=HERE,
        env=environment(),
        check=True,
    )
    partial.rename(target)
    size = target.stat().st_size >> 20
    print(f"  {program}: {time.monotonic() - started:.0f} s, {size} MiB", file=sys.stderr)


def write_kwok_stages(go: str, out: Path) -> None:
    module = subprocess.run(
        [go, "list", "-m", "-f", "{{.Dir}}", "sigs.k8s.io/kwok"],
        cwd=HERE,
        env=environment(),
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    texts = [Path(module, "kustomize/stage", f"{name}.yaml").read_text() for name in KWOK_STAGES]
    partial = out / "kwok-stages.partial"
    partial.write_text("".join(f"---\n{text}" for text in texts))
    partial.rename(out / "kwok-stages.yaml")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, add_help=True)
    parser.add_argument("--where", action="store_true")
    parser.add_argument("programs", nargs="*", metavar="program")
    arguments = parser.parse_args()
    unknown = set(arguments.programs) - set(PROGRAMS)
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(PROGRAMS)}")
    out = folder()
    print(out)
    if arguments.where:
        return
    out.mkdir(parents=True, exist_ok=True)
    with open(out / ".lock", "w") as lock:  # two test runs on one machine build once
        fcntl.flock(lock, fcntl.LOCK_EX)
        wanted = [x for x in arguments.programs or PROGRAMS if not (out / x).exists()]
        if wanted:
            go = paths.go()
            print(f"Building {len(wanted)} programs from Go modules", file=sys.stderr)
            for number, program in enumerate(wanted, 1):
                print(f"  [{number}/{len(wanted)}] {program}", file=sys.stderr, flush=True)
                build(go, out, program)
        if (out / "kwok").exists() and not (out / "kwok-stages.yaml").exists():
            write_kwok_stages(paths.go(), out)


if __name__ == "__main__":
    main()
