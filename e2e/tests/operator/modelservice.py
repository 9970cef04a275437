"""ModelServices for tests, and what is true of their pods."""

from __future__ import annotations

from typing import Any

from rouse_e2e.cluster import Cluster, Object
from rouse_e2e.processes import wait_until

NAME = "m"


def modelservice(namespace: str, replicas: int = 1, name: str = NAME, **spec: Any) -> Object:
    """One whose instances all load from storage, so that none waits for another."""
    return {
        "apiVersion": "rouse.dev/v1alpha1",
        "kind": "ModelService",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "replicas": replicas,
            "model": {
                "name": "test/model",
                "storage": {"hostPath": {"path": "/models/m"}},  # a claim would have to be bound
            },
            "engine": {"image": "engine:test", "args": ["--max-model-len=256"]},
            "fastStart": {"weights": {"source": "Storage"}},
            **spec,
        },
    }


def peer(fallback: str = "None") -> Object:
    return {"weights": {"source": "Peer", "fallback": fallback}}


def scale(cluster: Cluster, namespace: str, replicas: int, name: str = NAME) -> None:
    cluster.kubectl("scale", f"modelservice/{name}", f"--replicas={replicas}", "-n", namespace)


def pods(cluster: Cluster, namespace: str, name: str = NAME) -> dict[str, Object]:
    """By name, those that are not on their way out."""
    found = cluster.list("pods", namespace, f"rouse.dev/modelservice={name}")
    return {x["metadata"]["name"]: x for x in found if "deletionTimestamp" not in x["metadata"]}


def uids(found: dict[str, Object]) -> set[str]:
    return {x["metadata"]["uid"] for x in found.values()}


def ready(pod: Object) -> bool:
    conditions = {x["type"]: x["status"] for x in pod["status"].get("conditions", [])}
    return conditions.get("Ready") == "True"


def wait_pods(
    cluster: Cluster, namespace: str, names: set[str] | int, seconds: float = 30, name: str = NAME
) -> dict[str, Object]:
    """Until exactly these pods are there and ready, and the others gone for good."""

    def settled() -> dict[str, Object] | None:
        everything = cluster.list("pods", namespace, f"rouse.dev/modelservice={name}")
        found = {x["metadata"]["name"]: x for x in everything}
        right = len(found) == names if isinstance(names, int) else found.keys() == names
        if right and all(ready(x) and "deletionTimestamp" not in x["metadata"] for x in everything):
            return found or {"": {}}
        return None

    found = wait_until(f"pods {names} of {namespace}/{name}", seconds, settled)
    found.pop("", None)
    return found


def status(cluster: Cluster, namespace: str, name: str = NAME) -> Object:
    return (cluster.get("modelservice", name, namespace) or {}).get("status", {})


def condition(cluster: Cluster, namespace: str, kind: str, name: str = NAME) -> Object:
    for each in status(cluster, namespace, name).get("conditions", []):
        if each["type"] == kind:
            return each
    return {}


def wait_status(cluster: Cluster, namespace: str, seconds: float = 20, **wanted: Any) -> Object:
    def settled() -> Object | None:
        found = status(cluster, namespace)
        return found if all(found.get(key) == value for key, value in wanted.items()) else None

    return wait_until(f"status {wanted} of {namespace}/{NAME}", seconds, settled)
