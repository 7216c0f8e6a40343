"""The contract of brokers, against ``RedisBroker`` over a real Redis."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from greenws.brokers.redis import RedisBroker

from ...support.limits import limit
from ..conformance import Brokers, SharedBrokerConformance


class TestRedisBroker(SharedBrokerConformance):
    @pytest.fixture
    def brokers(self, server: Any) -> Iterator[Brokers]:
        made: list[RedisBroker] = []

        def make() -> RedisBroker:
            made.append(RedisBroker(server.url, timeout=limit(1.0)))
            return made[-1]

        yield make
        for each in made:
            each.stop()
