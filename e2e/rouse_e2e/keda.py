"""KEDA itself, its operator and its metrics server, as processes beside a light cluster.

Built from its Go module with the dependencies that it pins, once for each version, in the cache
folder: some minutes and some gigabytes. Both run as KEDA's own service account, with the rights of
its own manifests and no others.
"""

from __future__ import annotations

import os
from pathlib import Path

import yaml

from . import go_modules, paths, pki
from .cluster import Object
from .control_plane import free_ports
from .light import LightCluster
from .processes import tail, wait_until

NAMESPACE, ACCOUNT = "keda", "keda-operator"
METRICS_SERVER = "keda-metrics-apiserver"
PROGRAMS = {"keda": "./cmd/operator", "keda-adapter": "./cmd/adapter"}


def programs() -> Path:
    """The folder that they are in."""
    version, _ = go_modules.MODULES[go_modules.KEDA]
    folder = paths.cache("keda", version)
    with paths.locked("keda"):
        for name, package in PROGRAMS.items():
            if not (folder / name).exists():
                source = go_modules.module(go_modules.KEDA)
                go_modules.build(source, package, folder / name)
    return folder


def aggregation_flags(folder: Path) -> list[str]:
    """For an API server that passes requests on to a metrics server; makes the certificate it shows."""
    folder.mkdir(parents=True, exist_ok=True)
    pki.create_authority(folder)
    pki.certificate(folder, "front-proxy", "/CN=front-proxy-client", pki.CLIENT)
    return [
        f"--requestheader-client-ca-file={folder}/ca.crt",
        "--requestheader-allowed-names=front-proxy-client",
        "--requestheader-username-headers=X-Remote-User",
        "--requestheader-group-headers=X-Remote-Group",
        "--requestheader-extra-headers-prefix=X-Remote-Extra-",
        f"--proxy-client-cert-file={folder}/front-proxy.crt",
        f"--proxy-client-key-file={folder}/front-proxy.key",
    ]


class Keda:
    """Its processes are the cluster's, and end with it."""

    def __init__(self, cluster: LightCluster) -> None:
        self.cluster = cluster
        self.folder = cluster.folder / "keda"
        self.folder.mkdir()
        self.service, self.secure, self.plain = free_ports(3)
        self._install()
        self._certificates()
        kubeconfig = self._kubeconfig()
        environment = dict(
            os.environ,
            KUBECONFIG=str(kubeconfig),
            WATCH_NAMESPACE="",
            POD_NAMESPACE=NAMESPACE,
            KEDA_CLUSTER_OBJECT_NAMESPACE=NAMESPACE,
        )
        self._start("keda", environment, *self._operator_flags())
        self._start("keda-adapter", environment, *self._adapter_flags(kubeconfig))
        wait_until("KEDA's metrics API", 60, self._answers, 0.5)

    def _install(self) -> None:
        """Its kinds, account and rights, as it ships them; the metrics API is a process here."""
        config = go_modules.module(go_modules.KEDA) / "config"
        objects: list[Object] = [
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}},
            {
                "apiVersion": "v1",
                "kind": "ServiceAccount",
                "metadata": {"name": ACCOUNT, "namespace": NAMESPACE},
            },
            {
                "apiVersion": "v1",
                "kind": "Service",
                "metadata": {"name": METRICS_SERVER, "namespace": NAMESPACE},
                "spec": {"type": "ExternalName", "externalName": "localhost"},
            },
        ]
        # By the server, as KEDA says: they are too large for kubectl's own annotation.
        self.cluster.kubectl("apply", "--server-side", "-f", str(config / "crd" / "bases"))
        files = [config / "rbac" / "role.yaml", config / "rbac" / "role_binding.yaml"]
        files += [config / "metrics-server" / f"{x}.yaml" for x in ("role", "role_binding")]
        files += [config / "metrics-server" / "api_service.yaml"]
        for file in files:
            objects += [x for x in yaml.safe_load_all(file.read_text()) if x]
        for each in objects:
            if each["kind"] == "APIService":
                each["spec"]["service"]["port"] = self.secure
                each["spec"]["insecureSkipTLSVerify"] = True
        self.cluster.apply(objects)

    def _certificates(self) -> None:
        """What its certificate rotation would put into a Secret."""
        pki.create_authority(self.folder)
        names = (
            "subjectAltName=DNS:localhost,IP:127.0.0.1\nextendedKeyUsage=serverAuth,clientAuth\n"
        )
        pki.certificate(self.folder, "tls", "/CN=keda", names)

    def _kubeconfig(self) -> Path:
        token = self.cluster.kubectl("create", "token", ACCOUNT, "-n", NAMESPACE, "--duration=4h")
        keys = self.cluster.control_plane.pki
        (keys / "keda.token").write_text(token.strip())
        path = self.folder / "kubeconfig"
        pki.write_kubeconfig(path, keys, "keda", self.cluster.control_plane.server)
        return path

    def _operator_flags(self) -> list[str]:
        return [
            f"--cert-dir={self.folder}",
            f"--metrics-service-bind-address=127.0.0.1:{self.service}",
            "--metrics-bind-address=0",
            "--health-probe-bind-address=0",
        ]

    def _adapter_flags(self, kubeconfig: Path) -> list[str]:
        return [
            *(f"--secure-port={self.secure}", "--bind-address=127.0.0.1", f"--port={self.plain}"),
            f"--metrics-service-address=localhost:{self.service}",
            f"--cert-dir={self.folder}",
            f"--client-ca-file={self.folder}/ca.crt",
            f"--tls-cert-file={self.folder}/tls.crt",
            f"--tls-private-key-file={self.folder}/tls.key",
            *(f"--{x}-kubeconfig={kubeconfig}" for x in ("lister", "authentication")),
            f"--authorization-kubeconfig={kubeconfig}",
        ]

    def _start(self, name: str, environment: dict[str, str], *flags: str) -> None:
        self.cluster.processes.start(name, [str(programs() / name), *flags], env=environment)

    def _answers(self) -> bool:
        for name in PROGRAMS:
            if not self.cluster.processes.alive(name):
                raise RuntimeError(f"{name} ended:\n{tail(self.cluster.folder / f'{name}.log')}")
        answer = self.cluster.request("GET", "/apis/external.metrics.k8s.io/v1beta1")
        return answer.status == 200
