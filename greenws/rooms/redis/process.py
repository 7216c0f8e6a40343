"""What the parts of a broker have in common in one process; a forked child begins with its own."""

from __future__ import annotations

import itertools
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol, TypeVar

import gevent
import redis

from ..broker import Entry, Listener
from . import url
from .clock import Clock
from .commands import Commands
from .errors import ERRORS
from .keys import Keys
from .options import Options
from .outage import Event, Outage

__all__ = ["Identity", "Link", "Process"]

_T = TypeVar("_T")

# Seconds after each attempt to find a room while its slot is moved from node to node.
_REDIRECT_DELAYS = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4)
_FIRST_DELAY, _LONGEST_DELAY = 0.02, 1.0  # seconds between two looks whether Redis is back


class Identity:
    """``origin`` names a process among those that use the same Redis; ``numbers`` count what it
    sends."""

    def __init__(self) -> None:
        self.origin = secrets.token_hex(6)
        self.numbers = itertools.count(1)


class Link(Protocol):
    """What a node of a cluster knows of the others."""

    @property
    def identity(self) -> Identity:
        """Of this process, in all nodes."""

    def redirect(self, error: BaseException) -> bool:
        """Whether an error says that another node has a room, or is about to: then that is
        remembered. Does not block."""

    def look_again(self) -> None:
        """A node has failed: perhaps others have its rooms now. Does not block."""

    def process_of(self, room: str) -> Process:
        """Of the node that has a room."""

    def probe(self, process: Process) -> int:
        """The number of a probe whose key is in a node.

        Raises:
            redis.ConnectionError: the node has no keys.
        """

    def prove_alive(self) -> int:
        """Says that this process lives. Returns how many times that was not known."""

    def dead(self, origins: set[str]) -> set[str]:
        """Those of some processes that do not live, as far as is known."""


class Process:
    """``origin`` names this process among those that use the same Redis. ``link``: None but in a
    cluster, where each node has a ``Process``."""

    def __init__(
        self,
        options: Options,
        listener: Callable[[], Listener | None],
        lost: Callable[[], None],
        back: Callable[[], None],
        failed: Callable[[], None],
        link: Link | None = None,
    ) -> None:
        self.options = options
        self.link = link
        identity = Identity() if link is None else link.identity
        self.origin = identity.origin
        self.clock = Clock()
        self.commands = Commands(options.url, options.timeout, options.is_cluster)
        database = url.database(self.commands.client)
        self.keys = Keys(options.prefix, database, options.is_cluster)
        self.outage = Outage(lost, back, failed, options.name)
        self.is_stopped = False
        self._numbers = identity.numbers
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

    # -- what Redis is asked

    def run_for(self, room: str, call: Callable[[redis.Redis], _T], urgent: bool = False) -> _T:
        """Runs commands whose keys are all of one room, in the node that has it.

        Raises:
            redis.RedisError, OSError: they failed, or Redis does not answer.
        """
        if self.link is None:
            return self.commands.run(call, urgent)
        for delay in _REDIRECT_DELAYS:
            try:
                return self.link.process_of(room).commands.run(call, urgent)
            except redis.ResponseError as error:
                if not self.link.redirect(error):
                    raise
            gevent.sleep(delay)
        return self.link.process_of(room).commands.run(call, urgent)

    # -- waiting for Redis

    def now(self) -> float:
        """For ``fail``."""
        return time.monotonic()

    def fail(
        self, error: Exception, began: float | None = None, event: Event = Event.WRITE_FAILED
    ) -> None:
        """A command has failed, that was begun at a time of time.monotonic()."""
        if self.link is not None:
            if self.link.redirect(error):
                return
            self.link.look_again()
        self.outage.fail(event, error, began)

    def insist(
        self,
        call: Callable[[], _T],
        timeout: float,
        current: Callable[[], Process] | None = None,
    ) -> _T | None:
        """What ``call`` returns. Gives Redis so many seconds, in all, to answer or to come back:
        from when it was lost, so that those that wait for the same outage wait together. None if
        that was too short. ``current``: of the node that has what is asked for, at each moment."""
        first = time.monotonic()
        for delay in _delays():
            began = time.monotonic()
            process = self if current is None else current()
            outage = process.outage
            deadline = (outage.began if outage.is_away else first) + timeout
            if not (outage.is_away and process.commands.is_hanging):
                try:
                    return call()
                except ERRORS as error:
                    process.fail(error, began)
                    if outage.is_away:
                        deadline = min(deadline, outage.began + timeout)
            if process.is_stopped or time.monotonic() + delay >= deadline:
                return None
            gevent.sleep(delay)
        raise AssertionError


def _delays() -> Iterator[float]:
    yield 0.0
    delay = _FIRST_DELAY
    while True:
        yield delay
        delay = min(2 * delay, _LONGEST_DELAY)
