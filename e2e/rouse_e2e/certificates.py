"""Certificates for whoever plays an agent, gotten as an agent gets its own.

A token that is bound to the pod comes from the API server (as the kubelet has it for a projected
volume), and the operator signs for it. Only the key is one for all: it is not what is tested.
"""

from __future__ import annotations

import http.client
import json
import ssl
import subprocess
import tempfile
import threading
import weakref
from pathlib import Path
from typing import Any

from .cluster import Cluster, Object

OPERATOR = "spiffe://rouse.dev/operator"


class Refused(OSError):
    """No certificate was signed."""

    def __init__(self, status: int, answer: Any) -> None:
        super().__init__(f"{status}: {answer}")
        self.status, self.answer = status, answer


def uri_of(connection: ssl.SSLSocket) -> str:
    """Whom the certificate at the other end is for; empty if there is none."""
    names = (connection.getpeercert() or {}).get("subjectAltName", ())
    return next((str(value) for kind, value in names if kind == "URI"), "")


def context(purpose: int, trusted: str) -> ssl.SSLContext:
    made = ssl.SSLContext(purpose)
    made.minimum_version = ssl.TLSVersion.TLSv1_3
    made.check_hostname = False  # Whom a certificate is for is looked at instead.
    made.verify_mode = ssl.CERT_REQUIRED
    made.load_verify_locations(cadata=trusted)
    return made


def post(
    port: int, path: str, body: Any, tls: ssl.SSLContext, timeout: float = 5
) -> tuple[int, Any]:
    """Status and answer of the operator; OSError if there is none. A string is sent as it is."""
    connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=timeout, context=tls)
    try:
        connection.connect()
        if uri_of(connection.sock) != OPERATOR:
            raise OSError(f"whoever answers is not the operator: {uri_of(connection.sock)!r}")
        text = body if isinstance(body, str) else json.dumps(body)
        connection.request("POST", path, text.encode(), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        content = answer.read()
        try:
            return answer.status, json.loads(content)
        except ValueError:
            return answer.status, content.decode(errors="replace")
    except http.client.HTTPException as error:
        raise OSError(str(error)) from error
    finally:
        connection.close()


class Certificates:
    """Of the pods of one cluster, kept until they are forgotten."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = weakref.proxy(cluster)
        self._temporary = tempfile.TemporaryDirectory(prefix="rouse-certificates-")
        self.folder = Path(self._temporary.name)
        self._lock = threading.Lock()
        self._files: dict[str, Path] = {}  # by pod uid
        key, request = self.folder / "key.pem", self.folder / "csr.pem"
        subprocess.run(
            ["openssl", "req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
            + ["-nodes", "-subj", "/CN=ignored", "-keyout", str(key), "-out", str(request)],
            check=True,
            capture_output=True,
        )
        self.key, self.csr = key, request.read_text()

    def trusted(self, namespace: str) -> str:
        found = self._cluster.get("configmap", "rouse-ca", namespace)
        if found is None:
            raise OSError(f"there is no ConfigMap rouse-ca in {namespace}")
        return found["data"]["ca.crt"]

    def token(self, pod: Object, audience: str = "rouse", seconds: int = 600) -> str:
        """As the kubelet would ask for it."""
        meta = pod["metadata"]
        bound = {"kind": "Pod", "apiVersion": "v1", "name": meta["name"], "uid": meta["uid"]}
        spec = {"audiences": [audience], "expirationSeconds": seconds, "boundObjectRef": bound}
        account = f"/api/v1/namespaces/{meta['namespace']}/serviceaccounts/default/token"
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}
        answer = self._cluster.request("POST", account, body)
        if answer.status != 201:
            raise OSError(f"no token for {meta['name']}: {answer.text}")
        return answer.json()["status"]["token"]

    def ask(self, port: int, namespace: str, token: str, csr: str = "") -> tuple[int, Any]:
        """What the operator answers whoever asks for a certificate with this token."""
        body = {"protocol": "rouse-certificates", "version": 1}
        body |= {"csr": csr or self.csr, "token": token}
        tls = context(ssl.PROTOCOL_TLS_CLIENT, self.trusted(namespace))
        return post(port, "/v1/certificates", body, tls)

    def file_of(self, pod: Object, port: int) -> Path:
        """The pod's certificate, from the operator at `port` the first time."""
        uid, namespace = pod["metadata"]["uid"], pod["metadata"]["namespace"]
        with self._lock:
            if uid in self._files:
                return self._files[uid]
        status, answer = self.ask(port, namespace, self.token(pod))
        if status != 200:
            raise Refused(status, answer)
        path = self.folder / f"{uid}.pem"
        with self._lock:
            path.write_text(answer["certificate"])
            self._files[uid] = path
        return path

    def forget(self) -> None:
        """From now on everybody's is asked for anew."""
        with self._lock:
            self._files.clear()

    def context_of(
        self, pod: Object, port: int, purpose: int = ssl.PROTOCOL_TLS_CLIENT
    ) -> ssl.SSLContext:
        """What the pod's agent speaks TLS with."""
        file = self.file_of(pod, port)
        made = context(purpose, self.trusted(pod["metadata"]["namespace"]))
        made.load_cert_chain(file, self.key)
        return made


_of_clusters: weakref.WeakKeyDictionary[Cluster, Certificates] = weakref.WeakKeyDictionary()
_lock = threading.Lock()


def of(cluster: Cluster) -> Certificates:
    with _lock:
        if cluster not in _of_clusters:
            _of_clusters[cluster] = Certificates(cluster)
        return _of_clusters[cluster]
