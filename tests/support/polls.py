"""How much is done between two polls of the kernel, counted in steps: time would depend on what
else the machine does."""

from __future__ import annotations

import time
from typing import Any

import gevent

__all__ = ["MOST", "MOST_AT_FIRST", "MOST_READ", "Polls", "busy"]

STEP = 0.0005  # seconds of a step
# Ten steps make a turn. Until the clock is read at each of them, there may be 32 more, and so
# again for the other greenlets that run between two polls. Without turns, all steps of a test (300
# and more) come between two polls.
MOST = 100
MOST_READ = 15  # where the clock is read at each step
# The same where greenlets begin in callbacks and watchers of the loop: the first turn may last
# twice as long, and the loop may run the second before the watcher that counts.
MOST_AT_FIRST = 35


def busy(seconds: float = STEP) -> None:
    """Keeps the processor, and the hub, for so long."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


class Polls:
    """Counts the polls of this thread's hub: libev and libuv call it after each, and libev before
    the watchers of what was found."""

    def __init__(self) -> None:
        self.count = 0
        self.most = 0  # steps between two polls
        self.total = 0
        self._steps = 0

    def step(self, seconds: float = STEP) -> None:
        """A step of half a millisecond."""
        busy(seconds)
        self.total += 1
        self._steps += 1
        self.most = max(self.most, self._steps)

    def _on_poll(self) -> None:
        self.count += 1
        self._steps = 0

    def __enter__(self) -> Polls:
        loop: Any = gevent.get_hub().loop
        self._watcher = loop.check(priority=loop.MAXPRI)
        self._watcher.start(self._on_poll)
        return self

    def __exit__(self, *exc: object) -> None:
        self._watcher.close()
