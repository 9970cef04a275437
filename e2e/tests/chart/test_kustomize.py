"""What kustomize makes of config/ is what helm makes of the chart."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
import yaml

from rouse_e2e import paths
from rouse_e2e.cluster import Object

from .rendering import MONITORING, NAMESPACE, one, render

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


def test_another_image_needs_a_change_in_one_file_only(tmp_path: Path):
    """As docs/install.md says, by an overlay."""
    (tmp_path / "kustomization.yaml").write_text(
        yaml.safe_dump(
            {
                "resources": [os.path.relpath(CONFIG / "default", tmp_path)],
                "images": [{"name": "rouse-operator", "newName": "example.com/o", "newTag": "1"}],
                "patches": [
                    {
                        "target": {"kind": "Deployment", "name": "rouse-operator"},
                        "patch": "- {op: replace, path: /spec/template/spec/containers/0/args/0, "
                        "value: --agent-image=example.com/a:1}",
                    }
                ],
            }
        )
    )
    (container,) = one(kustomize(str(tmp_path)), "Deployment")["spec"]["template"]["spec"][
        "containers"
    ]
    assert container["image"] == "example.com/o:1"
    assert container["args"][0] == "--agent-image=example.com/a:1"
