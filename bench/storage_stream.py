#!/usr/bin/env python3
"""A checkpoint through a real agent into memory of this process, as the plugin loads it; for storage.py.

    storage_stream.py FOLDER AGENT PLUGIN     AGENT: the program, PLUGIN: the installed plugin folder

Its clock runs from the question to the agent to the last tensor's copy; both processes are up before.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def main() -> None:
    folder, agent, plugin = sys.argv[1:]
    sys.path.insert(0, plugin)
    import torch  # noqa: F401
    from rouse_vllm.session import Session
    from rouse_vllm.stream import CheckpointStream

    files = [(file.name, file.stat().st_size) for file in Path(folder).glob("*.safetensors")]
    with tempfile.TemporaryDirectory(prefix="rouse-bench-") as run:
        log = Path(run) / "agent.log"
        command = [agent, "--namespace", "default", "--pod", "bench", "--listen-host", "127.0.0.1"]
        command += ["--port", "0", "--engine-socket", f"{run}/engine.sock", "--model-dir", folder]
        with log.open("w") as out:
            process = subprocess.Popen(command, stdout=out, stderr=out)
        try:
            session = Session(f"{run}/engine.sock", 0, 20)
            session.hello(1, "bench", {"model": "bench"})
            start = time.monotonic()
            stream = CheckpointStream(session, folder, files)
            tensors = [tensor.clone() for _, tensor in stream.read()]
            seconds = time.monotonic() - start
            stream.close()
        finally:
            process.kill()
            process.wait()
        lines = [json.loads(line) for line in log.read_text().splitlines() if line[:1] == "{"]
        (read,) = [line for line in lines if line["message"] == "checkpoint read"]
    count = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    answer = {"bytes": count, "seconds": seconds, "way": read["way"], "reason": read["reason"]}
    print(json.dumps(answer | {"bytesDirect": None}), flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()
