"""What redis-py raises, and what an answer says about the connection. Knows no gevent."""

from __future__ import annotations

import redis

__all__ = ["ERRORS", "must_be_left"]

ERRORS = (redis.RedisError, OSError)

# What a Redis answers that will not serve this connection again, or not for long: it became a
# replica, lost its master, loads its data.
_LEFT: tuple[str, ...] = ("READONLY", "MASTERDOWN", "LOADING", "UNBLOCKED")
_LEFT += ("read only replica", "Link with MASTER", "loading the dataset")  # as redis-py has them


def must_be_left(error: BaseException) -> bool:
    """Whether an answer says that another connection is to be made, perhaps to another Redis."""
    return isinstance(error, redis.RedisError) and any(each in str(error) for each in _LEFT)
