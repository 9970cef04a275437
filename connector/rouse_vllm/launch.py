"""rouse-launch: `python3 -m rouse_vllm.launch MODEL …`, with the arguments of `vllm serve`.

Imports torch and vLLM once, in a process with one thread and without CUDA, and forks `vllm serve`
from it; the engine's other processes are forked there too (forkserver.py). When the engine ends
without having been asked to, whatever it left behind is killed, and a new one is forked at once. The
container's first process: SIGTERM and SIGINT go to `vllm serve`, orphans are reaped, and nothing
that the engine started outlives it.

Where this process may not fork, `vllm serve` is started as a program of its own, and the log says
why; what else is said above holds then too.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from rouse_vllm import fork, forkserver, preload

#: Waits before a new engine, in seconds. More crashes than that within the window are the kubelet's.
RESTART_DELAYS_S = (0.0, 1.0, 5.0)
RESTART_WINDOW_S = 600.0

#: vLLM ends when a process of its engine did, but looks for that every five seconds only. It is asked to
#: end this much after.
_LOST_S = 0.5

#: And it is killed this much after: while it starts it hears of nothing, and waits ten minutes for one that
#: is gone.
_STUCK_S = 5.0

#: What multiprocessing's resource tracker may take to remove the shared memory of killed processes.
_TRACKER_S = 5.0

#: vLLM's own variable: its API shall go on without an engine.
_KEPT_ALIVE = os.environ.get("VLLM_KEEP_ALIVE_ON_ENGINE_DEATH", "0") not in ("", "0")

_SPAWN = "--rouse-spawn"  # Our own first argument: do not fork.

#: The signals that wake the launcher, and what they do in a new process.
_HANDLERS = {
    signal.SIGTERM: signal.SIG_DFL,
    signal.SIGINT: signal.default_int_handler,
    signal.SIGCHLD: signal.SIG_DFL,
}

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36

#: What a process goes on with that left the launcher's loop.
Job = Callable[[], object]


def restart_delay(crashes: Sequence[float], now: float) -> float | None:
    """Seconds until the next engine, None: none. `crashes` is when engines ended unasked, the last one
    among them, in seconds."""
    recent = sum(1 for at in crashes if now - at < RESTART_WINDOW_S)
    return RESTART_DELAYS_S[recent - 1] if 0 < recent <= len(RESTART_DELAYS_S) else None


class Launcher:
    """Keeps an engine running. run() also returns in each process that it forks, with its job."""

    def __init__(self, engine: Job, server: socket.socket | None) -> None:
        """`server`: where requests for processes arrive, None: they do not."""
        self._engine_job = engine
        self._server = server
        self._engine = 0  # pid; 0: there is none
        self._engine_code = 0  # of the last one that ended
        self._restart_at: float | None = None
        self._lost_at: float | None = None  # when a process of the engine died
        self._told_to_end = False  # the engine was, be it by us
        self._crashes: list[float] = []
        self._asked_to_end = False
        self._answers: dict[int, int] = {}  # of a process, the pipe that its exit code goes to
        self._pid = os.getpid()
        self._wake_r, self._wake_w = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        for number in _HANDLERS:
            signal.signal(number, lambda *_: None)
        signal.set_wakeup_fd(self._wake_w, warn_on_full_buffer=False)

    def run(self) -> Job | int:
        """The exit status, or in a forked process what it shall do."""
        self._restart_at = time.monotonic()
        while True:
            if self._restart_at is not None and time.monotonic() >= self._restart_at:
                self._restart_at = None
                self._engine = self._fork()
                if self._engine == 0:
                    return self._engine_job
            self._see_to_loss(time.monotonic())
            ready = self._wait()
            if self._wake_r in ready:
                self._take_signals()
            if self._reap():
                _say(f"the engine ended with {self._engine_code}")
                self._end_all()
                self._lost_at, self._told_to_end = None, False
                if not self._go_on():
                    return self._engine_code if self._engine_code >= 0 else 128 - self._engine_code
            elif self._asked_to_end and self._engine == 0:
                return 0
            elif self._server is not None and self._server.fileno() in ready:
                job = self._serve()
                if job is not None:
                    return job

    def _wait(self) -> list[int]:
        fds = [self._wake_r]
        if self._server is not None:
            fds.append(self._server.fileno())
        limit = _STUCK_S if self._told_to_end else _LOST_S
        due = [self._restart_at, self._lost_at and self._lost_at + limit]
        waits = [max(0.0, at - time.monotonic()) for at in due if at is not None]
        return select.select(fds, [], [], min(waits, default=None))[0]

    def _see_to_loss(self, now: float) -> None:
        """An engine without one of its processes is told to end, then killed."""
        if self._lost_at is None:
            return
        if now >= self._lost_at + _STUCK_S:
            _say("the engine goes on without a process that has ended, and is killed")
            self._lost_at = None
            self._signal_engine(signal.SIGKILL)
        elif now >= self._lost_at + _LOST_S and not self._told_to_end:
            self._told_to_end = True
            self._signal_engine(signal.SIGTERM)

    def _take_signals(self) -> None:
        for number in os.read(self._wake_r, 4096):
            if number in (signal.SIGTERM, signal.SIGINT):
                self._asked_to_end = self._told_to_end = True
                self._signal_engine(number)

    def _signal_engine(self, number: int) -> None:
        if self._engine != 0:
            os.kill(self._engine, number)

    def _reap(self) -> bool:
        """Takes the exit codes of all that ended. True: the engine did."""
        engine_ended = False
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return engine_ended
            if pid == 0:
                return engine_ended
            code = os.waitstatus_to_exitcode(status)
            if pid == self._engine:
                self._engine, self._engine_code, engine_ended = 0, code, True
            answer = self._answers.pop(pid, None)
            if answer is not None:
                forkserver.tell(answer, code)
                os.close(answer)
                lost = code not in (0, -signal.SIGTERM)
                if lost and not _KEPT_ALIVE:
                    self._lost_at = self._lost_at or time.monotonic()

    def _go_on(self) -> bool:
        """After the engine has ended: will there be another one?"""
        if self._asked_to_end:
            return False
        now = time.monotonic()
        self._crashes.append(now)
        delay = restart_delay(self._crashes, now)
        if delay is None:
            _say(f"it ended {len(self._crashes)} times unasked; this process ends too")
            return False
        _say(f"a new one starts in {delay:.0f} s")
        self._restart_at = now + delay
        return True

    def _end_all(self) -> None:
        """Nothing of an engine may be left when the next one starts, in a GPU's memory least of all."""
        deadline = time.monotonic() + _TRACKER_S
        while True:
            left = descendants(self._pid)
            for pid in left:
                if time.monotonic() >= deadline or not _is_resource_tracker(pid):
                    _kill(pid)
            self._reap()
            if not left:
                break
            time.sleep(0.01)
        while self._server is not None and select.select([self._server], [], [], 0)[0]:
            request = forkserver.receive(self._server)
            if request is not None:
                request.close()

    def _serve(self) -> Job | None:
        """Forks the process that somebody asks for; in it, returns its job."""
        assert self._server is not None
        request = forkserver.receive(self._server)
        if request is None:
            return None
        pid = self._fork()
        if pid == 0:
            return lambda: forkserver.become(request)
        forkserver.tell(request.answer, pid)
        self._answers[pid] = os.dup(request.answer)
        request.close()
        return None

    def _fork(self) -> int:
        sys.stdout.flush()
        sys.stderr.flush()
        # A signal must find the child's own handlers.
        signal.pthread_sigmask(signal.SIG_BLOCK, _HANDLERS)
        try:
            pid = os.fork()
            if pid == 0:
                self._leave()
            return pid
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _HANDLERS)

    def _leave(self) -> None:
        """In a new process: it is not the launcher."""
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != self._pid:
            os._exit(1)  # It died before.
        signal.set_wakeup_fd(-1)
        for number, handler in _HANDLERS.items():
            signal.signal(number, handler)
        for fd in (self._wake_r, self._wake_w, *self._answers.values()):
            os.close(fd)
        if self._server is not None:
            self._server.close()
        if "numpy" in sys.modules:
            sys.modules["numpy"].random.seed()  # `random` does so by itself.


def descendants(root: int) -> list[int]:
    """All processes below this one."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdecimal():
            try:
                fields = Path("/proc", entry, "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue  # It has ended.
            children.setdefault(int(fields[1]), []).append(int(entry))
    found = []
    todo = [root]
    while todo:
        below = children.get(todo.pop(), [])
        found += below
        todo += below
    return found


def _is_resource_tracker(pid: int) -> bool:
    try:
        return b"multiprocessing.resource_tracker" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def _prctl(option: int, value: int) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl {option}")


def _say(text: str) -> None:
    print(f"Rouse launcher: {text}", file=sys.stderr, flush=True)


def _serve(arguments: list[str]) -> object:
    """In the forked process: `vllm serve`."""
    sys.argv = ["vllm", "serve", *arguments]
    from vllm.entrypoints.cli.main import main as vllm_main

    return vllm_main()


def _run(module: str, *arguments: str) -> None:
    """Goes on as another module of this Python. The working folder stays out of its path, as it is
    out of that of a program such as `vllm`."""
    safe = ["-P"] if sys.version_info >= (3, 11) else []
    os.execv(sys.executable, [sys.executable, *safe, "-m", module, *arguments])


def _spawn(arguments: list[str]) -> object:
    return _run("vllm.entrypoints.cli.main", "serve", *arguments)


def main() -> None:
    arguments = sys.argv[1:]
    if not getattr(sys.flags, "safe_path", False):
        del sys.path[0]  # The working folder, see _run().
    if any(a.split("=")[0] in ("-h", "--help", "-v", "--version") for a in arguments):
        _spawn(arguments)
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    # A container's first process ignores what it does not handle.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(128 + signal.SIGTERM))
    server: socket.socket | None = None
    if arguments[:1] == [_SPAWN]:
        arguments = arguments[1:]
        job: Job = lambda: _spawn(arguments)  # noqa: E731
    else:
        started = time.monotonic()
        reasons = preload.import_all(arguments[0] if arguments else "", _say)
        if reasons:
            why = "; ".join(reasons)
            _say(f"vllm serve is spawned, not forked: {why}")
            os.environ[fork.SPAWNED_VARIABLE] = why
            # Anew, so that this process keeps no CUDA context.
            _run("rouse_vllm.launch", _SPAWN, *arguments)
        fork.prepare_to_fork()
        server = forkserver.open_channel()
        _say(f"imported all in {time.monotonic() - started:.1f} s; engines are forked from here")
        job = lambda: _serve(arguments)  # noqa: E731
    outcome = Launcher(job, server).run()
    if isinstance(outcome, int):
        os._exit(outcome)
    sys.exit(outcome())  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
