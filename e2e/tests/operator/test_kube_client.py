"""The operator's Kubernetes client library against a real API server.

The checks are in operator/tests/kube_api_test.cpp; each of its test cases is one test here.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
from pathlib import Path

import pytest

from .conftest import World
from .modelservice import modelservice

CASES = [
    "objects are created, read, patched, replaced and deleted under their conditions",
    "server-side apply owns its fields, and takes those of others only by force",
    "the status of a ModelService is patched beside its spec",
    "an informer lists in pages and follows, over many watches, without a second list",
    "a continue token that the server does not know lists anew",
    "a watch from a version of the future, at which servers are silent, ends in a list",
    "leadership is taken, kept, released and taken over on a real Lease",
    "events are accepted, and their repetitions become a series",
    "missing rights and unknown tokens are told apart, each with its remedy",
    "a server that the CA does not vouch for is not spoken to",
]


def with_client_certificate(world: World, path: Path) -> Path:
    """A kubeconfig with everything inline, as managed clusters hand them out."""
    pki = world.cluster.control_plane.pki

    def data(name: str) -> str:
        return base64.b64encode((pki / name).read_bytes()).decode()

    cluster = {
        "server": world.cluster.control_plane.server,
        "certificate-authority-data": data("ca.crt"),
    }
    user = {
        "client-certificate-data": data("kubelet-client.crt"),
        "client-key-data": data("kubelet-client.key"),
    }
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "c", "cluster": cluster}],
        "users": [{"name": "u", "user": user}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "x",
    }
    path.write_text(json.dumps(document))
    return path


@pytest.mark.parametrize("case", CASES)
def test_kube_client(
    world: World, namespace: str, build_folder: Path, tmp_path: Path, case: str
) -> None:
    program = build_folder / "operator" / "kube" / "kube_api_test"
    assert program.exists(), f"{program} is missing: build it, or name its build in ROUSE_BUILD"
    environment = dict(
        os.environ,
        KUBECONFIG=str(with_client_certificate(world, tmp_path / "kubeconfig")),
        ROUSE_TEST_NOBODY_KUBECONFIG=str(world.cluster.control_plane.kubeconfig("nobody")),
        ROUSE_TEST_NAMESPACE=namespace,
        ROUSE_TEST_MODELSERVICE=json.dumps(modelservice(namespace)),
    )
    # A comma separates test names on Catch2's command line.
    result = subprocess.run(
        [str(program), case.replace(",", "\\,")],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "All tests passed" in result.stdout, "the program has no such test case"


def test_every_case_is_run(build_folder: Path) -> None:
    program = build_folder / "operator" / "kube" / "kube_api_test"
    listed = subprocess.run(
        [str(program), "--list-test-names-only"], capture_output=True, text=True
    ).stdout.splitlines()
    assert sorted(x.strip() for x in listed if x.strip()) == sorted(CASES)
