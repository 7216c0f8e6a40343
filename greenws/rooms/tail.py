"""``Tail``: the last messages of a room, encoded, for members that come back.

A thousand members that come back after a deploy want the same messages. A client whose position is
a recent one of the room gets the messages after it from here: nothing is read from the broker, and
each message is encoded once for all. For other clients the broker is asked.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable
from itertools import islice
from typing import NamedTuple

from ..protocol.shared import SharedMessage
from .ages import age_time

__all__ = ["Tail"]

_ENTRY_COST = 500  # bytes of an entry besides its message, which counts twice: plain and encoded


class _Entry(NamedTuple):
    position: str
    message: SharedMessage | None
    cost: int
    time: float


class Tail:
    """``limit``: bytes of memory that it may take now. ``length``: messages at most. ``age``:
    seconds for which it keeps them."""

    def __init__(self, limit: Callable[[], int], length: int, age: float) -> None:
        self.bytes = 0
        self._limit = limit
        self._length = length
        self._age = age
        self._entries: deque[_Entry] = deque()
        self._first = 0  # number of the first entry
        self._begins_at: str | None = None  # the position before that
        self._numbers: dict[str, int] = {}  # by position: of the entry after it

    def begin(self, position: str | None) -> None:
        """Drops all. The next message follows ``position``; None: it follows a gap."""
        self._entries.clear()
        self._numbers.clear()
        self.bytes = 0
        self._first = 0
        self._begins_at = position
        if position is not None:
            self._numbers[position] = 0

    def append(self, position: str, message: SharedMessage | None) -> None:
        """``message``: None if the log has moved on without a message."""
        data = b"" if message is None else message.data
        cost = 2 * sys.getsizeof(data) + _ENTRY_COST
        entry = _Entry(position, message, cost, age_time.now())
        self._entries.append(entry)
        self.bytes += entry.cost
        self._numbers[position] = self._first + len(self._entries)
        limit = self._limit()
        while self._entries and (self.bytes > limit or len(self._entries) > self._length):
            self._drop_oldest()
        self._expire()

    def after(self, position: str) -> list[tuple[str, SharedMessage]] | None:
        """The messages after a position; None if the tail does not have that position."""
        self._expire()
        number = self._numbers.get(position)
        if number is None:
            return None
        entries = self._entries
        start = number - self._first
        return [
            (each.position, each.message)
            for each in islice(entries, start, None)
            if each.message is not None
        ]

    def _expire(self) -> None:
        oldest = age_time.now() - self._age
        while self._entries and self._entries[0].time < oldest:
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        entry = self._entries.popleft()
        self.bytes -= entry.cost
        self._first += 1
        before = self._begins_at
        if before is not None and self._numbers.get(before, self._first) < self._first:
            del self._numbers[before]
        self._begins_at = entry.position
