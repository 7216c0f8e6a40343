"""The error tree. Errors that are sent to the peer carry the status or close code to send.

    GreenwsError
    ├── RequestError            an invalid HTTP request; has an HTTP status
    ├── HandshakeError          a refused handshake; has the HTTP response (RFC 6455, section 4.2.2)
    ├── ConnectionClosed        a send or ``receive()`` on a closed connection
    ├── ConcurrentReadError     a read while another greenlet is reading
    └── ProtocolError           the peer violated RFC 6455; close code 1002, or that of a subclass:
        ├── InvalidPayload      1007: text that is not UTF-8
        ├── PolicyViolation     1008: a limit was exceeded
        └── MessageTooBig       1009: a message larger than ``max_message_size``

A handler never gets a ProtocolError: the connection is closed with its ``close_code``, and the
handler sees that as any other close.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

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
    """The base class of all errors of greenws."""


class RequestError(GreenwsError):
    """An HTTP request is invalid, or exceeds a limit.

    ``status`` is the HTTP status code of the response, and ``str(error)`` its text. ``is_logged``:
    whether it was already logged, as a refused handshake.
    """

    def __init__(self, message: str, status: int = 400, is_logged: bool = False) -> None:
        super().__init__(message)
        self.status = status
        self.is_logged = is_logged


class HandshakeError(GreenwsError):
    """The opening handshake was refused (RFC 6455, sections 4.1 and 4.2).

    A server's: ``status`` is the HTTP status code of the response, ``headers`` are additional
    headers, and ``str(error)`` is its text, for the user at the other end. ``reason`` is one word
    for a counter, and ``hint`` is added in the log: what would allow the handshake.

    A client's: ``status`` is that of the response, 0 if the response is invalid. ``headers`` are
    those of the response (werkzeug's ``Headers``: names are case-insensitive). ``body`` has at most
    the first 64 KiB of its body. ``reason`` says what is wrong: ``status``,
    ``malformed``, ``subprotocol``, ``extension``, ``redirect`` or ``proxy``.
    """

    def __init__(
        self,
        message: str,
        status: int = 400,
        headers: Sequence[tuple[str, str]] = (),
        reason: str = "malformed",
        hint: str = "",
    ) -> None:
        super().__init__(message)
        self.status = status
        self.hint = hint
        self.headers: Any = list(headers)
        self.body = b""
        self.reason = reason


class ConnectionClosed(GreenwsError):
    """The connection is closed, with ``code`` and ``reason`` (RFC 6455, sections 7.1.5 and 7.1.6).

    ``code`` is 1005 if the peer's Close had none, and 1006 if the connection was lost without a
    Close.
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
    """Two greenlets read the same socket: each message would go to only one of them."""


class ProtocolError(GreenwsError):
    """The peer violated the protocol. ``close_code`` is sent to it (RFC 6455, section 7.4.1)."""

    close_code: int = CloseCode.PROTOCOL_ERROR


class InvalidPayload(ProtocolError):
    """Text that is not UTF-8 (RFC 6455, section 8.1)."""

    close_code = CloseCode.INVALID_PAYLOAD


class PolicyViolation(ProtocolError):
    """The peer exceeded a limit of :class:`greenws.Config`."""

    close_code = CloseCode.POLICY_VIOLATION


class MessageTooBig(ProtocolError):
    """A message larger than ``max_message_size``."""

    close_code = CloseCode.MESSAGE_TOO_BIG
