"""Whether Redis is in reach: the states, as one table.

Redis can be lost in two ways: commands fail (the connection, or writes), or the subscribed
connection fails. It is back when both work again. While it is lost, a process delivers what it
sends to its own members *unlogged*.
"""

from __future__ import annotations

import enum
import logging
import time
from collections.abc import Callable

import redis

from .errors import ERRORS, must_be_left
from .url import WrongScheme

__all__ = ["Event", "Outage", "State"]

_EXPECTED = (*ERRORS, WrongScheme)

_logger = logging.getLogger("greenws.brokers.redis")


class State(enum.Enum):
    UP = "up"
    NO_WRITES = "writes fail"
    NO_READS = "reads fail"
    DOWN = "both fail"


class Event(enum.Enum):
    WRITE_FAILED = "a command failed"
    WRITTEN = "a write worked"
    READ_FAILED = "the subscribed connection failed"
    READ = "the subscribed connection works, and all that was missed was read"


TRANSITIONS = {
    State.UP: {Event.WRITE_FAILED: State.NO_WRITES, Event.READ_FAILED: State.NO_READS},
    State.NO_WRITES: {Event.WRITTEN: State.UP, Event.READ_FAILED: State.DOWN},
    State.NO_READS: {Event.READ: State.UP, Event.WRITE_FAILED: State.DOWN},
    State.DOWN: {Event.WRITTEN: State.NO_READS, Event.READ: State.NO_WRITES},
}


class Outage:
    """``lost`` is called when Redis is out of reach, ``back`` when it can be reached again, and
    ``failed`` after each failure, so that a greenlet tries whether it can."""

    def __init__(
        self,
        lost: Callable[[], None],
        back: Callable[[], None],
        failed: Callable[[], None] = lambda: None,
        name: str = "Redis",
    ) -> None:
        self.state = State.UP  # until something fails
        self.began = time.monotonic()  # when the first command that failed was begun
        self._lost = lost
        self._back = back
        self._failed = failed
        self._name = name
        self._is_refused = False  # the last outage began with an answer
        self._is_answered = False  # the last command that failed was answered

    @property
    def is_lost(self) -> bool:
        return self.state is not State.UP

    @property
    def is_answered(self) -> bool:
        """Whether Redis answers, although it may accept no writes, such as a full one."""
        return self.state is State.UP or (self.state is State.NO_WRITES and self._is_answered)

    @property
    def is_readable(self) -> bool:
        return self.state in (State.UP, State.NO_WRITES)

    @property
    def is_writable(self) -> bool:
        return self.state in (State.UP, State.NO_READS)

    def fail(self, event: Event, error: BaseException, began: float | None = None) -> None:
        """``began``: when the command that failed was begun, a time of time.monotonic()."""
        before = self._move(event)
        self._is_answered = isinstance(error, redis.ResponseError) and not must_be_left(error)
        self._failed()
        if before is not State.UP:
            return
        self.began = time.monotonic() if began is None else began
        self._lost()
        self._is_refused = isinstance(error, redis.ResponseError)
        _logger.warning(
            "%s refuses commands: %s" if self._is_refused else "lost connection to %s: %s",
            self._name,
            error,
            exc_info=not isinstance(error, _EXPECTED),
        )

    def succeed(self, event: Event) -> None:
        if self._move(event) is not State.UP and self.state is State.UP:
            self._back()
            text = "%s accepts commands again" if self._is_refused else "reconnected to %s"
            _logger.warning(text, self._name)

    def _move(self, event: Event) -> State:
        """Returns the state before."""
        before = self.state
        self.state = TRANSITIONS[before].get(event, before)
        return before
