"""Real agents, and the few lines that stand in for the operator."""

from __future__ import annotations

import json
import os
import re
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from servers import free_port

#: What an engine tells of its start until its model is there.
LOADING_PHASES = ["EngineImported", "WorkerStarted", "LoadStarted", "ModelBuilt"]
LOADING_PHASES += ["WeightsLoaded", "WeightsProcessed", "ModelReady"]


class FakeOperator:
    """Answers every report with the peers that report servable weights."""

    def __init__(self) -> None:
        self.reports: dict[str, dict[str, Any]] = {}
        self.gone: set[str] = set()  # named to nobody as one that may have compile caches
        operator = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                report = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                operator.reports[report["pod"]] = report
                answer = json.dumps(operator.assignment(report["pod"])).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def assignment(self, pod: str) -> dict[str, Any]:
        peers = [
            {"pod": r["pod"], "node": r["node"], "address": r["address"]}
            for r in list(self.reports.values())
            if r["pod"] != pod and (r["weights"] or {}).get("servable")
        ]
        siblings = [
            {"pod": r["pod"], "address": r["address"], "decidedAtUs": 0}
            for r in list(self.reports.values())
            if r["pod"] != pod and r["pod"] not in self.gone
        ]
        path = "Storage" if pod == "demo-0" else "Peer"
        return {
            "protocol": "rouse-agent",
            "version": 1,
            "path": path,
            "peers": peers,
            "reportAfterMs": 200,
            "siblings": siblings,
        }

    def wait(
        self, pod: str, ready: Callable[[dict[str, Any]], bool], limit_s: float = 60
    ) -> dict[str, Any]:
        deadline = time.monotonic() + limit_s
        while time.monotonic() < deadline:
            report = self.reports.get(pod)
            if report is not None and ready(report):
                return report
            time.sleep(0.05)
        raise AssertionError(f"{pod} did not get there, last report: {self.reports.get(pod)}")

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class Agent:
    """A real rouse-agent with folders of its own."""

    def __init__(
        self, folder: Path, operator: FakeOperator, pod: str, *arguments: str, slab_mib: int = 1
    ) -> None:
        program = os.environ["ROUSE_TEST_AGENT"]
        assert Path(program).exists(), f"build rouse-agent first: {program} is missing"
        folder.mkdir()
        self.socket = folder / "engine.sock"
        self.plugin = folder / "plugin"  # a volume in the pod: it is there before the agent
        self.plugin.mkdir()
        self.log_path = folder / "agent.log"
        self._log = self.log_path.open("w")
        self.port = free_port()
        self._command = [
            program,
            *(
                "--namespace",
                "default",
                "--pod",
                pod,
                "--pod-uid",
                f"uid-{pod}",
                "--node",
                "node",
            ),
            *(
                "--pod-ip",
                "127.0.0.1",
                "--listen-host",
                "127.0.0.1",
                "--port",
                str(self.port),
            ),
            *("--operator-url", operator.url, "--launch-identity", "launch"),
            *("--engine-socket", str(self.socket), "--drain-seconds", "1"),
            *(
                "--plugin-source",
                os.environ["ROUSE_TEST_PLUGIN"],
                "--plugin-dir",
                str(self.plugin),
            ),
            *("--slab-mib", str(slab_mib)),
            *arguments,
        ]
        self._start()

    def _start(self) -> None:
        self._process = subprocess.Popen(
            self._command, stdout=self._log, stderr=subprocess.STDOUT
        )

    def restart(self) -> None:
        """kill -9, and a new one in its place, which knows nothing."""
        self._process.kill()
        self._process.wait()
        self._start()

    def phases(self) -> dict[str, int]:
        """The phases that its engine told it, in order; microseconds since the epoch."""
        lines = [line for line in self.messages() if line["message"] == "engine phase"]
        return {line["phase"]: line["atUs"] for line in lines}

    @property
    def pid(self) -> int:
        return self._process.pid

    def state(self) -> str:
        """As its metrics have it."""
        found = re.search(r'rouse_agent_state\{state="(\w+)"\} 1', self.metrics())
        assert found is not None
        return found[1]

    def set_role(self, role: str, peers: list[dict[str, Any]]) -> None:
        """Asks it to let its engine sleep ("Guard") or to wake it ("Active")."""
        body = {"protocol": "rouse-role", "version": 1, "role": role, "peers": peers}
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/v1/role",
            data=json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
            method="POST",
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                assert answer.status == 202
        except urllib.error.HTTPError as error:
            raise AssertionError(f"role {role} is refused: {error.read().decode()}") from error

    def wait(self, state: str, limit_s: float = 120) -> None:
        """Waits until it is in a state; AssertionError at once when it has failed instead."""
        deadline = time.monotonic() + limit_s
        while (now := self.state()) != state:
            if now == "Failed" or time.monotonic() > deadline:
                raise AssertionError(f"the agent is {now}, not {state}")
            time.sleep(0.01)

    def wait_for_canary(self, limit_s: float = 60) -> None:
        """Waits until it has asked its engine what wakes are judged by, after the engine's first token."""
        deadline = time.monotonic() + limit_s
        while all(x["message"] != "canary's answer recorded" for x in self.messages()):
            if time.monotonic() > deadline:
                raise AssertionError("the canary's answer is not recorded")
            time.sleep(0.02)

    def wait_for_graphs(self, limit_s: float = 90) -> None:
        """Waits until its engine has captured all the graphs that its start left out."""
        deadline = time.monotonic() + limit_s
        while not re.search(r"^rouse_graphs_left 0$", self.metrics(), re.MULTILINE):
            if time.monotonic() > deadline:
                raise AssertionError("graphs are left")
            time.sleep(0.1)

    def messages(self) -> list[dict[str, Any]]:
        """What it has logged; it may be writing a line just now."""
        lines = self.log_path.read_text().splitlines(keepends=True)
        return [json.loads(x) for x in lines if x.startswith("{") and x.endswith("\n")]

    def metrics(self) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=10) as answer:
            return answer.read().decode()

    def cache_lookups(self) -> dict[str, tuple[int, int]]:
        """Hits and misses of each of its engine's compile caches."""
        found: dict[str, list[int]] = {}
        pattern = r'rouse_cache_lookups_total\{cache="(\w+)",result="(hit|miss)"\} (\d+)'
        for cache, result, count in re.findall(pattern, self.metrics()):
            found.setdefault(cache, [0, 0])[result == "miss"] = int(count)
        return {cache: (hits, misses) for cache, (hits, misses) in found.items()}

    def close(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()
