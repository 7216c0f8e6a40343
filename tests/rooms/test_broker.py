"""The contract of brokers, against those of one process: ours, and one that a stranger wrote."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gevent
import gevent.event
import pytest

from greenws import Rooms
from greenws.brokers import Broker, Entry, Message, Page, Replay
from greenws.brokers.memory import MemoryBroker

from ..support.limits import limit, wait_until
from .conformance import BrokerConformance, Brokers, SharedBrokerConformance


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


class SharedListBroker(ListBroker):
    """What a broker of several processes has beside that, as if ``all`` were a server."""

    is_shared = True

    def __init__(self, all: list[SharedListBroker]) -> None:
        super().__init__()
        self.all = all
        self.here: dict[str, dict[str, dict[str, Any]]] = {}
        if all:
            self.logs = all[0].logs
        all.append(self)

    def publish(self, room: str, data: str | bytes, exclude: Any = None) -> None:
        log = self.logs.setdefault(room, [])
        log.append(Message(f"list-{len(log) + 1}", data))
        for each in self.listening(room):
            entry = Entry(log[-1].position, data, exclude if each is self else None)
            each._listener.deliver(room, entry)

    def listening(self, room: str) -> list[Any]:
        return [each for each in self.all if each._listener is not None and each.opened.get(room)]

    def join(self, room: str, member: str, info: dict[str, Any]) -> None:
        self.here.setdefault(room, {})[member] = info
        self.report(room, "join", member, info)

    def leave(self, room: str, member: str) -> None:
        self.report(room, "leave", member, self.here[room].pop(member))

    def report(self, room: str, kind: str, member: str, info: dict[str, Any]) -> None:
        for each in self.listening(room):
            if each is not self:
                each._listener.presence(room, kind, member, info)

    def others(self, room: str) -> dict[str, dict[str, Any]]:
        found: dict[str, dict[str, Any]] = {}
        for each in self.all:
            if each is not self:
                found.update(each.here.get(room, {}))
        return found

    def members(self, room: str) -> dict[str, dict[str, Any]]:
        return self.others(room)

    def disconnect(self, room: str, code: int, reason: str, member: str | None) -> None:
        for each in self.listening(room):
            each._listener.disconnect(room, code, reason, member)


class TestSharedListBroker(SharedBrokerConformance):
    @pytest.fixture
    def brokers(self) -> Brokers:
        all: list[SharedListBroker] = []
        return lambda: SharedListBroker(all)


class SlowListBroker(SharedListBroker):
    """Its ``open`` waits for the server."""

    def __init__(self, all: list[SharedListBroker]) -> None:
        super().__init__(all)
        self.answer = gevent.event.Event()
        self.answer.set()

    def open(self, room: str) -> None:
        super().open(room)
        self.answer.wait()


def test_the_last_member_may_leave_while_the_position_is_asked_for(pair):
    all: list[SharedListBroker] = []
    broker = SlowListBroker(all)
    rooms, others = Rooms(broker), Rooms(SharedListBroker(all))
    room, there = rooms["r"], others["r"]
    (socket, peer), (other, _), (again, returning) = pair(), pair(), pair()
    with room.join(socket):
        there.send("first")
        assert peer.read_frame()[2] == b"first"
        broker.answer.clear()
        asking = gevent.spawn(lambda: room.position)
        wait_until(lambda: broker.opened["r"] == 2)
    broker.answer.set()
    since = asking.get(timeout=limit())
    assert (broker.opened["r"], list(rooms)) == (0, [])
    there.send("missed")  # nobody listens here
    with there.join(other) as bob, room.join(again, since=since) as member:
        assert {each.id for each in room.members} == {bob.id, member.id}
        there.send("live")
        assert [returning.read_frame()[2] for _ in range(2)] == [b"missed", b"live"]
        assert member.is_complete
        assert member.position == "list-3"
