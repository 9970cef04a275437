"""What a row is made of: agents, engines, caches, and what is noted of a start."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from row_names import FIRST, MODELEXPRESS_FIRST, VLLM_WARM
from server import TESTS, Server

sys.path.insert(0, str(TESTS))

from agents import Agent, FakeOperator  # noqa: E402
from gpu_engines import GIB  # noqa: E402


def _differing(ours: list[list[int]], theirs: list[list[int]]) -> int:
    return sum(a != b for x, y in zip(ours, theirs) for a, b in zip(x, y))


class Bench:
    """One model on one GPU. Every folder is below `work`, which is in tmpfs."""

    def __init__(
        self, work: Path, kv_gib: float, share: float, logs: Path, speeds: bool = True
    ) -> None:
        self.work = work
        self.speeds = speeds
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
        if speed and self.speeds:
            sample["speed"] = {name: round(value, 6) for name, value in server.speed().items()}
        self.samples.append(sample)
        print("SAMPLE", json.dumps(sample), flush=True)

    def close(self) -> None:
        self._operator.close()
