#!/usr/bin/env python3
"""run.py --packages DIR --build DIR [pytest arguments]: the plugin's tests inside a vLLM installation.

--packages: a folder with vLLM and torch installed (what pip --target makes).
--build: the CMake build folder; the plugin is installed from it as the agent's image has it, and
  rouse-agent is taken from it unless --agent names another one.
Must run with the Python that the packages are for, and with pytest.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--packages", required=True, type=Path)
    parser.add_argument("--build", required=True, type=Path)
    parser.add_argument("--agent", type=Path)
    options, rest = parser.parse_known_args()
    agent = options.agent or options.build / "agent/rouse-agent"
    tests = Path(__file__).resolve().parent
    with tempfile.TemporaryDirectory(prefix="rouse-plugin-") as prefix:
        install = [
            "cmake",
            "--install",
            str(options.build),
            "--component",
            "plugin",
            "--prefix",
            prefix,
        ]
        subprocess.run(install, check=True, stdout=subprocess.DEVNULL)
        plugin = Path(prefix) / "share/rouse/plugin"
        environment = os.environ | {
            "PYTHONPATH": f"{plugin}:{options.packages.resolve()}",
            "PYTHONDONTWRITEBYTECODE": "1",
            "ROUSE_TEST_AGENT": str(agent.resolve()),
            "ROUSE_TEST_PLUGIN": str(plugin),
        }
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-p",
            "no:cacheprovider",
            "--rootdir",
            str(tests),
        ]
        if not any(not argument.startswith("-") for argument in rest):
            command.append(str(tests))
        return subprocess.run([*command, *rest], env=environment, cwd=tests).returncode


if __name__ == "__main__":
    sys.exit(main())
