"""``outage()``: puts a broker out of reach, to test how an application behaves then.

A broker over Redis loses its connections for real. Any other broker gets a stand-in that behaves
like one over Redis: members of the process still receive each other's messages, and calls that must
ask the broker find nothing, wait, or raise ``BrokerUnavailable``.
"""

from __future__ import annotations

import contextlib
import gc
import socket as native
import sys
from collections.abc import Callable, Iterator
from typing import Any

from gevent.event import Event

from ..rooms.broker import BrokerUnavailable, Cursor, Message, Page, Replay
from ..rooms.room import Rooms

__all__ = ["outage"]


@contextlib.contextmanager
def outage(rooms: Rooms, *, max_pending: int | None = None) -> Iterator[None]:
    """In the ``with``, the broker of ``rooms`` is out of reach::

        with testing.outage(rooms):
            socket.send("still here?")
            assert socket.receive() == "still here?"     # in this process
        assert other.receive() == "still here?"          # after the outage

    Members in this process receive each other's messages. ``history()`` is empty, and so are the
    ``members`` of a room without members here; a member that comes back gets its gap, unless this
    process has in memory what it missed; ``position`` and ``disconnect()`` raise BrokerUnavailable;
    ``send(wait=True)`` and ``flush()`` wait.
    ``max_pending``: messages that may wait for the broker; beyond it, ``send()`` raises
    BrokerUnavailable. None for no limit.

    With a broker over Redis, no connection of this process to any Redis works during the outage,
    and ``max_pending`` is the broker's own option.

    Raises:
        TypeError: ``rooms`` is not ``Rooms``; ``max_pending`` is given for a broker over Redis.
    """
    if not isinstance(rooms, Rooms):
        raise TypeError(f"outage() takes Rooms, not {rooms!r}")
    broker = rooms.broker
    if type(broker).__module__.startswith("greenws.rooms.redis"):
        if max_pending is not None:
            raise TypeError("max_pending is an option of RedisBroker itself")
        with _no_redis():
            yield
        return
    unreachable = _Unreachable(broker, max_pending)
    rooms.broker = unreachable  # type: ignore[assignment]
    try:
        yield
    finally:
        rooms.broker = broker
        unreachable.over.set()


class _Unreachable:
    """A broker out of reach. Calls that concern only this process are passed to the real one."""

    def __init__(self, broker: Any, max_pending: int | None) -> None:
        self.over = Event()
        self._broker = broker
        self._max_pending = max_pending
        self._pending = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._broker, name)

    def publish(self, room: str, data: str | bytes, exclude: Any = None) -> None:
        if self._max_pending is not None and self._pending >= self._max_pending:
            raise BrokerUnavailable(f"{self._pending} messages wait for the broker (test outage)")
        self._pending += 1
        self._broker.publish(room, data, exclude)

    def receipt(self, room: str) -> Callable[[], bool]:
        return self.flush

    def resume(self, room: str, since: str) -> Replay:
        return _Unknown(self._broker.resume(room, since))

    def newest(self, room: str, count: int) -> list[Message]:
        return []

    def members(self, room: str) -> dict[str, dict[str, Any]]:
        return {}

    def end_of(self, room: str) -> str:
        raise BrokerUnavailable("the broker is out of reach (test outage)")

    def disconnect(self, room: str, code: int, reason: str, member: str | None) -> None:
        raise BrokerUnavailable("the broker is out of reach (test outage)")

    def flush(self, timeout: float | None = None) -> bool:
        return not self._pending or self.over.wait(timeout)


class _Unknown(Replay):
    """The replay of a member during an outage: a gap."""

    def __init__(self, replay: Replay) -> None:
        self._replay = replay

    def begin(self) -> Cursor | None:
        return self._replay.begin()

    def pages(self) -> Iterator[Page]:
        yield Page([], gap=True)


@contextlib.contextmanager
def _no_redis() -> Iterator[None]:
    """Cuts the connections to any Redis, and lets nobody connect."""
    redis = sys.modules["redis"]  # the broker has imported it
    connection: Any = redis.connection.AbstractConnection

    def connect(self: Any) -> None:
        raise redis.ConnectionError("Redis is out of reach (test outage)")

    connects = connection.connect
    connection.connect = connect
    try:
        for each in [thing for thing in gc.get_objects() if isinstance(thing, connection)]:
            sock = getattr(each, "_sock", None)
            if sock is not None:
                with contextlib.suppress(OSError):
                    sock.shutdown(native.SHUT_RDWR)
        yield
    finally:
        connection.connect = connects
