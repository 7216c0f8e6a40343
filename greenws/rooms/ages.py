"""The time by which messages in memory age: real time, or that of a test's clock.

Not ``time.monotonic()``, as freezegun's counts from 1970: messages from before would be too old in
there, and those from within would not age after it.
"""

from __future__ import annotations

import time
from collections.abc import Callable

__all__ = ["AgeTime", "age_time", "real_time"]

_HAS_CLOCKS = hasattr(time, "clock_gettime")  # not on Windows


def real_time() -> float:
    """Seconds, whatever has replaced ``time.monotonic()``."""
    return time.clock_gettime(time.CLOCK_MONOTONIC) if _HAS_CLOCKS else time.monotonic()


class AgeTime:
    """Seconds that never go back, not even where a test's clock ends."""

    def __init__(self) -> None:
        self._ahead = 0.0  # of real time
        self._now: Callable[[], float] | None = None

    def now(self) -> float:
        return real_time() + self._ahead if self._now is None else self._now()

    def stop(self, elapsed: Callable[[], float]) -> None:
        """Lets time follow a clock; ``elapsed`` returns the seconds by which it has moved."""
        began = self.now()
        self._now = lambda: began + elapsed()

    def go_on(self) -> None:
        """Lets real time go on from that of the clock."""
        self._ahead = self.now() - real_time()
        self._now = None


age_time = AgeTime()
