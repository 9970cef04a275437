"""The operator's clock is set forward or back while it works; everybody else's goes on as it was.

Debian's libfaketime adds to what the process reads from the wall clock. The monotonic clock is left
alone, as it is on a machine whose clock is set.
"""

from __future__ import annotations

import json
import time
from datetime import datetime
from pathlib import Path

import pytest

from .conftest import Operator
from .modelservice import pods, ready, uids
from .test_guards import Start, role, start, world

__all__ = ["start", "world"]  # fixtures, used by their names

LIBRARY = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1")
MINUTE, DAY = 60, 86_400


class Clock:
    """Of one operator, which is not started yet."""

    def __init__(self, operator: Operator, folder: Path) -> None:
        self.operator, self.file = operator, folder / "clock"
        self.set(0)
        operator.environment = {
            "LD_PRELOAD": str(LIBRARY),
            "FAKETIME_TIMESTAMP_FILE": str(self.file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }

    def set(self, seconds: int) -> None:
        """Off by so much from now on."""
        partial = self.file.with_suffix(".partial")
        partial.write_text(f"{seconds:+d}s\n")
        partial.rename(self.file)

    def seen(self, seconds: int) -> bool:
        """Whether its own log, which is written when it acts, was off by so much."""
        lines = self.operator.log.read_bytes().splitlines()
        times = [datetime.fromisoformat(json.loads(x)["time"]).timestamp() for x in lines]
        return any(abs(y - x - seconds) < MINUTE for x, y in zip(times, times[1:]))


@pytest.fixture
def clock(make_operator, tmp_path: Path) -> Clock:
    return Clock(make_operator(), tmp_path)


@pytest.mark.timeout(180)
@pytest.mark.parametrize("seconds", [4 * MINUTE, -4 * MINUTE], ids=["forward", "back"])
def test_a_step_of_minutes_changes_nothing(clock: Clock, start: Start, seconds: int):
    """Within the skew that certificates allow for."""
    m = start(clock.operator.start(), 2)
    before = m.wait(2)
    clock.set(seconds)
    m.scale(3)
    woken = m.wait(3)
    assert uids(before) < uids(woken)
    assert [x.pod for x in m.agents.told("Active")] == ["m-2"]
    clock.set(0)
    m.scale(2)
    after = m.wait(2)
    assert after.keys() < woken.keys()
    assert clock.seen(seconds) and clock.operator.starts == 1


@pytest.mark.timeout(240)
@pytest.mark.parametrize("seconds", [2 * DAY, -2 * DAY], ids=["forward", "back"])
def test_a_jump_of_days_takes_nothing_away_and_is_over_when_the_clock_is_right(
    clock: Clock, start: Start, seconds: int
):
    """Nobody's certificate is valid for such an operator, nor its own for anybody."""
    m = start(clock.operator.start(), 2)
    before = m.wait(2)
    clock.set(seconds)
    m.scale(3)
    stop = time.monotonic() + 20
    while time.monotonic() < stop:
        now = pods(m.cluster, m.namespace)
        assert uids(before) <= uids(now), "one of those that were there was taken away"
        assert all(ready(now[x]) for x in ("m-0", "m-1"))
        time.sleep(0.5)
    clock.set(0)
    after = m.wait(3, 1, 90)
    assert {"m-0", "m-1"} <= {x for x, y in after.items() if role(y) == "Active"}
    assert uids(before) & uids(after) >= {before[x]["metadata"]["uid"] for x in ("m-0", "m-1")}
    assert clock.seen(seconds) and clock.operator.starts == 1
