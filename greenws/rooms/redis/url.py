"""What is taken of the URL of a Redis. Knows no gevent."""

from __future__ import annotations

from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

__all__ = ["check_url", "connect", "database", "stripped"]

# Options of a connection that a URL cannot change.
_OURS = {"decode_responses", "health_check_interval", "max_connections", "protocol"}
_OURS |= {"socket_timeout", "socket_connect_timeout", "retry_on_timeout", "retry_on_error"}


def stripped(url: str) -> str:
    """Without the options that are not the user's here."""
    address, _, query = url.partition("?")
    options = [each for each in query.split("&") if each and each.partition("=")[0] not in _OURS]
    return "?".join([address, "&".join(options)] if options else [address])


def check_url(url: str) -> None:
    """Connects to nothing.

    Raises:
        ValueError: ``url`` is none that redis-py takes.
    """
    try:
        redis.ConnectionPool.from_url(url).make_connection()
    except TypeError as error:
        raise ValueError(f"url has an option that redis-py does not know: {error}") from None


def connect(url: str, timeout: float, connect_timeout: float) -> redis.Redis:
    """A client with one connection, that is made when it is used first."""
    return redis.Redis.from_url(
        url,
        max_connections=1,
        socket_timeout=timeout,
        socket_connect_timeout=connect_timeout,
        retry=Retry(NoBackoff(), 0),
        protocol=2,
    )


def database(client: redis.Redis) -> int:
    kwargs: dict[str, Any] = client.connection_pool.connection_kwargs
    return int(kwargs.get("db") or 0)
