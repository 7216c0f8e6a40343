"""``from greenws.brokers.memory import MemoryBroker``"""

from __future__ import annotations

from ..rooms.memory import MemoryBroker

__all__ = ["MemoryBroker"]
