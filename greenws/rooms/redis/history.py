"""Reading in the log of a room: what a member has missed, and the newest messages."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import redis

from .. import turns
from ..broker import BEGINNING, Message
from .entries import LogEntry, parse
from .errors import ERRORS, must_be_left
from .positions import Position, order
from .process import Process
from .replay import LogReplay
from .requests import AFTER_ALL, newest
from .stream import Stream

__all__ = ["History"]

_PAGE = 100  # entries that a member which comes back is sent at once
_FIRST_PAGE = 10  # the same, before it is known how large they are
_PAGE_BYTES = 2**18  # bytes of such a page, or a little more
_BATCH = 500  # entries that are looked through at once
_MARGIN = 10_000  # milliseconds by which what is known of Redis's clock may be wrong
_FUTURE = 60_000  # milliseconds by which a position may be ahead of Redis's clock

_logger = logging.getLogger("greenws.brokers.redis")


class History:
    def __init__(self, process: Process, streams: dict[str, Stream]) -> None:
        self._process = process
        self._streams = streams

    def resume(self, room: str, since: str) -> LogReplay:
        stream = self._streams[room]
        start = self._parse(since)
        return LogReplay(
            self._process.origin,
            start,
            self._find_ours(stream, start),
            stream.snapshot,
            partial(self._read, room),
        )

    def _parse(self, since: str) -> Position:
        try:
            position = Position.parse(since)
        except ValueError:
            return Position(BEGINNING)
        # No clock is that far ahead: a client that invents a position must not be deaf for ever.
        is_possible = order(position.id)[0] <= self._process.clock.now() + _FUTURE
        return position if is_possible else Position(BEGINNING)

    def _insist(self, room: str, call: Callable[[], Any], timeout: float) -> Any:
        found = self._process.insist(call, timeout)
        if found is None:
            _logger.warning("the history of the room %r is out of reach", room)
        return found

    # -- whether a client has what this process has sent

    def _find_ours(self, stream: Stream, start: Position) -> bool:
        """A client may have received in another process what this one has sent and has not found
        in the log yet. False if that cannot be known."""
        origin = self._process.origin
        received = start.unlogged.get(origin, 0)  # almost always all, and not worth waiting for
        if order(stream.id) < order(start.id) or stream.snapshot().unlogged:
            timeout = 0.0 if received else self._process.options.timeout
            number = self._insist(stream.room, partial(self._look_back, stream, start.id), timeout)
            if number is None:
                return received > 0
            if number > received:
                start.unlogged[origin] = number
        return True

    def _look_back(self, stream: Stream, until: str) -> int:
        """The number of our last entry up to there; 0 if it is older than what is not read yet."""
        process = self._process
        key, end = process.keys.log(stream.room), until
        while stream.sent:
            found: Any = process.commands.run(
                partial(redis.Redis.xrevrange, name=key, max=end, count=_BATCH)
            )
            for id_, fields in found:
                if fields.get(b"o") == process.origin.encode():
                    entry = parse(stream.room, id_, fields)
                    return entry.number if entry else 0
            age = process.clock.now() - order(found[-1][0])[0] if found else 0
            unread = process.clock.age(stream.unread_since)
            if len(found) < _BATCH or age > unread + _MARGIN:
                break
            end = f"({found[-1][0].decode()}"
            turns.end()
        return 0

    # -- what was missed

    def _read(self, room: str, after: str, until: str) -> Iterator[tuple[list[LogEntry], bool]]:
        """The entries between two stream ids in pages, each with whether some before it are
        missing: the log may be trimmed while it is being read."""
        read: Callable[[], tuple[Any, bool]] = partial(self._first_page, room, after, until)
        count = _FIRST_PAGE
        while True:
            page = self._insist(room, read, self._process.options.timeout)
            if page is None:
                yield [], True
                return
            found, gap = page
            parsed = (parse(room, id_, fields) for id_, fields in found)
            yield [entry for entry in parsed if entry is not None], gap
            if len(found) < count or found[-1][0].decode() == until:
                return
            size = sum(len(fields.get(b"d", b"")) for _, fields in found)
            count = max(1, min(_PAGE, _PAGE_BYTES * len(found) // max(size, 1)))
            read = partial(self._next_page, room, found[-1][0].decode(), until, count)

    def _first_page(self, room: str, after: str, until: str) -> tuple[Any, bool]:
        key = self._process.keys.log(room)

        def fetch(client: redis.Redis) -> Any:
            pipeline = client.pipeline(transaction=False)  # a Redis that is full takes no MULTI
            pipeline.xrange(key, f"({after}", until, count=_FIRST_PAGE)
            pipeline.xinfo_stream(key)
            pipeline.time()
            return pipeline.execute(raise_on_error=False)

        found, info, now = self._process.commands.run(fetch)
        if isinstance(now, Exception):
            raise now
        time, count = order(after)
        # What came after ``after`` cannot have expired yet, if that is not long ago. But an entry
        # that should be there and is not was lost with all that Redis knew.
        is_recent = now[0] - time / 1000 < self._process.options.expiry and count == AFTER_ALL
        if isinstance(info, Exception) or isinstance(found, Exception):  # no such key
            return [], not is_recent
        first = info["first-entry"]
        is_whole = info.get("entries-added") == info["length"]  # Redis 7
        is_first_older = first is not None and order(first[0]) <= order(after)
        return found, not ((is_recent and is_whole) or is_first_older)

    def _next_page(self, room: str, after: str, until: str, count: int) -> tuple[Any, bool]:
        key = self._process.keys.log(room)

        def fetch(client: redis.Redis) -> Any:
            pipeline = client.pipeline(transaction=False)
            pipeline.xrange(key, f"({after}", until, count=count)
            pipeline.xrange(key, count=1)
            return pipeline.execute()

        found, oldest = self._process.commands.run(fetch)
        return found, not oldest or order(oldest[0][0]) > order(after)

    # -- the newest messages

    def newest(self, room: str, count: int) -> list[Message]:
        found: list[Message] = []
        began = self._process.now()
        try:
            for message in newest(self._process.commands.run, self._process.keys, room, count):
                found.append(message)
                turns.end_if_over()
        except ERRORS as error:
            if isinstance(error, redis.ResponseError) and not must_be_left(error):
                _logger.error("the room %r has no history: %s", room, error)
            else:
                self._process.fail(error, began)
        return found[::-1]
