"""A substitute for several processes over one Redis: brokers in this process, each with rooms and
members of its own."""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Callable
from typing import Any

import gevent.event
import pytest

from greenws import Rooms
from greenws.brokers.redis import RedisBroker

from .limits import limit, pace, wait_until
from .redis_server import RedisServer
from .wire import TEXT, Peer


def stamp(position: str, data: Any) -> str:
    return f"{position} {data}"


class Client:
    def __init__(self, member: Any, peer: Peer) -> None:
        self.member = member
        self.peer = peer
        self.last = member.position

    def hear(self, count: int) -> list[str]:
        heard = []
        for _ in range(count):
            fin, opcode, payload = self.peer.read_frame()
            assert (fin, opcode) == (True, TEXT)
            self.last, text = payload.decode().split(" ", 1)
            heard.append(text)
        return heard

    def hears_no_more(self) -> bool:
        return self.peer.is_silent(0.03)


class Worker:
    """What one process would have."""

    def __init__(self, pair: Any, **options: Any) -> None:
        self.broker = RedisBroker(**{"timeout": limit(1.0), **options})
        self.node: Any = self.broker.parts[0]
        self.rooms = Rooms(self.broker, stamp=stamp)
        self._pair = pair
        self._stack = contextlib.ExitStack()

    def join(self, room: str = "r", **options: Any) -> Client:
        socket, peer = self._pair()
        return Client(self._stack.enter_context(self.rooms[room].join(socket, **options)), peer)

    def send(self, *texts: str, room: str = "r", wait: bool = False) -> None:
        for text in texts:
            self.rooms[room].send(text, wait=wait)

    @property
    def nodes(self) -> list[Any]:
        """Each Redis that it uses."""
        parts = self.broker.parts
        return [each for part in parts for each in getattr(part, "nodes", {"": part}).values()]

    @property
    def is_lost(self) -> bool:
        return any(each.process.outage.is_lost for each in self.nodes)

    @property
    def is_idle(self) -> bool:
        """Nothing waits to be sent or read."""
        return not self.is_lost and not any(
            each._writer.unsent or each._leases.pending or each._leases.stale for each in self.nodes
        )

    def names(self, room: str = "r") -> list[str]:
        return sorted(member.info["name"] for member in self.rooms[room].members)

    def stop(self) -> None:
        self._stack.close()
        if self.rooms.is_closed:  # it has died
            return
        began = time.monotonic()
        while not self.is_idle:
            # Redis may be stopped.
            if time.monotonic() - began > (pace(0.2) if self.is_lost else limit()):
                break
            gevent.sleep(0.002)
        self.rooms.close(0)

    def die(self) -> None:
        """As a process that is killed: nothing more of it reaches Redis."""
        self.rooms.close(0)
        self.broker.publish = lambda *args, **options: None
        self._stack.close()


def away(server: RedisServer, *workers: Worker) -> None:
    """Until each has noticed it, by its subscribed connection if it has one."""
    server.stop()
    for each in workers:
        wait_until(
            lambda each=each: all(
                node.process.outage.is_lost
                and not (node._streams and node.process.outage.is_readable)
                for node in each.nodes
            )
        )


def back(server: RedisServer, *workers: Worker) -> None:
    server.start()
    for each in workers:
        wait_until(lambda each=each: each.is_idle)


def until_published_has_arrived(each: Worker) -> None:
    """Until the process has subscribed to its rooms, has read their logs for the first time, and
    has received what was published before: one that has published has its answer from Redis perhaps
    before another has the message."""
    subscriber = each.node._subscriber
    send, on_answer = subscriber._send, subscriber.on_answer
    mark, is_marked = secrets.token_hex(8), gevent.event.Event()

    def send_marked(*command: str) -> None:
        # A PING that was sent before, or without some rooms, shows nothing.
        is_last = command == ("PING",) and not subscriber.changed
        send(*command, *([mark] if is_last else []))

    def find_mark(answer: Any) -> None:
        on_answer(answer)
        if mark.encode() in (answer[1:] if isinstance(answer, list) else [answer]):
            is_marked.set()

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(vars(subscriber), "_send", send_marked)
        patch.setitem(vars(subscriber), "on_answer", find_mark)
        subscriber._rooms_changed.set()
        assert is_marked.wait(limit())


def until_all_is_read(*workers: Worker) -> None:
    """Until none of some processes is going to read a log, or to send or read anything else, for
    what has happened so far: each receives what comes by Pub/Sub alone."""
    for _ in range(2):  # what one sends, the others receive
        for each in workers:
            wait_until(lambda each=each: each.is_idle)
            until_published_has_arrived(each)
    wait_until(lambda: all(each.is_idle for each in workers))


def keep_from_reading(each: Worker) -> Callable[[], None]:
    """A process lags, as far as it reads the logs, until that is called."""
    may_read, subscriber = gevent.event.Event(), each.node._subscriber

    def wait_before(name: str) -> None:
        works = getattr(subscriber, name)
        setattr(subscriber, name, lambda *args: (may_read.wait(), works(*args)))

    wait_before("_on_entry")
    wait_before("_deliver")
    return may_read.set


class Clock:
    """The module ``time`` of a machine that is some seconds ahead."""

    def __init__(self, ahead: float) -> None:
        self._ahead = ahead

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)

    def time(self) -> float:
        return time.time() + self._ahead
