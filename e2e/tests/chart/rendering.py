"""The chart, rendered by helm."""

from __future__ import annotations

import json
import subprocess

import yaml

from rouse_e2e import paths
from rouse_e2e.cluster import Object

NAMESPACE = "rouse-system"
MONITORING = tuple(
    f"monitoring.coreos.com/v1/{x}" for x in ("ServiceMonitor", "PodMonitor", "PrometheusRule")
)


def helm(*arguments: str, values: Object | None = None) -> subprocess.CompletedProcess[str]:
    extra = [] if values is None else ["--values", "-"]
    return subprocess.run(
        [paths.tool("helm"), *arguments, *extra],
        input=None if values is None else json.dumps(values),
        stdin=subprocess.DEVNULL if values is None else None,
        capture_output=True,
        text=True,
        timeout=60,
    )


def render(
    values: Object | None = None, release: str = "rouse", capabilities: tuple[str, ...] = ()
) -> list[Object]:
    """`capabilities`: what the cluster knows beside Kubernetes' own, GROUP/VERSION/KIND."""
    known = [x for each in capabilities for x in ("--api-versions", each)]
    result = helm(
        *("template", release, str(paths.CHART), "-n", NAMESPACE, "--include-crds", *known),
        values=values,
    )
    assert result.returncode == 0, result.stderr
    return [x for x in yaml.safe_load_all(result.stdout) if x]


def one(objects: list[Object], kind: str, name: str = "") -> Object:
    found = [x for x in objects if x["kind"] == kind and name in ("", x["metadata"]["name"])]
    assert len(found) == 1, [x["metadata"]["name"] for x in found]
    return found[0]
