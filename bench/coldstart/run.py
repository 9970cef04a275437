#!/usr/bin/env python3
"""run.py --model NAME [--rows cold,warm,source,...] [--repeat N] --out FILE: how long real vLLM takes to its first token.

Every start is a process of its own, asked over HTTP. Needs a GPU, vLLM on PYTHONPATH, and room for the checkpoint
(random weights, in tmpfs): ROUSE_TEST_PLUGIN and ROUSE_TEST_AGENT name what was built. FILE gets every sample; table.py
makes the table of several such files.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import model_express
import models
import row_names
import rows

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import figures  # noqa: E402

#: GiB of KV cache, and the share of the GPU that must be free for a start.
ROOM = {
    "0.6B": (4.0, 0.2),
    "8B": (12.0, 0.25),
    "MoE 8 layers": (4.0, 0.2),
    "MoE 30B": (5.0, 0.46),
    "0.6B 4-bit": (4.0, 0.2),
}


def gpu() -> str:
    query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    return subprocess.run(query, capture_output=True, text=True, check=True).stdout.split("\n")[0]


def vllm() -> str:
    from importlib.metadata import version

    return version("vllm")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=models.MODELS, required=True)
    parser.add_argument(
        "--rows",
        default="cold,warm,modelexpress,sleep,peer,state,lazy,fork,preloaded,killed,wake,storage",
    )
    parser.add_argument(
        "--modelexpress",
        type=Path,
        help="where ModelExpress, NIXL and bin/modelexpress-server are, for its row alone",
    )
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--kv-gib", type=float)
    parser.add_argument("--work", type=Path, default=Path("/dev/shm/rouse-coldstart"))
    parser.add_argument("--logs", type=Path, help="keep the servers' and agents' logs here")
    parser.add_argument("--no-speed", action="store_true", help="starts and tokens alone")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--seconds", type=float, default=560, help="begin no further row after so long"
    )
    options = parser.parse_args()
    began = time.monotonic()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # No engine may outlive us.
    chosen = options.rows.split(",")
    if "modelexpress" in chosen and (lack := model_express.missing(options.modelexpress)):
        print(f"no row modelexpress: {lack}", flush=True)
        chosen.remove("modelexpress")
    kv_gib, share = ROOM[options.model]
    logs = options.logs or options.work / "logs"
    shutil.rmtree(options.work, ignore_errors=True)
    logs.mkdir(parents=True, exist_ok=True)
    written = models.write(options.model, options.work / "model")
    print(f"{written / 1e9:.1f} GB written in {time.monotonic() - began:.1f} s", flush=True)
    bench = rows.Rows(options.work, options.kv_gib or kv_gib, share, logs, not options.no_speed)
    document: dict[str, Any] = {
        "model": options.model,
        "machine": f"one {gpu()}, {figures.machine()}, vLLM {vllm()}",
        "weightBytes": written,
        "kvGib": options.kv_gib or kv_gib,
        "wholeArtifact": True,  # the plugin has vLLM keep compiled code as one (table.py)
        "slotsGivenUp": True,  # by a guard that sleeps (rouse_vllm/request_slots.py)
        "samples": bench.samples,
        "failures": [],
    }

    def row(name: str, measure: Any) -> None:
        if name not in chosen:
            return
        if time.monotonic() - began > options.seconds:
            document["failures"].append(f"{name}: no time left")
            return
        print(f"== {name} at {time.monotonic() - began:.0f} s", flush=True)
        try:
            measure()
        except Exception as error:
            traceback.print_exc()
            document["failures"].append(f"{name}: {error}")
            for log in sorted(logs.glob("*"), key=lambda x: x.stat().st_mtime)[-2:]:
                print(f"--- {log.name}\n{log.read_text(errors='replace')[-6000:]}", flush=True)
        options.out.write_text(json.dumps(document, indent=1) + "\n")

    try:
        for _ in range(options.repeat):
            row("cold", lambda: bench.vllm(row_names.VLLM_COLD))
            row("warm", lambda: bench.vllm(row_names.VLLM_WARM))
            row("modelexpress", lambda: model_express.measure(bench, options.modelexpress))
        row("sleep", lambda: bench.vllm_sleep(3))
        if set(chosen) & {*rows.ROWS, "storage"}:
            with contextlib.ExitStack() as stack:
                chosen.append("source")
                row("source", lambda: stack.enter_context(bench.first_instance()))
                for _ in range(options.repeat):
                    for name in [x for x in chosen if x in rows.ROWS]:
                        measure = rows.ROWS[name]
                        row(name, lambda measure=measure: measure(bench))
            row("storage", bench.storage)
    finally:
        bench.close()
        shutil.rmtree(options.work, ignore_errors=True)
    return 1 if document["failures"] else 0


if __name__ == "__main__":
    sys.exit(main())
