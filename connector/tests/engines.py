"""Starts real vLLM engines (engine.py): forked (zygote.py), or as programs of their own."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

from zygote import CPU_ENVIRONMENT, Forked

TIME_LIMIT_S = 240


@dataclass
class Run:
    status: int | None
    tokens: list[int]
    log: str


class Engine:
    """An engine that is starting or up; close() ends it."""

    def __init__(
        self, model: Path, socket: Path | None, plugin: Path | None = None, **arguments: object
    ) -> None:
        """Without a socket it is a stock one. With a plugin folder it has that plugin, and is a
        program of its own; else it is forked."""
        request = {
            "model": str(model),
            "loadFormat": "auto" if socket is None else "rouse",
            "extra": {} if socket is None else {"socket": str(socket)},
            "arguments": arguments,
        }
        self._process: Forked | subprocess.Popen[str]
        if plugin is None:
            self._process = Forked("engine", model, json.dumps(request))
        else:
            path = f"{plugin}:{_without_our_plugin(os.environ['PYTHONPATH'])}"
            self._process = subprocess.Popen(
                [sys.executable, str(Path(__file__).parent / "engine.py"), json.dumps(request)],
                env=os.environ | CPU_ENVIRONMENT | {"PYTHONPATH": path},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        self._lines: list[str] = []
        self._tokens: queue.Queue[list[int] | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.append(line)
            if line.startswith("TOKENS "):
                self._tokens.put(json.loads(line[7:]))
        self._tokens.put(None)

    @property
    def log(self) -> str:
        return "".join(self._lines)

    def ask(self, tokens: int = 24) -> None:
        """Has it answer once more."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{tokens}\n")
        self._process.stdin.flush()

    def has_answered(self) -> bool:
        return not self._tokens.empty()

    def tokens(self, limit_s: float = TIME_LIMIT_S) -> list[int]:
        """The tokens it answered with. AssertionError with its log when it ended without any."""
        try:
            tokens = self._tokens.get(timeout=limit_s)
        except queue.Empty:
            tokens = None
        assert tokens is not None, self.log
        return tokens

    def close(self) -> int:
        """Lets it end; returns its exit status."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.close()
        except BrokenPipeError:
            pass  # It has ended before.
        try:
            return self._process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()
        finally:
            self._reader.join(timeout=10)


def _without_our_plugin(path: str) -> str:
    ours = os.environ.get("ROUSE_TEST_PLUGIN", "")
    return ":".join(folder for folder in path.split(":") if folder != ours)


def run_engine(model: Path, socket: Path | None, **arguments: object) -> Run:
    """Starts an engine (with these arguments to LLM), takes its tokens, ends it."""
    engine = Engine(model, socket, **arguments)
    try:
        tokens = engine.tokens()
    finally:
        status = engine.close()
    return Run(status, tokens, engine.log)
