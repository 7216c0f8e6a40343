"""``from greenws.brokers.redis import RedisBroker``"""

from __future__ import annotations

from ..rooms.redis.broker import RedisBroker

__all__ = ["RedisBroker"]
