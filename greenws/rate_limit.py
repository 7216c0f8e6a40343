"""A rate limit: a token bucket."""

from __future__ import annotations

import time

__all__ = ["RateLimit"]


class RateLimit:
    """Allows ``rate`` messages and pings a second, in bursts of ``rate``, or of ``burst``.

    It reads the clock, so that protocol code does not have to.
    """

    def __init__(self, rate: float, burst: float | None = None) -> None:
        self._rate = rate
        self._size = max(1.0, rate) if burst is None else burst
        self._tokens = self._size
        self._filled = time.monotonic()

    def take(self) -> bool:
        """Whether one more is allowed now."""
        now = time.monotonic()
        self._tokens = min(self._size, self._tokens + (now - self._filled) * self._rate)
        self._filled = now
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True

    def __str__(self) -> str:
        return f"more than {self._rate:g} messages and pings a second (max_message_rate)"
