"""The checkpoint that the demo and the tests share."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from rouse_e2e import paths


def test_two_that_want_it_at_the_same_time_get_the_same_one(tmp_path: Path):
    program = [sys.executable, "-c", "import make_checkpoint; print(make_checkpoint.cached())"]
    environment = dict(os.environ, ROUSE_CACHE=str(tmp_path))
    both = [
        subprocess.Popen(program, cwd=paths.E2E, env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = {process.communicate(timeout=120)[0] for process in both}
    assert [process.returncode for process in both] == [0, 0]
    assert len(said) == 1
    assert (Path(said.pop().strip()) / "model.safetensors.index.json").is_file()
