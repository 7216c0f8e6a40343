"""Balance between processes that accept from one listener.

A connection stays in the process that accepted it. Without balancing, the process that wakes first
accepts most: of 400 connections that arrived at once at four processes, one got 43 and another 179.
So each process writes the number of its connections into shared memory, and one that has more than
its share waits before it accepts another. The connection stays in the listener's queue during that
time: any process can accept it, even if this one ends.
"""

from __future__ import annotations

import mmap
import os
import time
import weakref
from collections.abc import Iterable
from typing import Any

__all__ = ["Balance", "Share"]

_MAX_PROCESSES = 1024  # processes
# A process may have this many connections more than the one with the fewest: a number, and one more
# for each _LEAD connections of that one.
_LEAST_LEAD = 2
_LEAD = 16
_MAX_WAIT = 0.1  # seconds to wait for the others, which may be too busy to accept
_RELIEF = 0.25  # seconds after such a wait in which the process does not wait again
_RECENT = 0.02  # seconds up to which two calls of may_accept() belong to the same wait

_FREE, _TAKEN, _ACCEPTING = 0, 1, 2


class Balance:
    """The shared memory. Make it before the processes are forked."""

    def __init__(self) -> None:
        memory: Any = memoryview(mmap.mmap(-1, 4 * (2 * _MAX_PROCESSES + 2))).cast("i")
        self._end = memory[:1]  # how many places have ever been taken
        self._several = memory[1:2]
        self.states = memory[2 : _MAX_PROCESSES + 2]
        self.counts = memory[_MAX_PROCESSES + 2 :]
        self._process = os.getpid()

    @property
    def has_several(self) -> bool:
        """Whether there are several processes; one that replaces another does not count."""
        return bool(self._several[0])

    @has_several.setter
    def has_several(self, value: bool) -> None:
        self._several[0] = value

    def share(self, owner: object) -> Share | None:
        """A place for one process, until ``owner`` is freed in the process that made this. None if
        no place is left."""
        for place, state in enumerate(self.states):
            if state == _FREE:
                self.counts[place] = 0
                self.states[place] = _TAKEN
                self._end[0] = max(self._end[0], place + 1)
                weakref.finalize(owner, self._free, place).atexit = False
                return Share(self, place)
        return None

    def _free(self, place: int) -> None:
        if self._process == os.getpid():  # not in a child, which frees its own copies
            self.states[place] = _FREE

    def counts_of_others(self, place: int) -> Iterable[int]:
        """The connections of each other process that accepts."""
        for other, state in enumerate(self.states[: self._end[0]]):
            if state == _ACCEPTING and other != place:
                yield self.counts[other]


class Share:
    """The place of one process."""

    def __init__(self, balance: Balance, place: int) -> None:
        self._balance = balance
        self._place = place
        self._waits_since = 0.0
        self._asked_at = 0.0
        self._free_until = 0.0

    def begin(self) -> None:
        """Called when this process begins to accept."""
        self._balance.states[self._place] = _ACCEPTING

    def end(self) -> None:
        """Called when this process stops accepting."""
        self._balance.states[self._place] = _TAKEN

    def add(self, change: int) -> None:
        """Counts connections that were accepted or have ended."""
        self._balance.counts[self._place] += change

    @property
    def count(self) -> int:
        """The connections of this process."""
        return int(self._balance.counts[self._place])

    def may_accept(self) -> bool:
        """Whether this process has no more than its share, or has waited long enough."""
        least = min(self._balance.counts_of_others(self._place), default=None)
        if least is None or self.count < least + _LEAST_LEAD + least // _LEAD:
            return True
        now = time.monotonic()
        if now < self._free_until:
            return True
        if now - self._asked_at > _RECENT:  # a new wait: others accepted the earlier connections
            self._waits_since = now
        self._asked_at = now
        if now - self._waits_since < _MAX_WAIT:
            return False
        self._free_until = now + _RELIEF
        return True
