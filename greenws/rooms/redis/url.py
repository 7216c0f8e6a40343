"""The URL of a Redis, of its sentinels, or of nodes of a cluster. Imports no gevent."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import redis
import redis.cluster
import redis.connection
import redis.exceptions
import redis.sentinel
from redis.backoff import ConstantBackoff, NoBackoff
from redis.retry import Retry

__all__ = [
    "CLUSTER",
    "SENTINEL",
    "Address",
    "WrongScheme",
    "ask_for_master",
    "check_url",
    "close",
    "close_sentinels",
    "connect",
    "database",
    "database_of",
    "parse",
]

Host = tuple[str, int]

SENTINEL = "sentinel"
CLUSTER = "cluster"

# redis-py's, without types
_parse_url: Any = redis.connection.parse_url
_Sentinel: Any = redis.sentinel.Sentinel
_RedisCluster: Any = redis.cluster.RedisCluster
_ClusterNode: Any = redis.cluster.ClusterNode

_DEFAULT_PORTS = {SENTINEL: 26379, CLUSTER: 6379}
_PLAIN = ("redis", "rediss", "unix")
_REDIRECTS, _REDIRECT_DELAY = 5, 0.02  # attempts, and seconds between them, to find a slot
_SENTINEL_TIMEOUT = 1.0  # seconds for each of several sentinels, at most

# Options of a connection that a URL cannot change.
_OURS = {"decode_responses", "health_check_interval", "max_connections", "protocol"}
_OURS |= {"socket_timeout", "socket_connect_timeout", "retry_on_timeout", "retry_on_error"}


class WrongScheme(ValueError):
    """A URL does not say what kind of Redis it leads to."""


class Address(NamedTuple):
    """A parsed URL. ``kind``: SENTINEL, CLUSTER, or empty for one Redis. ``base``: the URL of one
    Redis, with ``{}`` in place of host and port. ``name``: without user and password, so it is the
    same for all programs."""

    kind: str
    base: str
    hosts: tuple[Host, ...]
    master: str
    name: str

    def url(self, host: Host) -> str:
        """The URL of one node of a cluster."""
        return self.base.replace("{}", _text(host))


def _text(host: Host) -> str:
    return f"[{host[0]}]:{host[1]}" if ":" in host[0] else f"{host[0]}:{host[1]}"


def stripped(url: str) -> str:
    """``url`` without the options that a user cannot set."""
    address, _, query = url.partition("?")
    options = [each for each in query.split("&") if each and each.partition("=")[0] not in _OURS]
    return "?".join([address, "&".join(options)] if options else [address])


def parse(url: str) -> Address:
    """
    Raises:
        ValueError: ``url`` has none of the accepted forms.
    """
    scheme, _, rest = stripped(url).partition("://")
    secure, _, kind = scheme.partition("+")
    if not kind and secure in _PLAIN and "://" in url:
        found = _parse_url(stripped(url))
        number = "" if secure == "unix" else urlsplit(url).path.strip("/")
        if number and not number.isdigit():
            raise ValueError(f"the database must be a number: {_shown(url)}")
        where = found.get("path") or _text(
            (found.get("host", "localhost"), found.get("port", 6379))
        )
        return Address("", stripped(url), (), "", f"{where}/{found.get('db') or 0}")
    if kind not in _DEFAULT_PORTS or secure not in ("redis", "rediss"):
        raise ValueError(
            "the URL of a Redis begins with redis://, rediss://, unix://, redis+sentinel:// or "
            f"redis+cluster://, not {_shown(url)} (Rooms(None) are those of this process)"
        )
    where, question, query = rest.partition("?")
    where, _, path = where.partition("/")
    user, at, listed = where.rpartition("@")
    hosts = tuple(_parse_host(each, _DEFAULT_PORTS[kind], url) for each in listed.split(","))
    master, _, number = path.partition("/") if kind == SENTINEL else ("", "", path)
    if kind == SENTINEL and not master:
        raise ValueError(
            f"url names no master: redis+sentinel://host:port/MASTER, not {_shown(url)}"
        )
    if number and not number.isdigit() or (kind == CLUSTER and number not in ("", "0")):
        what = (
            "a cluster has database 0 only" if kind == CLUSTER else "the database must be a number"
        )
        raise ValueError(f"{what}: {_shown(url)}")
    base = f"{secure}://{user}{at}{{}}/{number or 0}{question}{query}"
    names = ",".join(sorted(map(_text, hosts)))
    return Address(kind, base, hosts, master, f"{kind}:{names}/{master}/{number or 0}")


def _shown(url: str) -> str:
    """``url`` without user and password."""
    scheme, colon, rest = url.partition("://") if "://" in url else ("", "", url)
    where = rest.rpartition("@")[2].partition("?")[0]
    return repr(f"{scheme}{colon}{where}")


def _parse_host(text: str, port: int, url: str) -> Host:
    name, colon, number = text.rpartition(":")
    if not colon or text.endswith("]"):
        name, number = text, str(port)
    if not name.strip("[]") or not number.isdigit() or int(number) > 65535:
        raise ValueError(f"url lists host:port[,host:port...]: {text!r} in {_shown(url)}")
    return name.strip("[]"), int(number)


def check_url(url: str) -> None:
    """Checks ``url`` without connecting.

    Raises:
        ValueError: redis-py does not accept ``url``.
    """
    address = parse(url)
    try:
        if address.kind == CLUSTER:
            url = address.url(address.hosts[0])
        connect(url, 1.0, 1.0).connection_pool.make_connection()
    except TypeError as error:
        raise ValueError(f"url has an option that redis-py does not know: {error}") from None


def connect(
    url: str,
    timeout: float,
    connect_timeout: float,
    on_connect: Callable[[Any], None] | None = None,
) -> redis.Redis:
    """A client with one connection, made at first use; behind sentinels, to the master that they
    name then. The client of a cluster has a connection to each node, and asks for the nodes now.
    ``on_connect`` is redis-py's ``redis_connect_func``; clusters ignore it.

    Raises:
        redis.ResponseError: it is not a cluster.
        redis.exceptions.RedisClusterException: no node of the cluster can be reached.
    """
    options: dict[str, Any] = {
        "max_connections": 1,
        "socket_timeout": timeout,
        "socket_connect_timeout": connect_timeout,
        "protocol": 2,
    }
    address = parse(url)
    if address.kind == CLUSTER:
        cluster: redis.Redis = _connect_to_cluster(address, options)
        return cluster
    if on_connect is not None:
        options["redis_connect_func"] = on_connect
    if address.kind != SENTINEL:
        return redis.Redis.from_url(address.base, retry=Retry(NoBackoff(), 0), **options)
    of_url, of_sentinels = _split_sentinel_options(address)
    for each in ("socket_timeout", "socket_connect_timeout"):
        of_sentinels[each] = min(options[each], _SENTINEL_TIMEOUT)
    sentinel: Any = _Sentinel(
        list(address.hosts),
        sentinel_kwargs={
            **of_sentinels,
            "protocol": 2,
            "retry": Retry(NoBackoff(), 0),
            "redis_connect_func": on_connect,
        },
        retry=Retry(NoBackoff(), 0),
        **{**of_url, **options},
    )
    client: redis.Redis = sentinel.master_for(address.master)
    return client


def _connect_to_cluster(address: Address, options: dict[str, Any]) -> Any:
    del options["max_connections"]
    of_url = dict(_parse_url(address.url(address.hosts[0])))
    is_secure = of_url.pop("connection_class", None) is not None
    for each in ("host", "port", "db"):
        of_url.pop(each, None)
    try:
        return _RedisCluster(
            startup_nodes=[_ClusterNode(*host) for host in address.hosts],
            require_full_coverage=False,
            retry=Retry(ConstantBackoff(_REDIRECT_DELAY), _REDIRECTS),
            ssl=is_secure,
            **{**of_url, **options},
        )
    except redis.exceptions.RedisClusterException as error:  # not a RedisError
        if "Cluster mode is not enabled" not in str(error):
            raise
        hosts = ",".join(map(_text, address.hosts))
        refusal = error.__context__
        while refusal is not None and not isinstance(refusal, redis.ResponseError):
            refusal = refusal.__context__
        if isinstance(refusal, redis.exceptions.NoPermissionError):  # the same for redis-py
            raise refusal from None
        raise redis.ResponseError(
            f"the Redis at {hosts} is not a node of a cluster: write redis://"
        ) from error


def ask_for_master(client: redis.Redis) -> Host:
    """The master that the sentinels name now.

    Raises:
        redis.ConnectionError: no sentinel names one.
    """
    pool: Any = client.connection_pool
    host, port = pool.sentinel_manager.discover_master(pool.service_name)
    return str(host), int(port)


def close_sentinels(client: redis.Redis) -> None:
    """Closes the connections of ``client`` to sentinels; it makes new ones when it needs them."""
    manager = getattr(client.connection_pool, "sentinel_manager", None)
    for each in () if manager is None else manager.sentinels:
        each.connection_pool.disconnect()


def _split_sentinel_options(address: Address) -> tuple[dict[str, Any], dict[str, Any]]:
    """The options for the master, and those for the sentinels: TLS, ``sentinel_username=`` and
    ``sentinel_password=``."""
    where, _, query = address.url(("host", 1)).partition("?")
    parts = [each for each in query.split("&") if each]
    theirs = [each for each in parts if each.startswith("sentinel_")]
    rest = [each for each in parts if each not in theirs]
    options = dict(_parse_url("?".join([where, "&".join(rest)])))
    of_sentinels = dict(_parse_url("redis://host?" + "&".join(each[9:] for each in theirs)))
    unknown = set(of_sentinels) - {"username", "password", "host", "db"}
    if unknown:
        raise ValueError(
            f"url has options that sentinels do not have: {', '.join(sorted(unknown))}"
        )
    is_secure = options.pop("connection_class", None) is not None
    names = [each.partition("=")[0][9:] for each in theirs]
    sentinels: dict[str, Any] = {name: of_sentinels[name] for name in names}
    for each in ("host", "port"):
        options.pop(each, None)
    if is_secure:
        options["ssl"] = sentinels["ssl"] = True
        sentinels.update((key, value) for key, value in options.items() if key.startswith("ssl_"))
    return options, sentinels


def close(client: redis.Redis) -> None:
    """Closes all connections of ``client``."""
    pool: Any = getattr(client, "connection_pool", None)
    if pool is None:
        client.close()  # of a cluster
    else:
        pool.disconnect()
        close_sentinels(client)


def database(client: redis.Redis) -> int:
    kwargs: dict[str, Any] = client.connection_pool.connection_kwargs
    return int(kwargs.get("db") or 0)


def database_of(url: str) -> int:
    address = parse(url)
    return 0 if address.kind == CLUSTER else database(connect(url, 1.0, 1.0))
