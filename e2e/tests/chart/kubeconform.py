"""Runs kubeconform with the schemas that a running API server gives, so that no network is needed
and the schemas are of exactly this Kubernetes version, our CRD included."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from rouse_e2e import paths
from rouse_e2e.cluster import Cluster

LOOSE = {  # what a Go type's own unmarshaller takes, which OpenAPI v2 cannot say
    "io.k8s.apimachinery.pkg.util.intstr.IntOrString": {"type": ["string", "integer"]},
    "io.k8s.apimachinery.pkg.api.resource.Quantity": {"type": ["string", "integer", "number"]},
}


def strict(schema: Any) -> Any:
    """Refuses properties that are not declared, as a typo would be."""
    if isinstance(schema, list):
        return [strict(x) for x in schema]
    if not isinstance(schema, dict):
        return schema
    result = {key: strict(value) for key, value in schema.items()}
    if "properties" in result and not result.get("x-kubernetes-preserve-unknown-fields"):
        result.setdefault("additionalProperties", False)
    if result.get("x-kubernetes-int-or-string"):
        result["type"] = ["string", "integer"]
    return result


def write_schemas(cluster: Cluster, folder: Path) -> None:
    document = cluster.request("GET", "/openapi/v2").json()
    definitions = {**strict(document["definitions"]), **LOOSE}
    for name, schema in document["definitions"].items():
        for kind in schema.get("x-kubernetes-group-version-kind", []):
            group = kind["group"].split(".")[0]
            file = "-".join(x for x in (kind["kind"], group, kind["version"]) if x).lower()
            text = json.dumps({"$ref": f"#/definitions/{name}", "definitions": definitions})
            if kind["kind"] in WANTED:
                (folder / f"{file}.json").write_text(text)


# Each file holds all definitions, so only what a chart may render is written.
WANTED = {
    *("ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding", "ServiceAccount"),
    *("Deployment", "Service", "ModelService", "PersistentVolume", "PersistentVolumeClaim"),
    *("ConfigMap", "Pod", "Namespace"),
}


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
