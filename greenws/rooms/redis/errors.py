"""The errors of redis-py, and what they say about the connection. Imports no gevent."""

from __future__ import annotations

import redis
import redis.exceptions

__all__ = ["ERRORS", "NODE_OF_A_CLUSTER", "is_from_a_cluster", "is_redirect", "must_be_left"]

# The last one is not a RedisError.
ERRORS = (redis.RedisError, OSError, redis.exceptions.RedisClusterException)

NODE_OF_A_CLUSTER = (
    "this Redis is a node of a cluster, which has rooms in all of its nodes: "
    "write redis+cluster://host:port instead of redis://host:port"
)

# Answers of a Redis that will not serve this connection for some time, because it became a replica,
# lost its master, or is loading its data.
_LEFT: tuple[str, ...] = ("READONLY", "MASTERDOWN", "LOADING", "UNBLOCKED")
_LEFT += ("read only replica", "Link with MASTER", "loading the dataset")  # in redis-py's words

_REDIRECTS = (redis.exceptions.AskError, redis.exceptions.TryAgainError)  # and MovedError
_FROM_A_CLUSTER = (redis.exceptions.MovedError, redis.exceptions.ClusterCrossSlotError)


def is_redirect(error: BaseException) -> bool:
    """Whether a node of a cluster says that another one has the room, or is about to."""
    return isinstance(error, _REDIRECTS)


def is_from_a_cluster(error: BaseException) -> bool:
    """Whether only a node of a cluster answers that."""
    return isinstance(error, _FROM_A_CLUSTER)


def must_be_left(error: BaseException) -> bool:
    """Whether another connection must be made, perhaps to another Redis."""
    return isinstance(error, redis.RedisError) and any(each in str(error) for each in _LEFT)
