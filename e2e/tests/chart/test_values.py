"""Every bad value of the chart is refused by an error that names it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from rouse_e2e import paths
from rouse_e2e.cluster import Object

from .rendering import helm

BAD_VALUES: dict[str, tuple[Object, str]] = {
    "a misspelt value": ({"operator": {"replicaCount": 2}}, "replicaCount"),
    "an unknown section": ({"webhook": {}}, "webhook"),
    "replicas as text": ({"operator": {"replicas": "two"}}, "/operator/replicas"),
    "fewer than no replicas": ({"operator": {"replicas": -1}}, "/operator/replicas"),
    "a node's folder that is no absolute path": (
        {"agent": {"nodeFolder": "run/rouse"}},
        "/agent/nodeFolder",
    ),
    "a folder for caches that is no absolute path": (
        {"agent": {"state": {"folder": "rouse"}}},
        "/agent/state/folder",
    ),
    "no room for caches": ({"agent": {"state": {"maxMib": 0}}}, "/agent/state/maxMib"),
    "a GPU's resource without a domain": (
        {"agent": {"gpus": {"resourceNames": ["gpu"]}}},
        "/agent/gpus/resourceNames/0",
    ),
    "a runtime class with capitals": (
        {"agent": {"gpus": {"runtimeClassName": "Nvidia"}}},
        "/agent/gpus/runtimeClassName",
    ),
    "an unknown log level": ({"operator": {"logLevel": "loud"}}, "/operator/logLevel"),
    "an unknown pull policy": (
        {"agent": {"image": {"pullPolicy": "Sometimes"}}},
        "/agent/image/pullPolicy",
    ),
    "a tag within the repository": (
        {"agent": {"image": {"repository": "rouse-agent:1"}}},
        "/agent/image/repository",
    ),
    "an empty repository": (
        {"operator": {"image": {"repository": ""}}},
        "/operator/image/repository",
    ),
    "a port out of range": ({"service": {"port": 70000}}, "/service/port"),
    "no port for agents": ({"service": {"agentsPort": 0}}, "/service/agentsPort"),
    "no port for KEDA": ({"service": {"scalerPort": 0}}, "/service/scalerPort"),
    "a label that is a number": ({"operator": {"podLabels": {"a": 1}}}, "/operator/podLabels/a"),
    "a pull secret that is no object": ({"imagePullSecrets": ["pull"]}, "/imagePullSecrets/0"),
    "an account name with capitals": (
        {"serviceAccount": {"name": "Rouse"}},
        "/serviceAccount/name",
    ),
    "arguments as one string": ({"operator": {"extraArgs": "--a --b"}}, "/operator/extraArgs"),
}


def refused(values: Object) -> str:
    result = helm("template", "rouse", str(paths.CHART), values=values)
    assert result.returncode != 0, "was rendered"
    return result.stderr


@pytest.mark.parametrize("case", BAD_VALUES)
def test_a_bad_value_is_refused_by_name(case: str):
    values, name = BAD_VALUES[case]
    error = refused(values)
    assert "values don't meet the specifications of the schema" in error, error
    # helm writes /operator/replicas or operator.replicas, depending on its version
    assert name in error or name.strip("/").replace("/", ".") in error, error


# ---- one of each


SCHEMA = json.loads((paths.CHART / "values.schema.json").read_text())


def resolved(schema: Object) -> Object:
    reference = schema.get("$ref", "").removeprefix("#/definitions/")
    return SCHEMA["definitions"][reference] if reference else schema


def every_value(
    schema: Object, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], Object]]:
    for name, child in schema["properties"].items():
        child = resolved(child)
        if "properties" in child:
            yield from every_value(child, (*path, name))
        else:
            yield (*path, name), child


def every_section(schema: Object, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    yield path
    for name, child in schema["properties"].items():
        if "properties" in resolved(child):
            yield from every_section(resolved(child), (*path, name))


def nested(path: tuple[str, ...], value: Any) -> Object:
    for name in reversed(path):
        value = {name: value}
    return value


def of_another_type(schema: Object) -> Any:
    types = schema.get("type", [])
    return next(
        value
        for name, value in (("array", ["x"]), ("boolean", True), ("string", "x"))
        if name not in types
    )


@pytest.mark.parametrize("path", [x for x, _ in every_value(SCHEMA)], ids=".".join)
def test_a_value_of_another_type_is_refused_by_name(path: tuple[str, ...]):
    schema = dict(every_value(SCHEMA))[path]
    assert f"'/{'/'.join(path)}'" in refused(nested(path, of_another_type(schema)))


@pytest.mark.parametrize(
    "path", list(every_section(SCHEMA)), ids=lambda x: ".".join(x) or "the whole"
)
def test_a_misspelt_value_is_refused_in_every_section(path: tuple[str, ...]):
    error = refused(nested((*path, "misspelt"), "x"))
    assert "'misspelt'" in error
    assert f"'{''.join(f'/{x}' for x in path)}'" in error


VALUES = yaml.safe_load((paths.CHART / "values.yaml").read_text())


def default(path: tuple[str, ...]) -> Any:
    at: Any = VALUES
    for name in path:
        at = at.get(name) if isinstance(at, dict) else None
    return at


NEEDED = [x for x in (*every_section(SCHEMA), *(x for x, _ in every_value(SCHEMA))) if default(x)]


# What a container's resources may have is Kubernetes' matter.
@pytest.mark.parametrize(
    "path", [x for x in NEEDED if x and "resources" not in x[:-1]], ids=".".join
)
def test_what_has_a_default_cannot_be_taken_away(path: tuple[str, ...]):
    """As helm does with what is set to null."""
    error = refused(nested(path, None))
    assert f"missing property '{path[-1]}'" in error
    assert f"'{''.join(f'/{x}' for x in path[:-1])}'" in error


def test_the_schema_and_the_values_name_the_same():
    def there(path: tuple[str, ...]) -> bool:
        return default(path) is not None

    # What a container's resources may have is Kubernetes' matter.
    ours = [x for x, _ in every_value(SCHEMA) if "resources" not in x]
    assert [x for x in ours if not there(x)] == [("global",)]
