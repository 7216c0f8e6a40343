"""An estimate of the clock of Redis, from which stream ids are made.

Between two answers of Redis it follows this machine's monotonic clock, which cannot be set. Before
the first answer it is this machine's time, which may be wrong.
"""

from __future__ import annotations

import time

__all__ = ["RedisClock"]


class RedisClock:
    def __init__(self) -> None:
        self.is_known = False
        """Whether Redis has ever answered with its time."""
        self._offset = int(time.time() * 1000) - self._elapsed()

    def now(self) -> int:
        """Milliseconds since the epoch."""
        return self._elapsed() + self._offset

    def local(self) -> float:
        """Seconds of the monotonic clock, for ``age``."""
        return time.monotonic()

    def age(self, at: float) -> int:
        """Milliseconds since ``at``, a result of ``local``."""
        return int((time.monotonic() - at) * 1000)

    def set(self, seconds: int, microseconds: int) -> int:
        """Takes what Redis has just answered to TIME; returns it in milliseconds."""
        now = seconds * 1000 + microseconds // 1000
        self._offset = now - self._elapsed()
        self.is_known = True
        return now

    def _elapsed(self) -> int:
        return int(time.monotonic() * 1000)
