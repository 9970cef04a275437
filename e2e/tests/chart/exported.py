"""The metrics that our programs export, read from their sources."""

from __future__ import annotations

import functools
import re

from rouse_e2e import paths

#: Names of ours, and those of controller-runtime that we use too.
NAME = re.compile(r"\b(?:rouse|leader_election)_[a-z_]+\b")


@functools.cache
def exported() -> frozenset[str]:
    sources = [
        file.read_text()
        for folder in ("operator", "agent")
        for file in (paths.REPOSITORY / folder).rglob("*.cpp")
        if "tests" not in file.parts
    ]
    return frozenset(
        x.strip('"') for text in sources for x in re.findall(rf'"{NAME.pattern}"', text)
    )


def unknown(query: str) -> set[str]:
    """Metrics of a query that no program exports."""
    # Of a histogram, what it is made of.
    parts = {f"{name}_{part}" for name in exported() for part in ("bucket", "sum", "count")}
    labels_gone = re.sub(r"\{[^}]*\}|(?:by|on) \([^)]*\)", "", query)
    return set(NAME.findall(labels_gone)) - exported() - parts
