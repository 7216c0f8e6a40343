"""``Config``: every limit and timeout, its default, and why it exists.

``WebSocketServer(address, app, config=Config(...))`` sets them for a server, and
``WebSocketHandler(producer, max_message_size=...)`` overrides them for its sessions.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from .checks import check_options

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .options import ConfigOptions

__all__ = ["ACCESS_FIELDS", "Config", "SERVER_ONLY", "check_range", "check_seconds"]

_Kind = TypeVar("_Kind")

_ACCESS_LOG = (
    '%(address)s "%(path)s" %(subprotocol)s closed %(code)s by %(closed_by)s after '
    "%(seconds).3f s, in %(messages_in)d (%(bytes_in)d bytes), "
    "out %(messages_out)d (%(bytes_out)d bytes)"
)


def _explaining(kind: type[_Kind]) -> type[_Kind]:
    """Makes the constructor of a dataclass list its options when it gets an unknown one."""
    changed: Any = kind
    construct = changed.__init__
    known = list(changed.__dataclass_fields__)

    @functools.wraps(construct)
    def __init__(self: Any, *args: Any, **options: Any) -> None:
        check_options(options, known)
        if args:
            raise TypeError(
                f"{kind.__name__} takes options by name, such as {known[0]}={args[0]!r}"
            )
        construct(self, **options)

    changed.__init__ = __init__
    return kind


@_explaining
@dataclass(frozen=True)
class Config:
    """Limits and timeouts. ``None`` turns a limit off.

    An invalid value raises ``ValueError`` when it is set; a value of the wrong type, or an unknown
    option, raises ``TypeError``.
    """

    max_message_size: int | None = 1 << 20
    """Bytes in a message, with all its fragments. A larger one closes with 1009 as soon as a
    frame's header declares it, before any of that frame is stored. It bounds a session's
    memory."""

    max_fragments: int | None = 4096
    """Fragments in a message, including empty ones; one more closes with 1008. An endless message
    of empty fragments would cost time without reaching ``max_message_size``."""

    close_timeout: float | None = 10.0
    """Seconds that ``close()`` waits for the peer's Close and then for the end of its TCP stream,
    so that a peer that never answers cannot hold the session. The time starts again while the
    peer's TCP acknowledges what was sent before our Close."""

    write_high_water: int | None = 1 << 20
    """Bytes in a session's outbox; beyond it, a send blocks until the peer reads."""

    write_timeout: float | None = 10.0
    """Seconds without progress in sending the outbox, after which the connection is closed: the
    peer has stopped reading. Data that its TCP acknowledges is progress."""

    ping_interval: float | None = 20.0
    """Seconds between keepalive pings; less than the 60 s after which nginx closes an idle
    connection."""

    ping_timeout: float | None = 20.0
    """Seconds after a keepalive ping within which the peer must send anything. A peer that vanished
    is noticed after ``ping_interval`` and ``ping_timeout`` together. The time starts again while
    the peer's TCP acknowledges what was sent before the ping."""

    max_lifetime: float | None = None
    """Seconds that a session may last; then it is closed with 1001 ("max_lifetime"), so that its
    client connects again: perhaps to a server that was added since, and with its rights checked
    again. A random part of it, up to a tenth, is taken off for each session, so that sessions that
    began together do not end together. See also :meth:`greenws.WebSocket.close_at`."""

    max_message_rate: float | None = None
    """Messages and pings a second, with bursts of that size; more closes with 1008. Off by default:
    the right limit depends on the application, and a session that reads slowly slows down its
    peer."""

    allowed_origins: str | Sequence[str] | None = None
    """The origins of pages that may connect, one or a list: ``"https://example.com"``,
    ``"https://*.example.com"``, ``"self"`` (the host in the request), or ``"*"`` for all. Others
    get 403. A browser sends the user's cookies with any page's request, so without a check every
    page could act as that user. None means ``"self"`` for a ``WebSocketHandler``, and no check for
    ``wsgi.websocket``, as in gevent-websocket. Clients without an ``Origin`` header are not
    browsers, and are allowed."""

    allowed_hosts: str | Sequence[str] | None = None
    """The hosts that a request may name: ``"example.com"``, ``"*.example.com"``,
    ``"localhost:8181"``, ``"[::1]"``; one or a list. A host without a port allows any port. Other
    hosts get 421. Off by default. Set it on a server that only its own machine or network reaches:
    otherwise a page from elsewhere can make its own name resolve to that server's address (DNS
    rebinding), and is then of the same origin."""

    access_log: str | None = _ACCESS_LOG
    """The format of the line that is logged to ``greenws.access`` when a session ends; None to log
    nothing."""

    deflate: bool = True
    """Whether to negotiate compression (permessage-deflate, RFC 7692). If a message contains both a
    secret and text that an attacker chose, its compressed length may reveal the secret: send it
    with ``compress=False``."""

    deflate_threshold: int = field(default=1024, metadata={"range": (0, (1 << 63) - 1)})
    """Bytes from which a message is compressed (for a fragmented message, those of its first
    fragment). Compressing what fits into one packet is not worth the time."""

    deflate_level: int = field(default=3, metadata={"range": (1, 9)})
    """zlib's compression level. All other sessions wait while a message is compressed. For JSON,
    level 3 takes a third of the time of zlib's default, 6, for an eighth more bytes."""

    deflate_memory_level: int = field(default=8, metadata={"range": (1, 9)})
    """Memory of a compressor besides its window: 512 bytes, doubled this many times. Only with
    ``deflate_takeover`` does each session have a compressor."""

    deflate_window_bits: int = field(default=15, metadata={"range": (8, 15)})
    """The size of our compression window, as a power of two: 256 bytes to 32 KiB."""

    deflate_peer_window_bits: int = field(default=15, metadata={"range": (8, 15)})
    """The size of the peer's compression window. With less than 15, compression is not negotiated
    with clients that cannot limit their window."""

    deflate_takeover: bool = False
    """Whether messages that we send may refer to earlier ones. Small, similar messages become
    smaller; but each session keeps a compressor, 256 KiB with the defaults of the other options."""

    deflate_peer_takeover: bool = False
    """Whether the peer's messages may refer to earlier ones. Takes 40 KiB for each session."""

    handshake_timeout: float | None = 10.0
    """Seconds from the start of the connection (or from the first byte of a later request) to the
    end of the request's head, and for the TLS handshake; after that 408. A peer that sends a byte
    now and then must not hold a connection (slow loris). This option and all below are only for
    servers."""

    keep_alive_timeout: float | None = 75.0
    """Seconds that a connection may stay open without a request; more than the 60 s of nginx, so
    that the proxy closes it first."""

    body_timeout: float | None = 60.0
    """Seconds without data while a request's body is read."""

    min_body_rate: int | None = 500
    """Bytes a second at which a request's body must arrive on average, after ``body_timeout``
    seconds of waiting for it: a byte now and then must not hold a connection."""

    max_request_line: int | None = 8192
    """Bytes in a request line; 414 for more. nginx and Apache accept as many."""

    max_headers: int | None = 100
    """Headers in a request; 431 for more. Each becomes an object, so a limit in bytes is not
    enough."""

    max_header_size: int | None = 32768
    """Bytes in a request's headers; 431 for more. They are kept until the request ends."""

    max_connections: int | None = 10_000
    """Connections of the server, HTTP and WebSocket together; 503 for more. Each takes a descriptor
    and memory, and a process that runs out of either fails all of them."""

    max_connections_per_address: int | None = None
    """Connections from one address; 503 for more. Off by default: many people may share an address.
    With ``trusted_proxies``, it counts the sessions of each address that the proxies report."""

    shutdown_grace: float | None = 10.0
    """Seconds that ``stop()`` waits for open requests and sessions."""

    shutdown_drain: float = field(default=0.0, metadata={"seconds": True})
    """Seconds over which ``stop()`` spreads the closing of its sessions, in random order, so that
    their clients do not all come back at once; at most three quarters of ``shutdown_grace``. 0
    closes all at once."""

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
            elif "seconds" in option.metadata:
                if value != 0 or isinstance(value, bool):
                    check_seconds(option.name, value)
            else:
                _check(option.name, value, whole="int" in str(option.type))

    def replace(self, **options: Unpack[ConfigOptions]) -> Config:
        """A copy with new values for ``options``."""
        check_options(options, [option.name for option in dataclasses.fields(self)])
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
        "shutdown_drain",
        "shutdown_grace",
    }
)
"""The options that concern more than one session, so only a server's Config has them."""

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
"""The fields of ``access_log``, each with a value of its type."""

_ORIGIN = re.compile(r"\*|self|null|[a-z][a-z0-9+.-]*://(\*\.)?[^\s/*?#@,]+", re.IGNORECASE)


_HOST = re.compile(
    r"(\*\.)?[a-z0-9._-]+(:[0-9]{1,5})?|\[[0-9a-f:.]+\](:[0-9]{1,5})?", re.IGNORECASE
)


def _check_hosts(value: Any) -> tuple[str, ...] | None:
    if value is None:
        return None
    hosts = (value,) if isinstance(value, str) else value
    if isinstance(hosts, (bytes, Mapping)) or not isinstance(hosts, Iterable):
        raise TypeError(f"allowed_hosts must be a str or a list of str, not {value!r}")
    hosts = list(hosts)
    for host in hosts:
        if not isinstance(host, str):
            raise TypeError(f"allowed_hosts must be a str or a list of str, not {host!r}")
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
            raise TypeError(f"allowed_origins must be a list of strings, but has {origin!r}")
        if not _ORIGIN.fullmatch(origin):
            raise ValueError(
                "allowed_origins must be origins such as 'https://example.com', "
                f"'https://*.example.com', 'self' or '*', without a path, not {origin!r}"
            )
    return tuple(origins)


def _check_access_log(value: Any) -> None:
    if value is None:
        return
    if not isinstance(value, str):
        raise TypeError(f"access_log must be a format string or None, not {value!r}")
    try:
        value % ACCESS_FIELDS
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"access_log must be a %-format with the fields {', '.join(ACCESS_FIELDS)}; "
            f"{value!r} is invalid: {error}"
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
