"""``Subscriber``: receives what is published about open rooms, and reads on in their logs.

Redis publishes each entry as it is appended, with the id of the previous one; entries that a
process appended in one step are published together. Pub/Sub messages can be missed, so they are
only the quick way. The log itself is read from the last delivered entry on if a published entry
does not follow that one, when a subscription begins, and when a connection is new. If the log was
trimmed beyond that entry, messages are missing, and members are sent the gap.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import gevent
import gevent.event
import redis

from ...opcodes import MAX_REASON, is_sendable
from .. import turns
from ..broker import BEGINNING
from . import url
from .commands import closed_by_another
from .delays import delays
from .errors import ERRORS
from .leases import Leases
from .outage import Event
from .positions import order
from .process import Process
from .requests import DISCONNECT, SEVERAL, Snapshot, floor_of
from .sockets import own_socket
from .stream import Stream

__all__ = ["Subscriber"]

_BATCH = 500  # entries that one read takes from a room, and rooms that one command subscribes to
_FIRST_BATCH = 4  # the same, before it is known how large they are
_BATCH_BYTES = 2**20  # bytes that one read takes, or a little more
_ROOMS = 100  # whose logs are read with one command
_MARGIN = 10_000  # milliseconds by which the estimate of Redis's clock may be wrong
_PING_INTERVAL = 1.0  # seconds between two checks whether the connection works
_LONGEST_LENGTH = 12  # digits, and a newline

_logger = logging.getLogger("greenws.brokers.redis")


class Subscriber:
    """``connection``: the subscribed one, while it works. ``has_caught_up``: whether the entries
    from before the connection have been read."""

    def __init__(self, process: Process, streams: dict[str, Stream], leases: Leases) -> None:
        self.connection: Any = None
        self.has_caught_up = False
        self.changed: set[str] = set()  # rooms that were opened or closed
        self._process = process
        self._streams = streams
        self._leases = leases
        # Rooms whose subscription has begun, and whose logs were not read since.
        self._fresh: set[str] = set()
        self._rooms_changed = gevent.event.Event()

    def change(self, room: str, in_hub: Callable[[Callable[[], None]], None]) -> None:
        """A room was opened or closed."""
        self.changed.add(room)
        in_hub(self._rooms_changed.set)

    # -- the connection

    def read(self) -> None:
        """Connects and listens, for ever."""
        pauses = delays()
        while True:
            self.has_caught_up = False
            began = time.monotonic()
            try:
                self._listen(self.connect())
            except Exception as error:
                self._process.fail(error, began, Event.READ_FAILED)
            self.disconnect()
            if self.has_caught_up:
                pauses = delays()
            gevent.sleep(next(pauses))

    def connect(self) -> Any:
        """Waits until it is needed."""
        while self._process.outage.is_readable and not self._streams:
            self._rooms_changed.wait()
            if not self._streams:
                self._rooms_changed.clear()
        options = self._process.options
        if self._process.commands.refused is not None:
            raise self._process.commands.refused
        client = url.connect(
            options.url, _PING_INTERVAL + options.timeout, options.timeout, own_socket
        )
        connection: Any = client.connection_pool.make_connection()
        try:
            connection.connect()
        except BaseException:
            connection.disconnect()
            raise
        finally:
            url.close_sentinels(client)
        self.connection = connection
        self.changed.update(self._streams)
        self._rooms_changed.set()
        return connection

    def disconnect(self) -> None:
        connection, self.connection = self.connection, None
        if connection is not None:
            connection.disconnect()

    def _listen(self, connection: Any) -> None:
        """Listens. Returns when a connection that has worked is closed: Redis closes slow ones, so
        that alone is not an outage."""
        self._fresh.clear()
        while self.connection is connection:
            try:
                with closed_by_another():
                    answer = connection.read_response(disable_decoding=True)
            except redis.ConnectionError as error:
                if not self.has_caught_up:
                    raise
                _logger.info("subscribing again: %s", error)
                return
            self.on_answer(answer)
            turns.end_if_over()

    def subscribe(self) -> None:
        """Subscribes to rooms that are opened, unsubscribes from closed ones, and pings; for
        ever."""
        while True:
            self._rooms_changed.wait(_PING_INTERVAL)
            self._rooms_changed.clear()
            if self.connection is None:
                continue  # the next connection subscribes to all
            changed, self.changed = self.changed, set()
            keys = self._process.keys
            opened = [keys.channel(room) for room in changed if room in self._streams]
            closed = [keys.channel(room) for room in changed if room not in self._streams]
            # In a cluster, one command takes channels of one slot only.
            batch = _BATCH if self._process.link is None else 1
            try:
                for first in range(0, len(closed), batch):
                    self._send(keys.unsubscribe, *closed[first : first + batch])
                for first in range(0, len(opened), batch):
                    self._send(keys.subscribe, *opened[first : first + batch])
                self._send("PING")  # its answer comes after those to the commands before
            except Exception as error:
                self.disconnect()  # the listening greenlet notices, and connects again
                if not isinstance(error, ERRORS):
                    self._process.fail(error, None, Event.READ_FAILED)

    def _send(self, *command: str) -> None:
        if self.connection is not None:
            with closed_by_another():
                self.connection.send_command(*command, check_health=False)

    # -- answers and Pub/Sub messages

    def on_answer(self, answer: Any) -> None:
        kind, *rest = answer if isinstance(answer, list) else [answer]
        if isinstance(kind, Exception):
            link = self._process.link
            if link is None or not link.redirect(kind):
                raise kind
        elif kind in (b"message", b"smessage"):
            self.on_message(self._process.keys.room_of(rest[0]), rest[1])
        elif kind in (b"subscribe", b"ssubscribe"):
            self._fresh.add(self._process.keys.room_of(rest[0]))
        elif kind == b"sunsubscribe":
            self._on_unsubscribed(self._process.keys.room_of(rest[0]))
        elif kind.lower() == b"pong":  # a status without subscriptions, a message with some
            rooms = list(self._fresh)
            self._fresh.clear()
            self.read_on(rooms)
            self._leases.check(rooms)
            self.has_caught_up = True
            self._process.outage.succeed(Event.READ)

    def _on_unsubscribed(self, room: str) -> None:
        """Subscribes again: a node ends subscriptions by itself when it loses the slot."""
        link = self._process.link
        if room in self._streams and link is not None:
            self.changed.add(room)  # or it was closed and has been opened again
            link.read_map_soon()

    def on_message(self, room: str, data: bytes) -> None:
        stream = self._streams.get(room)
        if stream is None or not stream.id:
            return
        if data.startswith(b"presence "):
            self._leases.take(room, data)
        elif data.startswith(DISCONNECT):
            self._on_disconnect(room, data)
        elif data.endswith(SEVERAL, 0, head := max(0, data.find(b"\n"))):
            self._on_entries(stream, data, head + 1)
        elif not stream.is_broken:
            self._on_entry(stream, data)

    def _on_disconnect(self, room: str, data: bytes) -> None:
        try:
            head, _, reason = data.decode().partition("\n")
            _, code, member = head.split(" ", 2)  # an id may have spaces
            number = int(code)
        except ValueError as error:
            _logger.warning("ignoring malformed Pub/Sub message for room %r: %r", room, error)
            return
        if is_sendable(number):
            self._process.disconnect(room, number, reason[:MAX_REASON], member or None)

    def _on_entries(self, stream: Stream, data: bytes, start: int) -> None:
        while start < len(data):
            # The room may have been closed since, and even opened again, at a later entry.
            if stream.is_broken or self._streams.get(stream.room) is not stream:
                return
            length, newline, _ = data[start : start + _LONGEST_LENGTH].partition(b"\n")
            if not (newline and length.isdigit()):
                _logger.warning(
                    "ignoring malformed Pub/Sub message for room %r: %r", stream.room, length
                )
                return
            begin = start + len(length) + 1
            start = begin + int(length)
            self._on_entry(stream, data[begin:start])
            turns.end_if_over()

    def _on_entry(self, stream: Stream, data: bytes) -> None:
        try:
            head, _, data = data.partition(b"\n")
            id_, before, origin, number, kind = head.split(b" ")
            at = order(id_)
        except ValueError as error:
            _logger.warning(
                "ignoring malformed Pub/Sub message for room %r: %r", stream.room, error
            )
            return
        is_next = at > order(stream.id) and before.decode() == stream.id
        # By the log of another master, in which another entry may have our id: reading shows it.
        is_next = is_next and stream.room not in self._fresh
        is_known = not is_next and self._is_known(stream, id_.decode())
        is_in_future = at[0] > self._process.clock.now() + _MARGIN
        if is_in_future or not (is_next or is_known):
            self.read_on([stream.room])
        elif is_next:
            with self._process.lock:
                stream.take(id_, {b"o": origin, b"n": number, b"k": kind, b"d": data})
            self._process.wait_for_fan_out(stream.room)

    def _is_known(self, stream: Stream, id_: str) -> bool:
        """Whether an entry was probably delivered before."""
        if stream.is_estimated or order(id_) > order(stream.id):
            return False
        return id_ in stream.recent or order(id_) < order(stream.recent[0])

    # -- reading on

    def read_on(self, rooms: list[str]) -> None:
        """Delivers the entries after the last delivered one, from the logs of some rooms."""
        for first in range(0, len(rooms), _ROOMS):
            some = rooms[first : first + _ROOMS]
            counts: dict[str, int] = {}
            while some:
                some = self._read_once(some, counts)

    def _read_once(self, rooms: list[str], counts: dict[str, int]) -> list[str]:
        """Reads once; returns the rooms whose logs may hold more. ``counts``: how many entries to
        read of each, by their size."""
        streams = [
            stream
            for room in rooms
            if (stream := self._streams.get(room)) is not None
            and stream.id
            and not stream.is_broken
        ]
        if not streams:
            return []
        most = _BATCH // len(streams) + 2
        asked = [min(most, counts.get(stream.room, _FIRST_BATCH)) for stream in streams]
        positions = [stream.id for stream in streams]
        pages, floors = self._process.commands.run(
            partial(self._fetch, streams=streams, counts=asked), urgent=True
        )
        more = []
        for stream, position, count, page in zip(streams, positions, asked, pages, strict=True):
            if isinstance(page, Exception):
                self._on_error(stream, page)
                continue
            size = sum(len(fields.get(b"d", b"")) for _, fields in page)
            share = _BATCH_BYTES // len(streams)
            counts[stream.room] = max(2, min(most, share * len(page) // max(size, 1)))
            is_there = bool(page) and page[0][0].decode() == position
            if is_there and (position != stream.id or stream.is_last(page[0][1])):
                self._deliver(stream, page[1:])
                if len(page) == count:
                    more.append(stream.room)
            elif floor_of(floors.get(stream.room)) == position:
                self._deliver(stream, page)
                if page:
                    more.append(stream.room)
            elif position == stream.id:
                self._find_place(stream)
                more.append(stream.room)
        return more

    def _fetch(
        self, client: redis.Redis, streams: list[Stream], counts: list[int]
    ) -> tuple[list[Any], dict[str, Any]]:
        """For each log, the entry that was delivered last, if it is still there, and those after
        it; or an error. For logs without such an entry, also what ``floor_of`` reads. No
        transaction, which a full Redis refuses."""
        pipeline = client.pipeline(transaction=False)
        keys = [self._process.keys.log(stream.room) for stream in streams]
        for key, stream, count in zip(keys, streams, counts, strict=True):
            pipeline.xrange(key, stream.id, "+", count=count)
        at_floor = [
            (key, stream.room) for key, stream in zip(keys, streams, strict=True) if stream.is_floor
        ]
        for key, _ in at_floor:
            pipeline.xinfo_groups(key)
        found = pipeline.execute(raise_on_error=False)
        rooms = [room for _, room in at_floor]
        return found[: len(streams)], dict(zip(rooms, found[len(streams) :], strict=True))

    def _deliver(self, stream: Stream, entries: list[Any]) -> None:
        for id_, fields in entries:
            # The room may have been closed since, and even opened again, at a later entry.
            if self._streams.get(stream.room) is not stream:
                return
            with self._process.lock:
                if order(id_) > order(stream.id):
                    stream.take(id_, fields)
            self._process.wait_for_fan_out(stream.room)
            turns.end_if_over()

    def _on_error(self, stream: Stream, error: Exception) -> None:
        if self._process.link is not None and self._process.link.redirect(error):
            return
        if "WRONGTYPE" not in str(error):
            raise error
        stream.break_off()

    # -- a log without the entry that was delivered last

    def _find_place(self, stream: Stream) -> None:
        """The entry that was delivered last is not in the log. So messages are missing, unless it
        was never there: then the log was out of reach when the room was opened."""
        snapshot = self._leases.snapshot(stream.room, urgent=True, begin_log=True)
        key = self._process.keys.log(stream.room)
        if not snapshot.id:  # Redis accepts no writes, or the key does not hold a log
            kind: Any = self._process.run_for(stream.room, lambda client: client.type(key), True)
            if kind not in (b"stream", b"none"):
                stream.break_off()
                return
            raise redis.ConnectionError("Redis accepts no writes")
        if snapshot.floor == stream.id:
            stream.is_floor = True  # all entries before it have expired
            return
        if stream.is_estimated:
            start, is_missing = self._find_start(stream, key, snapshot)
        else:
            start, is_missing = self._find_last_known(stream, key, snapshot), True
        if self._streams.get(stream.room) is not stream:
            return
        if is_missing:
            options = self._process.options
            _logger.error(
                "messages of the room %r are lost to this process: it was behind by more than %d "
                "of them or %d s (raise history and max_age), or Redis has lost them",
                *(stream.room, options.history, options.expiry),
            )
            self._process.send_gap(stream.room)
        with self._process.lock:
            at = start or snapshot.floor or BEGINNING
            stream.begin(at, is_floor=not start, keeps_recent=is_missing)
            stream.floor = snapshot.floor
        if not start and not snapshot.floor:
            self._deliver(stream, self._ask(stream, lambda client: client.xrange(key, count=1)))

    def _find_start(self, stream: Stream, key: str, snapshot: Snapshot) -> tuple[str, bool]:
        """The last entry at the time when the room was opened, by the clock of Redis (empty if
        there was none), and whether messages since then are missing."""
        age = int((time.monotonic() - stream.opened_at) * 1000)
        until = f"{snapshot.now - age}-{2**64 - 1}"
        found: Any = self._ask(stream, lambda client: client.xrevrange(key, until, "-", count=1))
        if found:
            return found[0][0].decode(), False
        # Otherwise the log began after that time.
        is_whole = snapshot.floor != ""
        return "", not is_whole or age > self._process.options.expiry * 1000

    def _find_last_known(self, stream: Stream, key: str, snapshot: Snapshot) -> str:
        """The entry of the log to go on after, where the one that was delivered last is not there;
        empty to deliver all, as of a new log."""
        known = {*stream.recent, *stream.left} - {stream.id}

        def find(client: redis.Redis) -> Any:
            pipeline = client.pipeline(transaction=False)
            for id_ in known:
                pipeline.xrange(key, id_, id_, count=1)
            return pipeline.execute()

        found = self._ask(stream, find)
        there = [id_ for id_, each in zip(known, found, strict=True) if each]
        if there:
            # Not the one that came last: a log that was another for a while had other entries.
            return max(there, key=order)
        oldest = min((id_ for id_ in stream.recent if id_ != BEGINNING), key=order, default="")
        if not oldest or snapshot.floor and snapshot.floor != stream.floor:
            return ""
        # More is lost than we remember. What is older was delivered, or was there when the room was
        # opened: it must not be repeated.
        first: Any = self._ask(stream, lambda client: client.xrange(key, "-", oldest, count=1))
        if not first or order(first[0][0]) < order(stream.floor or BEGINNING):
            return ""
        last: Any = self._ask(stream, lambda client: client.xrevrange(key, oldest, "-", count=1))
        return last[0][0].decode() if last else ""

    def _ask(self, stream: Stream, call: Callable[[redis.Redis], Any]) -> Any:
        return self._process.run_for(stream.room, call, urgent=True)
