"""One control plane for everything that is only accepted or refused; no pod ever runs on it."""

from __future__ import annotations

import pytest

from rouse_e2e import paths
from rouse_e2e.cluster import Cluster
from rouse_e2e.control_plane import Options
from rouse_e2e.light import LightCluster
from rouse_e2e.processes import wait_until

CRD = paths.REPOSITORY / "crds" / "modelservices.rouse.dev.yaml"
CHART = paths.REPOSITORY / "charts" / "rouse"
MODELSERVICES = "/apis/rouse.dev/v1alpha1/namespaces/default/modelservices"


@pytest.fixture(scope="session")
def api_server():
    """etcd, kube-apiserver and kube-controller-manager, without our CRD."""
    with LightCluster(options=Options(scheduler=False, kwok=False)) as up:
        yield up


@pytest.fixture(scope="session")
def api_with_crd(api_server: Cluster) -> Cluster:
    api_server.apply(CRD)
    wait_until(
        "the API server to serve modelservices",
        30,
        lambda: api_server.request("GET", MODELSERVICES).status == 200,
    )
    return api_server
