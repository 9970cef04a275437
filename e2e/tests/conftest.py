"""Fixtures that every end-to-end test may use. Tests fail, never skip, if a part is missing."""

from __future__ import annotations

import os
import re
import shutil
import sys
import time
from pathlib import Path

import pytest
from xdist.scheduler.loadscope import LoadScopeScheduling

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rouse_e2e import paths  # noqa: E402
from rouse_e2e.cluster import Cluster, CurrentCluster, interrupt_on_terminate  # noqa: E402
from rouse_e2e.real import RealCluster  # noqa: E402
from rouse_e2e.story import Story  # noqa: E402

#: The files whose tests take longest, which begin: those with engines, then those that mostly wait.
LONGEST = (
    "test_story_faults.py",
    "test_story.py",
    "test_pages.py",
    "test_faults.py",
    "test_guards.py",
    "test_scale.py",
)
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


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--cluster") == "kubeconfig":
        # These slow down and kill things on the node, which only a node of our own allows.
        left_out = [x for x in items if x.path.name == "test_story_faults.py"]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [x for x in items if x not in left_out]
    order = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.name, len(order)))


class ByFile(LoadScopeScheduling):
    """One file after the other for each worker, in the order of their tests."""

    def _split_scope(self, nodeid: str) -> str:
        return nodeid.partition("::")[0]


def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> ByFile:
    return ByFile(config, log)


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
