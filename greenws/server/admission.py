"""Who may connect, and who is there: the connections of a server, and what a stop waits for."""

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
    "connections": "The server has as many connections as it takes (max_connections).",
    "address": "There are too many connections from this address (max_connections_per_address).",
}

_KILL_TIMEOUT = 1.0  # seconds


class Admission:
    """Counts connections, all and by address, and the requests and sessions at work.

    A connection has a greenlet, and perhaps another when its session leaves its request; it is
    ``entered`` once and ``left`` once.
    """

    def __init__(self, config: Config) -> None:
        self._limit = config.max_connections
        self._address_limit = config.max_connections_per_address
        self._addresses: Counter[str] = Counter()
        self.open = 0
        self.busy = 0
        """Requests that are being answered, and sessions."""
        self.greenlets: set[Any] = set()
        """Those of all connections."""
        self._waiting: set[Event] = set()  # of those who wait until it is quiet

    def enter(self, address: str | None) -> str:
        """Takes a connection in; or says why not: ``"connections"`` or ``"address"``."""
        if self._limit is not None and self.open >= self._limit:
            return "connections"
        if not self.claim(address):
            return "address"
        self.open += 1
        return ""

    def leave(self, address: str | None) -> None:
        """The connection is over."""
        self.open -= 1
        self.release(address)

    def claim(self, address: str | None) -> bool:
        """Counts one more for ``address``; False if that has as many as it may."""
        if self._address_limit is None or not address:
            return True
        if self._addresses[address] >= self._address_limit:
            return False
        self._addresses[address] += 1
        return True

    def release(self, address: str | None) -> None:
        """Takes back a :meth:`claim`."""
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

    def wait_until_quiet(self, timeout: float | None) -> bool:
        """Blocks until no request is being answered and no session open; False after ``timeout``
        seconds. A handler that stops its own server does not wait for itself."""
        own = 1 if getcurrent() in self.greenlets else 0
        deadline = None if timeout is None else time.monotonic() + timeout
        event = Event()
        self._waiting.add(event)
        try:
            while self.busy > own:
                left = None if deadline is None else max(0.0, deadline - time.monotonic())
                if not event.wait(left):
                    return False
                event.clear()
        finally:
            self._waiting.discard(event)
        return True

    def end_all(self) -> None:
        """Kills the greenlets of all connections but this one's own."""
        others = [greenlet for greenlet in self.greenlets if greenlet is not getcurrent()]
        try:
            gevent.killall(others, timeout=_KILL_TIMEOUT)
        except gevent.Timeout:
            _logger.error("some handlers do not end although they were killed (GreenletExit)")
