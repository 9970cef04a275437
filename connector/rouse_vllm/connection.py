"""One connection to the agent's engine socket: questions and answers (rouse-engine 1).

Strict request and answer. A connection belongs to one thread. After any error but AgentRefused it is
of no more use: close it.
"""

from __future__ import annotations

import json
import math
import os
import time
from typing import Any

from rouse_vllm import library
from rouse_vllm.errors import AgentRefused, AgentUnreachable, ProtocolError
from rouse_vllm.version import PROTOCOL, PROTOCOL_VERSION

#: How long the agent may take for an answer that needs no peer, in seconds. Creating an arena
#: touches all of its pages.
ANSWER_TIMEOUT_S = 120.0

#: One question for weights waits this long at the agent, so that a silent agent is noticed.
AWAIT_SLICE_S = 10.0


class Connection:
    """Questions and answers over one connection."""

    def __init__(self, path: str, connect_timeout_s: float) -> None:
        self._socket = library.connect(path, connect_timeout_s)

    def close(self) -> None:
        if self._socket >= 0:
            os.close(self._socket)
            self._socket = -1

    def ask_until_ready(
        self, request: dict[str, Any], expected: str, limit_s: float = math.inf
    ) -> tuple[dict[str, Any], list[int]]:
        """As ask_for_fds, again and again while the agent says that the answer is on its way. How
        long that may be is the agent's to know, unless there is a limit; a silent agent is noticed."""
        request = request | {"timeoutMs": int(AWAIT_SLICE_S * 1000)}
        deadline = time.monotonic() + limit_s
        while True:
            answer, fds = self.ask_for_fds(
                request, expected, AWAIT_SLICE_S + ANSWER_TIMEOUT_S, pending=True
            )
            if answer["type"] == expected:
                return answer, fds
            close_all(fds)
            if time.monotonic() >= deadline:
                raise AgentUnreachable(
                    f"the agent has not answered {request['type']} within {limit_s:.0f} s"
                )

    def ask(
        self, request: dict[str, Any], expected: str, fds: list[int] | None = None
    ) -> dict[str, Any]:
        """A question whose answer brings no descriptors."""
        answer, received = self.ask_for_fds(request, expected, ANSWER_TIMEOUT_S, fds)
        refuse_all(received, expected)
        return answer

    def ask_for_fds(
        self,
        request: dict[str, Any],
        expected: str,
        timeout_s: float,
        fds: list[int] | None = None,
        pending: bool = False,
    ) -> tuple[dict[str, Any], list[int]]:
        """Returns an answer of the expected type (or, if `pending`, Pending); its descriptors are the
        caller's to close."""
        if self._socket < 0:
            raise AgentUnreachable("the connection to the agent was closed before")
        library.send(self._socket, json.dumps(request).encode(), fds or [], timeout_s)
        raw, received = library.receive(self._socket, timeout_s)
        try:
            return _answer(raw, request["type"], expected, pending), received
        except Exception:
            close_all(received)
            raise


def _answer(raw: bytes, asked: str, expected: str, pending: bool = False) -> dict[str, Any]:
    try:
        answer = json.loads(raw)
    except ValueError as error:
        raise ProtocolError(f"the agent's answer to {asked} is no JSON: {error}") from error
    if not isinstance(answer, dict):
        raise ProtocolError(f"the agent's answer to {asked} is no JSON object")
    kind = answer.get("type")
    if kind == "Error":
        raise AgentRefused(text(answer, "code"), text(answer, "message"))
    if kind != expected and not (pending and kind == "Pending"):
        raise ProtocolError(f"the agent answered {asked} with {kind!r}, expected {expected!r}")
    return answer


def check_spoken(answer: dict[str, Any]) -> None:
    """Whether the agent greets us in our own protocol."""
    spoken = (answer.get("protocol"), answer.get("version"))
    if spoken != (PROTOCOL, PROTOCOL_VERSION):
        raise ProtocolError(
            f"the agent speaks {spoken[0]} {spoken[1]}, this plugin {PROTOCOL} "
            f"{PROTOCOL_VERSION}; take the plugin folder from the agent's own image"
        )


def close_all(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)


def refuse_all(fds: list[int], answer: str) -> None:
    """For an answer that brings no descriptors."""
    if fds:
        close_all(fds)
        raise ProtocolError(f"{answer} came with {len(fds)} descriptors, expected none")


def text(answer: dict[str, Any], name: str) -> str:
    value = answer.get(name)
    if not isinstance(value, str):
        raise ProtocolError(f"{answer.get('type')}.{name}: missing, or no string")
    return value


def texts(answer: dict[str, Any], name: str) -> tuple[str, ...]:
    values = answer.get(name)
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise ProtocolError(f"{answer.get('type')}.{name}: missing, or no list of strings")
    return tuple(values)


def count(answer: dict[str, Any], name: str) -> int:
    value = answer.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ProtocolError(f"{answer.get('type')}.{name}: missing, or no count")
    return value
