#!/usr/bin/env python3
"""Draws a dashboard's queries as they were answered: draw_dashboard.py DASHBOARD.json DATA.json OUT.png

Each panel stands where the dashboard has it. A time series is drawn as lines over the seconds of the run, every
other panel as bars of the last values. It is no picture of Grafana.
"""

from __future__ import annotations

import io
import json
import math
import re
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot  # noqa: E402
from matplotlib.ticker import FuncFormatter  # noqa: E402
from PIL import Image  # noqa: E402

COLUMNS = 24
INCHES = (14.0, 0.34)  # the whole width, and the height of one row of the grid
MOST_SERIES = 14


def said(value: float, unit: str) -> str:
    if unit in ("bytes", "decbytes", "Bps"):
        base = 1024 if unit == "bytes" else 1000
        names = ("B", "KiB", "MiB", "GiB") if unit == "bytes" else ("B", "kB", "MB", "GB")
        power = min(3, int(math.log(abs(value), base))) if abs(value) >= 1 else 0
        return f"{value / base**power:.3g} {names[power]}{'/s' if unit == 'Bps' else ''}"
    if unit == "percentunit":
        return f"{value * 100:.3g} %"
    number = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return number + (" s" if unit == "s" else "")


def name(legend: str, labels: dict[str, str]) -> str:
    if legend:
        return re.sub(r"\{\{\s*(\w+)\s*\}\}", lambda x: labels.get(x[1], ""), legend).strip()
    return " ".join(labels[x] for x in ("pod", "path", "start", "phase") if x in labels)


def draw_lines(axes, series: list[tuple[str, list]], unit: str) -> None:
    for title, values in series:
        known = [(x, y) for x, y in values if not math.isnan(y)]
        axes.plot(*zip(*known), label=title, linewidth=1.2, drawstyle="steps-post")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: said(y, unit)))
    axes.set_xlabel("s", fontsize=6, loc="right", labelpad=-6)
    axes.legend(fontsize=5.5, loc="upper left", frameon=False)
    highest = max((y for _, values in series for _, y in values if not math.isnan(y)), default=0)
    top = 1.4 * highest or 1
    axes.set_ylim(-0.03 * top, top)  # so that what is zero is seen


def draw_bars(axes, series: list[tuple[str, list]], unit: str) -> None:
    last = [(title, values[-1][1]) for title, values in series if not math.isnan(values[-1][1])]
    last = last[:MOST_SERIES][::-1]
    axes.barh([x for x, _ in last], [y for _, y in last], height=0.6)
    for place, (_, value) in enumerate(last):
        axes.text(value, place, " " + said(value, unit), va="center", fontsize=6)
    axes.set_xlim(0, 1.3 * max([y for _, y in last] + [1e-9]))
    axes.set_xticks([])


def draw_stacked(axes, series: list[tuple[dict[str, str], list]], unit: str) -> None:
    """A bar for each start, of its phases."""
    starts = sorted({labels["start"] for labels, _ in series}, reverse=True)
    ends = dict.fromkeys(starts, 0.0)
    axes.set_prop_cycle(
        color=pyplot.get_cmap("tab20").colors
    )  # more phases than a default has colours
    for phase in dict.fromkeys(labels["phase"] for labels, _ in series):
        mine = {x["start"]: y[-1][1] for x, y in series if x["phase"] == phase}
        widths = [0 if math.isnan(y := mine.get(x, 0)) else y for x in starts]
        axes.barh(starts, widths, left=[ends[x] for x in starts], height=0.7, label=phase)
        ends = {x: ends[x] + width for x, width in zip(starts, widths)}
    for place, start in enumerate(starts):
        axes.text(ends[start], place, " " + said(ends[start], unit), va="center", fontsize=6)
    axes.set_xlim(0, 1.1 * max(ends.values()))
    axes.set_xticks([])
    axes.legend(fontsize=6, frameon=False, ncol=6, loc="upper center", bbox_to_anchor=(0.5, 0))


def main(dashboard: Path, data: Path, out: Path) -> None:
    panels = json.loads(dashboard.read_text())["panels"]
    answers = json.loads(data.read_text())
    rows = max(x["gridPos"]["y"] + x["gridPos"]["h"] for x in panels)
    end = max(x["values"][-1][0] for answer in answers for x in answer["series"])
    figure = pyplot.figure(figsize=(INCHES[0], rows * INCHES[1]))
    for panel in panels:
        place = panel["gridPos"]
        top = 1 - place["y"] / rows
        if panel["type"] == "row":
            figure.text(0.005, top - 0.8 / rows, panel["title"], fontsize=11, weight="bold")
            continue
        lines = panel["type"] == "timeseries"
        left = (3.2 if not lines and place["w"] > 8 else 2.2) if not lines else 1.3
        axes = figure.add_axes(
            (
                (place["x"] + left) / COLUMNS,
                top - (place["h"] - 1.1) / rows,
                (place["w"] - left - 0.4) / COLUMNS,
                (place["h"] - 2.6) / rows,
            )
        )
        axes.set_title(panel["title"], fontsize=8, loc="left")
        axes.tick_params(labelsize=6)
        for edge in ("top", "right"):
            axes.spines[edge].set_visible(False)
        found = [
            {**x, "legend": answer["legend"]}
            for answer in answers
            if answer["panel"] == panel["title"]
            for x in answer["series"]
            if not all(math.isnan(y) for _, y in x["values"])
        ]
        if not found:
            raise SystemExit(f"{panel['title']}: no data")
        unit = panel.get("fieldConfig", {}).get("defaults", {}).get("unit", "short")
        if panel["type"] == "barchart":
            draw_stacked(axes, [(x["labels"], x["values"]) for x in found], unit)
        else:
            named = [(name(x["legend"], x["labels"]), x["values"]) for x in found]
            (draw_lines if lines else draw_bars)(axes, named, unit)
        if lines:
            axes.set_xlim(0, end)
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=100)
    # A few colours are enough, and keep the file small.
    Image.open(buffer).convert("RGB").quantize(96).save(out, optimize=True)


if __name__ == "__main__":
    if len(sys.argv) != 4:
        raise SystemExit(__doc__)
    main(*map(Path, sys.argv[1:]))
