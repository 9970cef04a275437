"""Starting and ending processes so that only our own are ever touched.

A pid alone says nothing once its process has ended: the kernel gives it to somebody else. So a
process is remembered by its pid and the time it started, and is signalled through a pidfd that
was checked against both.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import time
from dataclasses import asdict, dataclass
from pathlib import Path


def start_time(pid: int) -> int | None:
    """When `pid` started, in clock ticks since boot; None if there is no such process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()  # the name may hold spaces and parentheses
    return None if fields[0] in "ZX" else int(fields[19])


@dataclass(frozen=True)
class Identity:
    """One process, this very one."""

    name: str
    pid: int
    started: int

    def alive(self) -> bool:
        return start_time(self.pid) == self.started

    def end(self, grace: float) -> None:
        """SIGTERM, then SIGKILL after `grace` seconds; returns when the process is gone."""
        try:
            handle = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return
        try:
            if not self.alive():
                return
            for number, patience in ((signal.SIGTERM, grace), (signal.SIGKILL, 30.0)):
                if number == signal.SIGTERM and grace <= 0:
                    continue
                signal.pidfd_send_signal(handle, number)
                if select.select([handle], [], [], patience)[0]:
                    return
            raise RuntimeError(f"{self.name} (pid {self.pid}) did not end after SIGKILL")
        except ProcessLookupError:
            return
        finally:
            os.close(handle)


class Processes:
    """The processes of one cluster, remembered in a file so that another run can end them."""

    def __init__(self, folder: Path, keep: bool = False) -> None:
        """`keep`: they outlive this program; else the kernel ends them when it dies."""
        self.folder, self.keep = folder, keep
        self.children: dict[str, subprocess.Popen] = {}
        self.known: dict[str, Identity] = {}
        self._started: dict[str, tuple[list[str], dict]] = {}
        self._record = folder / "processes.json"
        if self._record.exists():
            for entry in json.loads(self._record.read_text()):
                self.known[entry["name"]] = Identity(**entry)

    def start(self, name: str, command: list[str], **options) -> Identity:
        given = command
        if not self.keep:
            command = ["setpriv", "--pdeathsig", "KILL", "--", *command]
        with open(self.folder / f"{name}.log", "ab") as log:
            child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C in the terminal ends us, and we end them
                **options,
            )
        started = start_time(child.pid)
        if started is None:
            raise RuntimeError(f"{name} ended at once; see {self.folder / f'{name}.log'}")
        identity = Identity(name, child.pid, started)
        self.children[name], self.known[name] = child, identity
        self._started[name] = (given, options)
        self._save()
        return identity

    def start_again(self, name: str) -> Identity:
        """One that has ended, as it was started."""
        command, options = self._started[name]
        return self.start(name, command, **options)

    def _save(self) -> None:
        partial = self._record.with_suffix(".partial")
        partial.write_text(json.dumps([asdict(x) for x in self.known.values()]))
        partial.rename(self._record)

    def alive(self, name: str) -> bool:
        child = self.children.get(name)
        if child is not None and child.poll() is not None:
            return False
        return name in self.known and self.known[name].alive()

    def end(self, name: str, grace: float = 5.0) -> None:
        identity = self.known.pop(name, None)
        if identity:
            identity.end(grace)
        child = self.children.pop(name, None)
        if child:
            child.wait()
        self._save()

    def end_all(self, grace: float = 3.0) -> None:
        """Last started, first ended. Does not stop at the first that resists."""
        failures = []
        for name in reversed(list(self.known)):
            try:
                self.end(name, grace)
            except RuntimeError as error:
                failures.append(str(error))
        if failures:
            raise RuntimeError("; ".join(failures))


def tail(path: Path, lines: int = 20) -> str:
    try:
        with open(path, "rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - 64 * 1024))
            text = file.read().decode(errors="replace")
    except OSError as error:
        return f"({error})"
    return "\n".join(text.splitlines()[-lines:])


class Timeout(RuntimeError):
    pass


def wait_until(what: str, seconds: float, condition, every: float = 0.1):
    """The first true answer of `condition()`; raises Timeout that says what was waited for."""
    deadline = time.monotonic() + seconds
    while True:
        answer = condition()
        if answer:
            return answer
        if time.monotonic() > deadline:
            raise Timeout(f"waited {seconds:.0f} s in vain for {what}")
        time.sleep(every)
