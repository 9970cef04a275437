"""The rows of the table: one way to start each, and what is measured of it."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

from bench import Bench
from row_names import (
    FIRST,
    FORK,
    GUARD,
    KILLED,
    LAZY,
    PEER,
    PRELOADED,
    SHARED,
    STATE,
    STORAGE,
    VLLM_SLEEP,
    VLLM_WARM,
    WAKE,
)
from server import TESTS, Server

sys.path.insert(0, str(TESTS))

from agents import Agent  # noqa: E402
from gpu_engines import gpu_used, settled_gpu_used  # noqa: E402
from servers import LAUNCH, free_port, processes_below  # noqa: E402


class Rows(Bench):
    """One way to start each, and what is measured of it."""

    def vllm(self, row: str) -> None:
        self.caches("vllm" if row == VLLM_WARM else "")
        with self.stock("vllm") as server:
            self.measured(row, server, server.first_token(), speed=row == VLLM_WARM)
        if "vllm" not in self._kept_caches:
            self.keep_caches("vllm")

    @contextlib.contextmanager
    def _from_storage(self, row: str, *state: str) -> Iterator[Agent]:
        """An instance that serves, once it was measured."""
        port = free_port()
        asked = ("--engine-url", f"http://127.0.0.1:{port}", "--served-model", str(self.model))
        began = time.monotonic()
        with self.agent("demo-0", *state, *asked) as agent:
            if state:
                self._await_start(agent)
            server = self.rouse("source", agent, began, port=port)
            try:
                seconds = server.first_token()
                agent.wait_for_canary()  # Else it is in a batch with what is asked for the tokens.
                self.measured(row, server, seconds)
                yield agent
            finally:
                server.close()

    @contextlib.contextmanager
    def first_instance(self) -> Iterator[None]:
        """Others take its weights, and the weight files are out of reach then."""
        self.caches()
        self.hold_caches()
        with self._from_storage(FIRST, *self.state()) as agent:
            self._operator.wait("demo-0", lambda r: (r["weights"] or {}).get("servable", False))
            self._await_published(agent)
            self.keep_caches("rouse")
            hidden = self.work / "weights"
            hidden.mkdir()
            for file in self.model.glob("*.safetensors"):
                file.rename(hidden / file.name)
            try:
                yield
            finally:
                for file in hidden.iterdir():
                    file.rename(self.model / file.name)
                hidden.rmdir()

    def storage(self) -> None:
        """Nobody serves any more, and its node has the first instance's caches."""
        assert "rouse" in self._kept_caches
        self.caches("rouse")
        with self._from_storage(STORAGE):
            pass

    @staticmethod
    def _await_start(agent: Agent) -> None:
        """Until its engine may start, as its container's probe does in a pod."""
        while True:
            with contextlib.suppress(OSError):
                with urllib.request.urlopen(f"http://127.0.0.1:{agent.port}/startupz", timeout=5):
                    return
            time.sleep(0.005)

    @staticmethod
    def _await_published(agent: Agent, limit_s: float = 60) -> None:
        deadline = time.monotonic() + limit_s
        text = 'rouse_state_bundles_total{class="Matched",outcome="published"}'
        while text not in agent.metrics():
            if time.monotonic() > deadline:
                raise RuntimeError("the first instance's compile caches were not published")
            time.sleep(0.1)

    def peer(self, row: str, **how: Any) -> None:
        """A second instance beside the first, by its weights."""
        self.caches("" if row in (PEER, STATE) else "rouse", shared=row == SHARED)
        lazy = row in (LAZY, FORK, PRELOADED)
        with self._second(row, lazy, LAUNCH if row in (FORK, PRELOADED) else None, **how):
            pass

    @contextlib.contextmanager
    def _second(
        self,
        row: str,
        lazy: bool,
        command: tuple[str, ...] | None,
        port: int = 0,
        speed: bool = True,
    ) -> Iterator[tuple[Agent, Server]]:
        extra = {"graphCapture": "Lazy", "graphCaptureTrigger": "Idle"} if lazy else {}
        began = time.monotonic()
        more = []
        # Guards are asked for a token by their agent, and whoever captures late whether it is idle.
        if lazy and not port:
            port = free_port()
        if port:
            more = ["--engine-url", f"http://127.0.0.1:{port}", "--served-model", str(self.model)]
        reused = row == STATE
        if reused:
            more += self.state()
        if lazy:
            os.environ["ROUSE_GRAPH_CAPTURE"] = "Lazy"
        try:
            with self.agent("demo-1", "--path", "Peer", "--model-files", "Storage", *more) as agent:
                if reused:
                    self._await_start(agent)
                hydrated = time.monotonic() - began
                server = self.rouse("target", agent, began, extra, None, command, port)
                try:
                    seconds = server.first_token()
                    report = self._operator.wait("demo-1", lambda r: r["bytesBySource"]["peer"] > 0)
                    if port:
                        agent.wait_for_canary()
                    graphs = self._graphs(agent, server) if lazy and speed else {}
                    graphs["cacheLookups"] = agent.cache_lookups()
                    if reused:
                        report = self._operator.reports["demo-1"]
                        graphs |= {
                            "hydrateSeconds": round(hydrated, 4),
                            "stateOrigin": report.get("stateOrigin", ""),
                            "stateMiss": report.get("stateMiss", ""),
                        }
                    self.measured(
                        row,
                        server,
                        seconds,
                        speed,
                        **graphs,
                        transport=report["transport"],
                        phases=agent.phases(),
                    )
                    yield agent, server
                finally:
                    server.close()
        finally:
            os.environ.pop("ROUSE_GRAPH_CAPTURE", None)

    def _graphs(self, agent: Agent, server: Server) -> dict[str, Any]:
        """Speed just after the first token, as who calls at once finds it, and when nothing is left that
        the start had put off: what is measured after this is of then."""
        early = {}
        if self.speeds:
            speed = {name: round(value, 6) for name, value in server.speed(1).items()}
            early = {"speedBeforeGraphs": speed}
        agent.wait_for_graphs()
        return early

    def killed(self) -> None:
        """kill -9 of the engine's processes; the launcher forks a new one, the agent has the weights."""
        self.caches("rouse")
        with self._second(FORK, True, LAUNCH, speed=False) as (agent, server):
            killed = time.monotonic()
            for pid in processes_below(server.process.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            seconds = server.first_token(since=killed)
            self.measured(KILLED, server, seconds, **self._graphs(agent, server))

    def preloaded(self) -> None:
        """The launcher has imported all when it is asked for an engine; the agent has nothing yet."""
        self.caches("rouse")
        with self._second(FORK, True, LAUNCH, speed=False) as (agent, server):
            agent.restart()  # It knows nothing of the weights any more.
            self._operator.reports.pop("demo-1", None)
            began = time.monotonic()
            for pid in processes_below(server.process.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            seconds = server.first_token(since=began)
            report = self._operator.wait("demo-1", lambda r: r["bytesBySource"]["peer"] > 0)
            self.measured(
                PRELOADED, server, seconds, transport=report["transport"], phases=agent.phases(),
                **self._graphs(agent, server),
            )  # fmt: skip

    def wakes(self, rounds: int) -> None:
        """A guard is put to sleep and woken, by its agent."""
        self.caches("rouse")
        port = free_port()
        others = settled_gpu_used()
        with self._second(GUARD, False, None, port, speed=False) as (agent, server):
            self._operator.wait("demo-1", lambda r: r["state"] == "Serving")
            for i in range(rounds):
                server.forget()
                agent.set_role("Guard", [])
                agent.wait("Asleep")
                time.sleep(0.5)  # The driver scrubs what was freed.
                used = gpu_used()
                peers = self._operator.assignment("demo-1")["peers"]
                asked_us, begun = time.time_ns() // 1000, time.monotonic()
                agent.set_role("Active", peers)
                agent.wait("Serving")
                reported = time.monotonic() - begun

                def of_this_wake(report: Any, asked_us: int = asked_us) -> bool:
                    return (report["timeline"] or {}).get("decidedAtUs", 0) >= asked_us

                timeline = self._operator.wait("demo-1", of_this_wake)["timeline"]
                self.measured(
                    WAKE, server, timeline["totalUs"] / 1e6, speed=i == 0, reported=reported,
                    gpuHeldAsleep=used - others, timeline=timeline,
                )  # fmt: skip

    def vllm_sleep(self, rounds: int) -> None:
        """What vLLM itself offers, with the checkpoint in tmpfs."""
        self.caches("vllm")
        others = settled_gpu_used()
        with self.stock("vllm-sleep", "--enable-sleep-mode") as server:
            server.first_token()
            for i in range(rounds):
                server.request("POST", "/sleep?level=2")
                time.sleep(0.5)
                used = gpu_used()
                begun = time.monotonic()
                server.request("POST", "/wake_up?tags=weights")
                server.request("POST", "/collective_rpc", {"method": "reload_weights"})
                server.request("POST", "/wake_up?tags=kv_cache")
                server.complete([[1, 2, 3]], 1)
                self.measured(
                    VLLM_SLEEP,
                    server,
                    time.monotonic() - begun,
                    speed=i == 0,
                    gpuHeldAsleep=used - others,
                )


#: Rows that need nothing but a first instance, by the name that the command line knows.
ROWS: dict[str, Callable[[Rows], None]] = {
    "peer": lambda bench: bench.peer(PEER),
    "shared": lambda bench: bench.peer(SHARED),
    "state": lambda bench: bench.peer(STATE),
    "lazy": lambda bench: bench.peer(LAZY),
    "fork": lambda bench: bench.peer(FORK),
    "preloaded": lambda bench: bench.preloaded(),
    "killed": lambda bench: bench.killed(),
    "wake": lambda bench: bench.wakes(5),
}
