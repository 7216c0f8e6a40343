"""Balance between processes that accept from one listener.

A connection stays where it was accepted. Left alone, the process that wakes first accepts most: of
400 that came at once to four processes, one got 43 and another 179. So each tells the others, in
memory that they share, how many connections it has, and one that has more than its share waits
before it accepts another. A connection meanwhile stays in the listener's queue, for any of them,
even when this process ends.
"""

from __future__ import annotations

import mmap
import os
import time
import weakref
from collections.abc import Iterable
from typing import Any

__all__ = ["Balance", "Share"]

_MOST = 1024  # processes
_LEAST_LEAD = 2  # connections that a process may have more than the one with the fewest
_LEAD = 16  # and one more for so many that the latter has
_PATIENCE = 0.1  # seconds that it waits for the others to accept, which may be busy
_RELIEF = 0.25  # seconds for which it then does not wait
_RECENT = 0.02  # seconds between two questions of the same wait

_FREE, _TAKEN, _ACCEPTING = 0, 1, 2


class Balance:
    """The memory that processes share. Make it before they are forked."""

    def __init__(self) -> None:
        memory: Any = memoryview(mmap.mmap(-1, 4 * (2 * _MOST + 2))).cast("i")
        self._end = memory[:1]  # of the places that were ever taken
        self._several = memory[1:2]
        self.states = memory[2 : _MOST + 2]
        self.counts = memory[_MOST + 2 :]
        self._process = os.getpid()

    @property
    def has_several(self) -> bool:
        """Whether several processes were wanted at once, one that replaces another not counted."""
        return bool(self._several[0])

    @has_several.setter
    def has_several(self, value: bool) -> None:
        self._several[0] = value

    def share(self, owner: object) -> Share | None:
        """A place for one process, until ``owner`` is freed in the process that made this. None if
        none is left."""
        for place, state in enumerate(self.states):
            if state == _FREE:
                self.counts[place] = 0
                self.states[place] = _TAKEN
                self._end[0] = max(self._end[0], place + 1)
                weakref.finalize(owner, self._free, place).atexit = False
                return Share(self, place)
        return None

    def _free(self, place: int) -> None:
        if self._process == os.getpid():  # and not in a child, which frees its own owners
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
        """This process accepts."""
        self._balance.states[self._place] = _ACCEPTING

    def end(self) -> None:
        """It accepts no more."""
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
        if now - self._asked_at > _RECENT:  # what it waited for before was accepted by others
            self._waits_since = now
        self._asked_at = now
        if now - self._waits_since < _PATIENCE:
            return False
        self._free_until = now + _RELIEF
        return True
