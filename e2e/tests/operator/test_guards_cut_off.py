"""Guards and replicas while the operator is cut off from one side, and when the cluster's state goes back."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from rouse_e2e.processes import wait_until

from .conftest import World
from .fake_faulty_proxy import FakeFaultyProxy, Hook
from .modelservice import pods, ready, uids
from .test_guards import Start, note, role, start, world

__all__ = ["start", "world"]  # fixtures, used by their names

#: A leader gives up and another leads within seconds.
QUICK_LEASE = ("--lease-duration=6s", "--lease-renew-deadline=4s", "--lease-retry=1s")
#: The leader outlasts the restarts of a test.
LONG_LEASE = ("--lease-duration=300s", "--lease-renew-deadline=280s", "--lease-retry=2s")


@pytest.mark.timeout(180)
def test_cut_off_from_agents_it_takes_nothing_away_and_starts_what_it_cannot_wake(
    operator, start: Start
):
    m = start(operator, 2)
    before = m.wait(2)
    m.agents.cut_off = True
    m.scale(3)
    pod = wait_until("another pod", 30, lambda: pods(m.cluster, m.namespace).get("m-3"))
    assert note(pod, "path-reason").startswith("Wake: m-2 could not be woken: ")
    time.sleep(20)
    meanwhile = pods(m.cluster, m.namespace)
    assert uids(before) < uids(meanwhile) and len(meanwhile) == 4
    assert all(ready(meanwhile[x]) for x in ("m-0", "m-1"))
    assert role(meanwhile["m-2"]) == "Guard", "the claim was to be undone"
    m.agents.cut_off = False
    assert uids(m.wait(3)) == uids(meanwhile)
    assert m.agents.told("Active") == []


@pytest.mark.timeout(180)
def test_cut_off_from_the_api_server_it_tells_agents_nothing_and_goes_on_where_it_was(
    make_operator, start: Start, proxy: FakeFaultyProxy
):
    operator = make_operator("operator-0", proxy.url, *QUICK_LEASE).start()
    m = start(operator)
    before = m.wait(1)
    told = len(m.agents.commands)
    proxy.rule = lambda request: Hook(swallow=True)
    time.sleep(2)  # It has noticed: it renews every second. What it watches, it still hears.
    m.scale(2)
    wait_until("the leader to give up", 30, lambda: operator.exits)
    time.sleep(10)
    assert len(m.agents.commands) == told
    assert uids(pods(m.cluster, m.namespace)) == uids(before)
    proxy.rule = lambda request: None
    after = m.wait(2, 1, 60)
    assert uids(before) < uids(after)
    assert {x.pod for x in m.agents.told("Active")} == {"m-1"}


@pytest.mark.timeout(180)
def test_a_guard_that_was_told_as_the_api_server_went_away_is_the_one_that_is_claimed_later(
    make_operator, start: Start, proxy: FakeFaultyProxy
):
    operator = make_operator("operator-0", proxy.url, *QUICK_LEASE).start()
    m = start(operator)
    before = m.wait(1)
    m.agents.wake_seconds = 5
    # Nothing that it writes arrives but what it leads by, until the guard was told.
    proxy.rule = lambda request: Hook(swallow=request.write and request.resource != "leases")
    m.scale(2)
    wait_until("the command", 20, lambda: m.agents.told("Active"))
    proxy.rule = lambda request: Hook(swallow=True)
    wait_until("the leader to give up", 30, lambda: operator.exits)
    assert (
        m.cluster.get("pod", "m-1", m.namespace)["metadata"]["labels"]["rouse.dev/role"] == "Guard"
    )
    proxy.rule = lambda request: None
    after = m.wait(2, 1, 60)
    assert uids(before) < uids(after)
    assert {x.pod for x in m.agents.told("Active")} == {"m-1"}


@pytest.mark.timeout(400)
def test_an_etcd_that_was_restored_from_a_backup_is_followed_without_a_restart(
    world: World, make_operator, start: Start, tmp_path: Path
):
    """Its versions are those of the past; whoever watches from a later one hears nothing any more."""
    operator = make_operator("operator-0", "", "--watch-silence=5s", *LONG_LEASE).start()
    m = start(operator, 2)
    before = m.wait(2)
    cluster, backup = world.cluster, tmp_path / "etcd"
    data = cluster.folder / "etcd"

    def with_etcd_ended(act: Callable[[], object]) -> None:
        cluster.control_plane.end_all_but_etcd()
        cluster.processes.end("etcd")
        act()
        cluster.control_plane.start()

    def restore() -> None:
        shutil.rmtree(data)
        shutil.copytree(backup, data)

    with_etcd_ended(lambda: shutil.copytree(data, backup))
    m.scale(1)
    assert m.wait(1, 1, 60).keys() == {"m-0", "m-2"}
    with_etcd_ended(restore)
    # What was scaled in is there again, and wanted; the guard may have been woken for it meanwhile.
    after = m.wait(2, 1, 120)
    for name in ("m-0", "m-1"):
        assert after[name]["metadata"]["uid"] == before[name]["metadata"]["uid"]
        assert role(after[name]) == "Active"
    assert operator.starts == 1, "it was to learn of the past without a restart"
