"""One frozen dataclass: every limit and timeout, its default, and why it exists.

``WebSocketServer(address, app, config=Config(...))`` sets them for a server, and
``WebSocketHandler(producer, max_message_size=...)`` overrides them for its sessions.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["ACCESS_FIELDS", "Config", "SERVER_ONLY", "check_range", "check_seconds"]


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

    ping_interval: float | None = 20.0
    """Seconds between the pings that keep a connection alive; below the 60 s after which nginx
    drops one that is silent."""

    ping_timeout: float | None = 20.0
    """Seconds within which anything must come after such a ping. A peer that vanished without a
    word is gone, for the session, within ``ping_interval`` and this."""

    max_message_rate: float | None = None
    """Messages and pings a second, over a burst of one second's; more closes with 1008. Off: what
    is too much depends on the application, and a session that reads slowly slows its peer."""

    allowed_origins: str | Sequence[str] | None = None
    """The pages that may connect, by their ``Origin``: ``"https://example.com"``,
    ``"https://*.example.com"``, ``"self"`` (the host that the request names), ``"*"`` for all; one
    or a list. A browser sends the cookies of its user along, whoever wrote the page, so that
    without a check every page could speak as that user; 403. None means ``"self"`` for a
    ``WebSocketHandler``, and no check of ``wsgi.websocket``, as gevent-websocket has none. What
    sends no ``Origin`` is no browser, and allowed."""

    allowed_hosts: str | Sequence[str] | None = None
    """The hosts that a request may name: ``"example.com"``, ``"*.example.com"``,
    ``"localhost:8181"``, ``"[::1]"``; one or a list, any port where none is given; 421. Off. A
    server that only its own machine or network reaches should set it: a page from elsewhere can
    have its own name resolve to that server's address (DNS rebinding), and is then of the same
    origin."""

    access_log: str | None = _ACCESS_LOG
    """The line that ``greenws.access`` logs when a session ends; None for none."""

    deflate: bool = True
    """Whether to compress messages for peers that can inflate them (permessage-deflate, RFC 7692).
    Where a secret stands beside text that an attacker chose, the compressed length may give it
    away: send such messages with ``compress=False``."""

    deflate_threshold: int = field(default=1024, metadata={"range": (0, (1 << 63) - 1)})
    """Bytes from which a message is compressed, or a message sent in fragments if its first one has
    as many: what fits into one packet anyway is not worth the time."""

    deflate_level: int = field(default=3, metadata={"range": (1, 9)})
    """How hard zlib tries. All other sessions stand still meanwhile; on JSON, 3 takes a third of
    the time of zlib's own 6 for an eighth more bytes."""

    deflate_memory_level: int = field(default=8, metadata={"range": (1, 9)})
    """Memory of a compressor beside its window: 512 bytes, doubled so many times. It counts for
    each session only with ``deflate_takeover``."""

    deflate_window_bits: int = field(default=15, metadata={"range": (8, 15)})
    """How far back we refer when compressing: 256 bytes to 32 KiB, as a power of two."""

    deflate_peer_window_bits: int = field(default=15, metadata={"range": (8, 15)})
    """How far back the peer may refer. With less than 15, messages of a client that cannot limit
    its window are not compressed."""

    deflate_takeover: bool = False
    """Whether a message we send may refer to those before it. Small, similar messages shrink
    further; each session keeps a compressor, 256 KiB with the other options at their defaults."""

    deflate_peer_takeover: bool = False
    """Whether a message of the peer's may refer to those before it: 40 KiB for each session."""

    handshake_timeout: float | None = 10.0
    """Seconds from the connection (or from the first byte of a later request) to the end of the
    request's head, and for the handshake of TLS: a peer that sends a byte now and then must not
    hold a connection (slow-loris). 408 after it. Of the server only, as all that follow."""

    keep_alive_timeout: float | None = 75.0
    """Seconds that a connection may stay open without a request; longer than the 60 s for which
    nginx keeps one, so that the proxy is the first to close."""

    body_timeout: float | None = 60.0
    """Seconds for which a request's body may stand still."""

    min_body_rate: int | None = 500
    """Bytes a second that a request's body must reach on average, once ``body_timeout`` seconds
    were spent waiting for it: a byte now and then must not hold a connection."""

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
            if option.name == "allowed_origins":
                object.__setattr__(self, option.name, _check_origins(value))
            elif option.name == "allowed_hosts":
                object.__setattr__(self, option.name, _check_hosts(value))
            elif option.name == "access_log":
                _check_access_log(value)
            elif option.type == "bool":
                _check_flag(option.name, value)
            elif "range" in option.metadata:
                check_range(option.name, value, *option.metadata["range"])
            else:
                _check(option.name, value, whole="int" in str(option.type))

    def replace(self, **options: Any) -> Config:
        """A copy with other values for ``options``."""
        known = [option.name for option in dataclasses.fields(self)]
        for name in options:
            if name not in known:
                raise TypeError(f"no option {name!r}; there are: {', '.join(known)}")
        return dataclasses.replace(self, **options)


SERVER_ONLY = frozenset(
    {
        "handshake_timeout",
        "keep_alive_timeout",
        "body_timeout",
        "min_body_rate",
        "max_request_line",
        "max_headers",
        "max_header_size",
        "max_connections",
        "max_connections_per_address",
        "shutdown_grace",
    }
)
"""The options that are about more than a session, and so only the server's."""

ACCESS_FIELDS = {
    "address": "",
    "path": "",
    "subprotocol": "",
    "code": 0,
    "reason": "",
    "closed_by": "",
    "seconds": 0.0,
    "messages_in": 0,
    "bytes_in": 0,
    "messages_out": 0,
    "bytes_out": 0,
}
"""What ``access_log`` may name, each with a value of its type."""

_ORIGIN = re.compile(r"\*|self|null|[a-z][a-z0-9+.-]*://(\*\.)?[^\s/*?#@,]+", re.IGNORECASE)


_HOST = re.compile(
    r"(\*\.)?[a-z0-9._-]+(:[0-9]{1,5})?|\[[0-9a-f:.]+\](:[0-9]{1,5})?", re.IGNORECASE
)


def _check_hosts(value: Any) -> tuple[str, ...] | None:
    if value is None:
        return None
    hosts = (value,) if isinstance(value, str) else tuple(value)
    for host in hosts:
        if not isinstance(host, str):
            raise TypeError(f"allowed_hosts is one or several str, not {host!r}")
        if not _HOST.fullmatch(host):
            raise ValueError(
                f"allowed_hosts: {host!r} is not a host such as 'example.com', '*.example.com', "
                "'localhost:8181' or '[::1]'"
            )
    return tuple(host.lower() for host in hosts)


def _check_origins(value: Any) -> tuple[str, ...] | None:
    if value is None:
        return None
    origins = (value,) if isinstance(value, str) else value
    if not isinstance(origins, (list, tuple, set, frozenset)):
        raise TypeError(f"allowed_origins must be a string or a list of strings, not {value!r}")
    for origin in origins:
        if not isinstance(origin, str):
            raise TypeError(f"allowed_origins must be a list of strings; {origin!r} is none")
        if not _ORIGIN.fullmatch(origin):
            raise ValueError(
                "allowed_origins holds origins such as 'https://example.com', "
                f"'https://*.example.com', 'self' or '*', without a path; not {origin!r}"
            )
    return tuple(origins)


def _check_access_log(value: Any) -> None:
    if value is None:
        return
    if not isinstance(value, str):
        raise TypeError(f"access_log must be a format or None, not {value!r}")
    try:
        value % ACCESS_FIELDS
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"access_log is a %-format over {', '.join(ACCESS_FIELDS)}; {value!r} is wrong: {error}"
        ) from None


def _check_flag(name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, not {value!r}")


def check_range(name: str, value: Any, least: int, most: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be a whole number, not {value!r}")
    if not least <= value <= most:
        allowed = f"{least} to {most}" if most < 1 << 62 else f"{least} or more"
        raise ValueError(f"{name} must be {allowed}, not {value!r}")


def check_seconds(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number of seconds, not {value!r}")
    if not 0 < value < 1 << 31:
        raise ValueError(f"{name} must be a number of seconds above 0, not {value!r}")


def _check(name: str, value: Any, whole: bool) -> None:
    if value is None:
        return
    kind = "a whole number" if whole else "a number of seconds"
    allowed = (int,) if whole else (int, float)
    if isinstance(value, bool) or not isinstance(value, allowed):
        raise TypeError(f"{name} must be {kind} or None, not {value!r}")
    if not 0 < value < 1 << 63:
        raise ValueError(f"{name} must be {kind} above 0, or None for no limit, not {value!r}")
