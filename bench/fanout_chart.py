"""The picture of a simulated fan-out: who is ready when, and how the time to the last grows with N."""

from __future__ import annotations

import math
from dataclasses import dataclass

WIDTH, HEIGHT = 1170, 470
TOP, BOTTOM = 70, 400
LEFT_PANEL = (70, 560)
RIGHT_PANEL = (690, 1010)
COLOURS = ["#4e79a7", "#f28e2b", "#59a14f", "#b07aa1", "#e15759", "#76b7b2"]
NAMED = {"Rouse": "#2a6fbb", "serve when complete": "#c77d0a", "star": "#b03a48"}


@dataclass
class Curve:
    targets: int
    dying: bool
    ready: list[float]  # by hundredths of the targets, ascending


def text(
    x: float, y: float, words: str, anchor: str = "start", size: int = 13, fill: str = "#333"
) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" fill="{fill}">{words}</text>'


def line(x1: float, y1: float, x2: float, y2: float, colour: str = "#ddd", more: str = "") -> str:
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" {more}/>'
    )


def path(points: list[tuple[float, float]], colour: str, more: str = "") -> str:
    joined = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline points="{joined}" fill="none" stroke="{colour}" stroke-width="2" {more}/>'


def readiness(curves: list[Curve], one_pull: float) -> list[str]:
    """Left: share of the instances that are ready, over time."""
    x0, x1 = LEFT_PANEL
    start = math.floor(one_pull * 20 - 1) / 20
    end = math.ceil(max(curve.ready[-1] for curve in curves) * 20 + 0.5) / 20

    def at(seconds: float, percent: float) -> tuple[float, float]:
        return (
            x0 + (seconds - start) / (end - start) * (x1 - x0),
            BOTTOM - percent / 100 * (BOTTOM - TOP),
        )

    out = [text(x0, 34, "Instances ready over time, all started at 0 s", size=16)]
    for percent in range(0, 101, 25):
        y = at(start, percent)[1]
        out += [line(x0, y, x1, y), text(x0 - 8, y + 4, f"{percent} %", "end")]
    for tenth in range(math.ceil(start * 10 - 1e-9), math.floor(end * 10 + 1e-9) + 1):
        x = at(tenth / 10, 0)[0]
        out += [
            line(x, BOTTOM, x, BOTTOM + 5, "#888"),
            text(x, BOTTOM + 20, f"{tenth / 10:.1f} s", "middle"),
        ]
    x = at(one_pull, 0)[0]
    out += [
        line(x, TOP - 8, x, BOTTOM, "#777", 'stroke-dasharray="2 3"'),
        text(x, TOP - 14, "one pull", "middle", 12),
    ]
    sizes = sorted({curve.targets for curve in curves})
    for curve in curves:
        points = [at(start, 0), at(curve.ready[0], 0)]
        points += [at(seconds, percent) for percent, seconds in enumerate(curve.ready)]
        points.append(at(end, 100))
        dash = 'stroke-dasharray="6 4"' if curve.dying else ""
        out.append(path(points, COLOURS[sizes.index(curve.targets) % len(COLOURS)], dash))
    for i, size in enumerate(sizes):
        x = x0 + i * 98
        out += [
            path([(x, 440), (x + 20, 440)], COLOURS[i % len(COLOURS)]),
            text(x + 26, 444, f"N = {size:,}", size=12),
        ]
    out.append(
        text(
            x0,
            464,
            "dashed: 1 % of the instances die on the way, silently (share of those that live)",
            size=12,
        )
    )
    return out


def scaling(last: dict[str, list[tuple[int, float]]], one_pull: float) -> list[str]:
    """Right: time to the last over N, both logarithmic."""
    x0, x1 = RIGHT_PANEL
    counts = [count for count, _ in last["Rouse"]]
    top = max(seconds for points in last.values() for _, seconds in points)
    decades = max(1, math.ceil(math.log10(top / 0.5)))
    first, final = math.log2(min(counts)), math.log2(max(counts))

    def at(count: float, seconds: float) -> tuple[float, float]:
        across = (math.log2(count) - first) / max(final - first, 1e-9)
        return x0 + across * (x1 - x0), BOTTOM - math.log10(seconds / 0.5) / decades * (
            BOTTOM - TOP
        )

    out = [text(x0, 34, "Time to the last of N", size=16)]
    for power in range(decades + 1):
        if (seconds := 10.0**power) / 0.5 <= 10**decades:
            y = at(counts[0], seconds)[1]
            out += [line(x0, y, x1, y), text(x0 - 8, y + 4, f"{seconds:,.0f} s", "end")]
    for count in counts:
        x = at(count, 0.5)[0]
        out += [
            line(x, BOTTOM, x, BOTTOM + 5, "#888"),
            text(x, BOTTOM + 20, f"{count:,}", "middle"),
        ]
    y = at(counts[0], one_pull)[1]
    out.append(line(x0, y, x1, y, "#777", 'stroke-dasharray="2 3"'))
    for name, points in last.items():
        places = [at(*point) for point in points]
        out.append(path(places, NAMED[name]))
        out += [
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{NAMED[name]}"/>' for x, y in places
        ]
        x, y = places[-1]
        out.append(text(x + 10, y - 2, name, size=12, fill=NAMED[name]))
        out.append(text(x + 10, y + 13, f"{points[-1][1]:,.2f} s", size=12, fill=NAMED[name]))
    out.append(text(x0, 444, "dotted: one pull; both axes logarithmic", size=12))
    return out


def draw(curves: list[Curve], last: dict[str, list[tuple[int, float]]], one_pull: float) -> str:
    body = "\n".join([*readiness(curves, one_pull), *scaling(last, one_pull)])
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'font-family="Helvetica, Arial, sans-serif">\n'
        f"<title>348 GB to N new instances over 8 x 400G, simulated</title>\n"
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>\n{body}\n</svg>\n'
    )
