"""The clock of Redis, by which stream ids are made, as far as this machine knows it."""

from __future__ import annotations

import time

__all__ = ["Clock"]


class Clock:
    def __init__(self) -> None:
        self._skew = 0  # milliseconds by which Redis's clock is ahead of this machine's

    def now(self) -> int:
        """Milliseconds since the epoch."""
        return int(time.time() * 1000) + self._skew

    def local(self) -> float:
        """Seconds since the epoch on this machine, for ``age``."""
        return time.time()

    def age(self, at: float) -> int:
        """Milliseconds since then."""
        return int((time.time() - at) * 1000)

    def set(self, seconds: int, microseconds: int) -> int:
        """What Redis answered to TIME just now. Returns it in milliseconds."""
        now = seconds * 1000 + microseconds // 1000
        self._skew = now - int(time.time() * 1000)
        return now
