#!/usr/bin/env python3
"""What others load from a folder of safetensors files onto the GPU: gpu_load_rivals.py NAME FOLDER.

Prints {"label", "GBps": [...], "check"}; ends with an error text if the rival is not there.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

ROUNDS = 3


def safetensors(files: list[str]) -> list:
    from safetensors import safe_open

    found = []
    for file in files:
        with safe_open(file, "pt", "cuda:0") as opened:
            found += [opened.get_tensor(name) for name in opened.keys()]
    return found


def fastsafetensors(files: list[str]) -> list:
    from fastsafetensors import fastsafe_open

    with fastsafe_open(filenames=files, nogds=True, device="cuda:0") as opened:
        return [opened.get_tensor(name).clone() for name in opened.keys()]


def instanttensor(files: list[str]) -> list:
    import instanttensor

    with instanttensor.safe_open(files, framework="pt", device=0) as opened:
        return [tensor.clone() for _, tensor in opened.tensors()]


def runai(files: list[str]) -> list:
    from runai_model_streamer import SafetensorsStreamer

    with SafetensorsStreamer() as streamer:
        streamer.stream_files(files)
        return [tensor.to("cuda") for _, tensor in streamer.get_tensors()]


def main() -> None:
    import torch

    name, folder = sys.argv[1], Path(sys.argv[2])
    files = sorted(str(x) for x in folder.glob("*.safetensors"))
    torch.empty(1, device="cuda")
    torch.cuda.synchronize()
    rates, check = [], 0
    for _ in range(ROUNDS):
        started = time.perf_counter()
        found = globals()[name](files)
        torch.cuda.synchronize()
        seconds = time.perf_counter() - started
        rates.append(sum(x.numel() * x.element_size() for x in found) / seconds / 1e9)
        check = len(found)
        del found
        torch.cuda.empty_cache()
    print(json.dumps({"label": name, "GBps": rates, "check": check}), flush=True)


if __name__ == "__main__":
    main()
