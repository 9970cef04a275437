"""One vLLM server under measurement: a process of its own, asked over its OpenAI API as a user would."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

START_LIMIT_S = 400
PROMPTS = [[(7 + 131 * i + 17 * j) % 250 for j in range(24)] for i in range(32)]
BATCHES = (1, 32, 256)
#: Tokens by which throughput is measured.
LONG = 64

TESTS = Path(__file__).resolve().parents[2] / "connector" / "tests"
sys.path.insert(0, str(TESTS))

from servers import PLAIN, free_port  # noqa: E402


class Server:
    """Starting or up; close() ends it, with all its processes."""

    def __init__(
        self, name: str, model: Path, arguments: list[str], environment: dict[str, str], log: Path,
        command: tuple[str, ...] | None = None, port: int = 0,
    ) -> None:  # fmt: skip
        self.name = name
        self.model = str(model)
        self.port = port or free_port()
        self.log = log
        self.started = time.monotonic()
        with log.open("w") as out:
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    *(command or PLAIN),
                    self.model,
                    "--port",
                    str(self.port),
                    *arguments,
                ],
                env=os.environ | environment,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def request(self, method: str, path: str, body: Any = None, timeout: float = 120) -> Any:
        """The answer's JSON, None for an empty one. OSError while nobody listens."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            text = None if body is None else json.dumps(body)
            connection.request(method, path, text, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            raw = answer.read()
            if answer.status >= 300:
                raise RuntimeError(f"{self.name}: {path}: HTTP {answer.status}: {raw[:300]!r}")
            return json.loads(raw) if raw else None
        finally:
            connection.close()

    def complete(
        self, prompts: list[list[int]], tokens: int, timeout: float = 120
    ) -> list[list[int]]:
        """Greedy answers to prompts of token ids, all in one request."""
        body = {
            "model": self.model, "prompt": prompts, "max_tokens": tokens, "min_tokens": tokens,
            "temperature": 0, "ignore_eos": True, "return_token_ids": True,
        }  # fmt: skip
        answer = self.request("POST", "/v1/completions", body, timeout)
        choices = sorted(answer["choices"], key=lambda x: x["index"])
        return [x["token_ids"] for x in choices]

    def first_token(self, since: float | None = None) -> float:
        """Seconds from the start of the process (or `since`) to the first token of the first answer."""
        while True:
            try:
                self.request("GET", "/health", timeout=5)
                self.complete(PROMPTS[:1], 1)
                return time.monotonic() - (self.started if since is None else since)
            except (OSError, http.client.HTTPException, RuntimeError) as error:
                if self.process.poll() is not None:
                    raise RuntimeError(f"{self.name} ended:\n{self.tail()}") from error
                if time.monotonic() - self.started > START_LIMIT_S:
                    raise RuntimeError(
                        f"{self.name} does not serve: {error}\n{self.tail()}"
                    ) from error
                time.sleep(0.01)

    def tokens(self) -> list[list[int]]:
        """One prompt after the other: what a batch is made of may change the last bits."""
        self.forget()
        return [self.complete([prompt], 16)[0] for prompt in PROMPTS]

    def forget(self) -> None:
        """Every measurement begins without a prefix that is known already (VLLM_SERVER_DEV_MODE)."""
        deadline = time.monotonic() + 10
        # Refused while a request is just ending: its prefix would be computed by other kernels then.
        while not self.request("POST", "/reset_prefix_cache")["success"]:
            if time.monotonic() > deadline:
                raise RuntimeError(f"{self.name}: the prefix cache cannot be reset")
            time.sleep(0.01)

    def speed(self, rounds: int = 3) -> dict[str, float]:
        """By batch: tokens a second of all, and seconds between two tokens of one. Medians."""
        out: dict[str, float] = {}
        for batch in BATCHES:
            prompts = [[(x + i) % 250 for x in PROMPTS[i % 32]] for i in range(batch)]
            per_second, between = [], []
            for _ in range(rounds):
                took = []
                for tokens in (1, LONG):
                    self.forget()
                    begun = time.monotonic()
                    self.complete(prompts, tokens)
                    took.append(time.monotonic() - begun)
                per_second.append(batch * LONG / took[1])
                between.append((took[1] - took[0]) / (LONG - 1))
            out[f"tokens/s at {batch}"] = statistics.median(per_second)
            out[f"s between tokens at {batch}"] = statistics.median(between)
        return out

    def compiled(self) -> dict[str, float]:
        """Seconds that the engine says its last start took to compile, capture and warm up, all together
        and of them torch.compile; what of it vLLM 0.26 logs."""
        found = re.findall(
            r"init engine \(.*?\) took ([\d.]+) s(?: \(compilation: ([\d.]+) s)?",
            self.log.read_text(errors="replace"),
        )
        if not found:
            return {}
        return {"initSeconds": float(found[-1][0]), "compileSeconds": float(found[-1][1] or 0)}

    def tail(self, lines: int = 60) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def close(self) -> None:
        """Ends exactly the processes of this session."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                pass
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait()
