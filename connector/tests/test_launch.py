"""rouse-launch with a real vLLM and a real agent: it forks engines, and answers as `vllm serve` does."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from agents import Agent, FakeOperator
from engines import CPU_ENVIRONMENT
from servers import LAUNCH, PLAIN, Server, processes_below
from test_fork import FAKE_INITIALISED_LIBCUDA
from tiny_models import make_moe

# Exact enough that a token does not depend on how many ranks compute it.
ARGUMENTS = (
    "--enforce-eager", "--max-model-len", "256", "--max-num-seqs", "4", "--dtype", "float32",
)  # fmt: skip

#: Runs in every Python that has its folder on PYTHONPATH.
SITE_WITH_A_THREAD = """
import sys, threading, time
if "rouse_vllm.launch" in sys.orig_argv and "--rouse-spawn" not in sys.orig_argv:
    threading.Thread(target=time.sleep, args=(600,), name="intruder", daemon=True).start()
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_moe(tmp_path_factory.mktemp("checkpoints") / "model", seed=5)


@pytest.fixture(scope="module")
def expected(model: Path) -> list[list[int]]:
    """The tokens of a plain `vllm serve`."""
    server = Server("plain", PLAIN, model, ARGUMENTS, CPU_ENVIRONMENT)
    try:
        seconds = server.first_token() - server.started
        print(f"plain: first token after {seconds:.1f} s")
        tokens = server.tokens()
        assert all(
            len(set(answer)) > 3 for answer in tokens
        )  # Constant ones would compare nothing.
        return tokens
    finally:
        assert server.close() == 0


@pytest.fixture
def open_things() -> Iterator[list]:
    things: list = []
    try:
        yield things
    finally:
        for thing in reversed(things):
            thing.close()


def with_agent(agent: Agent) -> tuple[str, ...]:
    extra = json.dumps({"socket": str(agent.socket)})
    return (*ARGUMENTS, "--load-format", "rouse", "--model-loader-extra-config", extra)


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def named(server: Server, name: str) -> list[int]:
    """The processes that vLLM calls so."""
    below = processes_below(server.process.pid)
    return [pid for pid, command in below.items() if command.startswith(f"VLLM::{name}")]


def vllm_serve(server: Server) -> int:
    line = [x for x in server.lines if "Started server process [" in x][-1]
    return int(line.split("Started server process [")[1].split("]")[0])


def end_and_look(server: Server) -> None:
    """SIGTERM ends it in time, and leaves nothing behind."""
    below = processes_below(server.process.pid)
    assert len(below) >= 3
    begun = time.monotonic()
    assert server.close(limit_s=30) == 0
    print(f"ended after {time.monotonic() - begun:.1f} s")
    assert [pid for pid in below if Path(f"/proc/{pid}").exists()] == []


def test_engines_are_forked_again_after_a_crash_and_find_their_weights(
    model: Path, expected: list[list[int]], tmp_path: Path, open_things: list
) -> None:
    operator = FakeOperator()
    open_things.append(operator)
    agent = Agent(tmp_path / "a0", operator, "demo-0", "--model-dir", str(model))
    open_things.append(agent)
    operator.wait("demo-0", lambda r: True)
    server = Server("launch", LAUNCH, model, with_agent(agent), CPU_ENVIRONMENT)
    open_things.append(server)
    print(f"launch: first token after {server.first_token() - server.started:.1f} s")
    assert server.tokens() == expected
    assert "Rouse: published" in server.log
    for victim, code in ((vllm_serve, "-9"), (lambda s: named(s, "EngineCore")[0], "0")):
        engines = [*named(server, "EngineCore"), *named(server, "Worker"), vllm_serve(server)]
        assert len(engines) == 3
        assert {parent_of(pid) for pid in engines} == {server.process.pid}
        line = len(server.lines)
        starts = server.log.count("a new one starts")
        killed_us = time.time_ns() // 1000
        killed = time.monotonic()
        os.kill(victim(server), signal.SIGKILL)
        server.await_line("a new one starts", starts + 1)
        assert [pid for pid in engines if Path(f"/proc/{pid}").exists()] == []
        print(f"killed: first token after {server.first_token() - killed:.1f} s")
        assert server.tokens() == expected
        log = "".join(server.lines[line:])
        assert re.findall(r"the engine ended with (-?\d+)", log) == [code]
        assert "Rouse: took" in log and "from the agent" in log
        assert "spawned" not in log
        # The phases are those of this engine, not of the launcher or the engine before.
        assert agent.phases()["EngineImported"] > killed_us
    assert "rouse_engine_spawns_total 0" in agent.metrics()
    end_and_look(server)


def test_workers_of_all_ranks_are_forked(
    model: Path, expected: list[list[int]], open_things: list
) -> None:
    arguments = (*ARGUMENTS, "--tensor-parallel-size", "2")
    server = Server("two ranks", LAUNCH, model, arguments, CPU_ENVIRONMENT)
    open_things.append(server)
    print(f"two ranks: first token after {server.first_token() - server.started:.1f} s")
    workers = named(server, "Worker")
    assert len(workers) == 2
    assert {parent_of(pid) for pid in workers} == {server.process.pid}
    assert server.tokens() == expected
    end_and_look(server)


def test_a_parent_with_threads_and_cuda_spawns_and_says_why(
    model: Path, expected: list[list[int]], tmp_path: Path, open_things: list
) -> None:
    operator = FakeOperator()
    open_things.append(operator)
    agent = Agent(tmp_path / "a0", operator, "demo-0", "--model-dir", str(model))
    open_things.append(agent)
    operator.wait("demo-0", lambda r: True)
    (tmp_path / "sitecustomize.py").write_text(SITE_WITH_A_THREAD)
    source = tmp_path / "fake_initialised_libcuda.c"
    source.write_text(FAKE_INITIALISED_LIBCUDA)
    library = tmp_path / "libcuda.so.1"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
    environment = CPU_ENVIRONMENT | {
        "PYTHONPATH": f"{tmp_path}:{os.environ['PYTHONPATH']}",
        "LD_LIBRARY_PATH": str(tmp_path),
    }
    server = Server("spawning launch", LAUNCH, model, with_agent(agent), environment)
    open_things.append(server)
    server.first_token()
    assert "rouse_engine_spawns_total 1" in agent.metrics()
    assert "other threads: intruder" in agent.log_path.read_text()
    (said,) = [line for line in server.lines if "vllm serve is spawned, not forked" in line]
    assert "cuDeviceGetCount answers 0" in said and "other threads: intruder" in said
    assert server.tokens() == expected
    # An engine's end is seen to in the same way.
    (core,) = named(server, "EngineCore")
    assert parent_of(core) == vllm_serve(server)
    os.kill(vllm_serve(server), signal.SIGKILL)
    server.await_line("a new one starts")
    assert not Path(f"/proc/{core}").exists()
    server.first_token()
    assert server.tokens() == expected
    end_and_look(server)


def test_an_engine_that_cannot_start_is_given_up(model: Path, open_things: list) -> None:
    server = Server("failing", LAUNCH, model, ("--max-model-len", "none"), CPU_ENVIRONMENT)
    open_things.append(server)
    assert server.process.wait(timeout=200) == 2  # argparse's
    assert server.log.count("a new one starts") == 3
    assert "this process ends too" in server.log
