"""Forks the tests' programs from one process that has imported vLLM, so that each of them need not.

zygote.py FD MODEL imports all that rouse-launch imports for this model, and forks what it is asked for
on the socket FD: a launcher like rouse-launch, but for one start of its engine. That is an offline
engine (engine.py) or `vllm serve`, whose other processes are forked too. Forked is one of them, in
the test that wants it. What only a fresh interpreter shows (another plugin or environment, the
imports themselves) is started by its own program instead.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
from pathlib import Path

CPU_ENVIRONMENT = {
    "TORCHDYNAMO_DISABLE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    # A thread that waits for another leaves its core to it: engines share few cores.
    "OMP_WAIT_POLICY": "PASSIVE",
}

_MAX_REQUEST = 1 << 16


# ---- In a test


class Forked:
    """A program that was forked, with the part of subprocess.Popen that the tests use. Its standard
    error goes where its output goes; its environment is the tests' with CPU_ENVIRONMENT."""

    def __init__(self, program: str, model: Path, *arguments: str) -> None:
        """`program`: engine or serve; `model`: whose modules are imported early, if it is the first."""
        zygote = _zygote(str(model))
        stdin, stdin_w = os.pipe()
        stdout_r, stdout = os.pipe()
        self._status, status = os.pipe()
        socket.send_fds(
            zygote, [json.dumps([program, *arguments]).encode()], [stdin, stdout, status]
        )
        for fd in (stdin, stdout, status):
            os.close(fd)
        pid = zygote.recv(32)
        assert pid, "the zygote has ended"
        self.pid = int(pid)
        self.stdin = os.fdopen(stdin_w, "w")
        self.stdout = os.fdopen(stdout_r, errors="replace")
        self.returncode: int | None = None

    def poll(self) -> int | None:
        try:
            return self.wait(0)
        except subprocess.TimeoutExpired:
            return None

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            poll = select.poll()
            poll.register(self._status, select.POLLIN)
            if not poll.poll(None if timeout is None else timeout * 1000):
                raise subprocess.TimeoutExpired("a forked program", timeout or 0)
            told = os.read(self._status, 1)
            os.close(self._status)
            self.returncode = told[0] if told else -signal.SIGKILL
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


_control: socket.socket | None = None


def _zygote(model: str) -> socket.socket:
    """Where this process's zygote is asked, which ends with it. The first call starts it."""
    global _control
    if _control is None:
        _control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        environment = os.environ | CPU_ENVIRONMENT
        environment.pop("ROUSE_IMPORTED_AT_US", None)  # when this process imported the plugin
        subprocess.Popen(
            [sys.executable, __file__, str(theirs.fileno()), model],
            env=environment,
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
        )
        theirs.close()
    return _control


# ---- In the zygote


def main() -> None:
    from rouse_vllm import fork, preload

    control = socket.socket(fileno=int(sys.argv[1]))
    reasons = preload.import_all(sys.argv[2], lambda text: print(text, file=sys.stderr))
    if reasons:
        raise SystemExit("; ".join(reasons))
    fork.prepare_to_fork()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # Who asked hears of the end from the program itself.
    while True:
        request, fds, _, _ = socket.recv_fds(control, _MAX_REQUEST, 3)
        if not request:
            return
        pid = os.fork()
        if pid == 0:
            control.close()
            run(json.loads(request), *fds)
        for fd in fds:
            os.close(fd)
        control.send(str(pid).encode())


def run(request: list[str], stdin: int, stdout: int, status: int) -> None:
    """In a process of its own: the program, to its end."""
    import engine

    from rouse_vllm import forkserver, launch

    class Once(launch.Launcher):
        def _go_on(self) -> bool:
            return False

    # An offline engine kills what it has started when it ends, be it that nobody asked the launcher for that.
    launch._KEPT_ALIVE = True
    launch._prctl(launch._PR_SET_PDEATHSIG, signal.SIGKILL)
    launch._prctl(launch._PR_SET_CHILD_SUBREAPER, 1)
    for fd, place in ((stdin, 0), (stdout, 1), (stdout, 2)):
        os.dup2(fd, place)
    os.close(stdin)
    os.close(stdout)
    os.set_inheritable(status, False)
    program, *arguments = request
    if program == "serve":
        job: launch.Job = lambda: launch._serve(arguments)  # noqa: E731
    else:
        job = lambda: engine.main(*arguments)  # noqa: E731
    outcome = Once(job, forkserver.open_channel()).run()
    if isinstance(outcome, int):
        os.write(status, bytes([outcome]))
        os._exit(outcome)
    os.close(status)
    sys.exit(outcome())  # type: ignore[arg-type]


if __name__ == "__main__":  # Processes of an engine import this file again.
    main()
