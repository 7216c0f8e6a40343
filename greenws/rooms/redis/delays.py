"""The pauses between attempts to reach Redis. Imports no gevent."""

from __future__ import annotations

from collections.abc import Iterator

__all__ = ["FIRST_DELAY", "delays"]

FIRST_DELAY = 0.02  # seconds
_LONGEST_DELAY = 1.0


def delays(longest: float = _LONGEST_DELAY, at_once: int = 0) -> Iterator[float]:
    """The seconds to wait before each attempt, doubled each time up to ``longest``; none before
    the first ``at_once`` attempts."""
    for _ in range(at_once):
        yield 0.0
    delay = FIRST_DELAY
    while True:
        yield delay
        delay = min(2 * delay, longest)
