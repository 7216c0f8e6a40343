"""``Rooms``: groups of sockets that hear the same messages in the same order.

A room's broker calls ``_deliver`` for one entry of the room's log after the other, and nothing can
switch while an entry is handed to all members: that alone makes the order the same for everyone. A
member gets a message straight through its socket, without a greenlet of its own; only one that lags
has a queue, which its connection empties when it has room again.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import gevent
from gevent._hub_local import get_hub_if_exists
from gevent.monkey import get_original

from ..protocol.shared import SharedMessage
from ..websocket import WebSocket, offer_to_all
from . import lag
from .broker import JOIN, LEAVE, MESSAGE, Broker, Entry, Opening, Position, order
from .lag import Policy, Queue, TooSlow
from .memory import MemoryBroker

__all__ = ["Member", "Presence", "Room", "Rooms", "Stats", "json_id"]

Stamp = Callable[[str, "str | bytes"], "str | bytes"]
PresenceFormat = Callable[[str, "dict[str, Any]"], "str | bytes | None"]

_RLock = get_original("_thread", "RLock")
_sleep = get_original("time", "sleep")
_INTERNAL_ERROR = 1011
_TRY_AGAIN_LATER = 1013
_LOOK = 0.01  # seconds between two looks of a sender that is held up
_GLANCE = 0.001  # the same, where no more than a turn of another thread's hub is missing
_PATIENCE = 5.0  # seconds for which such a sender waits for that
_REPLAY_LIMIT = 1000  # messages that may wait at least for a member that is sent what it missed
_REPLAY_LIMIT_BYTES = 16 * 2**20  # the same, in bytes
_TURN = 100  # messages that are sent to one who comes back before others get their turn

_logger = logging.getLogger("greenws.rooms")


def json_id(position: str, data: str | bytes) -> str | bytes:
    """A ``stamp`` for :class:`Rooms` whose messages are JSON objects: puts ``"id"`` before their
    other keys.

    Raises:
        ValueError: ``data`` is not the text of a JSON object.
    """
    if not isinstance(data, str) or not data.startswith("{"):
        raise ValueError(f"with stamp=json_id a message is a JSON object, not {data[:100]!r}")
    rest = data[1:].lstrip()
    return f'{{"id":"{position}"{"" if rest.startswith("}") else ","}{rest}'


@dataclass
class Stats:
    """Counters of the rooms of one process."""

    sent: int = 0
    """Messages that this process sent to its rooms."""
    delivered: int = 0
    """Messages that it handed to members; a message to five members counts five times."""
    dropped: int = 0
    """Messages that ``drop_oldest`` or ``coalesce`` took from the queue of a member that lags."""
    closed: int = 0
    """Members that were closed with 1013, because they read too slowly."""
    lagging: int = 0
    """Members that lag at present."""
    members: int = 0
    """Members at present, of all rooms."""


class Presence(NamedTuple):
    """Who is in a room, in whichever process: a member's id, and the info it joined with."""

    id: str
    info: dict[str, Any]


class Member:
    """A socket in a room, from ``room.join()``."""

    def __init__(
        self,
        room: Room,
        socket: WebSocket,
        policy: Policy,
        presence: PresenceFormat | None,
        info: dict[str, Any],
    ) -> None:
        self.id = secrets.token_hex(8)
        self.room = room
        self.socket = socket
        self.info = info
        self.is_complete = True
        """False if the history did not reach back to ``since``."""
        self._policy = policy
        self._presence = presence
        self._queue: Queue | None = None  # of a member that lags, or catches up
        self._catching_up = False
        self._untried = False  # its queue is what other threads sent since its hub had a turn
        self._heard: dict[str, int] = {}  # ahead of the log, in another process
        self._since = ""  # a place that this process has not reached yet, and the member has

    @property
    def position(self) -> str:
        """The id of the last message that this member was sent, or might have been: what the client
        gives as ``since`` when it comes back."""
        return self.room._position(self)

    @property
    def waiting(self) -> int:
        """Messages that wait for this member, since it lags or catches up, or for its thread."""
        queue = self._queue
        return 0 if queue is None else len(queue)

    @property
    def _lags(self) -> bool:
        return self._queue is not None and not self._catching_up and not self._untried

    @property
    def _patience(self) -> float | None:
        """Seconds for which it holds up who sends when its queue is full."""
        if self._catching_up:
            return None
        return _PATIENCE if self._untried else self._policy.patience

    def _drain(self) -> None:
        self.room._drain(self)


class Room:
    """A group of sockets by a name, from ``rooms[name]``. Costs nothing while it is empty."""

    def __init__(self, rooms: Rooms, name: str) -> None:
        self.name = name
        self._rooms = rooms
        self._lock = rooms._lock
        self._stats = rooms.stats
        self._present: dict[str, Presence] = {}
        # The ids of the members in this process, and whether others have been told of them.
        self._here: dict[str, bool] = {}
        self._leaving: set[str] = set()  # those that were, and others have not been told
        # The same members: those that hear a message at once, and those that lag, catch up, or have
        # heard elsewhere what is new here.
        self._prompt: dict[Member, WebSocket] = {}
        self._others: dict[Member, None] = {}
        self._watching: dict[Member, None] = {}  # those that are told who comes and goes
        self._full: set[Member] = set()  # those that hold up who sends
        # what was delivered
        self._place = ""  # in the log; empty while the room is not open
        self._passed = "0-0"  # what came, in another thread, just before it was open
        self._ahead = 0  # number of our last entry that was delivered ahead of the log

    # -- what a handler calls

    @contextlib.contextmanager
    def join(
        self,
        socket: WebSocket,
        *,
        since: str | None = None,
        gap: str | bytes | None = None,
        policy: Policy | None = None,
        presence: PresenceFormat | None = None,
        **info: Any,
    ) -> Iterator[Member]:
        """``with room.join(socket, name="Ann"):`` makes ``socket`` a member for the block.

        ``info`` is what others see of it in ``room.members``: whatever JSON can hold. ``policy``:
        what happens when it lags (:mod:`greenws.policies`; the one of the ``Rooms`` without it).
        ``presence(kind, info)``, with "join" or "leave" and the info of somebody else, gives the
        message that this member gets when that one comes or goes; None for no message.

        ``since``: the id of the last message that a client saw before its connection dropped. It
        is sent what it missed, then goes on live; that is over, as far as the client reads, when
        the block begins. What comes meanwhile waits, for ten times the ``limit`` of its policy or
        1,000 messages; then it is closed with 1013. If the history does not reach back so far, or
        ``since`` is not an id that a message of the room can have had, it is sent ``gap`` first,
        then what there is, and ``member.is_complete`` is False. (A message that it was excluded
        from counts as missed.)

        Raises:
            ConnectionClosed: the client went away while it was sent what it missed.
            TypeError: JSON cannot hold ``info``; ``policy`` or ``presence`` is none.
        """
        lag.check(policy)
        if presence is not None and not callable(presence):
            raise TypeError(f"presence is a function of a kind and an info, not {presence!r}")
        encoded = json.dumps(info)
        broker = self._rooms.broker
        member = Member(self, socket, policy or self._rooms.policy, presence, info)
        opening = broker.open(self.name)
        try:
            with self._lock:
                if not self._place:  # nothing may block before that
                    self._begin(opening)
            start = None if since is None else self._locate(since)
            is_known = start is None or self._find_ours(start)
            with self._lock:
                self._admit(member, start)
                until, ahead = self._place, broker.ahead(self.name) if start else []
            try:
                with self._lock:
                    broker.publish(self.name, JOIN, encoded, member.id)
                if start is not None:
                    self._catch_up(member, start, until, ahead, gap, is_known)
                yield member
            finally:
                with self._lock:
                    self._dismiss(member)
                    broker.publish(self.name, LEAVE, encoded, member.id)
        finally:
            with self._lock:
                if broker.close(self.name):
                    self._place = ""
                    self._present.clear()
                    self._leaving.clear()
                    self._rooms._forget(self)

    def send(
        self,
        data: str | bytes | bytearray | memoryview,
        exclude: Member | WebSocket | None = None,
    ) -> None:
        """Sends a message to all members, in all processes; ``exclude``: one member, or its socket,
        that does not get it. Any greenlet and any thread may call it, member or not.

        What it sends goes out when the greenlet yields: a loop that does not otherwise calls
        ``gevent.sleep(0)``. It does not wait for Redis, so what is sent through another process
        afterwards may come before it.

        Blocks while a member with the policy ``block`` has no room; and in other threads than the
        members', while theirs had no time to take what was sent (for at most 5 seconds).

        Raises:
            TypeError: ``data`` is neither str nor bytes-like; ``exclude`` no member and no socket.
            UnicodeEncodeError: ``data`` is text that UTF-8 does not know (half a surrogate pair).
            Whatever the ``stamp`` of the ``Rooms`` raises for it.
            BrokerUnavailable: the broker is out of reach, and too much waits for it already.
        """
        # What must fail fails here, and not where the message arrives.
        if isinstance(data, str):
            data.encode()
        else:
            data = bytes(memoryview(data))
        self._stamped("0-0", data)
        if exclude is not None:
            exclude = exclude.socket if isinstance(exclude, Member) else exclude
            if not isinstance(exclude, WebSocket):
                raise TypeError(f"exclude is a member or its socket, not {exclude!r}")
        if self._full:
            self._hold_up()
        with self._lock:
            self._rooms.broker.publish(self.name, MESSAGE, data, exclude=exclude)
            self._stats.sent += 1

    def history(self, count: int = 50) -> list[str | bytes]:
        """The newest messages of the room, oldest first, as members were sent them: for whoever
        comes for the first time. May block."""
        entries = self._rooms.broker.newest(self.name, count) if count > 0 else []
        stamped = (self._stamped_if_it_can(entry.id or "", entry.data) for entry in entries)
        return [data for data in stamped if data is not None]

    @property
    def members(self) -> list[Presence]:
        """Everybody in the room, in all processes. May block if nobody here is in it."""
        with self._lock:
            if self._place:
                return list(self._present.values())
        found = self._rooms.broker.members(self.name)
        return [Presence(member, info) for member, info in found.items()]

    @property
    def lagging(self) -> list[Member]:
        """The members in this process that lag at present."""
        with self._lock:
            return [member for member in self._others if member._lags]

    def __len__(self) -> int:
        return len(self.members)

    def __bool__(self) -> bool:
        return True

    def __repr__(self) -> str:
        return f"<Room {self.name!r}>"

    # -- coming and going

    def _begin(self, opening: Opening) -> None:
        self._place = max(opening.id, self._passed, key=order)
        self._ahead = opening.ahead
        self._present = {key: Presence(key, info) for key, info in opening.members.items()}
        self._rooms._keep(self)

    def _admit(self, member: Member, start: Position | None) -> None:
        self._here[member.id] = False
        if member._presence is not None:
            self._watching[member] = None
        self._present[member.id] = Presence(member.id, member.info)
        self._stats.members += 1
        if start is not None:
            member._catching_up = True
            member._queue = Queue()
            member._heard = start.ahead
            if self._is_behind(start, self._place):
                member._since = start.id
        self._sort(member)

    def _locate(self, since: Any) -> Position:
        """From where a client is sent what it missed. ``since`` is whatever it has sent."""
        found = self._rooms.broker.locate(since) if isinstance(since, str) else None
        return found or Position("0-0")

    def _is_behind(self, start: Position, place: str) -> bool:
        """Whether a client has come further in the log than this process, in another one."""
        return self._rooms.broker.is_shared and order(place) < order(start.id)

    def _find_ours(self, start: Position) -> bool:
        """A client may have heard in another process what this one has sent and has not found in
        the log yet. False if that cannot be known."""
        broker = self._rooms.broker
        heard = start.ahead.get(broker.origin, 0)  # almost always all, and not worth waiting for
        if self._is_behind(start, self._place) or broker.ahead(self.name):
            number = broker.last_of_ours(self.name, start.id, insist=not heard)
            if number is None:
                return heard > 0
            if number > heard:
                start.ahead[broker.origin] = number
        return True

    def _sort(self, member: Member) -> None:
        if member.id not in self._here:
            return
        if member._queue is None and not member._heard and not member._since:
            self._others.pop(member, None)
            self._prompt[member] = member.socket
        else:
            self._prompt.pop(member, None)
            self._others[member] = None

    def _dismiss(self, member: Member) -> None:
        self._drop(member)
        self._present.pop(member.id, None)
        self._leaving.add(member.id)
        self._stats.members -= 1

    def _drop(self, member: Member) -> None:
        """Nothing more is sent to it."""
        self._here.pop(member.id, None)
        self._prompt.pop(member, None)
        self._others.pop(member, None)
        self._watching.pop(member, None)
        self._full.discard(member)
        if member._lags:
            self._stats.lagging -= 1
        member._queue = None

    def _catch_up(
        self,
        member: Member,
        start: Position,
        until: str,
        ahead: list[Entry],
        gap: str | bytes | None,
        is_known: bool,
    ) -> None:
        """Sends what was missed, and then what came meanwhile, at the client's own pace."""
        broker = self._rooms.broker
        entries: list[Entry] = []
        if broker.is_shared and order(until) < order(start.id):
            if ahead and not is_known:  # rather a gap than anything twice
                member.is_complete = False
                start.ahead[broker.origin] = ahead[-1].number
        elif is_known:
            member.is_complete, entries = broker.history(self.name, start.id, until)
        else:  # it has waited long enough
            member.is_complete = False
        # Of ours some may stand there, although this process does not know it yet.
        known = max((each.number for each in entries if each.origin == broker.origin), default=0)
        ahead = [each for each in ahead if each.number > known]
        send = member.socket.send
        if not member.is_complete and gap is not None:
            send(gap)
        heard = start.ahead
        position = Position(start.id, heard)
        for index, entry in enumerate(entries + ahead):
            if index % _TURN == _TURN - 1:
                gevent.sleep(0)
            is_new = entry.number > heard.get(entry.origin, 0)
            if entry.id is None:
                if is_new:
                    heard[entry.origin] = entry.number
            else:
                position.id = entry.id
                if entry.number >= heard.get(entry.origin, 0):
                    heard.pop(entry.origin, None)
            if is_new and entry.kind == MESSAGE:
                data = self._stamped_if_it_can(str(position), entry.data)
                if data is not None:
                    self._stats.delivered += 1
                    send(data)
        if not member._since:
            heard.pop(broker.origin, None)  # self._ahead holds for all members here
        queue = member._queue
        while queue:
            send(queue.popitem(last=False)[1].data)
        with self._lock:
            member._catching_up = False
            if member._queue is None:  # it was closed meanwhile
                return
            if queue is not None and not queue:
                member._queue = None
            elif queue is not None:  # another thread has sent something just now
                member._untried = True
                member.socket.call_in_hub(member._drain)
            self._sort(member)

    # -- what the broker delivers

    def _deliver(self, entry: Entry) -> None:
        """Nothing may switch here: the order is the same for all."""
        broker = self._rooms.broker
        is_own = entry.origin == broker.origin
        if entry.id is None:
            self._ahead = entry.number
        else:
            self._place = entry.id
            if is_own and self._ahead:
                heard_already = entry.number <= self._ahead
                if entry.number >= self._ahead:
                    self._ahead = 0
                if heard_already:
                    return
        if entry.kind == MESSAGE:
            self._spread(entry, entry.data, self._prompt, list(self._others))
        else:
            self._tell_presence(entry, is_own)

    def _tell_presence(self, entry: Entry, is_own: bool) -> None:
        info = json.loads(entry.data)
        # Others may take a process that hangs for dead; then it says once more who is here.
        if entry.member in self._here:
            if entry.kind == LEAVE or self._here[entry.member]:
                return
            self._here[entry.member] = True
        elif entry.kind == LEAVE:
            gone = self._present.pop(entry.member, None)
            if gone is not None:
                info = gone.info
            elif entry.member not in self._leaving:  # it was taken for dead before
                return
            self._leaving.discard(entry.member)
        elif is_own and entry.member not in self._leaving and entry.member not in self._present:
            return  # it left before the room was opened anew: nobody here would hear of that
        elif not is_own:
            was_known = entry.member in self._present
            self._present[entry.member] = Presence(entry.member, info)
            if was_known:
                return
        askers: dict[PresenceFormat, list[Member]] = {}
        for member in self._watching:
            if member._presence is not None and member.id != entry.member:
                askers.setdefault(member._presence, []).append(member)
        for make, members in askers.items():
            try:
                data = make(entry.kind, info)
            except Exception:
                _logger.exception("presence= of a member of the room %r failed", self.name)
                continue
            if data is not None:
                prompt = {member: member.socket for member in members if member in self._prompt}
                others = [member for member in members if member not in prompt]
                self._spread(entry, data, prompt, others)

    def _spread(
        self,
        entry: Entry,
        data: str | bytes,
        prompt: dict[Member, WebSocket],
        others: list[Member],
    ) -> None:
        exclude = entry.exclude
        message = SharedMessage(self._stamped(self._position(None), data))
        delivered, slow = offer_to_all(prompt, message, exclude)
        for member in others:
            if member.socket is exclude:
                continue
            if not member._heard and not member._since:
                slow.append(member)
                continue
            if self._is_new_to(member, entry):
                own = SharedMessage(self._stamped(self._position(member), data))
                delivered += 1
                if member._queue is not None or not member.socket.offer(own):
                    self._put(member, own, data)
            self._sort(member)
        for member in slow:
            self._put(member, message, data)
        self._stats.delivered += delivered + len(slow)

    def _is_new_to(self, member: Member, entry: Entry) -> bool:
        """For a member that comes from another process, and has heard there what this one hears
        only now, or what was ahead of the log."""
        if member._since and entry.id is not None:
            if order(entry.id) <= order(member._since):
                return False
            member._since = ""
            if not member._catching_up:
                member._heard.pop(self._rooms.broker.origin, None)  # all that is in the log by now
        last = member._heard.get(entry.origin, 0)
        if entry.id is not None and entry.number >= last and not member._catching_up:
            member._heard.pop(entry.origin, None)
        return entry.number > last

    def _position(self, member: Member | None) -> str:
        if not self._ahead and not (member and (member._heard or member._since)):
            return self._place
        place = self._place
        if member and member._since and order(place) < order(member._since):
            place = member._since
        ahead = dict(member._heard) if member else {}
        if self._ahead:
            ahead[self._rooms.broker.origin] = self._ahead
        return str(Position(place, ahead))

    def _stamped(self, position: str, data: str | bytes) -> str | bytes:
        stamp = self._rooms.stamp
        return data if stamp is None else stamp(position, data)

    def _stamped_if_it_can(self, position: str, data: str | bytes) -> str | bytes | None:
        """Other programs may have put into the log what the stamp does not take."""
        try:
            return self._stamped(position, data)
        except Exception:
            _logger.exception("a message of the room %r was skipped", self.name)
            return None

    # -- members that lag

    def _put(self, member: Member, message: SharedMessage, data: str | bytes) -> None:
        queue = member._queue
        if queue is None:
            queue = member._queue = Queue()
            self._sort(member)
            if member.socket.is_elsewhere():
                member._untried = True
                member.socket.call_in_hub(member._drain)
            else:
                self._stats.lagging += 1
                member.socket.when_ready(member._drain)
        policy = member._policy
        try:
            # What it could not have read yet is not its fault; but memory has an end.
            if member._catching_up or member._untried:
                if len(queue) >= max(_REPLAY_LIMIT, 10 * policy.limit) or queue.bytes >= max(
                    _REPLAY_LIMIT_BYTES, policy.limit_bytes
                ):
                    raise TooSlow
                queue[message] = message
            else:
                self._stats.dropped += policy.put(queue, message, data)
        except TooSlow:
            self._stats.closed += 1
            self._close(member, _TRY_AGAIN_LATER, "You read too slowly.")
            return
        except Exception:
            _logger.exception("the policy of a member of the room %r failed", self.name)
            self._close(member, _INTERNAL_ERROR)
            return
        is_full = policy.is_full(queue) and member._patience is not None
        if is_full and member not in self._full:
            queue.full_since = time.monotonic()
            self._full.add(member)

    def _close(self, member: Member, code: int, reason: str = "") -> None:
        self._drop(member)
        member.socket.start_closing(code, reason)

    def _try(self, member: Member) -> None:
        """What its connection does not take from now on is lag."""
        if member._untried and member._queue is not None:
            member._untried = False
            member._queue.full_since = 0.0
            self._full.discard(member)
            self._stats.lagging += 1

    def _drain(self, member: Member) -> None:
        """Sends what waits for a member, as far as its connection takes it."""
        with self._lock:
            queue = member._queue
            if queue is None:
                return
            self._try(member)
            while queue:
                key, message = next(iter(queue.items()))
                if not member.socket.offer(message):
                    member.socket.when_ready(member._drain)
                    break
                queue.pop(key, None)
            if member in self._full and not member._policy.is_full(queue):
                queue.full_since = 0.0
                self._full.discard(member)
            if not queue:
                self._stats.lagging -= 1
                member._queue = None
                self._sort(member)

    def _hold_up(self) -> None:
        """Blocks who sends, but not a hub, while a member has no room: one with the policy
        ``block``, or one whose hub had no turn yet, since the sender is in another thread."""
        hub = get_hub_if_exists()
        sleep = _sleep if hub is None else gevent.sleep
        while hub is None or gevent.getcurrent() is not hub:
            with self._lock:
                member = next(iter(self._full), None)
                if member is None or member._queue is None:
                    return
                assert member._patience is not None
                left = member._queue.full_since + member._patience - time.monotonic()
                look = _GLANCE if member._untried else _LOOK
                if member._untried and not member.socket.is_elsewhere():
                    self._drain(member)
                    continue
                if left <= 0 and member._untried:  # its thread hangs; perhaps it waits for this one
                    self._try(member)
                    continue
                if left <= 0:
                    self._stats.closed += 1
                    self._close(member, _TRY_AGAIN_LATER, "You read too slowly.")
                    continue
            sleep(min(left, look))


class Rooms:
    """``rooms = Rooms()``, then ``rooms["lobby"]``: the rooms of an application.

    ``broker`` carries their messages: None for those of this process, the URL of a Redis
    ("redis://localhost") or a :class:`greenws.brokers.Broker` for those of many. ``policy``: what
    happens to members that lag; closed with 1013 without one. ``stamp(id, data)`` gives what
    members are sent for a message, so that clients learn its id: :func:`json_id`, or your own.

    Raises:
        TypeError: something else is given for one of them.
    """

    def __init__(
        self,
        broker: Broker | str | None = None,
        *,
        policy: Policy | None = None,
        stamp: Stamp | None = None,
    ) -> None:
        lag.check(policy)
        if stamp is not None and not callable(stamp):
            raise TypeError(
                f"stamp is a function of an id and data, such as json_id, not {stamp!r}"
            )
        if isinstance(broker, str):
            try:
                from .redis.broker import RedisBroker
            except ImportError as error:
                raise ImportError(f"{error}; pip install redis (or 'greenws[redis]')") from None
            self.broker: Broker = RedisBroker(broker)
        else:
            self.broker = MemoryBroker() if broker is None else broker
        if not isinstance(self.broker, Broker):
            raise TypeError(f"Rooms takes None, the URL of a Redis or a Broker, not {broker!r}")
        if self.broker._rooms is not None:
            raise ValueError("this broker carries other Rooms, which would hear nothing any more")
        self.broker._rooms = self
        self.broker.deliver = self._deliver
        self.policy = lag.close() if policy is None else policy
        self.stamp = stamp
        self.stats = Stats()
        self._lock = self.broker._lock = _RLock()
        _all.add(self)
        self._known: weakref.WeakValueDictionary[str, Room] = weakref.WeakValueDictionary()
        self._open: dict[str, Room] = {}

    def __getitem__(self, name: str) -> Room:
        """
        Raises:
            TypeError: ``name`` is no str.
            UnicodeEncodeError: it is none that UTF-8 knows.
        """
        if not isinstance(name, str):
            raise TypeError(f"a room has a name, not {name!r}")
        name.encode()  # UTF-8 is what carries it
        with self._lock:
            room = self._known.get(name)
            if room is None:
                room = self._known[name] = Room(self, name)
            return room

    def __iter__(self) -> Iterator[Room]:
        """The rooms that have members in this process."""
        return iter(list(self._open.values()))

    def __len__(self) -> int:
        return len(self._open)

    def flush(self, timeout: float | None = None) -> bool:
        """Waits, at most so many seconds, until Redis has all that was sent; returns whether it
        has. A program that ends waits for it, too."""
        return self.broker.flush(timeout)

    def close(self, timeout: float | None = 5.0) -> None:
        """Ends what the broker runs, after ``flush(timeout)``. Rooms over Redis raise
        ``BrokerUnavailable`` from now on."""
        self.broker.flush(timeout)
        self.broker.stop()
        self.broker._rooms = None

    def _keep(self, room: Room) -> None:
        self._open[room.name] = room

    def _forget(self, room: Room) -> None:
        self._open.pop(room.name, None)

    def _deliver(self, name: str, entry: Entry) -> None:
        with self._lock:
            room = self._open.get(name)
            if room is None:
                room = self._known.get(name)
                if room is not None and entry.id is not None:
                    room._passed = entry.id
                return
            try:
                room._deliver(entry)
            except Exception:
                _logger.exception("a message of the room %r was skipped", name)


_all: weakref.WeakSet[Rooms] = weakref.WeakSet()


def _unlock_all() -> None:
    """In a process that was forked while another thread held a lock."""
    for rooms in list(_all):
        rooms._lock._at_fork_reinit()


os.register_at_fork(after_in_child=_unlock_all)
