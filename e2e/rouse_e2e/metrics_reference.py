"""docs/metrics.md, made of the sources in which operator and agent register their metrics.

A family without a sample is in no /metrics, so the sources are read: a metric is registered by prometheus-cpp's
builders, in the operator through Make, SetGauge and RaiseCounter too, and its labels are the keys that Add is
given. A registration of another form is found by e2e/tests/docs, which looks for its name.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from . import paths

SOURCES = {
    "operator": ("operator/actuate/metrics.cpp", "operator/actuate/app_answers.cpp"),
    "agent": ("agent/server/metrics.cpp",),
}
PORTS = {"operator": "port 7480", "agent": "port 7410 of each instance"}

#: What the values of a label are.
LABELS = {
    "action": "`CreateInstance`, `ClaimGuard` (a wake), `ReleaseGuard`, `MakeGuard`, `PutToSleep`, `SetServing`, `Leave`, "
    "`EnsureEndpoint`, `DeleteInstance`",
    "cache": "which of the engine's caches, [state-reuse.md](state-reuse.md)",
    "cause": "`damaged`, `slow` or `lost`",
    "certificate": "operator: `own` or `authority`",
    "class": "`Matched` or `Reusable`, [state-reuse.md](state-reuse.md)",
    "code": "HTTP status of the answer; `<error>` where there was none",
    "controller": "always `modelservice`",
    "factor": "the kind of what differed in the cache's key: `env`, `config`, `code`, `compiler`, `place`; else `artifact`",
    "found": "`store`, `instance`, `keeper` or `none`",
    "grpc_code": "gRPC's status: `OK`, `UNAVAILABLE`, …",
    "grpc_method": "`IsActive`, `StreamIsActive`, `GetMetricSpec` or `GetMetrics`",
    "grpc_service": "always `externalscaler.ExternalScaler`",
    "method": "HTTP method",
    "modelservice": "name of the ModelService",
    "name": "of the queue, or of the Lease",
    "namespace": "of the ModelService",
    "outcome": "`success` or `error`, unless the help says otherwise; of starts `success` or `failure`; of certificates, at "
    "the operator, `signed` or why not; of bundles `installed`, `cold` (it started without), `published` or `failed`",
    "path": "`Storage`, `Peer` or `Wake`",
    "phase": "[protocols.md](protocols.md), §4",
    "resource": "what is watched: `modelservices`, `pods`, `services`, `nodes`",
    "result": "of a reconcile: `success`, `error`, `requeue_after` or `requeue`; of a lookup: `hit` or `miss`",
    "role": "of instances: `active` or `guard`; of weights: `published` or `pulled`",
    "source": "`peer` or `storage`",
    "state": "operator: `ready`, `starting`, `waking`, `failed`, `guard`; agent: [protocols.md](protocols.md), §1",
    "transport": "what UCX picked, `node/…` within a node, or `unknown`",
    "type": "of an Event: `Normal` or `Warning`; of a request on the engine socket: [protocols.md](protocols.md), §3",
    "verb": "HTTP method",
    "xid": "NVIDIA's number of the failure; `0`: the GPU is gone",
}
HEAD = """\
# Metrics

<!-- Made of the sources by `make references`. Change it there. -->

The operator serves them on port 7480 of its pods, an agent on port 7410 of the pod of its instance, both at `/metrics` over
plain HTTP, in Prometheus' text format. A histogram has `_bucket`, `_sum` and `_count`. What has not happened yet may have
no series. Names that do not begin with `rouse_` are those that controllers made with controller-runtime and client-go have,
so that existing dashboards fit. [install.md](install.md) says how to scrape them, [operations.md](operations.md) what the
alerts over them mean.
"""

FOOT = """\
What scrapes adds what it knows: the chart's PodMonitor gives agents' metrics `namespace`, `pod` and `modelservice`."""


@dataclass
class Metric:
    name: str
    kind: str  # Counter, Gauge or Histogram
    help: str
    program: str
    labels: list[str] = field(default_factory=list)

    @property
    def unit(self) -> str:
        base = self.name.removesuffix("_total")
        if base.endswith("_timestamp_seconds"):
            return "seconds since 1970"
        for unit in ("seconds", "bytes"):
            if base.endswith(f"_{unit}"):
                return unit
        return ""


def arguments(source: str, begin: int) -> tuple[list[str], int]:
    """Those of the call whose '(' is at `begin`, and where it ends."""
    depth, quoted, found, at = 0, False, [""], begin
    while True:
        letter = source[at]
        if quoted:
            quoted = letter != '"' or source[at - 1] == "\\"
        elif letter == '"':
            quoted = True
        elif letter in "({[":
            depth += 1
        elif letter in ")}]":
            depth -= 1
        at += 1
        if depth == 0:
            return [x.strip() for x in found], at
        if letter == "," and depth == 1 and not quoted:
            found.append("")
        elif not (depth == 1 and letter == "(" and at == begin + 1):
            found[-1] += letter


def said(text: str) -> str:
    """A C++ string, which may be written in pieces."""
    return "".join(re.findall(r'"((?:[^"\\]|\\.)*)"', text)).replace('\\"', '"')


def keys(text: str, source: str) -> list[str]:
    """The labels of a map that is written there, or that has this name in the source."""
    if re.fullmatch(r"\w+", text):
        text = re.search(rf"\b{text}(?: =)? ?(\{{\{{.*?\}}\}})", source, re.DOTALL)[1]
    return re.findall(r'\{"(\w+)",', text)


def of_source(program: str, source: str) -> list[Metric]:
    found: list[Metric] = []
    members: dict[str, Metric] = {}
    for hit in re.finditer(r"Family<(\w+)>& (\w+) =\s*Build\w+\(\)\s*\.Name", source):
        (name,), end = arguments(source, hit.end())
        text, _ = arguments(source, source.index("(", end))
        members[hit[2]] = Metric(said(name), hit[1], said(text[0]), program)
    for hit in re.finditer(r"(\w+_)\(Make(?=\()", source):
        (builder, _, name, text), end = arguments(source, hit.end())
        kind = re.search(r"Build(\w+)", builder)[1]
        metric = members[hit[1]] = Metric(said(name), kind, said(text), program)
        if chained := re.match(r"\s*\.Add(?=\()", source[end:]):
            metric.labels = keys(arguments(source, end + chained.end())[0][0], source)
    found += members.values()
    for name, metric in members.items():
        for hit in re.finditer(rf"\b{name}\s*\.Add(?=\()", source):
            given, _ = arguments(source, hit.end())
            metric.labels += [x for x in keys(given[0], source) if x not in metric.labels]
    by_name: dict[str, Metric] = {}
    for hit in re.finditer(r'\b(SetGauge|RaiseCounter|counter)(?=\(\s*")', source):
        given, _ = arguments(source, hit.end())
        kind = "Gauge" if hit[1] == "SetGauge" else "Counter"
        labels = keys("labels" if hit[1] == "counter" else given[2], source)
        by_name.setdefault(
            said(given[0]), Metric(said(given[0]), kind, said(given[1]), program, labels)
        )
    return found + list(by_name.values())


def metrics() -> list[Metric]:
    """All, by program and name."""
    return sorted(
        (
            metric
            for program, files in SOURCES.items()
            for file in files
            for metric in of_source(program, Path(paths.REPOSITORY, file).read_text())
        ),
        key=lambda x: (list(SOURCES).index(x.program), not x.name.startswith("rouse_"), x.name),
    )


def text() -> str:
    everything = metrics()
    out = [HEAD]
    for program in SOURCES:
        out += [f"## {program.capitalize()} ({PORTS[program]})", ""]
        out += ["| metric | type | labels | unit | what it is |", "|---|---|---|---|---|"]
        for x in (x for x in everything if x.program == program):
            labels = ", ".join(f"`{y}`" for y in x.labels)
            words = x.help.rstrip(".").replace("|", "\\|")
            out.append(f"| `{x.name}` | {x.kind.lower()} | {labels} | {x.unit} | {words} |")
        out.append("")
    used = {label for x in everything for label in x.labels}
    if used != LABELS.keys():
        raise RuntimeError(
            f"labels without a meaning, or meanings without a label: {sorted(used ^ LABELS.keys())}"
        )
    out += ["## Labels", "", "| label | values |", "|---|---|"]
    out += [f"| `{x}` | {LABELS[x]} |" for x in sorted(used)]
    out += ["", FOOT]
    return "\n".join(out) + "\n"
