"""The rows of the table: one way to start each, and what is measured of it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from server import TESTS, Server

sys.path.insert(0, str(TESTS))

from agents import Agent, FakeOperator  # noqa: E402
from gpu_engines import GIB, gpu_used, settled_gpu_used  # noqa: E402
from servers import LAUNCH, free_port, processes_below  # noqa: E402

VLLM_COLD = "vLLM as shipped, cold caches"
VLLM_WARM = "vLLM as shipped, warm caches"
#: vLLM told by hand what the plugin tells it (rouse_vllm/whole_artifact.py); of one run.
VLLM_WHOLE_COLD = "vLLM with VLLM_USE_MEGA_AOT_ARTIFACT=1, cold caches"
VLLM_WHOLE_WARM = "vLLM with VLLM_USE_MEGA_AOT_ARTIFACT=1, warm caches"
#: ModelExpress' starts (model_express.py).
MODELEXPRESS_FIRST = "ModelExpress, first instance: storage, cold caches"
MODELEXPRESS = "ModelExpress, weights and caches from its first instance"
FIRST = "Rouse, first instance: storage read by the agent, cold caches"
STORAGE = "Rouse, first instance: storage read by the agent, warm caches"  # of older runs
PEER = "peer weights"
SHARED = "peer weights, caches on a volume shared with the first instance (tmpfs)"
STATE = "+ state reuse"
LAZY = "+ lazy capture"
FORK = "+ fork"
PRELOADED = "+ preloaded parent"
KILLED = "engine killed to serving again"
WAKE = "guard wake to first token"
VLLM_SLEEP = "vLLM's sleep level 2, wake, reload from tmpfs"


def _differing(ours: list[list[int]], theirs: list[list[int]]) -> int:
    return sum(a != b for x, y in zip(ours, theirs) for a, b in zip(x, y))


class Bench:
    """One model on one GPU. Every folder is below `work`, which is in tmpfs."""

    def __init__(self, work: Path, kv_gib: float, share: float, logs: Path) -> None:
        self.work = work
        self.model = work / "model"
        self.logs = logs
        self.samples: list[dict[str, Any]] = []
        #: Of the slow starts, cold and warm: what all others are compared with.
        self.tokens: dict[str, list[list[int]]] = {}
        self.cache_folder: Path | None = None
        #: What a cold start left, for warm ones: of vLLM as shipped, and of Rouse, which has vLLM keep
        #: what it compiles in another form.
        self._kept_caches: dict[str, Path] = {}
        #: Of the instance that serves while others take its weights.
        self._source_cache: Path | None = None
        self._cache_folders = 0
        self._operator = FakeOperator()
        self._count = 0
        self._arguments = [
            *("--max-model-len", "4096", "--kv-cache-memory-bytes", str(int(kv_gib * GIB))),
            # What has to be free when a start begins: several engines are on one GPU.
            *("--gpu-memory-utilization", str(share), "--disable-log-stats"),
        ]
        self.source: Agent | None = None

    # ---- what a row is made of ----

    def environment(self, plugin: Path | None = None) -> dict[str, str]:
        cache = self.work / "cache"
        names = {
            "VLLM_CACHE_ROOT": cache / "vllm",
            "TRITON_CACHE_DIR": cache / "triton",
            "TORCHINDUCTOR_CACHE_DIR": cache / "inductor",
            "FLASHINFER_WORKSPACE_BASE": cache / "flashinfer",
        }
        out = {name: str(folder) for name, folder in names.items()}
        out["ROUSE_STATE_DIR"] = str(cache)
        out |= {"VLLM_SERVER_DEV_MODE": "1", "HF_HUB_OFFLINE": "1", "VLLM_HOST_IP": "127.0.0.1"}
        if plugin is not None:
            out["PYTHONPATH"] = f"{plugin}:{os.environ.get('PYTHONPATH', '')}"
        return out

    def caches(self, kept: str = "", shared: bool = False) -> None:
        """A folder of its own for each start, empty or with what keep_caches() kept by that name; or the
        folder that the source uses too. The path that engines know it by is the same for all, as it is
        in every pod."""
        self._cache_folders += 1
        before, folder = self.cache_folder, self.work / f"cache-{self._cache_folders}"
        if shared:
            assert self._source_cache is not None
            folder = self._source_cache
        elif kept in self._kept_caches:
            shutil.copytree(self._kept_caches[kept], folder, symlinks=True)
        else:
            folder.mkdir()
        path = self.work / "cache"
        path.unlink(missing_ok=True)
        path.symlink_to(folder.name)
        self.cache_folder = folder
        if before is not None and before != self._source_cache:
            shutil.rmtree(before)

    def hold_caches(self) -> None:
        """The folder of the last start stays: its instance serves on, and others take from it."""
        self._source_cache = self.cache_folder

    def keep_caches(self, name: str) -> None:
        """As the last start has left them."""
        assert self.cache_folder is not None
        kept = self.work / f"kept-{name}"
        shutil.copytree(self.cache_folder, kept, symlinks=True)
        self._kept_caches[name] = kept

    def state(self) -> tuple[str, ...]:
        """An agent's flags: it has its instance's caches from peers, and gives them to peers."""
        return (
            *("--state-dir", str(self.cache_folder)),
            *("--state-store", str(self._folder("store")), "--engine-identity", "bench"),
        )

    def _folder(self, name: str) -> Path:
        self._count += 1
        return self.work / f"{name}-{self._count}"

    @contextlib.contextmanager
    def stock(
        self, name: str, *more: str, environment: dict[str, str] | None = None, port: int = 0
    ) -> Iterator[Server]:
        log = self.logs / f"{self._folder(name).name}.log"
        server = Server(
            name, self.model, [*self._arguments, *more], self.environment() | (environment or {}), log,
            port=port,
        )  # fmt: skip
        try:
            yield server
        finally:
            server.close()

    @contextlib.contextmanager
    def agent(self, pod: str, *arguments: str) -> Iterator[Agent]:
        node = self.work / "node"
        node.mkdir(exist_ok=True)
        agent = Agent(
            self._folder(pod), self._operator, pod, "--model-dir", str(self.model),
            "--node-folder", str(node), *arguments, slab_mib=1024,
        )  # fmt: skip
        try:
            yield agent
        finally:
            agent.close()
            shutil.copy(agent.log_path, self.logs / f"{agent.log_path.parent.name}.agent.log")
            self._operator.reports.pop(pod, None)

    def rouse(
        self, name: str, agent: Agent, began: float, extra: dict[str, str] | None = None,
        environment: dict[str, str] | None = None, command: tuple[str, ...] | None = None, port: int = 0,
    ) -> Server:  # fmt: skip
        given = json.dumps({"socket": str(agent.socket)} | (extra or {}))
        server = Server(
            name, self.model,
            [*self._arguments, "--load-format", "rouse", "--model-loader-extra-config", given],
            self.environment(agent.plugin) | (environment or {}),
            self.logs / f"{self._folder(name).name}.log", command, port,
        )  # fmt: skip
        server.started = began
        return server

    def measured(
        self, row: str, server: Server, seconds: float, speed: bool = True, **more: Any
    ) -> None:
        """Notes a start, and whether it is as good as the first one."""
        tokens = server.tokens()
        if not self.tokens or row in (VLLM_WARM, FIRST, MODELEXPRESS_FIRST):
            self.tokens.setdefault(row, tokens)
        # A start that compiles may choose other kernels than the one before: a start with warm caches
        # has to answer as vLLM itself does with those.
        slow = self.tokens.get(VLLM_WARM) or next(iter(self.tokens.values()))
        sample = {
            "row": row,
            "seconds": round(seconds, 4),
            "differingTokens": _differing(tokens, slow),
            "tokensDigest": hashlib.sha256(json.dumps(tokens).encode()).hexdigest()[:16],
        }
        if row in self.tokens:  # How often an engine differs from itself.
            sample["differingFromItself"] = _differing(server.tokens(), tokens)
        sample |= {
            "differingFrom": {x: _differing(tokens, y) for x, y in self.tokens.items()},
            **server.compiled(),
            **more,
        }
        if speed:
            sample["speed"] = {name: round(value, 6) for name, value in server.speed().items()}
        self.samples.append(sample)
        print("SAMPLE", json.dumps(sample), flush=True)

    # ---- the rows ----

    def vllm(self, row: str) -> None:
        self.caches("vllm" if row == VLLM_WARM else "")
        with self.stock("vllm") as server:
            self.measured(row, server, server.first_token(), speed=row == VLLM_WARM)
        if "vllm" not in self._kept_caches:
            self.keep_caches("vllm")

    @contextlib.contextmanager
    def first_instance(self) -> Iterator[None]:
        """An instance that serves, whose weights others take; the weight files are out of reach then."""
        self.caches()
        self.hold_caches()
        port = free_port()
        asked = ("--engine-url", f"http://127.0.0.1:{port}", "--served-model", str(self.model))
        began = time.monotonic()
        with self.agent("demo-0", *self.state(), *asked) as agent:
            self._await_start(agent)
            server = self.rouse("source", agent, began, port=port)
            try:
                seconds = server.first_token()
                agent.wait_for_canary()  # Else it is in a batch with what is asked for the tokens.
                self.measured(FIRST, server, seconds)
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
            finally:
                server.close()

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
        early = {name: round(value, 6) for name, value in server.speed(1).items()}
        agent.wait_for_graphs()
        return {"speedBeforeGraphs": early}

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
        with self._second("guard's start", False, None, port, speed=False) as (agent, server):
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

    def close(self) -> None:
        self._operator.close()


#: Rows that need nothing but a first instance, by the name that the command line knows.
ROWS: dict[str, Callable[[Bench], None]] = {
    "peer": lambda bench: bench.peer(PEER),
    "shared": lambda bench: bench.peer(SHARED),
    "state": lambda bench: bench.peer(STATE),
    "lazy": lambda bench: bench.peer(LAZY),
    "fork": lambda bench: bench.peer(FORK),
    "preloaded": lambda bench: bench.preloaded(),
    "killed": lambda bench: bench.killed(),
    "wake": lambda bench: bench.wakes(5),
}
