"""``Gone``: processes that have died, and need no place in the positions of members any more.

A position names each process of which its client has received messages unlogged, until these are
found in the log. A process that was killed before it had appended them never does that. Once it has
not lived for ``max_age`` and an hour, and the member has all that the log holds, nothing more is
expected of it. A process that is cut off lives on unseen, and appends what it has said when it is
back; the log may keep much less than that outage lasts.
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

_MAX_MISSING = 1000  # that are remembered, and asked for at a time: clients may invent some


class Gone:
    """``origin``: of this process. ``grace``: seconds for which a process must not have lived."""

    def __init__(
        self, origin: str, grace: float, lock: Callable[[], AbstractContextManager[Any]]
    ) -> None:
        self._origin = origin
        self._grace = grace
        self._lock = lock
        self._cursors: weakref.WeakSet[LogCursor] = weakref.WeakSet()
        self._missing: dict[str, float] = {}  # since when they were not seen to live

    def watch(self, cursor: LogCursor) -> None:
        """The member has all that the log holds."""
        with self._lock():
            cursor.forget(self._gone())
            if not cursor.is_level:
                self._cursors.add(cursor)

    def look(self, find_dead: Callable[[set[str]], set[str]]) -> None:
        """From time to time. ``find_dead``: those of some processes that do not live.

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
