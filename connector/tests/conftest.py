"""Puts this folder on the path, so that the tests find what they share, and deals them out to workers."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
pytest.register_assert_rewrite("loading")

#: Files whose tests one worker shall do: they share engines, or the process that those are forked from.
#: They take longest and begin; whoever has nothing to do takes one of the other tests.
GROUPS = {
    "test_engine.py": "forked",
    "test_guard.py": "forked",
    "test_sleep.py": "forked",
    "test_launch.py": "launched",
    "test_state.py": "compiled",
}


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    from xdist.scheduler.loadscope import LoadScopeScheduling

    class ByGroup(LoadScopeScheduling):
        """The groups of most tests first."""

        def _split_scope(self, nodeid: str) -> str:
            return GROUPS.get(Path(nodeid.partition("::")[0]).name, nodeid)

    return ByGroup(config, log)
