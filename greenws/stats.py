"""The counters of a server, ``server.stats``, and the records of its sessions.

Messages do not change these counters: each socket counts its own, in compiled code. Its figures are
added when its session ends, or when the counters are read.
"""

from __future__ import annotations

import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, Protocol
from weakref import WeakSet

from .config import Config
from .opcodes import CloseCode
from .websocket import Traffic, WebSocket

__all__ = [
    "Exporter",
    "SessionRecord",
    "ServerStats",
    "escape",
    "of_this_process",
    "stop_starting",
    "start_with_servers",
    "total",
]

_ABNORMAL = int(CloseCode.ABNORMAL)

_access = logging.getLogger("greenws.access")


class Exporter(Protocol):
    """An object that reads the counters periodically, once it is started."""

    def start(self) -> None: ...


_all: WeakSet[ServerStats] = WeakSet()
_exporters: WeakSet[Exporter] = WeakSet()


def of_this_process() -> list[ServerStats]:
    """The counters of all servers of this process."""
    return list(_all)


def stop_starting(exporter: Exporter) -> None:
    """Undoes :func:`start_with_servers`."""
    _exporters.discard(exporter)


def start_with_servers(exporter: Exporter) -> None:
    """Starts ``exporter`` whenever a server is made, so that it runs in each process that has a
    server, even if that process is forked later."""
    _exporters.add(exporter)
    if _all:
        exporter.start()


class ServerStats:
    """Counters since the server was made. Only ``connections_open`` can decrease. ``expired``:
    sessions that ``max_lifetime`` or ``close_at()`` has ended.

    ``refused`` counts refused handshakes by reason, and ``closes`` sessions that have ended, by the
    code of the first Close, ours or the peer's (1006: lost). A peer may choose any of two thousand
    application codes, so they are grouped: 3000 to 3999 count as 3000, 4000 to 4999 as 4000.
    """

    def __init__(self) -> None:
        _all.add(self)
        self.reset()
        for exporter in list(_exporters):
            exporter.start()

    def reset(self) -> None:
        """Sets all counters to 0."""
        self.connections_total = 0
        self.pings_timed_out = 0
        self.expired = 0
        self.refused: Counter[str] = Counter()
        self.closes: Counter[int] = Counter()
        self._messages_in = self._bytes_in = self._messages_out = self._bytes_out = 0
        self._open: set[SessionRecord] = set()

    @property
    def connections_open(self) -> int:
        """The number of open WebSocket sessions."""
        return len(self._open)

    @property
    def traffic(self) -> Traffic:
        """Messages, and bytes of frames, in and out, of all open and ended sessions."""
        ended = (self._messages_in, self._bytes_in, self._messages_out, self._bytes_out)
        parts = [session.socket.traffic for session in self._open]
        return Traffic(*map(sum, zip(ended, *parts, strict=True)))

    @property
    def open_sockets(self) -> list[WebSocket]:
        """The sockets of the open sessions."""
        return [session.socket for session in self._open]

    def as_dict(self) -> dict[str, Any]:
        """All counters, for an exporter."""
        return {
            "connections_open": self.connections_open,
            "connections_total": self.connections_total,
            "refused": dict(self.refused),
            **self.traffic._asdict(),
            "closes": dict(self.closes),
            "pings_timed_out": self.pings_timed_out,
            "expired": self.expired,
        }

    def take_error(self, error: BaseException) -> bool:
        """Whether ``error``, which ended a session or an application, is reported elsewhere than in
        the log."""
        return False

    def begin(self, session: SessionRecord) -> None:
        self.connections_total += 1
        self._open.add(session)

    def end(self, session: SessionRecord, code: int) -> None:
        self._open.discard(session)
        connection, transport = session.socket._connection, session.socket._transport
        self._messages_in += connection.messages_in
        self._bytes_in += transport.received
        self._messages_out += connection.messages_out
        self._bytes_out += transport.sent
        self.closes[code if code < 3000 else code // 1000 * 1000] += 1


def _after_fork() -> None:
    """In the child: resets the counters, which count the parent's sessions."""
    for stats in list(_all):
        stats.reset()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)

Stats = ServerStats  # its name in earlier versions


def total(parts: Iterable[ServerStats]) -> dict[str, Any]:
    """The sums of all ``as_dict()``; empty if ``parts`` is empty."""
    sums: dict[str, Any] = {}
    for part in parts:
        for name, figure in part.as_dict().items():
            value = Counter(figure) if isinstance(figure, dict) else figure
            sums[name] = sums[name] + value if name in sums else value
    return sums


class SessionRecord:
    """The record of one session, from its handshake to its end."""

    __slots__ = ("_began", "_format", "_on_end", "_stats", "path", "socket")

    def __init__(
        self,
        socket: WebSocket,
        path: str,
        config: Config,
        stats: ServerStats | None = None,
        on_end: Callable[[], None] | None = None,
    ) -> None:
        self.socket = socket
        self._on_end = on_end
        self.path = path
        self._format = config.access_log
        self._stats = stats
        self._began = time.monotonic()
        if self._stats is not None:
            self._stats.begin(self)

    def take_error(self, error: BaseException) -> bool:
        """:meth:`ServerStats.take_error`."""
        return self._stats is not None and self._stats.take_error(error)

    def end(self) -> None:
        """Counts the session as ended, and logs its line. Does nothing in a forked child."""
        socket = self.socket
        if socket._is_inherited():
            return
        code, reason = socket._connection.first_close()
        code = code or _ABNORMAL
        if self._stats is not None:
            self._stats.end(self, code)
            if socket._pulse is not None:
                self._stats.pings_timed_out += socket._pulse.timed_out
                self._stats.expired += socket._pulse.expired
        if self._on_end is not None:
            self._on_end()
        if self._format is not None and _access.isEnabledFor(logging.INFO):
            _access.info("%s", self._format % self._fields(code, reason))

    def _fields(self, code: int, reason: str) -> dict[str, Any]:
        socket = self.socket
        address = socket.remote_address
        if isinstance(address, tuple):
            address = f"[{address[0]}]" if ":" in str(address[0]) else address[0]
        return {
            "address": escape(str(address or "-")),
            "path": escape(self.path),
            "subprotocol": escape(socket.subprotocol or "-"),
            "code": code,
            "reason": escape(reason),
            "closed_by": socket.closed_by or "nobody",
            "seconds": time.monotonic() - self._began,
            **socket.traffic._asdict(),
        }


def escape(text: str) -> str:
    """Escapes ``text`` from any source for one line of a log, inside double quotes."""
    return text.encode("unicode_escape").decode("ascii").replace('"', "\\x22")
