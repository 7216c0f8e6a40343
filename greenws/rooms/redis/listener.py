"""``Subscriber``: hears what is published of the rooms that are open, and reads on in their logs.

Redis publishes each entry as it is appended, with the id of the one before. What is published can
be missed, so it is only the quick way: where the entry before is not the last one that was
delivered, where a subscription begins, and where a connection is new, the log itself is read on
from there. A log that was trimmed beyond that has a hole, which is told.
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

from ...opcodes import is_sendable
from .. import turns
from . import url
from .commands import closed_by_another
from .errors import ERRORS
from .leases import Leases
from .outage import Event
from .positions import order
from .process import Process
from .requests import DISCONNECT
from .stream import Stream

__all__ = ["Subscriber"]

_BATCH = 500  # entries that one read takes from a room, and rooms that one command subscribes to
_ROOMS = 100  # whose logs are read with one command
_MARGIN = 10_000  # milliseconds by which what is known of Redis's clock may be wrong
_PING_INTERVAL = 1.0  # seconds between two looks whether the connection works
_MAX_REASON = 123  # bytes of a Close
_FIRST_DELAY, _LONGEST_DELAY = 0.02, 1.0  # seconds between two attempts to reach Redis

_logger = logging.getLogger("greenws.brokers.redis")


class Subscriber:
    """``connection``: the subscribed one, while it works. ``has_caught_up``: whether all that was
    missed before it was made has been read."""

    def __init__(self, process: Process, streams: dict[str, Stream], leases: Leases) -> None:
        self.connection: Any = None
        self.has_caught_up = False
        self.changed: set[str] = set()  # rooms that were opened or closed
        self._process = process
        self._streams = streams
        self._leases = leases
        self._rooms_changed = gevent.event.Event()
        self._last_pong = time.monotonic()  # all that was published before was heard
        self._is_old = False  # it was so long ago that entries may have expired

    def change(self, room: str, in_hub: Callable[[Callable[[], None]], None]) -> None:
        """A room was opened or closed."""
        self.changed.add(room)
        in_hub(self._rooms_changed.set)

    # -- the connection

    def read(self) -> None:
        """Listens, for ever."""
        delay = _FIRST_DELAY
        while True:
            self.has_caught_up = False
            began = time.monotonic()
            try:
                self._listen(self.connect())
            except Exception as error:
                self._process.outage.fail(Event.READ_FAILED, error, began)
            self.disconnect()
            if self.has_caught_up:
                delay = _FIRST_DELAY
            gevent.sleep(delay)
            delay = min(2 * delay, _LONGEST_DELAY)

    def connect(self) -> Any:
        """Waits until it is needed."""
        while self._process.outage.is_readable and not self._streams:
            self._rooms_changed.wait()
            if not self._streams:
                self._rooms_changed.clear()
        options = self._process.options
        client = url.connect(options.url, _PING_INTERVAL + options.timeout, options.timeout)
        connection: Any = client.connection_pool.make_connection()
        try:
            connection.connect()
        except BaseException:
            connection.disconnect()
            raise
        self.connection = connection
        self.changed.update(self._streams)
        self._rooms_changed.set()
        return connection

    def disconnect(self) -> None:
        connection, self.connection = self.connection, None
        if connection is not None:
            connection.disconnect()

    def _listen(self, connection: Any) -> None:
        """Returns when a connection that has worked was closed, as Redis does to one that is slow.
        Redis may well be there."""
        fresh: set[str] = set()  # rooms whose entries are published to us from now on
        self._is_old = time.monotonic() - self._last_pong > self._process.options.expiry
        while self.connection is connection:
            try:
                with closed_by_another():
                    answer = connection.read_response(disable_decoding=True)
            except redis.ConnectionError as error:
                if not self.has_caught_up:
                    raise
                _logger.info("subscribing again: %s", error)
                return
            self.on_answer(answer, fresh)
            turns.end_if_over()

    def subscribe(self) -> None:
        """Says on that connection which rooms are open, and from time to time that it is used; for
        ever."""
        while True:
            self._rooms_changed.wait(_PING_INTERVAL)
            self._rooms_changed.clear()
            if self.connection is None:
                continue  # whoever connects will subscribe to all
            changed, self.changed = self.changed, set()
            channel = self._process.keys.channel
            opened = [channel(room) for room in changed if room in self._streams]
            closed = [channel(room) for room in changed if room not in self._streams]
            try:
                for first in range(0, len(closed), _BATCH):
                    self._send("UNSUBSCRIBE", *closed[first : first + _BATCH])
                for first in range(0, len(opened), _BATCH):
                    self._send("SUBSCRIBE", *opened[first : first + _BATCH])
                self._send("PING")  # the answer to it comes after theirs
            except Exception as error:
                self.disconnect()  # whoever listens will see that, and whether Redis is there
                if not isinstance(error, ERRORS):
                    self._process.outage.fail(Event.READ_FAILED, error)

    def _send(self, *command: str) -> None:
        if self.connection is not None:
            with closed_by_another():
                self.connection.send_command(*command, check_health=False)

    # -- what comes

    def on_answer(self, answer: Any, fresh: set[str]) -> None:
        kind, *rest = answer if isinstance(answer, list) else [answer]
        if isinstance(kind, Exception):
            raise kind
        if kind == b"message":
            self.on_message(self._process.keys.room_of(rest[0]), rest[1])
        elif kind == b"subscribe":
            fresh.add(self._process.keys.room_of(rest[0]))
        elif kind.lower() == b"pong":  # of a status or of a message, as there are subscriptions
            rooms = list(fresh)
            fresh.clear()
            self.read_on(rooms)
            self._leases.check(rooms)
            self.has_caught_up = True
            self._last_pong = time.monotonic()
            self._is_old = False
            self._process.outage.succeed(Event.READ)

    def on_message(self, room: str, data: bytes) -> None:
        stream = self._streams.get(room)
        if stream is None or not stream.id:
            return
        if data.startswith(b"presence "):
            self._leases.take(room, data)
        elif data.startswith(DISCONNECT):
            self._on_disconnect(room, data)
        elif not stream.is_broken:
            self._on_entry(stream, data)

    def _on_disconnect(self, room: str, data: bytes) -> None:
        try:
            head, _, reason = data.decode().partition("\n")
            _, code, member = head.split(" ")
            number = int(code)
        except ValueError as error:
            _logger.warning("ignoring malformed Pub/Sub message for room %r: %r", room, error)
            return
        if is_sendable(number):
            self._process.disconnect(room, number, reason[:_MAX_REASON], member or None)

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
        is_new = at > order(stream.id)
        is_in_future = at[0] > self._process.clock.now() + _MARGIN
        if is_in_future or (is_new and before and before.decode() != stream.id):
            self.read_on([stream.room])
        elif is_new:
            with self._process.lock:
                stream.take(id_, {b"o": origin, b"n": number, b"k": kind, b"d": data})
            self._process.wait_for_fan_out(stream.room)

    # -- reading on

    def read_on(self, rooms: list[str]) -> None:
        """Delivers what the logs of some rooms hold after what was delivered."""
        for first in range(0, len(rooms), _ROOMS):
            some = rooms[first : first + _ROOMS]
            while some:
                try:
                    some = self._read_once(some)
                except redis.ResponseError as error:
                    self._find_broken(some, error)

    def _read_once(self, rooms: list[str]) -> list[str]:
        """Returns those of the rooms whose logs may hold more."""
        streams = [
            stream
            for room in rooms
            if (stream := self._streams.get(room)) is not None
            and stream.id
            and not stream.is_broken
        ]
        if not streams:
            return []
        count = _BATCH // len(streams) + 1
        found, extents = self._process.commands.run(
            partial(self._fetch, streams=streams, count=count), urgent=True
        )
        entries = {key: each for key, each in found or ()}
        more = []
        for stream, extent in zip(streams, extents, strict=True):
            key = self._process.keys.log(stream.room).encode()
            self._look_for_hole(stream, extent)
            self._deliver(stream, entries.get(key, []))
            if len(entries.get(key, [])) == count:
                more.append(stream.room)
        return more

    def _fetch(
        self, client: redis.Redis, streams: list[Stream], count: int
    ) -> tuple[Any, list[Any]]:
        """Entries after the last ones, and what XINFO tells of each log, or an error."""
        pipeline = client.pipeline(transaction=False)
        keys = {stream.room: self._process.keys.log(stream.room) for stream in streams}
        places: dict[Any, Any] = {keys[stream.room]: stream.id for stream in streams}
        pipeline.xread(places, count=count)
        for key in keys.values():
            pipeline.xinfo_stream(key)
        found, *extents = pipeline.execute(raise_on_error=False)
        if isinstance(found, Exception):
            raise found
        return found, extents

    def _deliver(self, stream: Stream, entries: list[Any]) -> None:
        for id_, fields in entries:
            # It may have been closed meanwhile, and even opened again, further on.
            if self._streams.get(stream.room) is not stream:
                return
            with self._process.lock:
                if order(id_) > order(stream.id):
                    stream.take(id_, fields)
            self._process.wait_for_fan_out(stream.room)
            turns.end_if_over()

    def _look_for_hole(self, stream: Stream, extent: Any) -> None:
        """Whether a log was trimmed beyond where this process reads on."""
        if isinstance(extent, Exception) or not extent["first-entry"]:
            return  # there is no such key
        options = self._process.options
        length = extent["length"]
        is_trimmed = length >= options.history or extent.get("entries-added", length) > length
        is_gone = order(extent["first-entry"][0]) > order(stream.id)
        if is_gone and (self._is_old or is_trimmed):
            _logger.error(
                "messages of the room %r are lost to this process: it was behind by more than %d "
                "of them or %d s; raise history and max_age",
                *(stream.room, options.history, options.expiry),
            )
            self._process.tell_gap(stream.room)

    def _find_broken(self, rooms: list[str], error: redis.ResponseError) -> None:
        """XREAD fails for all rooms when the key of one holds something else."""
        found = False
        for room in rooms:
            key = self._process.keys.log(room)
            kind: Any = self._process.commands.run(partial(redis.Redis.type, name=key), urgent=True)
            stream = self._streams.get(room)
            if stream is not None and kind not in (b"stream", b"none") and not stream.is_broken:
                found = True
                stream.break_off()
        if not found:
            raise redis.ConnectionError(str(error))
