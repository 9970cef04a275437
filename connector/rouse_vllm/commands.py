"""Commands of the agent to an engine core: sleep, wake, capture graphs.

A thread of the engine core's process asks the agent for commands over a connection of its own and has
the engine core's loop carry them out, between two steps. It begins when the loop does: workers have
been forked by then, and nothing may fork after it. An engine core inside its user's own process
(VLLM_ENABLE_V1_MULTIPROCESSING=0) has no such loop, and takes no commands.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, TimeoutError
from dataclasses import dataclass
from typing import Any, TypeVar

import vllm
from vllm.logger import init_logger
from vllm.v1.engine.core import DPEngineCoreProc, EngineCore, EngineCoreProc

from rouse_vllm import LOAD_FORMAT, capture, guard
from rouse_vllm.connection import Connection, check_spoken, close_all, count, text
from rouse_vllm.errors import RouseError, Unsupported
from rouse_vllm.link import Settings
from rouse_vllm.patches import wrap
from rouse_vllm.version import PROTOCOL, PROTOCOL_VERSION

logger = init_logger("vllm.rouse")

#: Between attempts to reach an agent that is not there.
_RETRY_S = 1.0

#: One attempt to connect.
_CONNECT_S = 2.0

#: How long aborted requests may take to go.
_ABORT_S = 60.0

_MAX_ERROR = 4096  # characters

#: Stands in the engine core's input queue where vLLM has the type of a request.
_CALL = object()

T = TypeVar("T")
Values = dict[str, float]


@dataclass(frozen=True)
class Command:
    id: int
    name: str
    fields: dict[str, Any]


class CommandConnection(Connection):
    """The conversation about commands."""

    def attach(self, core: int, cores: int) -> None:
        request = {
            "type": "Attach",
            "protocol": PROTOCOL,
            "version": PROTOCOL_VERSION,
            "pid": os.getpid(),
            "engine": "vllm",
            "engineVersion": vllm.__version__,
            "core": core,
            "cores": cores,
        }
        check_spoken(self.ask(request, "Attached"))

    def next_command(self) -> Command:
        answer, fds = self.ask_until_ready({"type": "AwaitCommand"}, "Command")
        close_all(fds)
        return Command(count(answer, "id"), text(answer, "command"), answer)

    def done(self, command: Command, values: Values) -> None:
        self.ask({"type": "CommandDone", "id": command.id, "ok": True, "values": values}, "Ok")

    def failed(self, command: Command, error: str) -> None:
        report = {"type": "CommandDone", "id": command.id, "ok": False, "error": error[:_MAX_ERROR]}
        self.ask(report, "Ok")


class Commands:
    """Carries out what the agent commands one engine core to do."""

    def __init__(self, core: EngineCoreProc, socket: str) -> None:
        self._core = core
        self._socket = socket
        self._complaint = ""
        parallel = core.vllm_config.parallel_config
        self._index = parallel.data_parallel_rank_local or 0
        self._cores = parallel.data_parallel_size_local
        self._handlers: dict[str, Callable[[Command], Values]] = {
            "Sleep": lambda command: self.sleep(count(command.fields, "drainMs") / 1000),
            "Wake": lambda _: self.wake(),
            "CaptureGraphs": lambda command: self.capture(count(command.fields, "budgetMs") / 1000),
        }

    def run(self) -> None:
        """Serves one agent after the other, until the process ends."""
        while True:
            try:
                connection = CommandConnection(self._socket, _CONNECT_S)
                try:
                    connection.attach(self._index, self._cores)
                    self._complaint = ""
                    while True:
                        self._carry_out(connection, connection.next_command())
                finally:
                    connection.close()
            except RouseError as error:
                if str(error) != self._complaint:
                    self._complaint = str(error)
                    logger.warning("Rouse: the agent gives no commands: %s", error)
            time.sleep(_RETRY_S)

    def _carry_out(self, connection: CommandConnection, command: Command) -> None:
        begun = time.monotonic()
        try:
            handler = self._handlers.get(command.name)
            if handler is None:
                raise Unsupported(f"this plugin does not know the command {command.name}")
            values = handler(command)
        except Exception as error:  # Of vLLM or torch: whatever it is, the agent is to know.
            logger.exception("Rouse: command %s failed", command.name)
            connection.failed(command, str(error) or repr(error))
            return
        values["seconds"] = time.monotonic() - begun
        logger.info("Rouse: command %s done: %s", command.name, values)
        connection.done(command, values)

    def sleep(self, drain_s: float) -> Values:
        """Stops scheduling, lets requests finish for `drain_s` seconds, then has every worker give up
        weights and KV cache. Requests that come from then on wait."""
        if problems := self._on_workers(guard.problem):
            raise Unsupported(f"this instance cannot sleep: {'; '.join(sorted(set(problems)))}")
        try:
            self._drain(drain_s)
        except BaseException:
            self._in_loop(self._core.resume_scheduler)
            raise
        return self._in_loop(self._suspend)

    def wake(self) -> Values:
        """Has every worker take weights and KV cache back, then goes on scheduling."""
        return self._in_loop(self._resume)

    def capture(self, budget_s: float) -> Values:
        """Captures CUDA graphs that were left for later, at least one if any is left."""

        def step() -> tuple[int, int]:
            if self._asleep():
                raise Unsupported("this instance sleeps")
            return self._core.collective_rpc(capture.step, args=(budget_s,))[0]

        captured, left = self._in_loop(step)
        return {"captured": captured, "left": left}

    def _asleep(self) -> bool:
        return getattr(self._core, "rouse_asleep", False)

    def _on_workers(self, ask: Callable[[Any], str]) -> list[str]:
        return [x for x in self._in_loop(lambda: self._core.collective_rpc(ask)) if x]

    def _drain(self, drain_s: float) -> None:
        """As vLLM's own sleep does: caches are reset when nothing runs any more."""
        idle = self._in_loop(lambda: self._core.pause_scheduler("wait"))
        if idle is None:
            return
        try:
            idle.result(timeout=drain_s)
            return
        except TimeoutError:
            pass
        aborted = self._in_loop(
            lambda: None if idle.done() else self._core.pause_scheduler("abort")
        )
        if aborted is not None:
            aborted.result(timeout=_ABORT_S)

    def _suspend(self) -> Values:
        executor = self._core.model_executor
        # From here on vLLM's own wake_up() must not let it compute.
        executor.is_sleeping = True
        self._core.rouse_asleep = True
        ranks = executor.collective_rpc(guard.sleep)
        return {name: sum(rank[name] for rank in ranks) for name in ranks[0]}

    def _resume(self) -> Values:
        executor = self._core.model_executor
        try:
            ranks = executor.collective_rpc(guard.wake)
        except BaseException:
            executor.collective_rpc(guard.sleep_on)
            raise
        executor.is_sleeping = False
        self._core.rouse_asleep = False
        self._core.resume_scheduler()
        return {name: max(rank[name] for rank in ranks) for name in ranks[0]}

    def _in_loop(self, call: Callable[[], T]) -> T:
        """Has the engine core's loop call it, between two steps."""
        result: Future[T] = Future()
        self._core.input_queue.put_nowait((_CALL, (call, result)))
        return result.result()


def _call(call: Callable[[], T], result: Future[T]) -> None:
    try:
        result.set_result(call())
    except BaseException as error:  # The thread that waits has it; the loop goes on.
        result.set_exception(error)


def install() -> None:
    """From now on engine cores of this process ask the agent for commands. Unsupported when this vLLM
    has not the functions that we know."""
    for owner in (EngineCoreProc, DPEngineCoreProc):
        wrap(owner, "run_busy_loop", ("self",), _with_commands)
    wrap(EngineCoreProc, "_handle_client_request", ("self, request_type, request",), _with_calls)
    wrap(EngineCore, "resume_scheduler", ("self",), _unless_asleep)


def _with_commands(run_busy_loop: Any) -> Any:
    def run(self: EngineCoreProc) -> Any:
        load_config = self.vllm_config.load_config
        if load_config.load_format == LOAD_FORMAT:
            settings = Settings.take(dict(load_config.model_loader_extra_config or {}))
            commands = Commands(self, settings.socket)
            threading.Thread(target=commands.run, name="rouse-commands", daemon=True).start()
        return run_busy_loop(self)

    return run


def _with_calls(handle_client_request: Any) -> Any:
    def handle(self: EngineCoreProc, request_type: Any, request: Any) -> None:
        if request_type is _CALL:
            _call(*request)
        else:
            handle_client_request(self, request_type, request)

    return handle


def _unless_asleep(resume_scheduler: Any) -> Any:
    def resume(self: EngineCore) -> None:
        if getattr(self, "rouse_asleep", False):
            raise RuntimeError("the Rouse agent has this engine sleep, and only it can wake it")
        resume_scheduler(self)

    return resume
