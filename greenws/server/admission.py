"""The connections of a server: how many it accepts, and what a stop waits for."""

from __future__ import annotations

import logging
import time
from collections import Counter
from typing import Any

import gevent
from gevent import getcurrent
from gevent.event import Event

from ..config import Config

__all__ = ["TOO_MANY", "Admission"]

_logger = logging.getLogger("greenws.server")

TOO_MANY = {
    "connections": "Too many connections to this server (max_connections).",
    "address": "Too many connections from this address (max_connections_per_address).",
}

_KILL_TIMEOUT = 1.0  # seconds


class Admission:
    """Counts connections, in all and by address, and the requests and sessions in progress."""

    def __init__(self, config: Config) -> None:
        self._limit = config.max_connections
        self._address_limit = config.max_connections_per_address
        self._addresses: Counter[str] = Counter()
        self.open = 0
        self.busy = 0
        """Requests that are being answered, and open sessions."""
        self.greenlets: set[Any] = set()
        """The greenlets that serve connections."""
        self.idle: dict[Any, None] = {}
        """The handlers of connections that wait for another request, the longest waiting first."""
        self._waiting: set[Event] = set()  # one for each call of wait_until_quiet()

    def enter(self, address: str | None) -> str:
        """Counts a new connection; or returns why it is refused: ``"connections"`` or
        ``"address"``."""
        if self._limit is not None and self.open >= self._limit and not self._make_room():
            return "connections"
        if not self.claim(address):
            return "address"
        self.open += 1
        return ""

    def _make_room(self) -> bool:
        """Ends the connection that has been idle for the longest time."""
        for handler in self.idle:
            del self.idle[handler]
            handler._end_idle()
            return True
        return False

    def leave(self, address: str | None) -> None:
        """Counts a connection as closed."""
        self.open -= 1
        self.release(address)

    def claim(self, address: str | None) -> bool:
        """Counts one more for ``address``; False if it already has as many as allowed."""
        if self._address_limit is None or not address:
            return True
        if self._addresses[address] >= self._address_limit:
            return False
        self._addresses[address] += 1
        return True

    def release(self, address: str | None) -> None:
        """Undoes a :meth:`claim`."""
        if self._address_limit is not None and address:
            self._addresses[address] -= 1
            if self._addresses[address] <= 0:
                del self._addresses[address]

    def begin_work(self) -> None:
        self.busy += 1

    def end_work(self) -> None:
        self.busy -= 1
        for event in self._waiting:
            event.set()

    def wait_until_quiet(self, timeout: float | None) -> int:
        """Blocks until no request is being answered and no session is open, for at most ``timeout``
        seconds; returns how many are left. A handler that stops its own server does not wait for
        itself."""
        own = 1 if getcurrent() in self.greenlets else 0
        deadline = None if timeout is None else time.monotonic() + timeout
        event = Event()
        self._waiting.add(event)
        try:
            while self.busy > own:
                left = None if deadline is None else max(0.0, deadline - time.monotonic())
                if not event.wait(left):
                    break
                event.clear()
        finally:
            self._waiting.discard(event)
        return max(0, self.busy - own)

    def end_all(self) -> None:
        """Kills the greenlets of all connections except the current one."""
        others = [greenlet for greenlet in self.greenlets if greenlet is not getcurrent()]
        try:
            gevent.killall(others, timeout=_KILL_TIMEOUT)
        except gevent.Timeout:
            _logger.error("some handlers did not end within 1 s of being killed (GreenletExit)")
