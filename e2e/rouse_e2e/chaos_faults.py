"""What chaos.py does to a real cluster of two nodes, and what must hold all the while."""

from __future__ import annotations

import http.client
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from .cluster import Object
from .node import API_PORT, pods_of
from .real import Machine, RealCluster
from .story import SYSTEM, Instance, Story

ON_NODE = Path(__file__).with_name("on_node.py")
#: That a node's init starts again; the second list on the first node only.
NODE_PROGRAMS = ("kubelet", "kube-proxy", "containerd")
CONTROL_PLANE = ("kube-apiserver", "etcd", "kube-controller-manager", "kube-scheduler")
PARTITION_S, STALL_S, LOST_S = 20, 8, 75
CUT_OFF_S = 40  # a leader gives up after 10 s, another may lead after 15 s
#: What looking, asking and doing may fail with while the API server, or a whole node, is down.
OUT_OF_REACH = (
    *(OSError, RuntimeError, http.client.HTTPException, subprocess.SubprocessError),
    *(ValueError, KeyError),  # An answer that is another than what was asked for.
)


class Faults:
    """Does one thing at a time, by chance; `deleted` are the uids of pods that it deleted itself."""

    def __init__(self, story: Story, say: Callable[[str], None], seed: int) -> None:
        assert isinstance(story.cluster, RealCluster)
        self.story, self.say = story, say
        self.cluster: RealCluster = story.cluster
        self.random = random.Random(seed)
        self.done: Counter[str] = Counter()
        self.deleted: set[str] = set()
        self.last_lost = time.monotonic()
        self._ways: list[tuple[int, str, Callable[[], str]]] = [
            (6, "a process of an instance killed", self._kill_in_instance),
            (2, "the operator killed", self._kill_operator),
            (2, "a program of a node killed", self._kill_node_program),
            (1, "a program of the control plane killed", self._kill_control_plane),
            (2, "a pod deleted", self._delete_pod),
            (1, "the API server stalled", self._stall),
            (1, "the second node's pods cut off", self._partition),
            (1, "operators cut off from agents", self._cut_off_from_agents),
            (1, "operators cut off from the API server", self._cut_off_from_api),
        ]

    def next(self) -> None:
        if time.monotonic() - self.last_lost > 240:
            way, act = "the second node lost and back", self._lose_node
        else:
            weights = [x for x, _, _ in self._ways]
            _, way, act = self.random.choices(self._ways, weights)[0]
        self.say(f"{way}: {act()}")
        self.done[way] += 1

    def _machine_of(self, pod: Object) -> Machine:
        node = pod["spec"].get("nodeName", "node-0")
        return self.cluster.machine if node == "node-0" else self.cluster.more[1]

    def _kill_in(self, pods: list[Object]) -> str:
        pods = [x for x in pods if x["spec"].get("nodeName")]
        if not pods:
            return "there is none"
        pod = self.random.choice(pods)
        name = pod["metadata"]["name"]
        try:
            return (
                self._machine_of(pod)
                .execute(
                    *(sys.executable, str(ON_NODE), "kill-one", name, str(self.random.random()))
                )
                .strip()
            )
        except (RuntimeError, KeyError) as error:
            return str(error)

    def _kill_in_instance(self) -> str:
        return self._kill_in(self.story.pods())

    def _kill_operator(self) -> str:
        return self._kill_in(self.cluster.list("pods", SYSTEM))

    def _signal(self, machine: Machine, program: str, number: signal.Signals) -> None:
        # The node's own, not one of a pod: its PID 1's child.
        inner = machine.inner_pid()
        children = Path(f"/proc/{inner}/task/{inner}/children").read_text().split()
        for pid in children:
            if Path(f"/proc/{pid}/comm").read_text().strip() == program[:15]:
                os.kill(int(pid), number)
                return
        raise RuntimeError(f"{program} does not run on {machine.name}")

    def _kill_program(self, machine: Machine, program: str) -> str:
        self._signal(machine, program, signal.SIGKILL)
        return f"{program} on {machine.name}"

    def _kill_node_program(self) -> str:
        machine = self.random.choice(self.cluster.machines())
        return self._kill_program(machine, self.random.choice(NODE_PROGRAMS))

    def _kill_control_plane(self) -> str:
        return self._kill_program(self.cluster.machine, self.random.choice(CONTROL_PLANE))

    def _delete_pod(self) -> str:
        pods = [x for x in self.story.pods() if "deletionTimestamp" not in x["metadata"]]
        if not pods:
            return "there is none"
        pod = self.random.choice(pods)
        self.deleted.add(pod["metadata"]["uid"])
        name = pod["metadata"]["name"]
        self.cluster.kubectl("delete", "pod", name, "-n", self.story.namespace, "--wait=false")
        return name

    def _stall(self) -> str:
        self._signal(self.cluster.machine, "kube-apiserver", signal.SIGSTOP)
        try:
            time.sleep(STALL_S)
        finally:
            self._signal(self.cluster.machine, "kube-apiserver", signal.SIGCONT)
        return f"{STALL_S} s"

    def _drop(
        self,
        machines: list[Machine],
        rules: list[str],
        seconds: float,
        hooks: tuple[str, ...] = ("input", "forward"),
    ) -> None:
        """What matches one of these is lost on its way for so long."""
        try:
            for machine in machines:
                machine.execute("nft", "add", "table", "inet", "chaos")
                for hook in hooks:
                    chain = f"{{ type filter hook {hook} priority 0; }}"
                    machine.execute("nft", "add", "chain", "inet", "chaos", hook, chain)
                    for rule in rules:
                        machine.execute("nft", "add", "rule", "inet", "chaos", hook, rule, "drop")
            time.sleep(seconds)
        finally:
            for machine in machines:
                machine.execute("nft", "delete", "table", "inet", "chaos")

    def _partition(self) -> str:
        pods = f"{{ {pods_of(1)} }}"
        rules = [f"ip saddr {pods}", f"ip daddr {pods}"]
        # What comes from the node itself, the kubelet's probes, still reaches them.
        self._drop([self.cluster.more[1]], rules, PARTITION_S, ("forward",))
        return f"{PARTITION_S} s"

    def _operators(self) -> str:
        pods = self.cluster.list("pods", SYSTEM)
        addresses = [x["status"]["podIP"] for x in pods if x["status"].get("podIP")]
        if not addresses:
            raise RuntimeError("there is no operator")
        return f"{{ {', '.join(addresses)} }}"

    def _cut_off_from_agents(self) -> str:
        operators = self._operators()
        rules = [f"ip saddr {operators} tcp dport 7411", f"ip daddr {operators} tcp dport 7482"]
        self._drop(self.cluster.machines(), rules, CUT_OFF_S)
        return f"{CUT_OFF_S} s"

    def _cut_off_from_api(self) -> str:
        rules = [f"ip saddr {self._operators()} tcp dport {API_PORT}"]
        self._drop(self.cluster.machines(), rules, CUT_OFF_S)
        return f"{CUT_OFF_S} s"

    def _lose_node(self) -> str:
        self.cluster.lose_node()
        time.sleep(LOST_S)
        begun = time.monotonic()
        add_node(self.story, self.say)
        self.last_lost = time.monotonic()
        return f"{LOST_S} s; it was up again after {time.monotonic() - begun:.0f} s more"


def add_node(story: Story, say: Callable[[str], None]) -> None:
    """The second node, with what the first one has."""
    assert isinstance(story.cluster, RealCluster)
    machine = story.cluster.add_node(1)
    story.import_images_on(machine)
    story.provide_checkpoint_on(machine)
    say(f"{machine.name} is up")


class Invariants:
    """Looks again and again, on a thread of its own, and asks who serves; close() ends it."""

    #: Who is made a guard, or falls asleep, may be in an endpoint slice for as long as that takes to hear of it.
    SLICE_S = 15.0

    def __init__(self, story: Story, faults: Faults, most_pods: int, answer: list[int]) -> None:
        self.story, self.faults, self.most_pods, self.answer = story, faults, most_pods, answer
        self.broken: list[str] = []
        self.looks = self.failed_looks = self.answers = self.failed_asks = 0
        self.longest_out_s = 0.0
        self._out_since: float | None = None
        self._asleep_in_slice: dict[str, float] = {}
        self._seen: dict[str, Instance] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self) -> None:
        if not self._thread.is_alive():
            self._break("nobody looked at the invariants any more")
        self._stop.set()
        self._thread.join(120)

    def _run(self) -> None:
        while not self._stop.wait(0.5):
            try:
                self._look()
            except OUT_OF_REACH:
                self.failed_looks += 1  # The API server is down, which is one of the faults.
                continue
            self.looks += 1

    def _break(self, what: str) -> None:
        if what not in self.broken:
            self.broken.append(what)
            self.faults.say(f"BROKEN: {what}")

    def _look(self) -> None:
        story = self.story
        lost = {
            x["metadata"]["name"]
            for x in story.cluster.request("GET", "/api/v1/nodes").json()["items"]
            if not any(
                y["type"] == "Ready" and y["status"] == "True" for y in x["status"]["conditions"]
            )
        }
        pods = [Instance(x) for x in story.pods()]
        ready = story.cluster.ready_endpoints(story.name, story.namespace)
        self._check_guards(pods, ready)
        self._check_count(pods, lost)
        self._check_deleted(pods, lost)
        self._check_answers([x for x in pods if x.name in ready and x.serves])

    def _check_guards(self, pods: list[Instance], ready: set[str]) -> None:
        now = time.monotonic()
        inside = {x.uid for x in pods if x.role == "Guard" and x.name in ready}
        self._asleep_in_slice = {x: self._asleep_in_slice.get(x, now) for x in inside}
        for uid, since in self._asleep_in_slice.items():
            if now - since > self.SLICE_S:
                self._break(f"guard {uid} is in an endpoint")

    def _check_count(self, pods: list[Instance], lost: set[str]) -> None:
        there = [
            x.name
            for x in pods
            if "deletionTimestamp" not in x.pod["metadata"]
            and x.pod["status"].get("phase") in ("Pending", "Running")
            and x.annotation("agent-state") != "Failed"
            and x.pod["spec"].get("nodeName") not in lost
        ]
        if len(there) > self.most_pods:
            self._break(f"{len(there)} pods: {', '.join(there)}")

    def _check_deleted(self, pods: list[Instance], lost: set[str]) -> None:
        """Nobody who serves is deleted but by us, by the eviction of a lost node, or after he left."""
        for pod in pods:
            before = self._seen.get(pod.uid)
            going = "deletionTimestamp" in pod.pod["metadata"]
            if going and before is not None and before.serves and pod.role == "Active":
                ours = pod.uid in self.faults.deleted
                if not ours and not pod.annotation("leaving") and not self._evicted(pod, lost):
                    self._break(f"{pod.name} was deleted while it served")
            if not going:
                self._seen[pod.uid] = pod

    @staticmethod
    def _evicted(pod: Instance, lost: set[str]) -> bool:
        return (
            pod.pod["spec"].get("nodeName") in lost or pod.condition("DisruptionTarget") == "True"
        )

    def _check_answers(self, serving: list[Instance]) -> None:
        now = time.monotonic()
        if serving:
            self._out_since = None
        elif self._out_since is None:
            self._out_since = now
        if self._out_since is not None:
            self.longest_out_s = max(self.longest_out_s, now - self._out_since)
        for instance in serving[:1] if self.looks % 4 == 0 else []:
            try:
                tokens = self.story.ask(instance, timeout=10)
            except OUT_OF_REACH:
                self.failed_asks += 1
                continue
            self.answers += 1
            if tokens != self.answer:
                self._break(f"{instance.name} answers {tokens}")
