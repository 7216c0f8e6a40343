"""``Caller``: calls one Redis from any thread, and blocks that thread. Imports no gevent."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar

import redis
import redis.exceptions

from ..broker import BrokerUnavailable
from . import url
from .delays import delays
from .errors import ERRORS, NODE_OF_A_CLUSTER, is_from_a_cluster, must_be_left
from .keys import Keys

__all__ = ["Caller"]

_T = TypeVar("_T")

_LONGEST_DELAY = 0.25  # seconds between two attempts
# The errors of Redis that may pass. All others are final. redis-py has classes for some, whose text
# does not have the code.
_PASSING = ("BUSY", "NOREPLICAS")
_PASSING_TYPES = (redis.exceptions.ClusterDownError, redis.exceptions.TryAgainError)


class Caller:
    """One connection, made at first use, and one call at a time. ``timeout``: seconds that a call
    may take in all, including the wait for calls of other threads. ``prefix``: that of ``keys``."""

    def __init__(self, address: str, timeout: float, prefix: str = "greenws:") -> None:
        self._address = address
        self._timeout = timeout
        self._is_cluster = url.parse(address).kind == url.CLUSTER
        self.keys = Keys(prefix, url.database_of(address), self._is_cluster)
        self._is_closed = False
        self.begin()

    def begin(self) -> None:
        """Called in each process, after a fork too: the parent's connection is left alone."""
        self._lock = threading.Lock()
        self._client: redis.Redis | None = None
        self._has_short_timeout = False  # less than ours, of which little was left

    def call(self, request: Callable[[redis.Redis], _T], doubt: str = "") -> _T:
        """Returns what ``request`` returns. If the connection fails, it is called again, until the
        timeout is over. ``doubt``: added to the error if Redis may have run the request.

        Raises:
            BrokerUnavailable: Redis is out of reach, or refuses the request.
        """
        deadline = time.monotonic() + self._timeout
        if not self._lock.acquire(timeout=self._timeout):
            raise BrokerUnavailable(f"Redis is out of reach: no answer within {self._timeout:g} s")
        try:
            return self._insist(request, deadline, doubt)
        except BaseException:  # perhaps of a signal, in the middle of an answer
            self._drop()
            raise
        finally:
            self._lock.release()

    def close(self) -> None:
        """Closes the connection, after a call that another thread makes."""
        with self._lock:
            self._is_closed = True
            self._drop()

    def _insist(self, request: Callable[[redis.Redis], _T], deadline: float, doubt: str) -> _T:
        failure: BaseException | None = None
        is_in_doubt = False
        for delay in delays(_LONGEST_DELAY, at_once=2):  # a cut connection is made again at once
            left = deadline - time.monotonic()
            if failure is not None and left <= delay:
                break
            time.sleep(delay)
            try:
                client = self._connect(deadline)
                try:
                    return request(client)
                except (redis.ConnectionError, redis.TimeoutError, OSError):
                    is_in_doubt = True
                    raise
            except ERRORS as error:
                self._drop()
                failure = error
                if _is_final(error):
                    break
        if failure is not None and is_from_a_cluster(failure) and not self._is_cluster:
            raise BrokerUnavailable(NODE_OF_A_CLUSTER) from failure
        summary = "Redis refuses" if failure and _is_final(failure) else "Redis is out of reach"
        raise BrokerUnavailable(f"{summary}: {failure}{doubt if is_in_doubt else ''}") from failure

    def _connect(self, deadline: float) -> redis.Redis:
        if self._is_closed:
            raise BrokerUnavailable("this sender was closed")
        left = max(0.001, deadline - time.monotonic())
        is_short = left < 0.9 * self._timeout
        if self._client is not None and self._has_short_timeout and not is_short:
            self._drop()
        if self._client is None:
            self._client = url.connect(self._address, left, left)
            self._has_short_timeout = is_short
            if not self._is_cluster:
                self._client.ping()  # so that an error of the request means that it was sent
        return self._client

    def _drop(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            url.close(client)


def _is_final(error: BaseException) -> bool:
    """Whether another attempt would fail as well."""
    if isinstance(error, (redis.AuthenticationError, url.WrongScheme)):
        return True
    if isinstance(error, _PASSING_TYPES) or must_be_left(error):
        return False
    return isinstance(error, redis.ResponseError) and not str(error).startswith(_PASSING)
