"""The clock of Redis, by which stream ids are made, as far as this machine knows it.

Between two answers of Redis it follows this machine's monotonic clock: nobody sets that one. Before
the first answer it is this machine's time, whatever that is worth.
"""

from __future__ import annotations

import time

__all__ = ["Clock"]


class Clock:
    def __init__(self) -> None:
        self.is_known = False
        """Whether Redis has ever told the time."""
        self._offset = int(time.time() * 1000) - self._elapsed()

    def now(self) -> int:
        """Milliseconds since the epoch."""
        return self._elapsed() + self._offset

    def local(self) -> float:
        """Seconds, for ``age``."""
        return time.monotonic()

    def age(self, at: float) -> int:
        """Milliseconds since then."""
        return int((time.monotonic() - at) * 1000)

    def set(self, seconds: int, microseconds: int) -> int:
        """What Redis answered to TIME just now. Returns it in milliseconds."""
        now = seconds * 1000 + microseconds // 1000
        self._offset = now - self._elapsed()
        self.is_known = True
        return now

    def _elapsed(self) -> int:
        return int(time.monotonic() * 1000)
