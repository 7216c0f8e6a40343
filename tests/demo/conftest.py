"""A Redis for demos that share their rooms."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ..support.redis_server import RedisServer
from ..support.require import require_program


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    require_program("redis-server")
    server = RedisServer()
    yield server
    server.close()
