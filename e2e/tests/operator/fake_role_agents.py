"""Fake agents that can be told a role, where no kubelet starts any (docs/protocols.md §3, Roles).

One HTTP server plays those of all pods: kwok's pods have addresses on loopback, and whom a request
is for is the address that it was sent to. It speaks TLS with that pod's own certificate, which the
operator has signed (rouse_e2e.certificates), and listens to the operator only. An engine serves as
soon as its pod runs, falls asleep and wakes when told, and every change is reported as an agent
would; how each of them answers can be set.
"""

from __future__ import annotations

import json
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from rouse_e2e import certificates
from rouse_e2e.cluster import Cluster, KubectlError, Object

from .fake_agent_reports import report, send

CONFLICT = (409, "Conflict", "the fake says that it cannot be done now")
SILENCE = (0, "", "")  # the connection stays open, nothing comes
DEAF = (202, "", "")  # it says that it begins, and does not


@dataclass
class Command:
    at: float  # time.time() when all of it had arrived
    pod: str
    role: str
    body: Object
    answer: int  # HTTP status


@dataclass
class Agent:
    name: str
    uid: str
    pod: Object
    state: str
    timeline: Object | None = None  # of the start or of the last wake, once it served


STARTED = ("Schedule", "Hydrate", "EngineStart", "Weights", "Capture", "FirstToken")
WOKEN = ("Command", "Map", "Weights", "Resume", "Canary")
PHASE_US = 10_000


def timeline(path: str, names: tuple[str, ...], decided_at_us: int) -> Object:
    ends = [(x + 1) * PHASE_US for x in range(len(names))]
    phases = [
        {"name": name, "startUs": end - PHASE_US, "endUs": end} for name, end in zip(names, ends)
    ]
    lanes: list[Object] = []
    result = {"path": path, "decidedAtUs": decided_at_us, "phases": phases, "lanes": lanes}
    return {**result, "totalUs": ends[-1]}


class FakeRoleAgents:
    """Reports to whichever operator `port` (TLS) names, until closed."""

    def __init__(self, cluster: Cluster, namespace: str, port: int, every: float = 0.2) -> None:
        self.cluster, self.namespace, self.port, self.every = cluster, namespace, port, every
        self.commands: list[Command] = []
        self.answers: dict[str, tuple[int, str, str]] = {}  # by pod: what it answers instead
        self.loading: set[str] = set()  # pods whose engines do not serve yet
        self.sleep_seconds = self.wake_seconds = 0.3
        self.cut_off = False  # nothing comes to the operator, or from it
        # Called with each command before anything else is done about it, and after its answer.
        self.on_command: Callable[[Command], None] = lambda command: None
        self.on_answered: Callable[[Command], None] = lambda command: None
        self._agents: dict[str, Agent] = {}  # by address
        # kwok may give an address to two pods once it was started again.
        self._by_uid: dict[str, Agent] = {}
        cluster.proxy_url()  # before two threads ask for it at once
        self._lock = threading.Lock()
        self._stop = threading.Event()
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True  # as of an agent

            def setup(self) -> None:
                self.request.settimeout(120)  # as an agent
                if fake.cut_off:
                    raise OSError("the connection is cut")
                tls = fake._server_context(self.request.getsockname()[0])
                self.request = tls.wrap_socket(self.request, server_side=True)
                if certificates.uri_of(self.request) != certificates.OPERATOR:
                    raise OSError("only the operator may say what an instance is to be")
                super().setup()

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                if fake.cut_off:
                    self.close_connection = True
                else:
                    fake._told(self, body)

            def log_message(self, *arguments) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 256

            def handle_error(self, request, client_address) -> None:
                pass  # whoever asked is gone

        self._server = Server(("0.0.0.0", 0), Handler)
        self.agent_port = self._server.server_address[1]
        self._threads = [
            threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True),
            threading.Thread(target=self._run, daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        self._stop.set()
        self._server.shutdown()
        self._server.server_close()
        for thread in self._threads:
            thread.join(10)

    def __enter__(self) -> FakeRoleAgents:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def state(self, pod: str) -> str:
        with self._lock:
            return next((x.state for x in self._agents.values() if x.name == pod), "")

    def told(self, role: str, begun: int = 0) -> list[Command]:
        return [x for x in self.commands[begun:] if x.role == role]

    # ---- what it is told

    def _server_context(self, address: str) -> ssl.SSLContext:
        with self._lock:
            agent = self._agents.get(address)
        if agent is None:
            raise OSError(f"no pod is at {address}")
        of_cluster = certificates.of(self.cluster)
        return of_cluster.context_of(agent.pod, self.port, ssl.PROTOCOL_TLS_SERVER)

    def _told(self, handler: BaseHTTPRequestHandler, text: bytes) -> None:
        at = time.time()
        address = (handler.headers.get("Host") or "").rpartition(":")[0]
        body = json.loads(text)
        with self._lock:
            agent = self._agents.get(address)
        if handler.path != "/v1/role" or agent is None:
            self._answer(handler, 404, {"error": {"code": "NotFound", "message": handler.path}})
            return
        command = Command(at, agent.name, body["role"], body, 0)
        self.commands.append(command)
        self.on_command(command)
        status, code, message = self.answers.get(agent.name, (0, "", ""))
        if self.answers.get(agent.name) == SILENCE:
            self._stop.wait(30)
            handler.close_connection = True
            return
        if not status:
            status, code, message = self._begin(agent, body)
        command.answer = status
        if status == 202:
            answer: Any = {"protocol": "rouse-role", "version": 1, "state": agent.state}
        else:
            answer = {"error": {"code": code, "message": message}}
        self._answer(handler, status, answer)
        self.on_answered(command)
        if status == 202:
            self._report(agent)

    @staticmethod
    def _answer(handler: BaseHTTPRequestHandler, status: int, body: Object) -> None:
        text = json.dumps(body).encode()
        handler.send_response(status)
        handler.send_header("Content-Type", "application/json")
        handler.send_header("Content-Length", str(len(text)))
        handler.end_headers()
        handler.wfile.write(text)

    def _begin(self, agent: Agent, body: Object) -> tuple[int, str, str]:
        """As an agent: told again what it is, or is becoming, it does nothing."""
        with self._lock:
            if body["role"] == "Guard":
                if agent.state == "Serving":
                    agent.state = "Sleeping"
                    self._later(self.sleep_seconds, agent, "Asleep")
                elif agent.state not in ("Sleeping", "Asleep"):
                    return CONFLICT
            elif agent.state == "Asleep":
                if not body["peers"]:
                    return (400, "InvalidArgument", "a wake needs a peer")
                agent.state = "Waking"
                woken = timeline("Wake", WOKEN, body["decidedAtUs"])
                self._later(self.wake_seconds, agent, "Serving", woken)
            elif agent.state not in ("Waking", "Serving"):
                return CONFLICT
        return (202, "", "")

    def _later(
        self, seconds: float, agent: Agent, state: str, timeline: Object | None = None
    ) -> None:
        def become() -> None:
            with self._lock:
                agent.state = state
                agent.timeline = timeline or agent.timeline
            self._report(agent)

        threading.Timer(seconds, become).start()

    # ---- what it reports

    def _run(self) -> None:
        path = f"/api/v1/namespaces/{self.namespace}/pods"
        while not self._stop.wait(self.every):
            try:
                found = self.cluster.request("GET", path, timeout=5).json().get("items", [])
            except (OSError, ValueError):
                continue
            for agent in self._up(found):
                if not self._report(agent):
                    break

    def _up(self, pods: list[Object]) -> list[Agent]:
        up = []
        with self._lock:
            for pod in pods:
                address, uid = pod["status"].get("podIP", ""), pod["metadata"]["uid"]
                if pod["status"].get("phase") != "Running" or not address:
                    continue
                if "deletionTimestamp" in pod["metadata"]:
                    continue
                agent = self._by_uid.setdefault(uid, Agent(pod["metadata"]["name"], uid, pod, ""))
                self._agents[address] = agent
                agent.pod = pod
                if agent.state in ("", "Loading"):
                    agent.state = "Loading" if agent.name in self.loading else "Serving"
                up.append(agent)
        return up

    def _report(self, agent: Agent) -> bool:
        """False: there is no operator now."""
        if self.cut_off:
            return False
        try:
            send(self.cluster, self.port, agent.pod, self._body(agent))
        except certificates.Refused:
            return True
        except (OSError, KubectlError):
            return False
        return True

    def _body(self, agent: Agent) -> Object:
        address = f"https://{agent.pod['status']['podIP']}:{self.agent_port}"
        state = agent.state
        if state == "Serving" and agent.timeline is None:
            notes = agent.pod["metadata"]["annotations"]
            decided = int(notes["rouse.dev/decided-at-us"])
            agent.timeline = timeline(notes["rouse.dev/path"], STARTED, decided)
        changes: Object = {"address": address, "timeline": agent.timeline}
        return report(agent.pod, state, **changes)
