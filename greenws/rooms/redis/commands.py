"""The connection for commands, and the order in which greenlets use it.

Urgent commands (messages, and reading on in logs) go first. Those of members that join or ask for
history are not urgent: only one of them at a time waits for the connection. If Redis hangs, nobody
waits for more than ``timeout`` in all, the wait for the connection included.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import gevent
import redis
from gevent.lock import Semaphore

from . import url
from .errors import ERRORS, NODE_OF_A_CLUSTER, is_from_a_cluster, must_be_left
from .sockets import own_socket

__all__ = ["Commands", "closed_by_another"]

_T = TypeVar("_T")

_logger = logging.getLogger("greenws.brokers.redis")

_TIMEOUTS = (redis.TimeoutError, TimeoutError)


class Commands:
    """``timeout``: seconds after which a Redis that does not answer counts as lost. ``refused``: an
    error to raise because this Redis must not be used."""

    def __init__(self, address: str, timeout: float, is_cluster: bool = False) -> None:
        self.client = url.connect(address, timeout, timeout, own_socket)
        self.refused: url.WrongScheme | None = None
        self._is_cluster = is_cluster
        self.turn = Semaphore()
        self.queue = Semaphore()  # those that are not urgent
        self.is_closed = False
        self._timeout = timeout
        self._answered = 0.0  # when a command was answered last
        self._failed = 0.0  # when one failed
        self._failure: Exception | None = None

    def run(self, call: Callable[[redis.Redis], _T], urgent: bool = False) -> _T:
        """
        Raises:
            redis.RedisError, OSError: it failed, or Redis does not answer.
            WrongScheme: it is a node of a cluster.
        """
        if urgent:
            return self._run(call)
        with self._acquired(self.queue):
            gevent.sleep(0)  # Redis may answer before another greenlet has a turn
            return self._run(call)

    @property
    def is_hanging(self) -> bool:
        """Whether the last command timed out, so that others would too."""
        return self._failed > self._answered and isinstance(self._failure, _TIMEOUTS)

    def close(self) -> None:
        self.is_closed = True
        self.client.connection_pool.disconnect()
        url.close_sentinels(self.client)

    def disconnect(self) -> None:
        """Disconnects; the next command connects again."""
        self.client.connection_pool.disconnect()

    def refuse(self, reason: str) -> url.WrongScheme:
        if self.refused is None:
            _logger.error("%s", reason)
            self.refused = url.WrongScheme(reason)
        return self.refused

    def _run(self, call: Callable[[redis.Redis], _T]) -> _T:
        with self._acquired(self.turn):
            try:
                found = self._try_twice(call)
            except ERRORS as error:
                if isinstance(error, redis.ResponseError) and not must_be_left(error):
                    self._answered = time.monotonic()  # it concerns this command alone
                else:
                    self._failed, self._failure = time.monotonic(), error
                if must_be_left(error):
                    self.client.connection_pool.disconnect()
                if is_from_a_cluster(error) and not self._is_cluster:
                    raise self.refuse(NODE_OF_A_CLUSTER) from error
                raise
            self._answered = time.monotonic()
            return found

    def _try_twice(self, call: Callable[[redis.Redis], _T]) -> _T:
        """Calls again on a new connection if the old one was cut: that alone is not an outage."""
        try:
            return self._try(call)
        except redis.ConnectionError as error:
            if self._failed > self._answered or must_be_left(error):
                raise
        return self._try(call)

    def _try(self, call: Callable[[redis.Redis], _T]) -> _T:
        if self.refused is not None:
            raise self.refused
        if self.is_closed:
            raise redis.ConnectionError("these rooms were closed")
        with closed_by_another():
            return call(self.client)

    @contextmanager
    def _acquired(self, semaphore: Semaphore) -> Iterator[None]:
        """
        Raises:
            redis.RedisError, OSError: the connection of the one that it waited for has failed.
        """
        began = time.monotonic()
        while True:
            left = max(began, self._answered) + self._timeout - time.monotonic()
            if left <= 0:
                raise redis.TimeoutError("Redis does not answer")
            if semaphore.acquire(timeout=left):
                break
        try:
            if self._failed > began and self._failed > self._answered:
                raise self._failure or redis.TimeoutError("Redis does not answer")
            yield
        finally:
            semaphore.release()


@contextmanager
def closed_by_another() -> Iterator[None]:
    """Turns what redis-py and ssl raise, when another greenlet closes their connection, into a
    ConnectionError. If this one is killed, or timed out, meanwhile, that counts."""
    handled = sys.exc_info()[1]  # by the caller, before all this
    try:
        yield
    except (ValueError, AttributeError) as error:
        ended_by = error.__context__
        while ended_by is not None and ended_by is not handled:
            if not isinstance(ended_by, Exception):
                raise ended_by from None
            ended_by = ended_by.__context__
        raise redis.ConnectionError(f"the connection was closed: {error}") from error
