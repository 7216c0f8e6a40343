"""The demo in a process, its clients, and a Redis for demos that share their rooms."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
from websockets.sync.client import ClientConnection

from ..support.demo import (
    ClientFactory,
    Demo,
    connect,
    running,
)
from ..support.redis_server import RedisServer
from ..support.require import require_program


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    require_program("redis-server")
    server = RedisServer()
    yield server
    server.close()


@pytest.fixture
def demo() -> Iterator[Demo]:
    with running("--port", "0") as demo:
        yield demo
        assert "Traceback" not in "\n".join(demo.stderr)


@pytest.fixture
def client(demo: Demo) -> Iterator[ClientFactory]:
    """Opens connections to the demo by path and subprotocol; they are closed with the test."""
    with contextlib.ExitStack() as stack:

        def open_connection(path: str, protocol: str, **options: Any) -> ClientConnection:
            url = demo.ws_url + path
            return stack.enter_context(connect(url, protocol, close_timeout=1, **options))

        yield open_connection
