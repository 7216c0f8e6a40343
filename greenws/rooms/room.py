"""``Rooms`` and ``Room``: groups of sockets that get the same messages in the same order.

Handlers call these. The broker (``broker.py``) decides the order of messages, ``fanout.py``
delivers them to members, ``member.py`` has the queue of one member, and ``replay.py`` sends what a
member has missed.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import sys
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NoReturn, ParamSpec

from gevent.monkey import get_original

from ..checks import Hint, explains
from ..config import check_seconds
from ..protocol.shared import SharedMessage
from ..websocket import WebSocket
from . import arguments, lag
from . import stamp as stamps
from .broker import BEGINNING, Broker, BrokerUnavailable, Entry, Replay
from .fanout import Disconnect, FanOut, Gap
from .lag import Policy
from .linger import Lingering
from .member import Member
from .memory import MemoryBroker
from .presence import Change, Presence, PresenceFormat, Watch, id_of, pack, unpack_all
from .replay import send_missed, send_tail
from .stamp import Stamp
from .tail import Tail

__all__ = ["Room", "Rooms", "Stats"]

_Arguments = ParamSpec("_Arguments")

_RLock = get_original("_thread", "RLock")

_TAIL_BYTES = 2**20  # what a room keeps in memory for members that come back, at most
_ALL_TAILS_BYTES = 64 * 2**20  # the same, of all rooms

_logger = logging.getLogger("greenws.rooms")


class _JoinBlock(contextlib.AbstractContextManager[Member]):
    """A future member: an error says what is missing if it is used without ``with``."""

    def __init__(self, manager: contextlib.AbstractContextManager[Member]) -> None:
        self._manager: contextlib.AbstractContextManager[Member] | None = manager
        self._entered: contextlib.AbstractContextManager[Member] | None = None

    def __enter__(self) -> Member:
        if self._manager is None:
            raise RuntimeError("a room.join() is for one 'with'; call it again")
        self._entered, self._manager = self._manager, None
        return self._entered.__enter__()

    def __exit__(self, *error: Any) -> bool | None:
        entered, self._entered = self._entered, None
        assert entered is not None
        return entered.__exit__(*error)

    def __getattr__(self, name: str) -> NoReturn:
        raise AttributeError(
            f"room.join() is for a block: 'with room.join(socket) as member:'; use "
            f"member.{name} inside the block"
        )

    def __del__(self) -> None:
        if self._manager is not None and not sys.is_finalizing():
            _logger.error(
                "nobody has joined the room: room.join() is for a block, "
                "'with room.join(socket) as member:'"
            )


def _for_a_block(
    function: Callable[_Arguments, Iterator[Member]],
) -> Callable[_Arguments, contextlib.AbstractContextManager[Member]]:
    """:func:`contextlib.contextmanager` for a method that must be used in a ``with``."""
    make = contextlib.contextmanager(function)

    @functools.wraps(function)
    def call(
        *args: _Arguments.args, **kwargs: _Arguments.kwargs
    ) -> contextlib.AbstractContextManager[Member]:
        return _JoinBlock(make(*args, **kwargs))

    return call


@dataclass
class Stats:
    """Counters of the rooms of one process."""

    sent: int = 0
    """Messages that this process sent to its rooms."""
    delivered: int = 0
    """Messages that it handed to members; a message to five members counts five times."""
    dropped: int = 0
    """Messages that ``drop_oldest`` or ``coalesce`` took from the queue of a lagging member."""
    closed: int = 0
    """Members that were closed with 1013, because they read too slowly."""
    lagging: int = 0
    """Members that lag at present."""
    members: int = 0
    """Members at present, of all rooms."""


class Room:
    """A group of sockets by a name, from ``rooms[name]``. Costs nothing while it is empty."""

    broadcast = Hint("broadcast", "send(data)")
    emit = Hint("emit", "send(data)")
    publish = Hint("publish", "send(data)")
    add = Hint("add", "'with room.join(socket):'")
    leave = Hint("leave", "'with room.join(socket):', at whose end the member leaves")

    def __init__(self, rooms: Rooms, name: str) -> None:
        self.name = name
        self._rooms = rooms
        self._lock = rooms.lock
        self._stats = rooms.stats
        self._is_open = False
        broker = rooms.broker
        tail = Tail(rooms._tail_limit, broker.tail_length, broker.tail_age)
        self._fan_out = FanOut(name, rooms.lock, rooms.stats, rooms.stamp, tail)
        self._roster = self._fan_out.roster
        self._lingering = Lingering(rooms.lock)

    # -- what a handler calls

    @_for_a_block
    def join(
        self,
        socket: WebSocket,
        *,
        since: str | None = None,
        gap: str | bytes | dict[str, Any] | None = None,
        policy: Policy | None = None,
        presence: PresenceFormat | None = None,
        presence_key: str | int | None = None,
        presence_linger: float = 0.0,
        **info: Any,
    ) -> Iterator[Member]:
        """``with room.join(socket, name="Ann"):`` makes ``socket`` a member for the block.

        ``info`` is what others see of it in ``room.members``: anything that JSON can hold.
        ``policy``: what happens when it lags (:mod:`greenws.policies`; the default is that of the
        ``Rooms``). ``presence(kind, id, info)`` is called when somebody else joins or leaves, with
        "join" or "leave" and that member's id and info, and returns the message to send to this
        member (str, bytes, or a dict as JSON); None for no message. ``member.present`` then lists
        who was there when the block began, itself included: together with the messages since then
        it tells who is there now. (An older form, ``presence(kind, info)``, is accepted too.)

        ``presence_key``: members with the same key, in all processes, count as one, such as the
        tabs of a user: give the user's id. Others see it as the id, with the info of the first of
        these members. They get "join" when the first one joins and "leave" when the last one has
        left; the members with the key get neither. ``presence_linger``: seconds for which a member
        that has left still counts, so that a page that is reloaded causes no messages;
        ``room.disconnect`` ends it at once. (When a process ends, its members linger for the
        broker's ``presence_timeout`` at most.)

        ``since``: the id of the last message that a client saw before its connection dropped (None
        or the empty string: it saw none). The member is sent what it missed before the block
        begins. Messages sent during that time wait, up to ten times the ``limit`` of its policy or
        1,000 messages; beyond that it is closed with 1013. If messages are missing (the history
        does not go back far enough, or ``since`` is not an id that a message of the room can have
        had), the member is sent ``gap`` (str, bytes, or a dict as JSON) and then what there is, and
        ``member.is_complete`` is False. (A message that it was excluded from counts as missed.) A
        member that stays is also sent ``gap`` when its process fell so far behind that it lost
        messages.

        Raises:
            ConnectionClosed: the client left while it was sent what it missed.
            TypeError: JSON cannot hold ``info`` or ``gap``; ``policy`` is not a policy;
                ``presence`` is not such a function; ``presence_key`` is neither str nor int.
            ValueError: ``presence_key`` is empty; ``presence_linger`` is below 0, or given without
                a key; JSON cannot hold a number in ``gap``, or UTF-8 cannot encode it.
        """
        # A mock passes isinstance(), and a subclass may never have been opened.
        if not issubclass(type(socket), WebSocket) or getattr(socket, "_transport", None) is None:
            raise TypeError(
                f"room.join() takes the session's socket, not {socket!r}; in a test, take one from "
                "greenws.testing.connect() or pair()"
            )
        if isinstance(gap, dict):
            gap = arguments.message(gap)
        elif gap is not None and not isinstance(gap, (str, bytes)):
            raise TypeError(f"gap must be a message: a str, bytes or a dict, not {gap!r}")
        lag.check(policy)
        watch = None if presence is None else Watch.of(presence)
        json.dumps(info)
        if "" in info:
            raise TypeError("a keyword of info must not be empty")
        key = None if presence_key is None else id_of(presence_key)
        if presence_linger != 0:
            check_seconds("presence_linger", presence_linger)
            if key is None:
                raise ValueError("presence_linger needs a presence_key, to know who comes back")
        broker = self._rooms.broker
        policy = policy or self._rooms.policy
        member = Member(self, socket, info, policy, self._fan_out, gap, key, presence_linger)
        broker.open(self.name)
        lingers = False  # so the room stays open
        try:
            with self._lock:
                if not self._is_open:  # nothing may block before that
                    self._open()
            if since == "":  # request.args.get("since", "") of a new client
                since = None
            tail = None if since is None else self._admit_after_tail(member, watch, _text(since))
            replay = None
            if tail is None:
                if since is not None:
                    replay = broker.resume(self.name, _text(since))
                with self._lock:
                    self._admit(member, watch, replay)
            try:
                if tail is not None:
                    send_tail(member, tail, self._fan_out)
                elif replay is not None:
                    send_missed(member, replay, self._fan_out)
                yield member
            finally:
                if not socket._is_inherited():  # in a forked child, the parent's member stays
                    with self._lock:
                        lingers = self._dismiss(member)
        finally:
            if not socket._is_inherited() and not lingers:
                self._close()

    def send(
        self,
        data: str | bytes | bytearray | memoryview | dict[str, Any],
        exclude: Member | WebSocket | None = None,
        *,
        wait: bool = False,
    ) -> None:
        """Sends a message to all members, in all processes: text, bytes, or a dict as JSON;
        ``exclude``: one member, or its socket, that does not get it. Any greenlet and any thread
        may call it, member or not.

        In a large room other greenlets run while a message is being delivered; the call returns
        when all members of this process have it. It does not wait for Redis, so a message that
        another process sends later may come first; with ``wait`` it waits until the log has the
        message, however long that takes. (A ``gevent.Timeout`` around the call ends the wait, not
        the message, which is appended when Redis is back.)

        Blocks while the queue of a member with the policy ``block`` is full. In a thread other
        than the members', it also blocks until their thread has taken what was sent, for at most 5
        seconds.

        Raises:
            TypeError: ``data`` is none of these; ``exclude`` is neither a member nor a socket.
            ValueError: UTF-8 or JSON cannot encode ``data``, for example half a surrogate pair; or
                the ``stamp`` of the ``Rooms`` raised it; or the URL of the ``RedisBroker`` has the
                wrong scheme (``WrongScheme``), which with ``wait`` the first message finds out.
            BrokerUnavailable: the broker is out of reach, and too much waits for it already. With
                ``wait``: Redis does not accept the message, which only members of this process
                have received; or the rooms were closed, and the log may have the message or not.
        """
        # An invalid message must fail here, in the sender, and not where it arrives.
        message = arguments.message(data)
        self._fan_out.stamped(BEGINNING, message)
        if exclude is not None:
            exclude = exclude.socket if isinstance(exclude, Member) else exclude
            if not isinstance(exclude, WebSocket):
                raise TypeError(f"exclude must be a member or its socket, not {exclude!r}")
        if self._fan_out.is_held_up:
            self._fan_out.wait_for_room()
        broker = self._rooms.broker
        with self._lock:
            broker.publish(self.name, message, exclude)
            receipt = broker.receipt(self.name) if wait else None
            self._stats.sent += 1
        self._fan_out.wait()
        if receipt is not None and not receipt():
            raise BrokerUnavailable(
                "these rooms were closed before it was known that the log has the message "
                "(it may have it all the same)"
            )

    def history(self, count: int = 50) -> list[str | bytes]:
        """The newest ``count`` messages of the room, oldest first, as members were sent them: for
        a client that joins for the first time. May block; empty if the broker is out of reach.

        Raises:
            TypeError: ``count`` is not an int.
        """
        arguments.check_count(count)
        found = self._rooms.broker.newest(self.name, count) if count > 0 else []
        stamped = (self._fan_out.stamped_or_skipped(*message) for message in found)
        return [data for data in stamped if data is not None]

    @property
    def position(self) -> str:
        """The id of the last message of the room, for a page that is being rendered: a client that
        gives it as ``since`` misses nothing that is sent in between. Ask before ``history()``. May
        block.

        Raises:
            BrokerUnavailable: the broker is out of reach.
        """
        return self._rooms.broker.end_of(self.name)

    def disconnect(
        self,
        code: int = 1008,
        reason: str = "",
        member: Member | Presence | str | int | None = None,
    ) -> None:
        """Closes the members of the room in all processes, or only ``member``: a member, its
        presence or its id. (All members with one ``presence_key`` have the same id.) Each first
        gets what was sent before. Members in a process that has lost its connection to Redis stay
        connected. May block.

        Raises:
            ValueError: ``code`` may not be sent, ``reason`` is longer than 123 bytes, or ``member``
                is empty.
            BrokerUnavailable: the broker is out of reach. If it did not answer in time, it may
                still close them later.
        """
        arguments.check_close(code, reason)
        if isinstance(member, Member):
            member = member.token
        key = arguments.member_id(member)
        self._rooms.broker.disconnect(self.name, code, reason, key)

    @property
    def members(self) -> list[Presence]:
        """Everybody in the room, in all processes. May block if this process has no member."""
        with self._lock:
            if self._is_open:
                return self._roster.everybody()
        return unpack_all(self._rooms.broker.members(self.name))

    @property
    def lagging(self) -> list[Member]:
        """The members in this process that lag at present."""
        with self._lock:
            return self._fan_out.lagging()

    def __len__(self) -> int:
        return len(self.members)

    def __bool__(self) -> bool:
        return True

    def __repr__(self) -> str:
        return f"<Room {self.name!r}>"

    # -- joining and leaving

    def _open(self) -> None:
        broker = self._rooms.broker
        self._fan_out.open(broker.position(self.name), broker.others(self.name))
        self._is_open = True
        self._rooms._keep(self)

    def _close(self) -> None:
        with self._lock:
            if self._rooms.broker.close(self.name):
                self._closed()

    def _closed(self) -> None:
        self._is_open = False
        self._roster.close()
        self._rooms._forget(self)

    def _admit_after_tail(
        self, member: Member, watch: Watch | None, since: str
    ) -> list[tuple[str, SharedMessage]] | None:
        """What it has missed, if the tail has that; otherwise None, and it is not admitted."""
        with self._lock:
            tail = self._fan_out.tail.after(since)
            if tail is not None:
                member._begin_replay(None)
                self._fan_out.add_after_tail(member)
                self._introduce(member, watch)
            return tail

    def _admit(self, member: Member, watch: Watch | None, replay: Replay | None) -> None:
        if replay is not None:
            member._begin_replay(replay.begin())
        self._fan_out.add(member, self._rooms.broker.position(self.name))
        self._introduce(member, watch)

    def _introduce(self, member: Member, watch: Watch | None) -> None:
        self._stats.members += 1
        change = self._roster.join(member, watch)
        if watch is not None:
            member._present = self._roster.now()
        self._report(change)
        self._rooms.broker.join(self.name, member.token, pack(member))

    def _dismiss(self, member: Member) -> bool:
        """Returns whether it is still counted for a while."""
        member._drop()
        self._stats.members -= 1
        if not member.linger or self._rooms.is_closed:
            self._withdraw(member)
            return False

        def end() -> None:
            self._withdraw(member)
            self._close()

        self._lingering.add(member.id, member.token, member.linger, end)
        return True

    def _withdraw(self, member: Member) -> None:
        self._report(self._roster.leave(member))
        self._rooms.broker.leave(self.name, member.token)

    def _report(self, change: Change | None) -> None:
        if change is not None:
            self._fan_out.put(change)

    # -- what the broker delivers

    def _deliver(self, entry: Entry) -> None:
        self._fan_out.put(entry)

    def _change(self, kind: str, member: str, info: dict[str, Any]) -> None:
        self._report(self._roster.change(kind, member, info))

    def _disconnect(self, code: int, reason: str, member: str | None) -> None:
        self._lingering.end(member)
        self._fan_out.put(Disconnect(code, reason, member))

    def _send_gap(self) -> None:
        self._fan_out.put(Gap())

    def _wait(self) -> None:
        self._fan_out.wait()


class Rooms:
    """``rooms = Rooms()``, then ``rooms["lobby"]``: the rooms of an application.

    ``broker`` carries their messages. None: rooms of this process only. For several processes: the
    URL of a Redis ("redis://localhost", or any that :class:`greenws.brokers.redis.RedisBroker`
    accepts), a list of such URLs, or a :class:`greenws.brokers.Broker`. ``policy``: what happens to
    members that lag; None closes them with 1013. ``stamp(id, data)`` returns what members are sent
    for a message, so that clients learn its id: :func:`json_id`, or your own.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: the broker already serves other ``Rooms``.
    """

    send = Hint("send", "rooms[name].send(data)")
    join = Hint("join", "'with rooms[name].join(socket):'")
    get = Hint("get", "rooms[name]; a room need not exist before")
    emit = Hint("emit", "rooms[name].send(data)")
    broadcast = Hint("broadcast", "rooms[name].send(data)")
    publish = Hint("publish", "rooms[name].send(data)")
    leave = Hint("leave", "'with rooms[name].join(socket):', at whose end the member leaves")

    @explains(
        "Rooms(), or Rooms('redis://localhost')",
        dict.fromkeys(
            ("host", "port", "redis", "redis_url", "url", "message_queue"),
            "the Redis is the first argument: Rooms('redis://localhost:6379')",
        )
        | dict.fromkeys(
            ("history", "history_bytes", "max_age", "prefix", "timeout", "presence_timeout"),
            "that is an option of the broker: Rooms(MemoryBroker(...)) or "
            "Rooms(RedisBroker('redis://localhost', ...)) of greenws.brokers",
        ),
    )
    def __init__(
        self,
        broker: Broker | str | list[str] | tuple[str, ...] | None = None,
        *,
        policy: Policy | None = None,
        stamp: Stamp | None = None,
    ) -> None:
        lag.check(policy)
        stamps.check(stamp)
        if isinstance(broker, str | list | tuple):
            try:
                from .redis.broker import RedisBroker
            except ImportError as error:
                arguments.check_redis(error)
                raise
            self.broker: Broker = RedisBroker(broker)
        else:
            self.broker = MemoryBroker() if broker is None else broker
        if not isinstance(self.broker, Broker):
            raise TypeError(
                "Rooms takes None, the URL of a Redis such as 'redis://localhost' or a Broker, "
                f"not {broker!r:.200}"
            )
        self.lock = _RLock()
        self.broker.attach(self)
        self.policy = lag.close() if policy is None else policy
        self.stamp = stamp
        self.stats = Stats()
        """Counters of the rooms of this process."""
        self.is_closed = False
        _all.add(self)
        self._known: weakref.WeakValueDictionary[str, Room] = weakref.WeakValueDictionary()
        self._opened: dict[str, Room] = {}

    def __getitem__(self, name: str) -> Room:
        """
        Raises:
            TypeError: ``name`` is not a str.
            UnicodeEncodeError: UTF-8 cannot encode it.
        """
        arguments.check_name(name)
        with self.lock:
            room = self._known.get(name)
            if room is None:
                room = self._known[name] = Room(self, name)
            return room

    def __iter__(self) -> Iterator[Room]:
        """The rooms that have members in this process."""
        return iter(list(self._opened.values()))

    def __len__(self) -> int:
        return len(self._opened)

    def flush(self, timeout: float | None = None) -> bool:
        """Waits until Redis has all that was sent, for at most ``timeout`` seconds; returns whether
        it has. A program that ends does the same."""
        return self.broker.flush(timeout)

    def close(self, timeout: float | None = 5.0) -> None:
        """Ends what the broker runs, after ``flush(timeout)``. Rooms over Redis raise
        ``BrokerUnavailable`` from now on."""
        self.is_closed = True
        with self.lock:
            for room in list(self._opened.values()):
                room._lingering.forget()
        self.broker.flush(timeout)
        self.broker.stop()
        self.broker.detach()

    def _keep(self, room: Room) -> None:
        self._opened[room.name] = room

    def _tail_limit(self) -> int:
        """Bytes for the tail of a room, of those that all rooms share."""
        return min(_TAIL_BYTES, _ALL_TAILS_BYTES // max(1, len(self._opened)))

    def _forget(self, room: Room) -> None:
        self._opened.pop(room.name, None)

    # -- the listener of the broker

    def deliver(self, room: str, entry: Entry) -> None:
        """Your own broker calls this with an entry of an open room."""
        with self.lock:
            if room in self._opened:
                self._opened[room]._deliver(entry)

    def presence(self, room: str, kind: str, member: str, info: dict[str, Any]) -> None:
        """Your own broker calls this when a member in another process has joined or left."""
        with self.lock:
            if room in self._opened:
                self._opened[room]._change(kind, member, info)

    def disconnect(self, room: str, code: int, reason: str, member: str | None) -> None:
        """Your own broker calls this to close the members of an open room, or one of them."""
        with self.lock:
            if room in self._opened:
                self._opened[room]._disconnect(code, reason, member)

    def gap(self, room: str) -> None:
        """Your own broker calls this when messages of an open room are missing."""
        with self.lock:
            if room in self._opened:
                self._opened[room]._send_gap()

    def closed(self, room: str) -> None:
        """Your own broker calls this when its ``close`` returned True to itself."""
        with self.lock:
            if room in self._opened:
                self._opened[room]._closed()

    def wait(self, room: str) -> None:
        """Your own broker calls this to block while messages are still being delivered."""
        found = self._opened.get(room)
        if found is not None:
            found._wait()


def _text(since: Any) -> str:
    """A position that a client sent, as parsed from JSON or a query string."""
    return since if isinstance(since, str) else ""


_all: weakref.WeakSet[Rooms] = weakref.WeakSet()


def all_rooms() -> list[Rooms]:
    """Every ``Rooms`` of this process."""
    return list(_all)


def _unlock_all() -> None:
    """In a process that was forked while another thread held a lock."""
    for rooms in all_rooms():
        rooms.lock._at_fork_reinit()


os.register_at_fork(after_in_child=_unlock_all)
