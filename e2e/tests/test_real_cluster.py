"""The cluster of the tests itself: it must not leave anything on the machine."""

from __future__ import annotations

import glob
import json
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from rouse_e2e import paths
from rouse_e2e.cluster import Cluster, wait_until
from rouse_e2e.leftovers import open_files
from rouse_e2e.light import LightCluster
from rouse_e2e.real import nodes_folder, sweep

OWNER = """
import signal, sys, time
# A shell that starts the tests in the background has SIGINT ignored, and so would we.
signal.signal(signal.SIGINT, signal.default_int_handler)
from rouse_e2e.real import RealCluster
RealCluster(sys.argv[1])
print("up", flush=True)
time.sleep(600)
"""


def traces(name: str) -> list[str]:
    """Everything on the machine that belongs to cluster `name`."""
    # Unlike Path.glob, it does not fail where another cluster removes a cgroup meanwhile.
    found = glob.glob(f"/sys/fs/cgroup/**/rouse-{name}", recursive=True)
    found += [str(x) for x in nodes_folder().glob(name)]
    found += [x for x in Path("/proc/mounts").read_text().splitlines() if f"/{name}/" in x]
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if f"/nodes/{name}".encode() in (process / "cmdline").read_bytes():
                found.append(f"process {process.name}")
        except OSError:
            pass
    return found


@pytest.mark.timeout(400)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT], ids=["SIGKILL", "SIGINT"])
def test_a_cluster_whose_program_is_ended_leaves_nothing(number: signal.Signals):
    name = f"test-{os.getpid()}-{number.name.lower()}"
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, name],
        cwd=paths.E2E,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert owner.stdout and owner.stdout.readline() == "up\n"
    assert traces(name)
    owner.send_signal(number)
    owner.wait(60)
    processes = [x for x in traces(name) if x.startswith("process")]
    wait_until(
        f"{processes} to end",
        20,
        lambda: not [x for x in traces(name) if x.startswith("process")],
    )
    sweep()
    assert traces(name) == []


@pytest.mark.parametrize("other", ["sweep()", "take_down(Path(sys.argv[1]))"])
def test_two_that_remove_a_node_at_the_same_time_do_not_trip_over_each_other(other: str):
    left = nodes_folder() / f"test-{os.getpid()}-left"
    for number in range(200):
        folder = left / "root" / str(number)
        folder.mkdir(parents=True)
        for name in range(20):
            (folder / str(name)).touch()
    # Its owner ended a moment ago.
    ended = subprocess.Popen(["true"])
    ended.wait()
    (left / "owner.json").write_text(json.dumps(["test", ended.pid, 0]))
    imports = "import sys; from pathlib import Path; from rouse_e2e.real import sweep, take_down; "
    both = [
        subprocess.Popen([sys.executable, "-c", imports + what, str(left)], cwd=paths.E2E)
        for what in ("sweep()", other)
    ]
    assert [process.wait(60) for process in both] == [0, 0]
    assert not left.exists()


def test_threads_that_ask_at_the_same_time_get_the_same_proxy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    slow = tmp_path / "kubectl"
    slow.write_text("#!/bin/sh\nsleep 0.3\necho Starting to serve on 127.0.0.1:$$\nexec sleep 60\n")
    slow.chmod(0o755)
    monkeypatch.setattr(paths, "tool", lambda name: str(slow))
    with Cluster(tmp_path / "none") as cluster, ThreadPoolExecutor(4) as threads:
        urls = list(threads.map(lambda _: cluster.proxy_url(), range(4)))
    assert len(set(urls)) == 1 and urls[0].startswith("http://127.0.0.1:")


def test_a_light_cluster_leaves_inotify_instances_to_others():
    """A user has 128 of them by default; a kubelet that gets none ends, and a dozen clusters run."""
    with LightCluster() as cluster:
        folders = [Path(f"/proc/{x.pid}") for x in cluster.processes.known.values()]
        targets = [target for folder in folders for target in open_files(folder)]
        assert 1 <= targets.count("anon_inode:inotify") <= 4


def test_open_files_are_listed_while_some_are_closed():
    done = threading.Event()

    def open_and_close() -> None:
        while not done.is_set():
            for descriptor in [os.open("/dev/null", os.O_RDONLY) for _ in range(50)]:
                os.close(descriptor)

    churn = threading.Thread(target=open_and_close)
    churn.start()
    try:
        with open(__file__) as kept:
            assert all(kept.name in open_files(Path("/proc/self")) for _ in range(200))
    finally:
        done.set()
        churn.join()
