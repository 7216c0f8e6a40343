"""The options of ``RedisBroker``, of which ``greenws.Sender`` takes some."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from ...config import check_range, check_seconds

__all__ = ["Options"]


@dataclass(frozen=True)
class Options:
    """
    Raises:
        TypeError, ValueError: the value of an option is not allowed.
    """

    url: str
    prefix: str = "greenws:"
    history: int = 10_000
    history_bytes: int = 64 * 2**20
    max_age: float = 3600.0
    max_pending: int = 10_000
    max_pending_bytes: int = 64 * 2**20
    timeout: float = 5.0
    presence_timeout: float = 15.0
    is_cluster: bool = False
    name: str = "Redis"
    """What log messages call it."""

    def __post_init__(self) -> None:
        for name in ("history", "history_bytes", "max_pending", "max_pending_bytes"):
            check_range(name, getattr(self, name), 1, sys.maxsize)
        for name in ("max_age", "timeout", "presence_timeout"):
            check_seconds(name, getattr(self, name))
        if not isinstance(self.prefix, str):
            raise TypeError(f"prefix must be a str, not {self.prefix!r}")

    @property
    def expiry(self) -> int:
        """Whole seconds of ``max_age``, for Redis."""
        return max(1, int(self.max_age))
