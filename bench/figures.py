"""The form in which benchmarks leave their figures, and what they say about the machine."""

from __future__ import annotations

import datetime
import json
import os
import re
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]


@dataclass
class Figure:
    """One measured value. `ratio` is value / what `against` names, or None without a rival."""

    what: str
    value: float
    unit: str
    against: str = ""
    ratio: float | None = None


def machine() -> str:
    cpu = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.M)
    memory = re.search(r"^MemTotal:\s+(\d+)", Path("/proc/meminfo").read_text(), re.M)
    gib = round(int(memory[1]) / 1024 / 1024) if memory else 0
    return f"{os.cpu_count()} x {cpu[1] if cpu else 'unknown'}, {gib} GiB"


def commit() -> str:
    answer = subprocess.run(
        ["git", "-C", str(REPOSITORY), "rev-parse", "--short=12", "HEAD"],
        capture_output=True,
        text=True,
    )
    return answer.stdout.strip() or "unknown"


def write(
    name: str, figures: list[Figure], out: Path, where: str | None = None, keep: bool = False
) -> None:
    """Prints a table and writes docs/benchmarks/NAME.json. `where` is the machine, if not this one; `keep`:
    figures there that have other names stay, and so does the command that made them."""
    document = {
        "name": name,
        "machine": where or machine(),
        "commit": commit(),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "command": " ".join([f"bench/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
        "figures": [asdict(figure) for figure in figures],
    }
    width = max(len(figure.what) for figure in figures)
    for figure in figures:
        ratio = "" if figure.ratio is None else f"  {figure.ratio:5.2f} x {figure.against}"
        print(f"{figure.what:<{width}}  {figure.value:8.3f} {figure.unit}{ratio}")
    out.parent.mkdir(parents=True, exist_ok=True)
    if keep and out.exists():
        before = json.loads(out.read_text())
        ours = {figure.what for figure in figures}
        kept = [x for x in before["figures"] if x["what"] not in ours]
        script = document["command"].split()[0]
        commands = [x for x in before["command"].split(" && ") if x.split()[0] != script]
        document["figures"] = kept + document["figures"]
        document["command"] = " && ".join([*commands, document["command"]])
    out.write_text(json.dumps(document, indent=1) + "\n")
    print(f"written to {out}")
