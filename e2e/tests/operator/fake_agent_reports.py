"""What the agents of a light cluster would report, where no kubelet starts any.

For every pod that kwok has made Running, one report is sent to the operator: that its engine
serves and, unless told otherwise, that its weights can be pulled. What the operator answers is kept.
Each is sent with a certificate of the pod, which the operator has signed (rouse_e2e.certificates).
"""

from __future__ import annotations

import threading
from typing import Any

from rouse_e2e import certificates
from rouse_e2e.cluster import Cluster, Object

IDENTITY = "9f" * 32
GIB = 1 << 30


def report(pod: Object, state: str = "Serving", **changes: Any) -> Object:
    """A whole report (docs/protocols.md §1) for `pod` as the API server has it."""
    meta = pod["metadata"]
    annotations = meta.get("annotations", {})
    path = annotations.get("rouse.dev/path", "Storage")
    serving = state == "Serving"
    peer = path == "Peer"
    result = {
        "protocol": "rouse-agent",
        "version": 1,
        "namespace": meta["namespace"],
        "pod": meta["name"],
        "podUid": meta["uid"],
        "node": pod["spec"].get("nodeName", ""),
        "address": f"https://{pod['status'].get('podIP', '10.244.0.1')}:7411",
        "state": state,
        "message": "",
        "weights": {
            "form": "Loaded",
            "identity": IDENTITY,
            "bytes": GIB,
            "ranks": 1,
            "servable": True,
        }
        if serving
        else None,
        "bytesBySource": {"peer": GIB if peer and serving else 0, "storage": 0 if peer else GIB},
        "transport": "tcp" if peer else "",
        "timeline": timeline(path, int(annotations.get("rouse.dev/decided-at-us", "0")))
        if serving
        else None,
    }
    return {**result, **changes}


def timeline(path: str, decided_at_us: int) -> Object:
    seconds = {"Schedule": 1, "Hydrate": 0.5, "EngineStart": 6, "Spawn": 5, "DeviceInit": 2}
    seconds |= {"ModelBuild": 1, "Weights": 0.25, "Profile": 1, "KvCache": 0.5, "Capture": 1}
    seconds |= {"ApiStart": 0.5, "FirstToken": 0.125}
    phases, at = [], 0
    for name, length in seconds.items():
        end = at + int(length * 1_000_000)
        phases.append({"name": name, "startUs": at, "endUs": end})
        at = end
    lanes = [{"name": "Pull", "startUs": 1_000_000, "endUs": 1_400_000}] if path == "Peer" else []
    result = {"path": path, "decidedAtUs": decided_at_us, "phases": phases, "lanes": lanes}
    return {**result, "totalUs": at}


def send(
    cluster: Cluster, port: int, pod: Object, body: Any, timeout: float = 5
) -> tuple[int, Any]:
    """Status and answer of the operator at `port` (TLS) to a report that the agent of `pod` sends;
    OSError if there is none. A string is sent as it is."""
    tls = certificates.of(cluster).context_of(pod, port)
    return certificates.post(port, "/v1/agents/report", body, tls, timeout)


class FakeAgents:
    """Reports for all pods of a namespace until closed; to whichever operator `port` names."""

    def __init__(self, cluster: Cluster, namespace: str, port: int, every: float = 0.2) -> None:
        self.cluster, self.namespace, self.port, self.every = cluster, namespace, port, every
        self.answers: dict[str, Object] = {}  # by pod, the last
        self.states: dict[str, Object] = {}  # by pod, what to say instead: arguments of report()
        self.all: Object = {}  # the same for all others
        self.phases = {"Running"}  # of the pods that are reported for
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        self._thread.join(10)

    def __enter__(self) -> FakeAgents:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _run(self) -> None:
        path = f"/api/v1/namespaces/{self.namespace}/pods"
        while not self._stop.wait(self.every):
            try:
                pods = self.cluster.request("GET", path, timeout=5).json().get("items", [])
            except (OSError, ValueError):
                continue
            for pod in pods:
                if pod["status"].get("phase") not in self.phases:
                    continue
                if "deletionTimestamp" in pod["metadata"]:
                    continue
                name = pod["metadata"]["name"]
                try:
                    body = report(pod, **self.states.get(name, self.all))
                    status, answer = send(self.cluster, self.port, pod, body)
                except certificates.Refused:
                    continue
                except OSError:
                    break  # no operator now
                if status == 200:
                    self.answers[name] = answer
