"""The policies for members of rooms that lag: ``from greenws import policies``."""

from __future__ import annotations

from .rooms.lag import Policy, Queue, TooSlow, block, close, coalesce, drop_oldest

__all__ = ["Policy", "Queue", "TooSlow", "block", "close", "coalesce", "drop_oldest"]
