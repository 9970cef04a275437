"""Fixtures that every end-to-end test may use. Tests fail, never skip, if a part is missing."""

from __future__ import annotations

import os
import re
import shutil
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rouse_e2e import paths  # noqa: E402
from rouse_e2e.cluster import Cluster, CurrentCluster, interrupt_on_terminate  # noqa: E402
from rouse_e2e.real import RealCluster  # noqa: E402
from rouse_e2e.story import Story  # noqa: E402

FAILURES = paths.REPOSITORY / "build" / "e2e-failures"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--cluster",
        choices=["real", "kubeconfig"],
        default="real",
        help="where engines run: on a node of our own, or on the current kubeconfig's cluster",
    )


def pytest_configure(config: pytest.Config) -> None:
    interrupt_on_terminate()
    if not hasattr(config, "workerinput"):  # the run itself, none of its workers
        shutil.rmtree(FAILURES, ignore_errors=True)


@pytest.hookimpl(tryfirst=True)  # before xdist looks for its marks
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--cluster") == "kubeconfig":
        # These slow down and kill things on the node, which only a node of our own allows.
        left_out = [x for x in items if x.path.name == "test_story_faults.py"]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [x for x in items if x not in left_out]
    # What needs engines takes longest and shares one cluster: begin with it, by one worker; each
    # other file is a worker's too.
    items.sort(key=lambda item: "installed_story" not in item.fixturenames)
    for item in items:
        engines = "installed_story" in item.fixturenames
        item.add_marker(pytest.mark.xdist_group("engines" if engines else item.path.name))


@pytest.fixture(scope="session")
def build_folder() -> Path:
    """Where CMake put operator, agent and connector: $ROUSE_BUILD, else build/release."""
    return Path(os.environ.get("ROUSE_BUILD", paths.REPOSITORY / "build" / "release"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo):
    report = yield
    if report.when in ("setup", "call") and report.failed:
        clusters = {
            id(x): x
            for value in getattr(item, "funcargs", {}).values()
            for x in (value, getattr(value, "cluster", None))
            if isinstance(x, Cluster)
        }
        for cluster in clusters.values():
            folder = failure_folder(item)
            try:
                cluster.collect(folder)
            except Exception as error:  # the report must still come
                (folder / "collect-error.txt").write_text(repr(error))
            report.sections.append(("collected logs", str(folder)))
    return report


def failure_folder(item: pytest.Item) -> Path:
    name = re.sub(r"[^A-Za-z0-9_.-]+", "_", item.name)[:100]
    folder = FAILURES / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def real_cluster(request: pytest.FixtureRequest):
    """A real kubelet and a real container runtime, for all tests that need engines."""
    if request.config.getoption("--cluster") == "kubeconfig":
        with CurrentCluster() as cluster:
            yield cluster
    else:
        with RealCluster(say=progress) as cluster:
            yield cluster


@pytest.fixture(scope="session")
def installed_story(real_cluster: Cluster):
    """Rouse installed on the real cluster, the checkpoint provided, nothing applied yet."""
    story = Story(real_cluster, progress)
    story.import_images()
    story.install()
    story.provide_checkpoint()
    yield story
    if not isinstance(real_cluster, RealCluster):  # ours is taken down as a whole
        story.uninstall()


def progress(text: str) -> None:
    """Goes to the captured output, which pytest shows for a test that fails."""
    print(f"{time.strftime('%H:%M:%S')}  {text}", flush=True)
