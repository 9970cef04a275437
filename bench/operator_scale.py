#!/usr/bin/env python3
"""The operator with 200 ModelServices, 2,000 pods and 500 nodes, beside one written with controller-runtime.

    bench/operator_scale.py [--part wakes|size] [--operator PROGRAM] [--samples N] [--seconds S] [--rounds N] [--out FILE]

A real API server, etcd, scheduler and controller-manager; kwok plays nodes and pods, and this script all
pods' agents, which report over mutual TLS and are told to sleep and to wake. bench/peers/ is the other
operator: it gets the same ModelServices and the pods as ours left them.

A wake is timed from the moment at which the API server received the scale patch (its audit log) to the
moment at which the agent had the whole command. For the other operator it ends when the API server
received the patch that claims the guard, since it tells no agent anything; for ours that moment is a figure,
too. CPU is what the kernel counted for the process, while nothing is asked of it.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent
sys.path.insert(0, str(REPOSITORY / "e2e"))

from figures import Figure, write  # noqa: E402
from operator_agents import ManyAgents  # noqa: E402
from operator_bench import (  # noqa: E402
    NAMESPACE,
    Bench,
    default_program,
    modelservice,
    moment,
    percentile,
    say,
)
from rouse_e2e import go_modules, paths  # noqa: E402
from rouse_e2e.cluster import Object  # noqa: E402
from rouse_e2e.control_plane import free_ports  # noqa: E402
from rouse_e2e.processes import tail, wait_until  # noqa: E402

AUDIT_POLICY = """
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
omitManagedFields: true
rules:
- level: Request
  verbs: [patch]
  resources: [{group: "", resources: [pods]}, {group: rouse.dev, resources: ["modelservices/scale"]}]
- level: None
"""
NODES, SERVICES, PODS = 500, 200, 2_000
#: With which wakes are timed one by one: so many ModelServices of so many replicas and guards.
FEW, FEW_REPLICAS, FEW_GUARDS = 25, 12, 8
#: The one whose guards are woken all at once.
WIDE, WIDE_GUARDS = "wide", 100
PEERS = HERE / "peers"


def peer_program() -> Path:
    """Built once for each version of its sources, in the cache folder."""
    digest = hashlib.sha256()
    for name in ("go.mod", "go.sum", "main.go", "types.go"):
        digest.update((PEERS / name).read_bytes())
    program = paths.cache("peers", digest.hexdigest()[:16], "operator")
    with paths.locked("peers"):
        if not program.exists():
            say("building the operator with controller-runtime")
            go_modules.build(PEERS, ".", program)
    return program


def peer_name() -> str:
    found = re.search(r"controller-runtime v(\S+)", (PEERS / "go.mod").read_text())
    assert found
    return f"controller-runtime {found[1]}"


def guarded(name: str, replicas: int, guards: int) -> Object:
    return modelservice(
        name, replicas, guards={"replicas": guards}, fastStart={"profile": "Guarded"}
    )


def few() -> dict[str, Object]:
    return {f"s{i}": guarded(f"s{i}", FEW_REPLICAS, FEW_GUARDS) for i in range(FEW)}


def all_services() -> dict[str, Object]:
    """Those few, the wide one, and as many more as make the number of pods."""
    services = few()
    services[WIDE] = guarded(WIDE, 1, WIDE_GUARDS)
    left = PODS - FEW * (FEW_REPLICAS + FEW_GUARDS) - 1 - WIDE_GUARDS
    each, more = divmod(left, SERVICES - len(services))
    for i in range(SERVICES - len(services)):
        name = f"t{i}"
        services[name] = guarded(name, each - 1 + (i < more), 1)
    return services


class Call(NamedTuple):
    """One of the API server's, by its own audit log."""

    begun: float
    ended: float


class Scale(Bench):
    def __init__(self, program: Path, folder: Path) -> None:
        # A /24 for each of the nodes, on loopback, where one server can play the agents of all pods.
        super().__init__(program, folder, AUDIT_POLICY, pods="127.64.0.0/15", nodes=0)
        self.cluster.add_nodes([f"node-{x}" for x in range(NODES)], pods=110)
        self.wanted: dict[str, Object] = {}
        self.api_calls: list[tuple[Call, Call]] = []  # the scale patch and the claim, of one guard
        self.agents: ManyAgents | None = None
        self.peer_port, self.peer_health = free_ports(2)

    def close(self) -> None:
        if self.agents:
            self.agents.close()
        super().close()

    def start_ours(self) -> None:
        self.start_operator("--certificate-lifetime=6h")

    def start_peer(self) -> None:
        with open(self.folder / "peer.log", "ab") as log:
            self.child = subprocess.Popen(
                [
                    *("setpriv", "--pdeathsig", "KILL", "--", str(peer_program())),
                    *(f"--kubeconfig={self.kubeconfig}", f"--metrics=127.0.0.1:{self.peer_port}"),
                    f"--health=127.0.0.1:{self.peer_health}",
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    # ---- what there is

    def services(self) -> dict[str, Object]:
        return {x["metadata"]["name"]: x for x in self.cluster.list("modelservices", NAMESPACE)}

    def settled(self, found: dict[str, Object], name: str) -> bool:
        """All replicas serve and all guards sleep, by its status of its present spec."""
        service = found[name]
        spec, status = service["spec"], service.get("status", {})
        wanted = (spec["replicas"], spec["replicas"], spec["guards"]["replicas"], 0)
        told = tuple(status.get(x) for x in ("replicas", "readyReplicas", "guards", "waking"))
        generation = service["metadata"]["generation"]
        return told == wanted and status.get("observedGeneration") == generation

    def await_settled(self, names: list[str] | None = None, seconds: float = 900) -> None:
        said = time.monotonic()

        def all_settled() -> bool:
            nonlocal said
            if self.child and self.child.poll() is not None:
                raise RuntimeError(f"the operator ended with {self.child.returncode}")
            found = self.services() if not names or len(names) > 3 else self.some(names)
            right = sum(self.settled(found, x) for x in names or self.wanted)
            if time.monotonic() - said > 20:
                said = time.monotonic()
                refused = dict(self.agents.refused) if self.agents else {}
                say(f"  {right} of {len(names or self.wanted)} as wanted; refused {refused}")
            return right == len(names or self.wanted)

        wait_until(f"{names or 'all'} to be as wanted", seconds, all_settled, 0.1 if names else 2)

    def some(self, names: list[str]) -> dict[str, Object]:
        found = {x: self.cluster.get("modelservice", x, NAMESPACE) for x in names}
        return {x: y for x, y in found.items() if y is not None}

    def make(self, wanted: dict[str, Object]) -> None:
        self.cluster.apply([y for x, y in wanted.items() if x not in self.wanted])
        self.wanted |= wanted
        self.await_settled()
        pods = sum(x["spec"]["replicas"] + x["spec"]["guards"]["replicas"] for x in wanted.values())
        wait_until(f"{pods} pods", 120, lambda: self.pod_count() == pods, 2)
        time.sleep(5)

    def pod_count(self) -> int:
        path = f"/api/v1/namespaces/{NAMESPACE}/pods?resourceVersion=0"
        answer = self.cluster.request("GET", path, timeout=120)
        return len(answer.json()["items"])

    def scale_to(self, name: str, replicas: int) -> None:
        where = f"/apis/rouse.dev/v1alpha1/namespaces/{NAMESPACE}/modelservices/{name}/scale"
        self.scale(where, replicas)

    # ---- what is measured

    def cpu_percent(self, seconds: float) -> float:
        """Of one core, of the operator that runs, user and system."""
        assert self.child

        def used() -> float:
            fields = Path(f"/proc/{self.child.pid}/stat").read_text().rpartition(")")[2].split()
            return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

        before, begun = used(), time.monotonic()
        time.sleep(seconds)
        return 100 * (used() - before) / (time.monotonic() - begun)

    def claims(self, begun: int, name: str, count: int) -> tuple[Call, Call] | None:
        """The scale patch, and the last to arrive of so many patches that claim its guards."""
        scaled, arrived = None, []
        for entry in self.audit.read()[begun:]:
            what = entry["objectRef"]
            at = Call(moment(entry["requestReceivedTimestamp"]), moment(entry["stageTimestamp"]))
            if what.get("subresource") == "scale" and what["name"] == name:
                scaled = at
            elif scaled is not None and what["resource"] == "pods" and "subresource" not in what:
                labels = (entry.get("requestObject") or {}).get("metadata", {}).get("labels") or {}
                if (
                    labels.get("rouse.dev/role") == "Active"
                    and entry["responseStatus"]["code"] == 200
                ):
                    arrived.append(at)
        if scaled is None or len(arrived) < count:
            return None
        return scaled, sorted(arrived)[count - 1]

    def scale_out(self, name: str, replicas: int, more: int, told: bool) -> tuple[float, float]:
        """Seconds to the last claim, and to the last command (0 if nobody is told)."""
        begun = len(self.audit.read())
        assert self.agents
        commands = len(self.agents.commands)
        self.scale_to(name, replicas + more)
        if told:
            self.agents.await_told("Active", more, commands, 30)
        found = wait_until("the claims", 30, lambda: self.claims(begun, name, more), 0.02)
        scaled, claimed = found
        if more == 1 and told:
            self.api_calls.append(found)
        if not told:
            return claimed.begun - scaled.begun, 0
        # A command is repeated after three seconds; what counts is each agent's first.
        first: dict[str, float] = {}
        for command in self.agents.told("Active", commands):
            first.setdefault(command.pod, command.at)
        return claimed.begun - scaled.begun, max(first.values()) - scaled.begun

    def await_back(self, name: str, guards: int, told: bool) -> None:
        """Until its guards are there and sleep and, of ours, its replicas serve."""
        if told:
            return self.await_settled([name], 240)
        selector = f"rouse.dev/modelservice={name},rouse.dev/role=Guard"

        def asleep() -> bool:
            found = self.cluster.list("pods", NAMESPACE, selector)
            notes = [x["metadata"].get("annotations", {}) for x in found]
            return [x.get("rouse.dev/agent-state") for x in notes] == ["Asleep"] * guards

        wait_until(f"the guards of {name}", 240, asleep, 0.1)

    def one_by_one(self, samples: int, told: bool) -> tuple[list[float], list[float]]:
        claims, commands = [], []
        for number in range(samples):
            name = f"s{number % FEW}"
            self.await_back(name, FEW_GUARDS, told)
            claimed, commanded = self.scale_out(name, FEW_REPLICAS, 1, told)
            claims.append(claimed)
            commands.append(commanded)
            self.await_back(name, FEW_GUARDS, told)
            self.scale_to(name, FEW_REPLICAS)
            time.sleep(0.7)  # What follows from that is done by then.
            if number % 20 == 19:
                say(f"  {number + 1} of {samples} scale-outs")
        return claims, commands

    def all_at_once(self, rounds: int, told: bool) -> tuple[float, float]:
        """The slowest round's."""
        claims, commands = [], []
        for _ in range(rounds):
            claimed, commanded = self.scale_out(WIDE, 1, WIDE_GUARDS, told)
            claims.append(claimed)
            commands.append(commanded)
            say(f"  {WIDE_GUARDS} guards: claimed {claimed:.3f} s, told {commanded:.3f} s")
            self.await_back(WIDE, WIDE_GUARDS, told)
            self.scale_to(WIDE, 1)
            self.await_back(WIDE, WIDE_GUARDS, told)
            time.sleep(10)
        return max(claims), max(commands)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--operator", type=Path, default=default_program())
    parser.add_argument("--part", choices=["wakes", "size"], help="only this one; default: both")
    parser.add_argument("--samples", type=int, default=200, help="of one guard's wake")
    parser.add_argument("--seconds", type=float, default=60, help="how long CPU is counted")
    parser.add_argument("--rounds", type=int, default=3, help="of 100 guards at once")
    out = REPOSITORY / "docs" / "benchmarks" / "operator.json"
    parser.add_argument("--out", type=Path, default=out)
    options = parser.parse_args()
    peer_program()
    with tempfile.TemporaryDirectory(prefix="rouse-bench-") as work:
        bench = Scale(options.operator, Path(work))
        try:
            figures = Figures()
            bench.agents = ManyAgents(bench.cluster, NAMESPACE, bench.tls_port)
            if options.part != "size":
                measure_wakes(bench, figures, options)
            if options.part != "wakes":
                measure_size(bench, figures, options)
            say(f"reports refused on the way: {dict(bench.agents.refused)}")
            write("operator", figures.all, options.out, keep=True)
        except BaseException:
            for log in ("operator.log", "peer.log"):
                say(f"---- end of {log}\n{tail(Path(work, log), 20)}")
            raise
        finally:
            bench.close()


class Figures:
    def __init__(self) -> None:
        self.all: list[Figure] = []

    def add(self, what: str, value: float, unit: str, against: str = "", other: float = 0) -> None:
        ratio = round(value / other, 3) if other else None
        self.all.append(Figure(what, round(value, 4), unit, against, ratio))
        say(f"  {what}: {value:.4g} {unit}")

    def limited(self, what: str, value: float, unit: str, limit: float) -> None:
        self.add(what, value, unit, f"limit {limit:g} {unit}", limit)

    def beside(self, what: str, value: float, unit: str, theirs: float) -> None:
        self.add(f"{what}, beside", value, unit, f"{peer_name()}: {theirs:.4g} {unit}", theirs)

    def load(self, part: str) -> None:
        self.add(f"load average before {part}", os.getloadavg()[0], "")


def measure_wakes(bench: Scale, figures: Figures, options: argparse.Namespace) -> None:
    figures.load("wakes one by one")
    bench.start_ours()
    say(f"making {FEW * (FEW_REPLICAS + FEW_GUARDS)} pods of {FEW} ModelServices")
    bench.make(few())
    say(f"waking one guard at a time, {options.samples} times")
    claims, commands = bench.one_by_one(options.samples, True)
    bench.await_settled()
    bench.stop_operator()
    say("the same, by the other operator, half as often")
    bench.start_peer()
    time.sleep(20)
    their_claims, _ = bench.one_by_one(options.samples // 2, False)
    bench.stop_operator()
    label = "scale patch to wake command"
    figures.limited(f"{label}, median ms, 500 pods", percentile(commands, 0.5) * 1e3, "ms", 20)
    figures.limited(f"{label}, p99 ms, 500 pods", percentile(commands, 0.99) * 1e3, "ms", 60)
    for what, call in (("scale patch", 0), ("claim", 1)):
        took = [x[call].ended - x[call].begun for x in bench.api_calls]
        label = f"the API server's own time for the {what}, median ms, 500 pods"
        figures.add(label, percentile(took, 0.5) * 1e3, "ms")
    label = "scale patch to claim of the guard"
    for name, share in (("median", 0.5), ("p99", 0.99)):
        ours, theirs = (percentile(x, share) * 1e3 for x in (claims, their_claims))
        figures.beside(f"{label}, {name} ms, 500 pods", ours, "ms", theirs)


def measure_size(bench: Scale, figures: Figures, options: argparse.Namespace) -> None:
    agents = bench.agents
    assert agents
    figures.load(f"{PODS} pods")
    say(f"making {PODS} pods of {SERVICES} ModelServices")
    bench.start_ours()
    bench.make(all_services())
    size = f"{PODS} pods {SERVICES} services"
    idle = bench.cpu_percent(options.seconds)
    resident = bench.memory_mb("VmRSS")
    say("waking a hundred guards at once")
    claimed, commanded = bench.all_at_once(options.rounds, True)
    bench.await_settled()
    agents.report_always(True)
    time.sleep(agents.every_s)  # Each once.
    reports, connections = agents.reports, agents.connections
    reporting = bench.cpu_percent(options.seconds)
    reports, connections = agents.reports - reports, agents.connections - connections
    resident = max(bench.memory_mb("VmRSS"), resident)
    agents.report_always(False)
    bench.stop_operator()

    say("the same, by the other operator")
    bench.start_peer()
    time.sleep(40)
    their_idle = bench.cpu_percent(options.seconds)
    their_claimed, _ = bench.all_at_once(options.rounds, False)
    their_resident = bench.memory_mb("VmRSS")
    check_peer(bench)

    figures.limited(f"resident MB, {size}", resident, "MB", 150)
    figures.beside(f"resident MB, {size}", resident, "MB", their_resident)
    figures.limited(f"steady CPU, % of a core, {size}", idle, "%", 2)
    figures.beside(f"steady CPU, % of a core, {size}", idle, "%", their_idle)
    figures.limited(f"steady CPU, % of a core, {size}, all agents reporting", reporting, "%", 2)
    figures.add("reports taken in that time", reports / options.seconds, "/s")
    figures.add("TLS connections made in that time", connections / options.seconds, "/s")
    what = f"{WIDE_GUARDS} guards: scale patch to the last"
    figures.limited(f"{what} wake command, slowest of {options.rounds}", commanded, "s", 1)
    figures.beside(f"{what} claim, slowest of {options.rounds}", claimed, "s", their_claimed)


def check_peer(bench: Scale) -> None:
    """It is an operator: it makes what it is asked for."""
    bench.cluster.apply([guarded("fresh", 2, 1)])
    selector = "rouse.dev/modelservice=fresh"
    wait_until(
        "the other operator's pods",
        30,
        lambda: len(bench.cluster.list("pods", NAMESPACE, selector)) == 3,
        0.5,
    )


if __name__ == "__main__":
    main()
