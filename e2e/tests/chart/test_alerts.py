"""The alerts: valid, of metrics that exist, and each fires when it should and not otherwise."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import yaml

from rouse_e2e import paths

from .exported import unknown

RULES = paths.REPOSITORY / "config" / "alerts" / "rouse.yaml"
CASES = Path(__file__).with_name("alerts_test.yaml")
ALERTS = [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def promtool(*arguments: str | Path) -> str:
    """What it prints; fails with that if it has found something."""
    answer = subprocess.run(
        ["promtool", *map(str, arguments)], capture_output=True, text=True, timeout=60
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return answer.stdout


def test_promtool_accepts_the_rules():
    assert f"{len(ALERTS)} rules found" in promtool("check", "rules", RULES)


@pytest.mark.parametrize("alert", ALERTS, ids=lambda x: x["alert"])
def test_an_alert_has_a_severity_a_summary_and_a_remedy_and_metrics_that_exist(alert: dict):
    assert alert["alert"].startswith("Rouse")
    assert alert["labels"]["severity"] in ("warning", "critical")
    assert alert["annotations"].keys() == {"summary", "description"}
    assert unknown(alert["expr"]) == set()


def test_a_metric_that_does_not_exist_is_found():
    assert unknown('sum(rouse_instances{state="x"}) / rouse_misspelt_total') == {
        "rouse_misspelt_total"
    }


def test_alerts_fire_when_they_should_and_not_when_all_is_well(tmp_path: Path):
    rules = yaml.safe_load(RULES.read_text())
    for group in rules["groups"]:
        for rule in group["rules"]:
            del rule["annotations"]["description"]
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(rules))
    cases = tmp_path / "cases.yaml"
    cases.write_text(CASES.read_text().replace("[RULES]", f"[{tmp_path}/rules.yaml]"))
    promtool("test", "rules", cases)


@pytest.mark.parametrize("alert", ALERTS, ids=lambda x: x["alert"])
def test_each_alert_is_tested_both_ways(alert: dict):
    looks = [
        x for test in yaml.safe_load(CASES.read_text())["tests"] for x in test["alert_rule_test"]
    ]
    mine = [bool(x.get("exp_alerts")) for x in looks if x["alertname"] == alert["alert"]]
    assert {True, False} <= set(mine)
