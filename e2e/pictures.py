#!/usr/bin/env python3
"""Draws the pictures of docs/pictures from a real run: `make pictures`.

The demo's story is told on a cluster of its own while a Prometheus scrapes it. The timeline is what `kubectl rouse
timeline -o svg` says; the dashboard is what its queries return, drawn panel by panel where the dashboard has them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import demo  # noqa: E402
from rouse_e2e import paths  # noqa: E402
from rouse_e2e.cluster import interrupt_on_terminate  # noqa: E402
from rouse_e2e.prometheus import Prometheus, dashboard_queries  # noqa: E402
from rouse_e2e.real import RealCluster  # noqa: E402
from rouse_e2e.story import START_SECONDS, SYSTEM, Story  # noqa: E402

PICTURES = paths.REPOSITORY / "docs" / "pictures"
PLUGIN = paths.REPOSITORY / "build" / "release" / "operator" / "kubectl" / "kubectl-rouse"
DATA = paths.REPOSITORY / "build" / "pictures.json"
DRAWER = paths.E2E / "draw_dashboard.py"
STEP_SECONDS = 2


def render(svg: Path, width: int) -> None:
    png = svg.with_suffix(".png")
    subprocess.run(
        ["rsvg-convert", "--width", str(width), "--background-color", "white"]
        + ["--output", str(png), str(svg)],
        check=True,
    )
    demo.say(str(png.relative_to(paths.REPOSITORY)))


def draw_timeline(story: Story) -> None:
    svg = PICTURES / "timeline.svg"
    text = subprocess.run(
        [str(PLUGIN), "timeline", story.name, "-o", "svg", "-n", story.namespace],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env=dict(os.environ, KUBECONFIG=str(story.cluster.kubeconfig)),
    ).stdout
    svg.write_text(text)
    render(svg, 1000)


def save_data(prometheus: Prometheus, began: float) -> None:
    ended = time.time()
    data = [
        {
            "panel": query.panel,
            "legend": query.legend,
            "series": [
                {"labels": labels, "values": [(at - began, value) for at, value in values]}
                for labels, values in prometheus.query_range(
                    query.expression, began, ended, STEP_SECONDS
                )
            ],
        }
        for query in dashboard_queries()
    ]
    DATA.write_text(json.dumps(data))


def main() -> int:
    interrupt_on_terminate()
    PICTURES.mkdir(exist_ok=True)
    with (
        RealCluster("pictures", say=demo.say) as cluster,
        Prometheus(cluster, SYSTEM) as prometheus,
    ):
        began = time.time()
        story = Story(cluster, demo.say)
        demo.tell(story)
        # The one that was woken sleeps again, so that a guard's panels have something to show.
        story.scale(2)
        story.await_pods(
            "a guard to sleep",
            lambda p: len(p) == 3 and sum(x.sleeps for x in p.values()) == 1,
            START_SECONDS,
        )
        draw_timeline(story)
        time.sleep(5)  # scrapes of it
        save_data(prometheus, began)
    # Debian's matplotlib, which is not in the tests' own environment.
    target = PICTURES / "dashboard.png"
    dashboard = paths.REPOSITORY / "config" / "dashboards" / "scale-latency.json"
    subprocess.run(
        ["/usr/bin/python3", str(DRAWER), str(dashboard), str(DATA), str(target)], check=True
    )
    demo.say(str(target.relative_to(paths.REPOSITORY)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
