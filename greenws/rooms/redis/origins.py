"""``Gone``: processes that have died, and that positions of members need not name any more.

A position names each process whose messages its client has received unlogged, until these are found
in the log. A process that was killed before it appended them never will. Once a process has been
dead for ``max_age`` and an hour, and the member has received all that the log holds, it is dropped
from the position. The hour is for a process that is only cut off: it seems dead, but appends its
messages when it is back, and the log may keep much less than such an outage lasts.
"""

from __future__ import annotations

import itertools
import time
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from .replay import LogCursor

__all__ = ["GRACE", "Gone"]

GRACE = 3600  # seconds, beside max_age, for which a process may be cut off and come back

_MAX_MISSING = 1000  # processes to remember, and to ask for at a time: clients may invent some


class Gone:
    """``origin``: that of this process. ``grace``: seconds for which a process must be dead."""

    def __init__(
        self, origin: str, grace: float, lock: Callable[[], AbstractContextManager[Any]]
    ) -> None:
        self._origin = origin
        self._grace = grace
        self._lock = lock
        self._cursors: weakref.WeakSet[LogCursor] = weakref.WeakSet()
        self._missing: dict[str, float] = {}  # since when each seems dead

    def watch(self, cursor: LogCursor) -> None:
        """Called when a member with this cursor has received all that the log holds."""
        with self._lock():
            cursor.forget(self._gone())
            if not cursor.is_level:
                self._cursors.add(cursor)

    def check(self, find_dead: Callable[[set[str]], set[str]]) -> None:
        """Called from time to time. ``find_dead``: returns which of some processes are dead.

        Raises:
            redis.RedisError, OSError: that cannot be known.
        """
        with self._lock():
            cursors = [each for each in self._cursors if not each.is_level]
            origins = {origin for each in cursors for origin in each.unlogged} - {self._origin}
        known = set(self._missing)
        asked = {*known, *itertools.islice(origins - known, _MAX_MISSING)}
        if not asked:
            return
        dead = find_dead(asked)
        now = time.monotonic()
        missing = {origin: since for origin, since in self._missing.items() if origin in dead}
        for origin in (origins & dead) - set(missing):
            missing[origin] = now
        self._missing = dict(list(missing.items())[-_MAX_MISSING:])
        gone = self._gone()
        if gone:
            with self._lock():
                for each in cursors:
                    each.forget(gone)

    def _gone(self) -> set[str]:
        latest = time.monotonic() - self._grace
        return {origin for origin, since in self._missing.items() if since <= latest}
