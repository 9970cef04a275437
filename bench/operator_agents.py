"""The agents of thousands of pods, as the operator sees them: for bench/operator_scale.py.

The e2e's fake agents look at all pods and report for each on a connection of its own five times a
second. These hear of pods by a watch, and report as real agents do: when something changes, and
as often as the operator says, each over a connection that it keeps for as long as the operator does.
"""

from __future__ import annotations

import heapq
import http.client
import itertools
import json
import ssl
import threading
import time
import urllib.request
from collections import Counter

from rouse_e2e import certificates
from rouse_e2e.cluster import Cluster, Object
from tests.operator.fake_role_agents import Agent, FakeRoleAgents

REPORTERS = 3
WAKE_S = 0.5  # A real agent tells of no wake that is over before.


class ManyAgents(FakeRoleAgents):
    """Only what changes is reported, until report_always()."""

    def __init__(self, cluster: Cluster, namespace: str, port: int) -> None:
        self.refused: Counter[str] = Counter()  # reports that were not taken, by what was said
        self.reports = self.connections = 0
        self.command_came = threading.Condition()
        self._trusted: str | None = None
        self._contexts: dict[tuple[str, int], ssl.SSLContext] = {}  # by uid and purpose
        self._lines: dict[str, http.client.HTTPSConnection] = {}  # by uid
        self._due: list[tuple[float, int, str]] = []  # a heap: when, a number, address
        self._next: dict[str, float] = {}  # by address, the one time of `_due` that counts
        self._busy: set[str] = set()  # addresses whose report is under way
        self._reported: dict[str, str] = {}  # by uid: the state that the operator knows
        self._always = False
        self.every_s = 10.0  # as the operator said last to one that serves or sleeps
        self._keepers: dict[str, str] = {}  # by uid: the digest of the list that it was told
        self._numbers = itertools.count()
        self._changed = threading.Condition()
        super().__init__(cluster, namespace, port)
        self.on_command = self._count
        self._reporters = [
            threading.Thread(target=self._report_when_due, daemon=True) for _ in range(REPORTERS)
        ]
        for thread in self._reporters:
            thread.start()

    def close(self) -> None:
        self._stop.set()
        with self._changed:
            self._changed.notify_all()
        for thread in self._reporters:
            thread.join(10)
        super().close()
        for line in self._lines.values():
            line.close()

    def await_told(self, role: str, count: int, begun: int, seconds: float) -> None:
        """Until so many commands with this role came since `begun`; without a look in between."""
        with self.command_came:
            if not self.command_came.wait_for(
                lambda: len(self.told(role, begun)) >= count, seconds
            ):
                raise RuntimeError(f"{len(self.told(role, begun))} of {count} agents were told")

    def _count(self, _) -> None:
        with self.command_came:
            self.command_came.notify_all()

    # ---- pods

    def _run(self) -> None:
        path = f"{self.cluster.proxy_url()}/api/v1/namespaces/{self.namespace}/pods"
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        while not self._stop.is_set():
            try:
                with opener.open(path, timeout=60) as answer:
                    found = json.load(answer)
                for pod in found["items"]:
                    self._see(pod)
                version = found["metadata"]["resourceVersion"]
                with opener.open(f"{path}?watch=1&resourceVersion={version}", timeout=600) as lines:
                    for line in lines:
                        event = json.loads(line)
                        if self._stop.is_set() or event["type"] == "ERROR":
                            break
                        self._see(event["object"], event["type"] == "DELETED")
            except (OSError, ValueError):
                self._stop.wait(1)

    def _see(self, pod: Object, gone: bool = False) -> None:
        address = pod["status"].get("podIP", "")
        with self._lock:
            known = self._agents.get(address)
        if gone or "deletionTimestamp" in pod["metadata"]:
            if known and known.uid == pod["metadata"]["uid"]:
                with self._changed:
                    self._next.pop(address, None)
                self._lines.pop(known.uid, None)
            return
        if "rouse.dev/decided-at-us" not in pod["metadata"].get("annotations", {}):
            self._see_others(pod)
            return
        for agent in self._up([pod]):
            if known is not agent:
                self._report(agent)

    def _see_others(self, pod: Object) -> None:
        """One that the other operator made, whose agent would write what it is by itself: asleep."""
        meta = pod["metadata"]
        state = meta.get("annotations", {}).get("rouse.dev/agent-state")
        guard = meta["labels"].get("rouse.dev/role") == "Guard"
        if guard and pod["status"].get("phase") == "Running" and state is None:
            path = f"/api/v1/namespaces/{self.namespace}/pods/{meta['name']}"
            patch = {"metadata": {"annotations": {"rouse.dev/agent-state": "Asleep"}}}
            self.cluster.request("PATCH", path, patch, kind="application/merge-patch+json")

    # ---- reports

    def report_always(self, always: bool) -> None:
        """Whether reports come as often as the operator says, each agent's at another time."""
        with self._lock:
            agents = list(self._agents.values())
        self._always = always
        for number, agent in enumerate(agents if always else []):
            if agent.pod["status"]["podIP"] in self._next:
                self._report(agent, self.every_s * number / len(agents))

    def _report(self, agent: Agent, wait: float = 0) -> bool:
        """By one of the reporters, then."""
        if agent.state == "Waking":
            wait = max(wait, WAKE_S)
        address, at = agent.pod["status"]["podIP"], time.monotonic() + wait
        with self._changed:
            self._next[address] = at
            heapq.heappush(self._due, (at, next(self._numbers), address))
            self._changed.notify()
        return True

    def _take(self) -> tuple[str, float] | None:
        """Whose report is due, and since when, once there is one; None: no more."""
        with self._changed:
            while not self._stop.is_set():
                wait = self._due[0][0] - time.monotonic() if self._due else 60
                if wait > 0:
                    self._changed.wait(wait)
                    continue
                at, number, address = heapq.heappop(self._due)
                if self._next.get(address) != at:
                    continue
                if address not in self._busy:
                    self._busy.add(address)
                    return address, at
                self._next[address] = at + 0.005
                heapq.heappush(self._due, (at + 0.005, number, address))
        return None

    def _report_when_due(self) -> None:
        while due := self._take():
            address, at = due
            with self._lock:
                agent = self._agents[address]
                state = agent.state
            again: float | None = None
            if self._always or self._reported.get(agent.uid) != state:
                status = self._send(agent)
                if status == 200:
                    self._reported[agent.uid] = state
                    again = self.every_s if self._always else None
                elif status != 404:  # Else its pod is gone.
                    again = 1
            with self._changed:
                self._busy.discard(address)
                last = self._next.get(address) == at  # It has not changed meanwhile.
            if last and again is not None:
                self._report(agent, again)

    def _send(self, agent: Agent) -> int:
        """The answer's status, 0 if there is none."""
        body = self._body(agent)
        if agent.uid in self._keepers:
            body["keepersDigest"] = self._keepers[agent.uid]
        text = json.dumps(body).encode()
        for attempt in range(2):
            line = self._lines.get(agent.uid)
            try:
                if line is None:
                    line = self._connect(agent)
                line.request(
                    "POST", "/v1/agents/report", text, {"Content-Type": "application/json"}
                )
                answer = line.getresponse()
                content = answer.read()
                if line.sock is None:  # The operator does not keep it.
                    del self._lines[agent.uid]
                self.reports += 1
                said = json.loads(content)
                if answer.status != 200:
                    self.refused[f"{answer.status} {said['error']['code']}"] += 1
                    return answer.status
                self._keepers[agent.uid] = said.get("keepersDigest", "")
                if body["state"] in ("Serving", "Asleep"):
                    self.every_s = said["reportAfterMs"] / 1000
                return 200
            except certificates.Refused as error:
                self.refused[f"no certificate: {error.status}"] += 1
                return 0
            except (OSError, http.client.HTTPException) as error:
                self._lines.pop(agent.uid, None)
                if attempt:
                    self.refused[type(error).__name__] += 1
        return 0

    def _connect(self, agent: Agent) -> http.client.HTTPSConnection:
        context = self._context(agent, ssl.PROTOCOL_TLS_CLIENT)
        if agent.pod["metadata"]["labels"]["rouse.dev/role"] == "Guard":
            self._context(agent, ssl.PROTOCOL_TLS_SERVER)  # before it is told anything
        line = http.client.HTTPSConnection("127.0.0.1", self.port, timeout=10, context=context)
        line.connect()
        if certificates.uri_of(line.sock) != certificates.OPERATOR:
            raise OSError("whoever answers is not the operator")
        self.connections += 1
        self._lines[agent.uid] = line
        return line

    def _server_context(self, address: str) -> ssl.SSLContext:
        with self._lock:
            agent = self._agents.get(address)
        if agent is None:
            raise OSError(f"no pod is at {address}")
        return self._context(agent, ssl.PROTOCOL_TLS_SERVER)

    def _context(self, agent: Agent, purpose: int) -> ssl.SSLContext:
        known = self._contexts.get((agent.uid, purpose))
        if known is not None:
            return known
        of_cluster = certificates.of(self.cluster)
        if self._trusted is None:
            self._trusted = of_cluster.trusted(self.namespace)
        file = of_cluster.file_of(agent.pod, self.port)
        made = certificates.context(purpose, self._trusted)
        made.load_cert_chain(file, of_cluster.key)
        self._contexts[agent.uid, purpose] = made
        return made
