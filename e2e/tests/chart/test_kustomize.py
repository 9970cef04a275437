"""What kustomize makes of config/ is what helm makes of the chart."""

from __future__ import annotations

import subprocess

import pytest
import yaml

from rouse_e2e import paths
from rouse_e2e.cluster import Object

from .rendering import MONITORING, NAMESPACE, render

CONFIG = paths.REPOSITORY / "config"
HELMS_OWN = ("app.kubernetes.io/managed-by", "helm.sh/chart")


def kustomize(*folders: str) -> list[Object]:
    objects = []
    for folder in folders:
        answer = subprocess.run(
            [paths.tool("kubectl"), "kustomize", str(CONFIG / folder)],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert answer.returncode == 0, answer.stderr
        assert answer.stderr == "", "kustomize warns"
        objects += [x for x in yaml.safe_load_all(answer.stdout) if x]
    return objects


def by_name(objects: list[Object]) -> dict[tuple[str, str, str], Object]:
    """Without what is helm's own: its labels, and its hooks."""
    result = {}
    for thing in objects:
        metadata = thing["metadata"]
        if "helm.sh/hook" in metadata.get("annotations", {}):
            continue
        template = thing.get("spec", {}).get("template", {}).get("metadata", {})
        for labels in (metadata.get("labels", {}), template.get("labels", {})):
            for label in HELMS_OWN:
                labels.pop(label, None)
        name = (thing["kind"], metadata.get("namespace", ""), metadata["name"])
        assert name not in result, name
        result[name] = thing
    return result


def without_labels(objects: dict[tuple[str, str, str], Object], kind: str) -> None:
    """The CRD is helm's as it is in its file: no template, so no labels."""
    for (found, _, _), thing in objects.items():
        if found == kind:
            thing["metadata"].pop("labels", None)


@pytest.mark.parametrize(
    ("folders", "values", "capabilities"),
    [
        (("default",), None, ()),
        (
            ("default", "prometheus", "dashboards"),
            {"grafana": {"dashboard": {"enabled": True}}},
            MONITORING,
        ),
    ],
    ids=["default", "with prometheus and dashboards"],
)
def test_kustomize_and_helm_make_the_same(
    folders: tuple[str, ...], values: Object | None, capabilities: tuple[str, ...]
):
    mine, helms = by_name(kustomize(*folders)), by_name(render(values, capabilities=capabilities))
    # `helm install --create-namespace` makes it.
    assert mine.pop(("Namespace", "", NAMESPACE))
    for objects in (mine, helms):
        without_labels(objects, "CustomResourceDefinition")
    assert mine.keys() == helms.keys()
    for name, thing in mine.items():
        assert thing == helms[name], name
