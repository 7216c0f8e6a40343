"""The error tree: one root, and an error that goes on the wire carries what goes there.

    GreenwsError
    ├── RequestError            a request that cannot be read; carries its HTTP status
    ├── HandshakeError          a refused handshake; carries the HTTP response (RFC 6455, 4.2.2)
    ├── ConnectionClosed        a send or ``receive()`` on a connection that is over
    ├── ConcurrentReadError     a second greenlet reads a socket that one is reading
    └── ProtocolError           the peer broke RFC 6455: 1002, unless a subclass says otherwise
        ├── InvalidPayload      1007: text that is not UTF-8
        ├── PolicyViolation     1008: more than a limit allows
        └── MessageTooBig       1009: a message larger than ``max_message_size``

A protocol error never reaches a handler: it closes the connection with its ``close_code``, and the
handler learns of it as of any other close.
"""

from __future__ import annotations

from collections.abc import Sequence

from .opcodes import CloseCode

__all__ = [
    "ConcurrentReadError",
    "ConnectionClosed",
    "GreenwsError",
    "HandshakeError",
    "InvalidPayload",
    "MessageTooBig",
    "PolicyViolation",
    "ProtocolError",
    "RequestError",
]


class GreenwsError(Exception):
    """The root of all errors that greenws raises itself."""


class RequestError(GreenwsError):
    """The bytes of a request are not HTTP/1.1 as it must be, or more than a limit allows.

    ``status`` is the HTTP status code of the answer, and ``str(error)`` its one line.
    """

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


class HandshakeError(GreenwsError):
    """The opening handshake was refused (RFC 6455, sections 4.1 and 4.2).

    ``status`` is the HTTP status code of the answer, ``headers`` what it must carry besides, and
    ``str(error)`` its one line, for the person at the other end. ``reason`` is one word for a
    counter.
    """

    def __init__(
        self,
        message: str,
        status: int = 400,
        headers: Sequence[tuple[str, str]] = (),
        reason: str = "malformed",
    ) -> None:
        super().__init__(message)
        self.status = status
        self.headers = list(headers)
        self.reason = reason


class ConnectionClosed(GreenwsError):
    """The connection is over: ``code`` and ``reason`` as in RFC 6455, section 7.1.5 and 7.1.6.

    ``code`` is 1005 if the peer's Close carried none, and 1006 if the connection was lost without
    a Close.
    """

    def __init__(self, code: int, reason: str = "") -> None:
        super().__init__(code, reason)
        self.code = code
        self.reason = reason

    def __str__(self) -> str:
        try:
            name = CloseCode(self.code).name.replace("_", " ").lower()
        except ValueError:
            name = "application code" if 3000 <= self.code < 5000 else "unknown code"
        return f"connection closed: {self.code} ({name}) {self.reason}".rstrip()


class ConcurrentReadError(GreenwsError, RuntimeError):
    """Two greenlets read one socket: messages would go to either at random."""


class ProtocolError(GreenwsError):
    """The peer broke the protocol; ``close_code`` tells it so (RFC 6455, section 7.4.1)."""

    close_code: int = CloseCode.PROTOCOL_ERROR


class InvalidPayload(ProtocolError):
    """Text that is not UTF-8 (RFC 6455, section 8.1)."""

    close_code = CloseCode.INVALID_PAYLOAD


class PolicyViolation(ProtocolError):
    """More than a limit of :class:`greenws.Config` allows."""

    close_code = CloseCode.POLICY_VIOLATION


class MessageTooBig(ProtocolError):
    """A message larger than ``max_message_size``."""

    close_code = CloseCode.MESSAGE_TOO_BIG
