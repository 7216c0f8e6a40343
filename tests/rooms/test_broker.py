"""The contract of brokers, against those of one process: ours, and one that a stranger wrote."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from greenws.brokers import Broker
from greenws.brokers.memory import MemoryBroker
from greenws.rooms.broker import Entry, Message, Page, Replay

from .conformance import BrokerConformance, Brokers


class TestMemoryBroker(BrokerConformance):
    @pytest.fixture
    def brokers(self) -> Brokers:
        return MemoryBroker


class ListBroker(Broker):
    """As little as the contract asks for: a list for each room."""

    is_shared = False

    def __init__(self) -> None:
        self.opened: dict[str, int] = {}
        self.logs: dict[str, list[Message]] = {}

    def open(self, room: str) -> None:
        self.opened[room] = self.opened.get(room, 0) + 1
        self.logs.setdefault(room, [])

    def close(self, room: str) -> bool:
        self.opened[room] -= 1
        return not self.opened[room]

    def position(self, room: str) -> str:
        return f"list-{len(self.logs[room])}"

    def publish(self, room: str, data: str | bytes, exclude: Any = None) -> None:
        log = self.logs.setdefault(room, [])
        log.append(Message(f"list-{len(log) + 1}", data))
        if self._listener is not None and self.opened.get(room):
            self._listener.deliver(room, Entry(log[-1].position, data, exclude))

    def resume(self, room: str, since: str) -> Replay:
        return ListReplay(self.logs[room], since)

    def newest(self, room: str, count: int) -> list[Message]:
        return self.logs.get(room, [])[-count:]


class ListReplay(Replay):
    def __init__(self, log: list[Message], since: str) -> None:
        self.log, self.since = log, since
        self.until = 0

    def begin(self) -> None:
        self.until = len(self.log)

    def pages(self) -> Iterator[Page]:
        known = ["list-0", *(message.position for message in self.log)]
        after = known.index(self.since) if self.since in known else 0
        yield Page(self.log[after : self.until], gap=self.since not in known)


class TestListBroker(BrokerConformance):
    @pytest.fixture
    def brokers(self) -> Brokers:
        return ListBroker
