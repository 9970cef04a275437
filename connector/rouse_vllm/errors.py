"""What can go wrong between the engine and its agent.

Every message says what failed, on which object, and what to do, so that it can be logged as it is.
"""


class RouseError(Exception):
    """Weights cannot be had from, or given to, the agent. Loading from storage is still possible."""


class AgentUnreachable(RouseError):
    """Nobody answers at the engine socket, or the connection was lost."""


class AgentRefused(RouseError):
    """The agent answered with an error; `code` is one of the codes of the protocol."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code


class ProtocolError(RouseError):
    """The agent said something that the protocol does not allow."""


class ManifestError(RouseError):
    """A manifest is malformed, or does not describe this model."""


class Unsupported(RouseError):
    """The model holds weights in a way that an arena cannot hold."""
