"""Where things are: the repository, the cache folder and the programs in it.

Everything that takes long to make lies in the cache folder, outside the tree, under a name that
holds the hash of what it was made from. Deleting the whole folder is always safe.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
E2E = REPOSITORY / "e2e"
CHART = REPOSITORY / "charts" / "rouse"
SAMPLES = REPOSITORY / "config" / "samples"


def cache(*parts: str) -> Path:
    """A path below the cache folder: $ROUSE_CACHE, else $XDG_CACHE_HOME/rouse."""
    root = os.environ.get("ROUSE_CACHE")
    if not root:
        root = os.path.join(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "rouse")
    return Path(root, *parts)


@contextlib.contextmanager
def locked(name: str):
    """Keeps others out, in this and other processes, while something in the cache is made."""
    folder = cache("locks")
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / name, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@functools.cache
def tools() -> Path:
    """The folder of the cluster's programs (see e2e/tools/build.py)."""
    result = subprocess.run(
        [sys.executable, str(E2E / "tools" / "build.py"), "--where"],
        check=True,
        capture_output=True,
        text=True,
    )
    return Path(result.stdout.strip())


def tool(name: str) -> str:
    program = tools() / name
    if not program.exists():
        raise RuntimeError(f"{program} is missing; run e2e/install.sh, which builds it")
    return str(program)


def go() -> str:
    """A Go toolchain new enough for go.mod: the one on PATH, else the one install.sh fetched."""
    needed = (1, 26)
    for candidate in (shutil.which("go"), str(cache("go", "go", "bin", "go"))):
        if not candidate or not Path(candidate).exists():
            continue
        answer = subprocess.run(
            [candidate, "env", "GOVERSION"],
            capture_output=True,
            text=True,
            env=dict(os.environ, GOTOOLCHAIN="local"),
        ).stdout
        version = re.match(r"go(\d+)\.(\d+)", answer)
        if version and (int(version[1]), int(version[2])) >= needed:
            return candidate
    raise RuntimeError("no Go 1.26 or newer; run e2e/install.sh, which fetches one")
