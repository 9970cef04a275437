"""Sleep and wake with everything real but the operator: two agents, and two engines on the CPU."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from agents import Agent, FakeOperator
from engines import CPU_ENVIRONMENT
from servers import FORKED, Server, free_port
from tiny_models import make_moe, without_weights

ARGUMENTS = ("--enforce-eager", "--max-model-len", "256", "--max-num-seqs", "4")


class Instance:
    """An engine and its agent."""

    def __init__(
        self, folder: Path, operator: FakeOperator, pod: str, model: Path, *agent_arguments: str,
        comes_to: str = "Serving",
    ) -> None:  # fmt: skip
        port = free_port()
        self.pod = pod
        self.agent = Agent(
            folder / pod, operator, pod, "--model-dir", str(model), "--served-model", "demo",
            "--engine-url", f"http://127.0.0.1:{port}", *agent_arguments,
        )  # fmt: skip
        self.server: Server | None = None
        try:
            operator.wait(pod, lambda r: (model / "config.json").exists())
            extra = json.dumps({"socket": str(self.agent.socket)})
            rouse = ("--load-format", "rouse", "--model-loader-extra-config", extra)
            self.server = Server(pod, FORKED, model, ARGUMENTS + rouse, CPU_ENVIRONMENT, port)
            if comes_to == "Serving":
                self.server.first_token()
            self.agent.wait(comes_to)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        if self.server is not None:
            self.server.close()
        self.agent.close()


@contextlib.contextmanager
def running() -> Iterator[tuple[FakeOperator, list[Instance]]]:
    """An operator, and whatever is put into the list: ended with it, with its logs shown after a failure."""
    operator = FakeOperator()
    instances: list[Instance] = []
    try:
        yield operator, instances
    except BaseException:
        for instance in instances:
            print(instance.agent.log_path.read_text()[-6000:])
            print("" if instance.server is None else instance.server.log[-6000:])
        raise
    finally:
        for instance in reversed(instances):
            instance.close()
        operator.close()


def test_a_guard_wakes_with_a_peers_weights(tmp_path: Path) -> None:
    with running() as (operator, instances):
        model = make_moe(tmp_path / "model", seed=5)
        source = Instance(tmp_path, operator, "demo-0", model)
        instances.append(source)
        report = operator.wait("demo-0", lambda r: (r["weights"] or {}).get("servable", False))
        peers = [{"pod": "demo-0", "node": report["node"], "address": report["address"]}]
        assert source.server is not None
        expected = source.server.tokens()
        assert len({token for answer in expected for token in answer}) > 3

        bare = tmp_path / "bare"
        bare.mkdir()
        guard = Instance(
            tmp_path, operator, "demo-1", bare, "--path", "Peer", "--model-files", "Peer"
        )
        instances.append(guard)
        assert guard.server is not None and guard.server.tokens() == expected

        for _ in range(2):
            guard.agent.set_role("Guard", [])
            guard.agent.wait("Asleep")
            answers: list[list[list[int]]] = []
            asking = threading.Thread(target=lambda: answers.append(guard.server.tokens()))
            asking.start()
            time.sleep(0.5)
            assert answers == []
            begun = time.monotonic()
            guard.agent.set_role("Active", peers)
            guard.agent.wait("Serving")
            print(f"awake after {time.monotonic() - begun:.2f} s")
            asking.join(timeout=60)
            assert answers == [expected]
        taken = operator.wait("demo-1", lambda r: (r["weights"] or {}).get("servable", False))
        assert taken["weights"]["identity"] == report["weights"]["identity"]

        guard.agent.set_role("Guard", [])
        guard.agent.wait("Asleep")
        source.agent.close()
        guard.agent.set_role("Active", peers)
        deadline = time.monotonic() + 60
        while guard.agent.state() != "Failed":
            assert time.monotonic() < deadline, guard.agent.state()
            time.sleep(0.05)
        guard.server.await_line("command Wake failed")


def test_a_guard_that_never_had_weights_wakes_with_a_peers(tmp_path: Path) -> None:
    with running() as (operator, instances):
        model = make_moe(tmp_path / "model", seed=5)
        empty = without_weights(model, tmp_path / "empty")
        # Before anybody has weights: it starts as it would with replicas: 0.
        guard = Instance(
            tmp_path, operator, "demo-1", empty, "--begin-without-weights", comes_to="Asleep"
        )
        instances.append(guard)
        assert operator.reports["demo-1"]["weights"] is None
        assert operator.reports["demo-1"]["bytesBySource"] == {"peer": 0, "storage": 0}
        assert "\"to\":\"Serving\"" not in guard.agent.log_path.read_text()

        source = Instance(tmp_path, operator, "demo-0", model)
        instances.append(source)
        report = operator.wait("demo-0", lambda r: (r["weights"] or {}).get("servable", False))
        peers = [{"pod": "demo-0", "node": report["node"], "address": report["address"]}]
        assert source.server is not None and guard.server is not None
        expected = source.server.tokens()
        for _ in range(2):
            guard.agent.set_role("Active", peers)
            guard.agent.wait("Serving")
            assert guard.server.tokens() == expected
            taken = operator.wait("demo-1", lambda r: (r["weights"] or {}).get("servable", False))
            assert taken["bytesBySource"]["peer"] >= report["weights"]["bytes"]
            guard.agent.set_role("Guard", [])
            guard.agent.wait("Asleep")
