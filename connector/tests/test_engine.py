"""Real engines and real agents: one instance loads from storage, the next one from the first.

Only the operator is missing; a few lines answer the agents' reports in its place.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from engines import Engine, run_engine
from tiny_models import make_moe


class FakeOperator:
    """Answers every report with the peers that report servable weights."""

    def __init__(self) -> None:
        self.reports: dict[str, dict[str, Any]] = {}
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
        path = "Storage" if pod == "demo-0" else "Peer"
        return {
            "protocol": "rouse-agent",
            "version": 1,
            "path": path,
            "peers": peers,
            "reportAfterMs": 200,
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


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Agent:
    """A real rouse-agent with folders of its own."""

    def __init__(self, folder: Path, operator: FakeOperator, pod: str, *arguments: str) -> None:
        program = os.environ["ROUSE_TEST_AGENT"]
        assert Path(program).exists(), f"build rouse-agent first: {program} is missing"
        folder.mkdir()
        self.socket = folder / "engine.sock"
        self.plugin = folder / "plugin"  # a volume in the pod: it is there before the agent
        self.plugin.mkdir()
        self.log_path = folder / "agent.log"
        self._log = self.log_path.open("w")
        self._process = subprocess.Popen(
            [
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
                    str(_free_port()),
                ),
                *("--operator-url", operator.url, "--launch-identity", "launch"),
                *("--engine-socket", str(self.socket), "--drain-seconds", "1"),
                *(
                    "--plugin-source",
                    os.environ["ROUSE_TEST_PLUGIN"],
                    "--plugin-dir",
                    str(self.plugin),
                ),
                *("--slab-mib", "1"),
                *arguments,
            ],
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )

    def phases(self) -> dict[str, int]:
        """The phases that its engine told it, in order; microseconds since the epoch."""
        lines = [
            json.loads(line)
            for line in self.log_path.read_text().splitlines()
            if line.startswith("{")
        ]
        return {line["phase"]: line["atUs"] for line in lines if line["message"] == "engine phase"}

    def close(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()


@pytest.fixture
def operator() -> Iterator[FakeOperator]:
    operator = FakeOperator()
    yield operator
    operator.close()


def test_a_second_instance_takes_its_weights_from_the_first(
    operator: FakeOperator, tmp_path: Path
) -> None:
    checkpoint = make_moe(tmp_path / "model", seed=5)
    stock = run_engine(checkpoint, None)
    assert stock.status == 0 and len(stock.tokens) == 24
    assert len(set(stock.tokens)) > 3  # A constant answer would compare nothing.

    open_things: list[Agent | Engine] = []
    try:
        first = Agent(tmp_path / "a0", operator, "demo-0", "--model-dir", str(checkpoint))
        open_things.append(first)
        operator.wait("demo-0", lambda r: True)
        source = Engine(checkpoint, first.socket, plugin=first.plugin)
        open_things.append(source)
        assert source.tokens() == stock.tokens
        report = operator.wait("demo-0", lambda r: (r["weights"] or {}).get("servable", False))
        assert report["weights"]["form"] == "Loaded"
        assert report["bytesBySource"]["peer"] == 0
        # Read by the agent: what the files hold, and of each batch a part of a block more.
        held = sum(file.stat().st_size for file in checkpoint.glob("*.safetensors"))
        assert 0.9 * held < report["bytesBySource"]["storage"] < 1.1 * held
        assert report["transport"] in ("storage/io_uring", "storage/threads")
        assert "the agent read" in source.log

        folder = tmp_path / "target"
        folder.mkdir()
        second = Agent(
            tmp_path / "a1", operator, "demo-1",
            "--path", "Peer", "--model-files", "Peer", "--model-dir", str(folder),
        )  # fmt: skip
        open_things.append(second)
        operator.wait(
            "demo-1", lambda r: r["bytesBySource"]["peer"] > 0 and (folder / "config.json").exists()
        )
        assert not list(folder.glob("*.safetensors"))
        target = Engine(folder, second.socket, plugin=second.plugin)
        open_things.append(target)
        assert target.tokens() == stock.tokens
        got = operator.reports["demo-1"]
        assert got["bytesBySource"] == {"peer": report["weights"]["bytes"], "storage": 0}
        assert got["weights"]["identity"] == report["weights"]["identity"]

        for phases in (first.phases(), second.phases()):
            assert list(phases) == ["EngineImported", "LoadStarted", "WeightsReady", "ModelReady"]
            times = list(phases.values())
            assert times == sorted(times)
            # Imported by the first process, seconds before the worker that tells the agent.
            assert phases["LoadStarted"] - phases["EngineImported"] > 1_000_000

        # The agent keeps the weights when its engine goes: the next one takes them from it.
        assert source.close() == 0
        again = Engine(checkpoint, first.socket, plugin=first.plugin)
        open_things[1] = again
        assert again.tokens() == stock.tokens
        assert "took" in again.log and "from the agent" in again.log
    except BaseException:
        for thing in open_things:
            if isinstance(thing, Agent):
                print(thing.log_path.read_text()[-6000:])
        raise
    finally:
        for thing in reversed(open_things):
            thing.close()
