#!/usr/bin/env python3
"""table.py SAMPLES... : docs/benchmarks/coldstart-h200.{json,svg} and state-h200.json out of the files that
run.py left.

Files of several runs count as one: each row is the median of all its samples, with their number beside it.
"""

from __future__ import annotations

import argparse
import html
import json
import statistics
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import row_names as rows  # noqa: E402
import state_figures  # noqa: E402

import figures  # noqa: E402

#: Faster rows first in the chart would hide what each one adds: this is the order of the table.
ORDER = [
    rows.VLLM_COLD,
    rows.VLLM_WARM,
    rows.VLLM_WHOLE_COLD,
    rows.VLLM_WHOLE_WARM,
    rows.MODELEXPRESS_FIRST,
    rows.MODELEXPRESS,
    rows.FIRST,
    rows.STORAGE,
    rows.PEER,
    rows.SHARED,
    rows.STATE,
    rows.LAZY,
    rows.FORK,
    rows.PRELOADED,
    rows.KILLED,
    rows.VLLM_SLEEP,
    rows.WAKE,
]
EVERYTHING = (rows.PRELOADED, rows.FORK, rows.LAZY, rows.STATE)


#: Starts of Rouse that find compiled code, which the plugin has vLLM keep in another form since.
REUSING = (
    rows.STORAGE, rows.SHARED, rows.STATE, rows.LAZY, rows.FORK, rows.PRELOADED, rows.KILLED, rows.GUARD,
)  # fmt: skip
#: Starts of vLLM that find compiled code: what others are compared with in older runs.
WARM = (rows.VLLM_WARM, rows.VLLM_WHOLE_WARM)
COLD = (rows.VLLM_COLD, rows.VLLM_WHOLE_COLD)


def of_document(document: dict[str, Any]) -> list[dict[str, Any]]:
    """Its samples, each with what of its run decides how it counts."""
    present = document.get("wholeArtifact", False)
    warm = any(x["row"] in WARM for x in document["samples"])
    run = {"present": present, "warm": warm, "slots": document.get("slotsGivenUp", False)}
    return [x | run for x in document["samples"]]


def without_superseded(samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of a row that was measured with the present form of compiled code, only those samples."""
    present = {x["row"] for x in samples if x["present"]}
    return [
        x for x in samples if x["present"] or x["row"] not in REUSING or x["row"] not in present
    ]


#: Each compilation may choose other kernels, whose last bits differ: tokens are judged by those of the
#: start that compiled the code, where there is one.
DIFFERING = "differing tokens over all rows"
DIFFERING_COMPILED = "differing tokens, starts of Rouse that compiled for themselves"
DIFFERING_VLLM = "differing tokens, further starts of vLLM"
DIFFERING_MODELEXPRESS = "differing tokens, ModelExpress"
DIFFERING_UNJUDGED = "differing tokens, older runs in which vLLM started with cold caches only"


def differing(sample: dict[str, Any]) -> tuple[str, int] | None:
    """Under which name its differing tokens count, and how many they are."""
    row, of = sample["row"], sample.get("differingFrom", {})
    if row in COLD or "differingTokens" not in sample:
        return None
    cold = next((of[x] for x in COLD if x in of), sample["differingTokens"])
    if row in (*WARM, rows.VLLM_SLEEP):
        return DIFFERING_VLLM, cold
    if row in (rows.MODELEXPRESS_FIRST, rows.MODELEXPRESS):
        return DIFFERING_MODELEXPRESS, of[rows.MODELEXPRESS_FIRST]
    if row in (rows.FIRST, rows.PEER):
        compared = not of or any(x in of for x in COLD)
        return (DIFFERING_COMPILED, cold) if compared else None
    if rows.FIRST in of:
        return DIFFERING, of[rows.FIRST]
    return DIFFERING if sample["warm"] else DIFFERING_UNJUDGED, sample["differingTokens"]


def token_figures(samples: list[dict[str, Any]]) -> list[figures.Figure]:
    against = {
        DIFFERING: "the start that compiled the code, or vLLM, warm caches",
        DIFFERING_MODELEXPRESS: "its first instance",
    }
    counted: dict[str, list[int]] = {DIFFERING: []}
    for name, count in filter(None, map(differing, samples)):
        counted.setdefault(name, []).append(count)
    return [
        figures.Figure(
            f"{name}{'' if name == DIFFERING else f', {len(counts)} starts'}", sum(counts), "",
            against.get(name, "vLLM cold"),
        )
        for name, counts in counted.items()
    ]  # fmt: skip


def held_asleep(samples: list[dict[str, Any]], row: str) -> float | None:
    """GiB; of a guard, if any was measured that gives up what they do by now, only of those."""
    asleep = [x for x in samples if x["row"] == row and "gpuHeldAsleep" in x]
    if row == rows.WAKE and any(x["slots"] for x in asleep):
        asleep = [x for x in asleep if x["slots"]]
    return statistics.median(x["gpuHeldAsleep"] for x in asleep) / 2**30 if asleep else None


def median_of(samples: list[dict[str, Any]], row: str) -> tuple[float, int] | None:
    seconds = [x["seconds"] for x in samples if x["row"] == row]
    return (statistics.median(seconds), len(seconds)) if seconds else None


def speeds(samples: list[dict[str, Any]], row: str, key: str = "speed") -> dict[str, float]:
    measured = [x[key] for x in samples if x["row"] == row and key in x]
    names = measured[0] if measured else {}
    return {name: statistics.median(x[name] for x in measured) for name in names}


def of_model(model: str, samples: list[dict[str, Any]]) -> list[figures.Figure]:
    out = []
    base = median_of(samples, rows.VLLM_COLD)
    warm_speeds = speeds(samples, rows.VLLM_WARM)
    for row in ORDER:
        measured = median_of(samples, row)
        if measured is None:
            continue
        seconds, count = measured
        ratio = round(seconds / base[0], 4) if base else None
        name = f"{model}: {row}, median of {count}"
        out.append(figures.Figure(name, round(seconds, 4), "s", "vLLM cold" if base else "", ratio))
        measured_speeds = speeds(samples, row) | {
            f"{what}, while graphs are captured": value
            for what, value in speeds(samples, row, "speedBeforeGraphs").items()
        }
        for what, value in measured_speeds.items():
            base_speed = warm_speeds.get(what.partition(",")[0])
            against = base_speed if row != rows.VLLM_WARM else None
            out.append(
                figures.Figure(
                    f"{model}: {row}: {what}", round(value, 6), what.split(" ")[0],
                    "vLLM, warm caches" if against else "", round(value / against, 4) if against else None,
                )
            )  # fmt: skip
    for row in (rows.VLLM_SLEEP, rows.WAKE):
        gib = held_asleep(samples, row)
        if gib is None:
            continue
        base_gib = held_asleep(samples, rows.VLLM_SLEEP) if row == rows.WAKE else None
        name = "a guard, its agent included" if row == rows.WAKE else "vLLM, sleep level 2"
        out.append(
            figures.Figure(
                f"{model}: GPU memory held asleep by {name}", round(gib, 3), "GiB",
                "vLLM, sleep level 2" if base_gib else "",
                round(gib / base_gib, 4) if base_gib else None,
            )
        )  # fmt: skip
    wake = median_of(samples, rows.WAKE)
    if wake is not None:
        out.append(figures.Figure(f"guard wake to first token, {model}", round(wake[0], 4), "s"))
    everything = next((x for row in EVERYTHING if (x := median_of(samples, row))), None)
    if everything and base:
        ratio = round(everything[0] / base[0], 4)
        what = f"everything reused, against vLLM cold, {model}"
        out.append(figures.Figure(what, ratio, "", "vLLM cold", ratio))
    return out


def chart(by_model: dict[str, list[dict[str, Any]]]) -> str:
    """One bar a row, its length on a logarithmic scale from 0.01 s to 1,000 s."""
    import math

    left, width, height = 430, 640, 22
    parts, y = [], 40
    for model, samples in by_model.items():
        parts.append(
            f'<text x="10" y="{y}" font-size="16" font-weight="bold">{html.escape(model)}</text>'
        )
        y += 12
        for row in ORDER:
            measured = median_of(samples, row)
            if measured is None:
                continue
            seconds, count = measured
            length = max(2.0, (math.log10(max(seconds, 0.011)) + 2) / 5 * width)
            colour = "#8c8c8c" if row.startswith(("vLLM", "ModelExpress")) else "#2a6fbb"
            parts += [
                f'<text x="{left - 8}" y="{y + 15}" text-anchor="end" font-size="12">{html.escape(row)}</text>',
                f'<rect x="{left}" y="{y + 3}" width="{length:.1f}" height="{height - 6}" fill="{colour}"/>',
                f'<text x="{left + length + 6:.1f}" y="{y + 15}" font-size="12">{seconds:.3g} s ({count})</text>',
            ]
            y += height
        y += 30
    for exponent in range(-2, 4):
        x = left + (exponent + 2) / 5 * width
        parts.insert(0, f'<line x1="{x:.0f}" y1="44" x2="{x:.0f}" y2="{y - 24}" stroke="#ddd"/>')
        parts.append(
            f'<text x="{x:.0f}" y="{y - 8}" text-anchor="middle" font-size="11">{10**exponent:g} s</text>'
        )
    title = "Seconds from the start of a process (or the wake's request) to the first token; medians, number of runs"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + width + 110}" height="{y + 10}" '
        f'font-family="sans-serif"><rect width="100%" height="100%" fill="white"/>'
        f'<text x="10" y="18" font-size="13">{title}</text>{"".join(parts)}</svg>\n'
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("samples", nargs="+", type=Path)
    parser.add_argument(
        "--out", type=Path, default=figures.REPOSITORY / "docs/benchmarks/coldstart-h200.json"
    )
    options = parser.parse_args()
    by_model: dict[str, list[dict[str, Any]]] = {}
    machines = set()
    for file in options.samples:
        document = json.loads(file.read_text())
        by_model.setdefault(document["model"], []).extend(of_document(document))
        machines.add(document["machine"])
    by_model = {model: without_superseded(samples) for model, samples in by_model.items()}
    found = [figure for model, samples in by_model.items() for figure in of_model(model, samples)]
    found += token_figures([x for samples in by_model.values() for x in samples])
    where = "; ".join(sorted(machines))
    figures.write("coldstart-h200", found, options.out, where)
    if reused := state_figures.of_all(by_model):
        figures.write("state-h200", reused, options.out.with_name("state-h200.json"), where)
    options.out.with_suffix(".svg").write_text(chart(by_model))
    return 0


if __name__ == "__main__":
    sys.exit(main())
