"""What the parts of a broker have in common in one process; a forked child begins with its own."""

from __future__ import annotations

import itertools
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import gevent

from ..broker import Entry, Listener
from . import url
from .clock import Clock
from .commands import Commands
from .errors import ERRORS
from .keys import Keys
from .options import Options
from .outage import Event, Outage

__all__ = ["Process"]

_T = TypeVar("_T")
_FIRST_DELAY, _LONGEST_DELAY = 0.02, 1.0  # seconds between two looks whether Redis is back


class Process:
    """``origin`` names this process among those that use the same Redis."""

    def __init__(
        self,
        options: Options,
        listener: Callable[[], Listener | None],
        lost: Callable[[], None],
        back: Callable[[], None],
        failed: Callable[[], None],
    ) -> None:
        self.options = options
        self.origin = secrets.token_hex(6)
        self.clock = Clock()
        self.commands = Commands(options.url, options.timeout)
        self.keys = Keys(options.prefix, url.database(self.commands.client))
        self.outage = Outage(lost, back, failed)
        self.is_stopped = False
        self._numbers = itertools.count(1)
        self._listener = listener

    def next_number(self) -> int:
        """Of an entry that this process sends."""
        return next(self._numbers)

    # -- the listener

    @property
    def lock(self) -> AbstractContextManager[Any]:
        listener = self._listener()
        return nullcontext() if listener is None else listener.lock

    def deliver(self, room: str, entry: Entry) -> None:
        listener = self._listener()
        if listener is not None:
            listener.deliver(room, entry)

    def tell_presence(self, room: str, kind: str, member: str, info: dict[str, Any]) -> None:
        listener = self._listener()
        if listener is not None:
            listener.presence(room, kind, member, info)

    def disconnect(self, room: str, code: int, reason: str, member: str | None) -> None:
        listener = self._listener()
        if listener is not None:
            listener.disconnect(room, code, reason, member)

    def tell_gap(self, room: str) -> bool:
        """Whether anybody listens."""
        listener = self._listener()
        if listener is None:
            return False
        listener.gap(room)
        return True

    def wait_for_fan_out(self, room: str) -> None:
        listener = self._listener()
        if listener is not None:
            listener.wait(room)

    # -- waiting for Redis

    def now(self) -> float:
        """For ``fail``."""
        return time.monotonic()

    def fail(self, error: Exception, began: float) -> None:
        """A command has failed, that was begun at a time of time.monotonic()."""
        self.outage.fail(Event.WRITE_FAILED, error, began)

    def insist(self, call: Callable[[], _T], timeout: float) -> _T | None:
        """What ``call`` returns. Gives Redis so many seconds, in all, to answer or to come back:
        from when it was lost, so that those that wait for the same outage wait together. None if
        that was too short."""
        for delay in _delays():
            began = time.monotonic()
            deadline = (self.outage.began if self.outage.is_away else began) + timeout
            if not (self.outage.is_away and self.commands.is_hanging):
                try:
                    return call()
                except ERRORS as error:
                    self.fail(error, began)
                    deadline = min(deadline, self.outage.began + timeout)
            if self.is_stopped or time.monotonic() + delay >= deadline:
                return None
            gevent.sleep(delay)
        raise AssertionError


def _delays() -> Iterator[float]:
    yield 0.0
    delay = _FIRST_DELAY
    while True:
        yield delay
        delay = min(2 * delay, _LONGEST_DELAY)
