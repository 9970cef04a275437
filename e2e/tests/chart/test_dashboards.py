"""The dashboards are whole and name only metrics that our programs export."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rouse_e2e import paths

from .exported import NAME, unknown

DASHBOARDS = sorted((paths.REPOSITORY / "config" / "dashboards").glob("*.json"))


@pytest.mark.parametrize("file", DASHBOARDS, ids=lambda x: x.name)
def test_panels_have_titles_ids_places_and_queries(file: Path):
    dashboard = json.loads(file.read_text())
    assert dashboard["uid"] and dashboard["title"]
    ids = [x["id"] for x in dashboard["panels"]]
    assert len(set(ids)) == len(ids)
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        if panel["type"] != "row":
            assert panel["title"] and panel["description"] and panel["targets"], panel["id"]
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, f"{panel['title']} lies over another panel"
        assert place["x"] + place["w"] <= 24
        taken |= cells


@pytest.mark.parametrize("file", DASHBOARDS, ids=lambda x: x.name)
def test_every_metric_of_a_query_is_one_that_a_program_exports(file: Path):
    panels = json.loads(file.read_text())["panels"]
    queries = [x["expr"] for panel in panels for x in panel.get("targets", [])]
    assert len({name for query in queries for name in NAME.findall(query)}) >= 5
    assert {name for query in queries for name in unknown(query)} == set()
