"""Runs kubeconform with the schemas that a running API server gives, so that no network is needed
and the schemas are of exactly this Kubernetes version, our CRD included."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from rouse_e2e import paths
from rouse_e2e.cluster import Cluster, Object

LOOSE = {  # what a Go type's own unmarshaller takes, which OpenAPI v2 cannot say
    "io.k8s.apimachinery.pkg.util.intstr.IntOrString": {"type": ["string", "integer"]},
    "io.k8s.apimachinery.pkg.api.resource.Quantity": {"type": ["string", "integer", "number"]},
}


# The kinds that a chart or a sample of ours may hold.
WANTED = {
    *("ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding", "ServiceAccount"),
    *("Deployment", "Service", "ModelService", "PersistentVolume", "PersistentVolumeClaim"),
    *("ConfigMap", "Pod", "Namespace", "PodDisruptionBudget", "NetworkPolicy"),
    *("HorizontalPodAutoscaler", "ScaledObject", "InferencePool"),
    *("ServiceMonitor", "PodMonitor", "PrometheusRule"),
}
# Of the kinds that are not Kubernetes' own, which a server publishes a moment after it knows them.
WANTED_FILES = {
    "modelservice-rouse-v1alpha1.json",
    "scaledobject-keda-v1alpha1.json",
    "inferencepool-inference-v1.json",
    *(f"{x}-monitoring-v1.json" for x in ("servicemonitor", "podmonitor", "prometheusrule")),
}


def strict(schema: Object) -> Object:
    """Refuses properties that are not declared, as a typo would be."""
    result = dict(schema)
    if "properties" in result:
        result["properties"] = {key: strict(x) for key, x in result["properties"].items()}
        if not result.get("x-kubernetes-preserve-unknown-fields"):
            result.setdefault("additionalProperties", False)
    for key in ("items", "additionalProperties"):
        if isinstance(result.get(key), dict):
            result[key] = strict(result[key])
    if result.get("x-kubernetes-int-or-string"):
        result["type"] = ["string", "integer"]
    return result


def references(schema: Any) -> set[str]:
    if isinstance(schema, list):
        return set().union(*map(references, schema))
    if not isinstance(schema, dict):
        return set()
    found = set().union(*map(references, schema.values()))
    if isinstance(schema.get("$ref"), str):
        found.add(schema["$ref"].removeprefix("#/definitions/"))
    return found


def write_schemas(cluster: Cluster, folder: Path) -> None:
    """One file a kind, each with all the definitions that it refers to."""
    definitions = cluster.request("GET", "/openapi/v2").json()["definitions"]
    for name, schema in definitions.items():
        for kind in schema.get("x-kubernetes-group-version-kind", []):
            if kind["kind"] not in WANTED:
                continue
            needed, todo = {}, {name}
            while todo:
                each = todo.pop()
                needed[each] = LOOSE.get(each) or strict(definitions[each])
                todo |= references(needed[each]) - needed.keys()
            group = kind["group"].split(".")[0]
            file = "-".join(x for x in (kind["kind"], group, kind["version"]) if x).lower()
            document = {"$ref": f"#/definitions/{name}", "definitions": needed}
            (folder / f"{file}.json").write_text(json.dumps(document))


def check(folder: Path, manifests: str) -> str:
    """Empty if all is well, else what is not."""
    result = subprocess.run(
        [
            paths.tool("kubeconform"),
            *("-strict", "-output", "text"),
            *("-schema-location", f"{folder}/{{{{.ResourceKind}}}}{{{{.KindSuffix}}}}.json"),
            "-",
        ],
        input=manifests,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return "" if result.returncode == 0 else result.stdout + result.stderr
