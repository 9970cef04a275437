"""What the demo prints of two starts, and of a failure: no cluster needed."""

from __future__ import annotations

import json

import pytest

import demo
from rouse_e2e.story import Instance, Story, table

SECOND = 1_000_000


def instance(name: str, path: str, phases: dict[str, float], **more: object) -> Instance:
    """A pod whose phases follow each other, with these seconds."""
    spans, at = [], 5 * SECOND
    for phase, seconds in phases.items():
        end = at + int(seconds * SECOND)
        spans.append({"name": phase, "startUs": at, "endUs": end})
        at = end
    timeline = {"totalUs": at - 5 * SECOND, "phases": spans, "lanes": more.get("lanes", [])}
    annotations = {
        "rouse.dev/path": path,
        "rouse.dev/timeline": json.dumps(timeline),
        "rouse.dev/bytes-by-source": json.dumps(more.get("bytes", {})),
        "rouse.dev/transport": str(more.get("transport", "")),
    }
    return Instance({"metadata": {"name": name, "annotations": annotations}})


def rows(text: str) -> dict[str, list[str]]:
    """The cells of each row by its first word; units are cells of their own."""
    return {line.split()[0]: line.split()[1:] for line in text.splitlines()[1:]}


FIRST = instance(
    "demo-0",
    "Storage",
    {"Schedule": 0.72, "EngineStart": 9.51, "Weights": 2.81, "FirstToken": 0.86},
    bytes={"storage": 323_900_000},
)
SECOND_ONE = instance(
    "demo-1",
    "Peer",
    {"Schedule": 1.0, "Hydrate": 0.47, "EngineStart": 9.93, "Weights": 0.1, "FirstToken": 0.53},
    bytes={"peer": 323_900_000},
    transport="tcp",
    lanes=[
        {"name": "Pull", "startUs": 5 * SECOND, "endUs": 6 * SECOND},
        {"name": "Pull", "startUs": 7 * SECOND, "endUs": 7 * SECOND + SECOND // 2},
    ],
)


def test_the_phases_of_each_start_add_up_to_its_total():
    text = table([FIRST, SECOND_ONE])
    shown = rows(text)
    assert "demo-0 (Storage)" in text.splitlines()[0]
    assert "demo-1 (Peer)" in text.splitlines()[0]
    phases = ["Schedule", "EngineStart", "Weights", "FirstToken", "Hydrate"]

    def seconds(phase: str) -> list[float]:
        return [0.0 if x == "-" else float(x) for x in shown[phase] if x != "s"]

    for column, total in ((0, 13.90), (1, 12.03)):
        assert seconds("total")[column] == pytest.approx(total)
        assert sum(seconds(x)[column] for x in phases) == pytest.approx(total, abs=0.03)


def test_a_phase_that_only_one_start_has_is_shown():
    shown = rows(table([FIRST, SECOND_ONE]))
    assert shown["Hydrate"] == ["-", "0.47", "s"]
    shown = rows(table([SECOND_ONE, FIRST]))
    assert shown["Hydrate"] == ["0.47", "s", "-"]


def test_lanes_bytes_and_transport_stand_beside_the_phases():
    text = table([FIRST, SECOND_ONE])
    lane = next(line for line in text.splitlines() if line.startswith("| Pull"))
    assert lane.split() == ["|", "Pull", "-", "1.50", "s", "(beside", "the", "phases)"]
    assert "from storage                323.9 MB                0.0 MB" in text
    assert "from peer                     0.0 MB              323.9 MB" in text
    assert rows(text)["transport"] == ["-", "tcp"]


class FakeCluster:
    """One pod of a service that failed, and the operator's."""

    def list(self, kind: str, namespace: str, selector: str = "") -> list[dict]:
        assert kind == "pods"
        if namespace == "rouse-system":
            return [{"metadata": {"name": "rouse-operator-x"}}]
        assert selector == "rouse.dev/modelservice=demo"
        return [
            {"metadata": {"name": "demo-0", "annotations": {"rouse.dev/agent-state": "Failed"}}}
        ]

    def logs(self, pod: str, container: str, namespace: str, lines: int) -> str:
        return f"log of {namespace}/{pod}/{container}"

    def events(self, lines: int) -> str:
        return "FailedMount: no such claim"

    def collect(self, folder) -> None:
        raise OSError("disk is full")


def test_a_failure_is_explained_by_logs_annotations_and_events():
    text = Story(FakeCluster(), print).explain()
    for part in (
        "log of default/demo-0/agent",
        "log of default/demo-0/engine",
        '"rouse.dev/agent-state": "Failed"',
        "log of rouse-system/rouse-operator-x/operator",
        "FailedMount: no such claim",
    ):
        assert part in text


def test_a_demo_that_fails_says_why_even_if_its_logs_cannot_be_kept(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(demo.paths, "REPOSITORY", tmp_path)
    demo.explain_failure(FakeCluster(), None, RuntimeError("demo-0: engine restarts"))
    said = capsys.readouterr().out
    assert "collecting logs failed: disk is full" in said
    assert "FAILED: demo-0: engine restarts" in said
