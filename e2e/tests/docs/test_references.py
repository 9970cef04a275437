"""The references in docs/ are what the code says, and what pages, alerts and dashboards name is in them."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

import references
from rouse_e2e import api_reference, metrics_reference, paths
from rouse_e2e.control_plane import free_ports
from rouse_e2e.metrics_reference import Metric, metrics
from rouse_e2e.processes import tail, wait_until

from ..chart.exported import exported
from .pages import PAGES

CONFIG = paths.REPOSITORY / "config"
NAMES = {x.name for x in metrics()}
#: Words of that form that are no metrics: packages, files, symbols.
OTHERS = {"rouse_vllm", "rouse_e2e", "rouse_key_parts", "rouse_connector"}


@pytest.mark.parametrize("file", references.REFERENCES, ids=lambda x: x.name)
def test_a_reference_is_as_its_code_says(file: Path):
    assert file.read_text() == references.REFERENCES[file](), "run `make references`"


# ---- metrics


def test_every_metric_that_stands_in_a_source_is_found():
    """By its name alone, however it is registered."""
    ours = {x for x in NAMES if x.startswith(("rouse_", "leader_election_"))}
    no_metrics = {"rouse_digest_blocks"}  # a function on the GPU
    assert ours == exported() - no_metrics


def test_a_metric_more_in_a_source_is_a_metric_more_in_the_reference():
    source = Path(paths.REPOSITORY, "agent/server/metrics.cpp").read_text()
    more = (
        source.replace(
            "  Family<Gauge>& weights =",
            '  Family<Counter>& new_one = BuildCounter().Name("rouse_new_total").Help("A \\"new\\" " "one.")'
            ".Register(registry);\n"
            "  Family<Gauge>& weights =",
        )
        + 'void f() { families_->new_one.Add({{"path", x}, {"kind", y}}).Increment(); }\n'
    )
    before = {x.name for x in metrics_reference.of_source("agent", source)}
    (found,) = [x for x in metrics_reference.of_source("agent", more) if x.name not in before]
    assert found == Metric("rouse_new_total", "Counter", 'A "new" one.', "agent", ["path", "kind"])


def test_every_metric_has_a_type_a_help_and_a_name_as_prometheus_wants_it():
    for metric in metrics():
        assert metric.kind in ("Counter", "Gauge", "Histogram"), metric
        assert metric.help, metric
        assert (metric.kind == "Counter") == metric.name.endswith("_total"), metric
        assert re.fullmatch("[a-z_]+", metric.name), metric


def families(text: str) -> dict[str, tuple[str, str, set[str]]]:
    """Of Prometheus' text format: type, help and labels by name."""
    kinds = dict(re.findall(r"^# TYPE (\w+) (\w+)$", text, re.MULTILINE))
    helps = dict(re.findall(r"^# HELP (\w+) (.*)$", text, re.MULTILINE))
    found = {}
    for name, kind in kinds.items():
        ends = "(?:_bucket|_sum|_count)" if kind == "histogram" else ""
        series = re.findall(rf"^{name}{ends}(?:\{{(.*)\}})? ", text, re.MULTILINE)
        labels = {x for each in series for x in re.findall(r'(\w+)="', each)} - {"le"}
        found[name] = (kind, helps[name], labels)
    return found


def assert_documented(program: str, text: str) -> None:
    known = {x.name: x for x in metrics() if x.program == program}
    served = families(text)
    assert served.keys() <= known.keys()
    for name, (kind, words, labels) in served.items():
        metric = known[name]
        assert (kind, words) == (metric.kind.lower(), metric.help), name
        assert labels <= set(metric.labels), name


@pytest.fixture
def agent_metrics(build_folder: Path, tmp_path: Path) -> Iterator[str]:
    """What an agent serves that has just started, and whose operator is not there."""
    (port,) = free_ports(1)
    program, log = build_folder / "agent" / "rouse-agent", tmp_path / "agent.log"
    assert program.exists(), f"{program} is missing: build it, or name its build in ROUSE_BUILD"
    with open(log, "w") as output:
        agent = subprocess.Popen(
            [str(program), "--namespace=default", "--pod=a", "--pod-uid=1", "--pod-ip=127.0.0.1"]
            + ["--listen-host=127.0.0.1", f"--port={port}", "--operator-url=http://127.0.0.1:1"]
            + ["--path=Storage", f"--launch-identity={'0' * 32}", f"--model-dir={tmp_path}"]
            + [f"--plugin-source={tmp_path}", f"--plugin-dir={tmp_path}/plugin"]
            + [f"--engine-socket={tmp_path}/engine.sock"],
            stdout=output,
            stderr=output,
            env={x: y for x, y in os.environ.items() if not x.startswith("ROUSE_")},
        )
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def ask() -> str:
        assert agent.poll() is None, tail(log, 20)
        try:
            return opener.open(f"http://127.0.0.1:{port}/metrics", timeout=2).read().decode()
        except OSError:
            return ""

    try:
        yield wait_until("the agent's metrics", 20, ask)
    finally:
        agent.send_signal(signal.SIGKILL)
        agent.wait()


def test_what_an_agent_serves_is_in_the_reference(agent_metrics: str):
    assert_documented("agent", agent_metrics)
    assert len(families(agent_metrics)) > 10


@pytest.mark.parametrize(
    "file", [*PAGES, *sorted((CONFIG / "alerts").glob("*.yaml"))], ids=lambda x: x.name
)
def test_every_metric_that_a_page_or_an_alert_names_is_in_the_reference(file: Path):
    parts = {f"{name}_{part}" for name in NAMES for part in ("bucket", "sum", "count")}
    named = set(re.findall(r"\brouse_[a-z_]*[a-z]\b", file.read_text()))
    assert named - NAMES - parts - OTHERS == set()


def test_every_metric_that_a_dashboard_names_is_in_the_reference():
    text = "".join(
        target["expr"]
        for file in sorted((CONFIG / "dashboards").glob("*.json"))
        for panel in json.loads(file.read_text())["panels"]
        for target in panel.get("targets", [])
    )
    named = set(re.findall(r"\b(?:rouse|leader_election)_[a-z_]+\b", text))
    parts = {f"{name}_{part}" for name in NAMES for part in ("bucket", "sum", "count")}
    assert len(named) > 20
    assert named - NAMES - parts == set()


# ---- fields


def test_every_field_and_every_rule_of_the_crd_is_in_the_reference():
    """Counted another way than they are written."""
    text = (references.DOCS / "api-reference.md").read_text()
    root = yaml.safe_load(api_reference.CRD.read_text())["spec"]["versions"][0]["schema"]
    names, messages = [], []

    def walk(schema: object) -> None:
        if isinstance(schema, list):
            for each in schema:
                walk(each)
        if isinstance(schema, dict):
            properties = schema.get("properties")
            if isinstance(properties, dict):
                names.extend(properties)
            messages.extend(x["message"] for x in schema.get("x-kubernetes-validations", []))
            for each in schema.values():
                walk(each)

    walk(root["openAPIV3Schema"]["properties"]["spec"])
    walk(root["openAPIV3Schema"]["properties"]["status"])
    rows = re.findall(
        r"^\| `((?:spec|status)\.[\w.\[\]]+)` \| (?!.*\| `.*` \|$)", text, re.MULTILINE
    )
    assert sorted(x.rpartition(".")[2] for x in rows) == sorted(names)
    assert len(messages) > 20
    for message in messages:
        assert " ".join(message.split()).replace("|", "\\|") in text
