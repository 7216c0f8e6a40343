"""One Redis for a module, and brokers of as many processes as a test wants over it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import gevent.socket
import pytest
import redis.connection

from ...support.redis_server import RedisServer
from ...support.redis_workers import Worker
from ...support.require import require_program


@pytest.fixture(scope="module")
def running() -> Iterator[RedisServer]:
    require_program("redis-server")
    server = RedisServer()
    yield server
    server.close()


@pytest.fixture
def server(running: RedisServer, monkeypatch: pytest.MonkeyPatch) -> RedisServer:
    running.start()
    running.call("FLUSHALL")
    # What monkey.patch_all() would do; it would do it to all the tests.
    monkeypatch.setattr(redis.connection, "socket", gevent.socket)
    return running


@pytest.fixture
def worker(server: RedisServer, pair: Any) -> Iterator[Callable[..., Worker]]:
    workers: list[Worker] = []

    def make(**options: Any) -> Worker:
        workers.append(Worker(pair, **{"url": server.url, **options}))
        return workers[-1]

    yield make
    for each in workers:
        if each.node._is_started:
            each.stop()
