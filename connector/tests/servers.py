"""`vllm serve`, started plainly, by rouse-launch or by a fork (zygote.py), and asked over HTTP."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from zygote import CPU_ENVIRONMENT, Forked

PLAIN = ("-m", "vllm.entrypoints.cli.main", "serve")
LAUNCH = ("-m", "rouse_vllm.launch")
FORKED = ()  # from a process that is like rouse-launch's; its environment is zygote.py's

PROMPTS = [[(7 + 131 * i + 17 * j) % 250 for j in range(24)] for i in range(4)]


def free_port() -> int:
    """Not of those that the kernel gives to whoever asks for any: a server takes half a minute until it
    listens, and until then others are given theirs."""
    first_given = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    while True:
        port = random.randrange(first_given // 2, first_given)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def processes_below(root: int) -> dict[int, str]:
    """Command lines of all processes below this one, by pid."""
    parents, commands = {}, {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                stat = (folder / "stat").read_text()
                command = (folder / "cmdline").read_bytes()
            except OSError:
                continue  # It has ended.
            parents[int(folder.name)] = int(stat.rpartition(")")[2].split()[1])
            commands[int(folder.name)] = command.replace(b"\0", b" ").decode(errors="replace")
    found: dict[int, str] = {}
    todo = [root]
    while todo:
        parent = todo.pop()
        for pid in [pid for pid, its in parents.items() if its == parent]:
            found[pid] = commands[pid]
            todo.append(pid)
    return found


class Server:
    """One program with an OpenAI API, starting or up; close() ends it."""

    def __init__(
        self,
        name: str,
        how: tuple[str, ...],
        model: Path,
        arguments: tuple[str, ...] = (),
        environment: dict[str, str] | None = None,
        port: int | None = None,
        wrap: tuple[str, ...] = (),
    ) -> None:
        """`wrap`: a program that starts the one whose command line follows it."""
        self.name, self.model, self.port = name, model, port or free_port()
        self.lines: list[str] = []
        self.started = time.monotonic()
        self.process: Forked | subprocess.Popen[str]
        command = [
            str(model), "--served-model-name", "demo",
            "--host", "127.0.0.1", "--port", str(self.port), *arguments,
        ]  # fmt: skip
        if how == FORKED:
            assert environment == CPU_ENVIRONMENT
            self.process = Forked("serve", model, *command)
        else:
            # Without what tests of models in this process have set for themselves.
            ours = {"ROUSE_IMPORTED_AT_US", "TORCHDYNAMO_DISABLE"}
            inherited = {name: value for name, value in os.environ.items() if name not in ours}
            self.process = subprocess.Popen(
                [*wrap, sys.executable, *how, *command],
                env=inherited | (environment or {}),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
            )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)

    @property
    def log(self) -> str:
        return "".join(self.lines)

    def _complete(self, prompt: list[int], tokens: int) -> list[int]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        try:
            body: dict[str, Any] = {
                "model": "demo", "prompt": prompt, "max_tokens": tokens, "temperature": 0,
                "ignore_eos": True, "return_token_ids": True,
            }  # fmt: skip
            headers = {"Content-Type": "application/json"}
            connection.request("POST", "/v1/completions", json.dumps(body), headers)
            answer = connection.getresponse()
            content = answer.read()
            assert answer.status == 200, content
            return json.loads(content)["choices"][0]["token_ids"]
        finally:
            connection.close()

    def first_token(self, limit_s: float = 300) -> float:
        """Asks until it answers with one token; returns when, on the monotonic clock."""
        deadline = time.monotonic() + limit_s
        while True:
            try:
                self._complete([1], 1)
                return time.monotonic()
            except (OSError, http.client.HTTPException):
                pass
            ended = self.process.poll() is not None
            if ended or time.monotonic() > deadline:
                state = f"ended with {self.process.returncode}" if ended else "does not answer"
                raise AssertionError(f"{self.name} {state}:\n{self.log[-8000:]}")
            time.sleep(0.02)

    def tokens(self) -> list[list[int]]:
        return [self._complete(prompt, 24) for prompt in PROMPTS]

    def await_line(self, text: str, count: int = 1, limit_s: float = 60) -> None:
        """Waits until its log has that text so many times."""
        deadline = time.monotonic() + limit_s
        while self.log.count(text) < count:
            assert time.monotonic() < deadline, f"no {text!r} in:\n{self.log[-8000:]}"
            time.sleep(0.02)

    def close(self, limit_s: float = 60) -> int:
        """SIGTERM; returns its exit status. Kills it, and what is left of it, after the limit."""
        below = processes_below(self.process.pid)
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(timeout=limit_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()
        finally:
            if self.process.returncode == -signal.SIGKILL:
                for pid in below:
                    try:
                        os.kill(pid, signal.SIGKILL)
                    except ProcessLookupError:
                        pass
            self._reader.join(timeout=10)
