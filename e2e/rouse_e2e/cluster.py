"""What a test or the demo does with a cluster, whichever mode it runs in."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import threading
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import paths
from .processes import Timeout, wait_until

Object = dict[str, Any]

#: What is looked at again and again is read without kubectl, which takes a tenth of a second to start.
_GROUPS = {
    "configmaps": "/api/v1",
    "leases": "/apis/coordination.k8s.io/v1",
    "modelservices": "/apis/rouse.dev/v1alpha1",
    "persistentvolumeclaims": "/api/v1",
    "pods": "/api/v1",
    "secrets": "/api/v1",
    "services": "/api/v1",
}


def _path(kind: str, namespace: str) -> str:
    """Of all objects of that kind; empty if it is not known."""
    plural = kind if kind.endswith("s") else f"{kind}s"
    where = "" if namespace == "*" else f"namespaces/{namespace}/"
    return f"{_GROUPS[plural]}/{where}{plural}" if plural in _GROUPS else ""


class KubectlError(RuntimeError):
    def __init__(self, command: list[str], status: int, output: str) -> None:
        super().__init__(f"kubectl {' '.join(command)}: exit status {status}: {output.strip()}")
        self.output = output


@dataclass
class Answer:
    status: int
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def text(self) -> str:
        return self.body.decode(errors="replace")


class Cluster:
    """A cluster that is up. Use as a context manager, or call close()."""

    def __init__(self, kubeconfig: Path) -> None:
        self.kubeconfig = kubeconfig
        self._proxy: subprocess.Popen | None = None
        self._proxy_url = ""
        self._proxy_starts = threading.Lock()  # fakes ask from threads of their own

    def __enter__(self):
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        if self._proxy:
            self._proxy.kill()
            self._proxy.wait()
            self._proxy = None

    # ---- kubectl

    def environment(self) -> dict[str, str]:
        path = f"{paths.tools()}:{os.environ['PATH']}"
        return dict(os.environ, KUBECONFIG=str(self.kubeconfig), PATH=path)

    def kubectl(self, *arguments: str, stdin: str | None = None, timeout: float = 120) -> str:
        """Standard output; KubectlError with standard error if it fails."""
        result = subprocess.run(
            [paths.tool("kubectl"), *arguments],
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            text=True,
            timeout=timeout,
            env=self.environment(),
        )
        if result.returncode:
            raise KubectlError(list(arguments), result.returncode, result.stderr or result.stdout)
        return result.stdout

    def helm(self, *arguments: str, timeout: float = 300) -> str:
        result = subprocess.run(
            [paths.tool("helm"), *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            env=self.environment(),
        )
        if result.returncode:
            raise RuntimeError(f"helm {' '.join(arguments)}: {result.stderr.strip()}")
        return result.stdout

    def get(self, kind: str, name: str, namespace: str = "default") -> Object | None:
        """None if there is no such object."""
        if path := _path(kind, namespace):
            answer = self._read(f"{path}/{name}")
            return None if answer.status == 404 else answer.json()
        text = self.kubectl("get", kind, name, "-n", namespace, "-o", "json", "--ignore-not-found")
        return json.loads(text) if text.strip() else None

    def list(self, kind: str, namespace: str = "default", selector: str = "") -> list[Object]:
        """In all namespaces if that is "*"."""
        if path := _path(kind, namespace):
            query = f"?labelSelector={urllib.parse.quote(selector)}" if selector else ""
            return self._read(path + query).json()["items"]
        where = ["-A"] if namespace == "*" else ["-n", namespace]
        if selector:
            where += ["-l", selector]
        return json.loads(self.kubectl("get", kind, *where, "-o", "json"))["items"]

    def _read(self, path: str) -> Answer:
        """An answer of 200 or 404; fails as kubectl does."""
        try:
            answer = self.request("GET", path)
        except OSError as error:
            raise KubectlError(["get", path], 1, str(error)) from error
        if answer.status not in (200, 404):
            raise KubectlError(["get", path], 1, answer.text)
        return answer

    def apply(self, document: str | Path | Object | list[Object], namespace: str = "") -> str:
        """A file, a YAML text, an object, or a list of objects."""
        if isinstance(document, Path):
            document = document.read_text()
        elif isinstance(document, list):
            document = json.dumps({"apiVersion": "v1", "kind": "List", "items": document})
        elif isinstance(document, dict):
            document = json.dumps(document)
        where = ["-n", namespace] if namespace else []
        return self.kubectl("apply", *where, "-f", "-", stdin=document)

    # ---- HTTP, by way of the API server

    def proxy_url(self) -> str:
        """A plain HTTP address on loopback that answers as the API server, authenticated."""
        with self._proxy_starts:
            if self._proxy is None or self._proxy.poll() is not None:
                self._proxy = subprocess.Popen(
                    ["setpriv", "--pdeathsig", "KILL", "--"]
                    + [paths.tool("kubectl"), "proxy", "--port=0", "--keepalive=30s"],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    text=True,
                    env=self.environment(),
                    start_new_session=True,
                )
                assert self._proxy.stdout
                line = self._proxy.stdout.readline()
                found = re.search(r"127\.0\.0\.1:\d+", line)
                if not found:
                    raise RuntimeError(f"kubectl proxy did not start: {line!r}")
                self._proxy_url = f"http://{found[0]}"
        return self._proxy_url

    def request(
        self, method: str, path: str, body: Any = None, timeout: float = 60, kind: str = ""
    ) -> Answer:
        """An answer of any status; OSError if there is none."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.proxy_url() + path, data=data, method=method)
        if data is not None:
            request.add_header("Content-Type", kind or "application/json")
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=timeout) as answer:
                return Answer(answer.status, answer.read())
        except urllib.error.HTTPError as error:
            return Answer(error.code, error.read())

    def pod_request(
        self,
        pod: str,
        port: int,
        path: str,
        method: str = "GET",
        body: Any = None,
        namespace: str = "default",
        timeout: float = 60,
    ) -> Answer:
        where = f"/api/v1/namespaces/{namespace}/pods/{pod}:{port}/proxy{path}"
        return self.request(method, where, body, timeout)

    # ---- looking

    def ready_endpoints(self, service: str, namespace: str = "default") -> set[str]:
        """The pods that requests to the Service may reach."""
        slices = self.request(
            "GET",
            f"/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices"
            f"?labelSelector=kubernetes.io/service-name={service}",
        ).json()["items"]
        endpoints = [x for each in slices for x in each["endpoints"] or []]
        return {x["targetRef"]["name"] for x in endpoints if x["conditions"].get("ready")}

    def logs(self, pod: str, container: str, namespace: str = "default", lines: int = 40) -> str:
        try:
            return self.kubectl(
                "logs", pod, "-c", container, "-n", namespace, f"--tail={lines}", timeout=30
            )
        except (KubectlError, subprocess.TimeoutExpired) as error:
            return f"({error})"

    def events(self, namespace: str = "*", lines: int = 40) -> str:
        where = ["-A"] if namespace == "*" else ["-n", namespace]
        try:
            text = self.kubectl("get", "events", *where, "--sort-by=.lastTimestamp")
        except (KubectlError, subprocess.TimeoutExpired) as error:
            return f"({error})"
        return "\n".join(text.splitlines()[-lines:])

    def collect(self, folder: Path) -> None:
        """Writes what explains a failure: objects, events, every container's log."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "events.txt").write_text(self.events(lines=500))
        for kind in ("nodes", "pods", "modelservices", "deployments", "leases"):
            try:
                text = self.kubectl("get", kind, "-A", "-o", "yaml", "--show-managed-fields=false")
            except (KubectlError, subprocess.TimeoutExpired) as error:
                text = str(error)
            (folder / f"{kind}.yaml").write_text(text)
        try:
            pods = self.list("pods", "*")
        except (KubectlError, subprocess.TimeoutExpired, ValueError):
            return
        for pod in pods:
            meta, spec = pod["metadata"], pod["spec"]
            for container in spec.get("initContainers", []) + spec["containers"]:
                name = f"{meta['namespace']}.{meta['name']}.{container['name']}.log"
                text = self.logs(meta["name"], container["name"], meta["namespace"], 5000)
                (folder / name).write_text(text)


class CurrentCluster(Cluster):
    """The one that the user's kubeconfig names; nothing is started, nothing is taken down."""

    def __init__(self) -> None:
        super().__init__(Path(os.environ.get("KUBECONFIG") or Path.home() / ".kube" / "config"))
        if not self.kubeconfig.exists():
            raise RuntimeError(f"{self.kubeconfig} is missing; set KUBECONFIG, or use another mode")


def interrupt_on_terminate() -> None:
    """Makes SIGTERM behave like Ctrl-C, so that what was started is taken down."""

    def stop(*_) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)


__all__ = [
    "Answer",
    "Cluster",
    "CurrentCluster",
    "KubectlError",
    "Object",
    "Timeout",
    "interrupt_on_terminate",
    "wait_until",
]
