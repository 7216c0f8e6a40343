"""One frozen dataclass: every limit and timeout, its default, and why it exists.

``WebSocketServer(address, app, config=Config(...))`` sets them for a server, and
``WebSocketHandler(producer, max_message_size=...)`` overrides them for its sessions.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass

from dataclasses import dataclass, field
from typing import Any

__all__ = ["ACCESS_FIELDS", "Config", "SERVER_ONLY"]


_ACCESS_LOG = (
    '%(address)s "%(path)s" %(subprotocol)s closed %(code)s by %(closed_by)s after '
    "%(seconds).3f s, in %(messages_in)d (%(bytes_in)d bytes), "
    "out %(messages_out)d (%(bytes_out)d bytes)"
)


@dataclass(frozen=True)
class Config:
    """Limits and timeouts of a session. ``None`` switches a limit off.

    A value that makes no sense raises ``ValueError`` (``TypeError`` for the wrong type, or for an
    option that does not exist) where it is set.
    """

    max_message_size: int | None = 1 << 20
    """Bytes in a message, all fragments together. A longer one is refused with 1009 when its
    frame's header arrives, before any of that frame is kept: it bounds a session's memory."""

    max_fragments: int | None = 4096
    """Frames in a message, empty ones counted; one more closes with 1008. An endless message of
    empty fragments would cost time without ever reaching ``max_message_size``."""

    close_timeout: float | None = 10.0
    """Seconds that ``close()`` waits for the peer's Close, and then for the end of its TCP stream:
    a peer that never answers must not hold the session."""

    write_high_water: int | None = 1 << 20
    """Bytes that may wait in a session's outbox before a sender waits for the peer to read."""

    write_timeout: float | None = 10.0
    """Seconds for which the outbox may stand still: a peer that has stopped reading is dropped."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

    handshake_timeout: float | None = 10.0
    """Seconds from the connection (or from the first byte of a later request) to the end of the
    request's head, and for the handshake of TLS: a peer that sends a byte now and then must not
    hold a connection (slow-loris). 408 after it. Of the server only, as all that follow."""

    keep_alive_timeout: float | None = 75.0
    """Seconds that a connection may stay open without a request; longer than the 60 s for which
    nginx keeps one, so that the proxy is the first to close."""

    body_timeout: float | None = 60.0
    """Seconds for which a request's body may stand still."""

    max_request_line: int | None = 8192
    """Bytes in a request line; 414 beyond it. No browser sends longer ones."""

    max_headers: int | None = 100
    """Headers in a request; 431 beyond it. Each becomes an object, so bytes alone are no limit."""

    max_header_size: int | None = 32768
    """Bytes in a request's headers; 431 beyond it. They are kept until the request is over."""

    max_connections: int | None = 10_000
    """Connections of the server, HTTP and WebSocket together; 503 beyond it. Each costs a
    descriptor and memory, and more than a process can bear would end all of them."""

    max_connections_per_address: int | None = None
    """Connections from one address; 503 beyond it. Off: many people may share one. With
    ``trusted_proxies``, it counts the sessions of an address that the proxies name."""

    shutdown_grace: float | None = 10.0
    """Seconds that ``stop()`` gives to the requests and sessions that are open."""

    def __post_init__(self) -> None:
        for option in dataclasses.fields(self):
            value = getattr(self, option.name)
            if option.type == "bool":
                _check_flag(option.name, value)
            elif "range" in option.metadata:
                _check_range(option.name, value, *option.metadata["range"])
            else:
                _check(option.name, value, whole="int" in str(option.type))
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name == "allowed_origins":
                object.__setattr__(self, field.name, _check_origins(value))
            elif field.name == "access_log":
                _check_access_log(value)
            else:
                _check(field.name, value, whole="int" in str(field.type))

    def replace(self, **options: Any) -> Config:
        """A copy with other values for ``options``."""
        known = [option.name for option in dataclasses.fields(self)]
        for name in options:
            if name not in known:
                raise TypeError(f"no option {name!r}; there are: {', '.join(known)}")
        return dataclasses.replace(self, **options)


        for option in dataclasses.fields(self):
            value = getattr(self, option.name)
            if option.name == "allowed_origins":
                object.__setattr__(self, option.name, _check_origins(value))
            elif option.name == "access_log":
                _check_access_log(value)
            elif option.type == "bool":
                _check_flag(option.name, value)
            elif "range" in option.metadata:
                _check_range(option.name, value, *option.metadata["range"])
            else:
                _check(option.name, value, whole="int" in str(option.type))


def _check(name: str, value: Any, whole: bool) -> None:
    if value is None:
        return
    kind = "a whole number" if whole else "a number of seconds"
    allowed = (int,) if whole else (int, float)
    if isinstance(value, bool) or not isinstance(value, allowed):
        raise TypeError(f"{name} must be {kind} or None, not {value!r}")
    if not 0 < value < 1 << 63:
        raise ValueError(f"{name} must be {kind} above 0, or None for no limit, not {value!r}")
