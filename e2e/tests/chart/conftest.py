"""One control plane for everything that is only accepted or refused; no pod ever runs on it."""

from __future__ import annotations

import pytest

from rouse_e2e import go_modules, paths
from rouse_e2e.cluster import Cluster
from rouse_e2e.control_plane import Options
from rouse_e2e.light import LightCluster
from rouse_e2e.processes import wait_until

CRD = paths.REPOSITORY / "crds" / "modelservices.rouse.dev.yaml"
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


@pytest.fixture(scope="session")
def api_with_foreign_kinds(api_with_crd: Cluster) -> Cluster:
    """With the kinds of other projects that our chart and our samples have objects of."""
    for file in (
        *go_modules.keda_crds(),
        *go_modules.inference_crds(),
        *go_modules.prometheus_operator_crds(),
    ):
        api_with_crd.kubectl("apply", "--server-side", "-f", str(file))
    api_with_crd.kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=30s")
    return api_with_crd
