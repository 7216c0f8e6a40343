"""Whatever comes after what: members that join, read, leave and come back, people who talk, and
processes that are cut off from Redis, in an order that Hypothesis chooses and shortens.

At the end each client has every message once and in order, or was told of a gap, and what it was
told of presence is the truth. Whoever judges knows only what the clients have read, and what was
sent.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from typing import Any

import gevent.socket
import pytest
import redis.connection
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    rule,
    run_state_machine_as_test,
)

from greenws import Rooms
from greenws.rooms import turns

from ..support.examples import examples
from ..support.limits import wait_until
from ..support.play import Line
from ..support.redis_server import RedisServer
from ..support.redis_workers import Worker, stamp
from ..support.require import require_program

GAP = "0-0 GAP"
HERE = "0-0 here:"  # with who is there, when a client has come
NAMES = st.sampled_from("abc")
CLIENTS = st.integers(0, 2)

_rooms = itertools.count()


class MemoryWorker:
    """One process, of which the three names are three handlers."""

    is_idle = True

    def __init__(self) -> None:
        self.rooms = Rooms(stamp=stamp)

    def stop(self) -> None:
        self.rooms.close()


class World:
    """The processes, by name, and the lines between them and Redis."""

    def __init__(self, pair: Any, workers: dict[str, Any], lines: dict[str, Line]) -> None:
        self.pair = pair
        self.workers = workers
        self.lines = lines

    def mend(self) -> None:
        for each in self.lines.values():
            each.mend()
        wait_until(lambda: all(each.is_idle for each in self.workers.values()))


class Client:
    def __init__(self, world: World, room: str, name: str, key: str | None) -> None:
        self.world = world
        self.room = room
        self.options = {"name": name, **({"presence_key": key} if key else {})}
        self.last: str | None = None
        self.heard: list[str] = []
        self.owed: dict[str, int] = {}  # the number of the first message that it must hear
        self.told: set[str] | None = None  # not yet who is there
        self.id = ""
        self._stack = contextlib.ExitStack()
        self._peer: Any = None

    @property
    def is_in(self) -> bool:
        return self._peer is not None

    def come(self, where: str, sent: dict[str, int]) -> None:
        def tell(kind: str, id: str, info: dict[str, Any]) -> str:
            return f"{kind}:{id}"

        socket, self._peer = self.world.pair()
        join = self.world.workers[where].rooms[self.room].join
        member = self._stack.enter_context(
            join(socket, since=self.last, gap=GAP, presence=tell, **self.options)
        )
        self.id = member.id
        self.told = None
        socket.send(HERE + ",".join(each.id for each in member.present))
        if self.last is None:
            self.last, self.owed = member.position, dict(sent)

    def read(self) -> None:
        """What has arrived."""
        while not self._peer.is_silent(0.0):
            self._take(self._peer.read_frame()[2].decode())

    def read_until(self, *labels: str) -> None:
        while not set(labels) <= set(self.heard):
            self._take(self._peer.read_frame()[2].decode())

    def _take(self, text: str) -> None:
        if text == GAP:
            self.heard.append(GAP)
            return
        if text.startswith(HERE):
            self.told = set(text.removeprefix(HERE).split(",")) - {""}
            return
        self.last, label = text.split(" ", 1)
        kind, colon, id_ = label.partition(":")
        if not colon:
            self.heard.append(label)
        elif self.told is None:
            pass  # a change during its replay, which those who are there contain
        elif kind == "join":
            assert id_ not in self.told
            self.told.add(id_)
        else:
            self.told.remove(id_)

    def leave(self) -> None:
        self._peer.close()
        self._peer = None
        self._stack.close()

    def check(self, sent: dict[str, int]) -> None:
        assert len(set(self.heard) - {GAP}) == len([each for each in self.heard if each != GAP])
        for name, count in sent.items():
            expected, was_told = self.owed.get(name, 0), False
            # When it first came, some messages were still on their way, which it hears too.
            first = next((int(each[1:]) for each in self.heard if each.startswith(name)), expected)
            expected = min(expected, first)
            for label in self.heard:
                if label == GAP:
                    was_told = True
                elif label.startswith(name):
                    number = int(label[1:])
                    assert number >= expected, f"{label} came late: {self.heard}"
                    assert number == expected or was_told, f"missing before {label}: {self.heard}"
                    expected, was_told = number + 1, False
            assert expected == count, f"missing: {name}{expected} in {self.heard}"


class Machine(RuleBasedStateMachine):
    def __init__(self, world: World) -> None:
        super().__init__()
        self.world = world
        self.room = f"room {next(_rooms)}"
        self.sent = dict.fromkeys("abc", 0)
        self.clients: list[Client] = []

    @initialize(same=st.booleans())
    def begin(self, same: bool) -> None:
        keys = ["ann", "ann", None] if same else [None] * 3
        self.clients = [
            Client(self.world, self.room, str(number), key) for number, key in enumerate(keys)
        ]

    @rule(number=CLIENTS, where=NAMES)
    def come(self, number: int, where: str) -> None:
        if not self.clients[number].is_in:
            self.clients[number].come(where, self.sent)

    @rule(number=CLIENTS)
    def read(self, number: int) -> None:
        if self.clients[number].is_in:
            self.clients[number].read()

    @rule(number=CLIENTS)
    def leave(self, number: int) -> None:
        if self.clients[number].is_in:
            self.clients[number].leave()

    @rule(where=NAMES, count=st.integers(1, 3))
    def say(self, where: str, count: int) -> None:
        for _ in range(count):
            number = self.sent[where]
            self.sent[where] += 1
            self.world.workers[where].rooms[self.room].send(f"{where}{number}")

    @rule(where=NAMES)
    def cut(self, where: str) -> None:
        if where in self.world.lines:
            self.world.lines[where].cut()

    @rule(where=NAMES)
    def mend(self, where: str) -> None:
        if where in self.world.lines:
            self.world.lines[where].mend()

    @rule()
    def wait(self) -> None:
        self.world.mend()

    def teardown(self) -> None:
        self.world.mend()
        try:
            self._check()
        finally:
            for client in self.clients:
                if client.is_in:
                    client.leave()

    def _check(self) -> None:
        for client in self.clients:
            if not client.is_in:
                client.come("a", self.sent)
        for _ in range(2):
            for name in "abc":
                self.say(name, 1)
        last = [f"{name}{count - 1}" for name, count in self.sent.items()]
        for client in self.clients:
            client.read_until(*last)
            client.check(self.sent)
        there = {client.id for client in self.clients}

        def is_known() -> bool:
            for client in self.clients:
                client.read()
            members = [
                {each.id for each in worker.rooms[self.room].members}
                for worker in self.world.workers.values()
            ]
            return all(each == there for each in members) and all(
                client.told == there for client in self.clients
            )

        wait_until(is_known)


@pytest.mark.parametrize("turn", [turns.SECONDS, 0.0])
def test_in_one_process(pair: Any, turn: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the turns of an idle machine, too: what is put has often not begun when others come
    and go."""
    monkeypatch.setattr(turns, "SECONDS", turn)
    worker = MemoryWorker()
    world = World(pair, dict.fromkeys("abc", worker), {})
    run_state_machine_as_test(
        lambda: Machine(world), settings=examples(100, stateful_step_count=30)
    )
    worker.stop()


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    require_program("redis-server")
    server = RedisServer()
    yield server
    server.close()


@pytest.fixture
def world(server: RedisServer, pair: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setattr(redis.connection, "socket", gevent.socket)
    lines = {name: Line(server.port) for name in "abc"}
    workers = {name: Worker(pair, url=lines[name].url, presence_timeout=1.0) for name in "abc"}
    yield World(pair, workers, lines)
    for worker in workers.values():
        worker.stop()
    for line in lines.values():
        line.close()


def test_over_redis(world: World) -> None:
    run_state_machine_as_test(lambda: Machine(world), settings=examples(60, stateful_step_count=30))
