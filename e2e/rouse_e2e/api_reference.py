"""docs/api-reference.md, made of the CRD: every field, and every rule that the API server checks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml

from . import paths

CRD = paths.REPOSITORY / "crds" / "modelservices.rouse.dev.yaml"
HEAD = """\
# API reference: ModelService

<!-- Made of crds/modelservices.rouse.dev.yaml by `make references`. Change it there. -->

`{api}`, kind `{kind}`, short name{names}, namespaced. `kubectl explain {singular}.spec --recursive` tells the same
in a cluster.

A field without a default that is not required may be left out. `[]` are the items of a list. Where a default is said to be
the profile's, `fastStart.profile` decides it: [profiles](profiles/guarded.md). The API server refuses what is not in
*allowed*, and what breaks a *rule*, with the message that stands there.

`metadata.name`:

{metadata}

`kubectl get {plural}` shows:

| column | field | meaning |
|---|---|---|
{columns}
"""

Schema = dict[str, Any]


@dataclass(frozen=True)
class Field:
    path: str
    schema: Schema
    required: bool


def version() -> Schema:
    document = yaml.safe_load(CRD.read_text())
    (only,) = document["spec"]["versions"]
    return only


def fields(path: str, schema: Schema, required: bool = False) -> Iterator[Field]:
    """It and all below it, in the CRD's order."""
    yield Field(path, schema, required)
    for name, each in schema.get("properties", {}).items():
        yield from fields(f"{path}.{name}", each, name in schema.get("required", []))
    if "properties" in schema.get("items", {}):
        items = schema["items"]
        for name, each in items["properties"].items():
            yield from fields(f"{path}[].{name}", each, name in items.get("required", []))


def kind(schema: Schema) -> str:
    if schema.get("x-kubernetes-int-or-string"):
        return "quantity"
    if "additionalProperties" in schema:
        return f"map to {kind(schema['additionalProperties'])}"
    if schema["type"] == "array":
        return f"list of {kind(schema['items'])}s"
    if schema.get("format") == "date-time":
        return "time"
    return schema["type"]


def allowed(schema: Schema) -> str:
    """What the schema itself restricts it to."""
    said = []
    if "enum" in schema:
        said.append(", ".join(f"`{x}`" for x in schema["enum"]))
    if "minimum" in schema and "maximum" in schema:
        said.append(f"{schema['minimum']} to {schema['maximum']}")
    elif "minimum" in schema:
        said.append(f"at least {schema['minimum']}")
    lengths = (schema.get("minLength"), schema.get("maxLength"))
    if lengths[1]:
        least = f"{lengths[0]} to " if lengths[0] else "at most "
        said.append(f"{least}{lengths[1]} characters")
    for key, what in (("maxItems", "items"), ("maxProperties", "entries")):
        if key in schema:
            said.append(f"at most {schema[key]} {what}")
    if "pattern" in schema:
        said.append(f"`{schema['pattern']}`")
    for part in ("items", "additionalProperties"):
        inner = schema.get(part, {})
        if inner and "properties" not in inner and (each := allowed(inner)):
            said.append(f"each: {each}")
    return "; ".join(said)


def cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def rules(found: list[Field]) -> Iterator[str]:
    for field in found:
        places = [(field.path, field.schema), (f"{field.path}[]", field.schema.get("items", {}))]
        for path, schema in places:
            for rule in schema.get("x-kubernetes-validations", []):
                where = f"{path}{rule.get('fieldPath', '')}"
                yield f"| `{where}` | {cell(rule['message'])} | `{cell(rule['rule'])}` |"


def table(found: list[Field], user: bool) -> Iterator[str]:
    """`user`: these are written by users, and so have defaults and rules."""
    if user:
        yield "| field | type | default | allowed | what it is |"
        yield "|---|---|---|---|---|"
    else:
        yield "| field | type | what it is |"
        yield "|---|---|---|"
    for field in found:
        schema = field.schema
        text = cell(schema.get("description", ""))
        first = f"| `{field.path}` | {kind(schema)} |"
        if not user:
            values = f" One of {allowed(schema)}." if "enum" in schema else ""
            yield f"{first} {text}{values} |"
            continue
        default = "**required**" if field.required else ""
        if "default" in schema:
            default = f"`{json.dumps(schema['default'])}`"
        yield f"{first} {default} | {cell(allowed(schema))} | {text} |"
    said = list(rules(found))
    if said:
        yield ""
        yield "| rule at | refused with | rule (CEL) |"
        yield "|---|---|---|"
        yield from said


def text() -> str:
    document = yaml.safe_load(CRD.read_text())["spec"]
    api = version()
    root = api["schema"]["openAPIV3Schema"]
    columns = [
        f"| {x['name']}{' (`-o wide`)' if x.get('priority') else ''} | `{x['jsonPath']}` | {x.get('description', '')} |"
        for x in api["additionalPrinterColumns"]
    ]
    out = [
        HEAD.format(
            api=f"{document['group']}/{api['name']}",
            kind=document["names"]["kind"],
            names="".join(f" `{x}`" for x in document["names"]["shortNames"]),
            singular=document["names"]["singular"],
            plural=document["names"]["plural"],
            metadata="\n".join(f"- {x['message']}" for x in root["x-kubernetes-validations"]),
            columns="\n".join(columns),
        )
    ]
    for part, user in (("spec", True), ("status", False)):
        schema = root["properties"][part]
        out += [f"## {part}", "", cell(schema["description"]), ""]
        top = Field(part, schema, part in root["required"])
        direct, nested = [top], []
        for name, each in schema["properties"].items():
            below = list(fields(f"{part}.{name}", each, name in schema.get("required", [])))
            (direct.append(below[0]) if len(below) == 1 else nested.append((name, below)))
        out += [*table(direct[1:], user), ""]
        own = list(rules([top]))
        if own:
            out += ["| rule at | refused with | rule (CEL) |", "|---|---|---|", *own, ""]
        for name, below in nested:
            out += [f"### {part}.{name}", "", *table(below, user), ""]
    return "\n".join(out).rstrip() + "\n"
