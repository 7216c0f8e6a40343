"""Reading the log of a room: what a member has missed, and the newest messages."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import gevent
import redis

from .. import turns
from ..broker import BEGINNING, Message
from .entries import LogEntry, parse
from .errors import ERRORS, must_be_left
from .origins import Gone
from .positions import Position, order
from .process import Process
from .replay import LogReplay
from .requests import AFTER_ALL, floor_of, newest
from .stream import Stream

__all__ = ["History"]

_PAGE = 100  # entries of a page for a member that comes back
_FIRST_PAGE = 10  # the same, before it is known how large they are
_PAGE_BYTES = 2**18  # bytes of such a page, or a little more
_BATCH = 500  # entries that are searched at once
_MARGIN = 10_000  # milliseconds by which the estimate of Redis's clock may be wrong
_START_POLL_INTERVAL = 0.01  # seconds between two checks whether a log is in reach
_FUTURE = 60_000  # milliseconds by which a position may be ahead of Redis's clock

_logger = logging.getLogger("greenws.brokers.redis")


class History:
    """``process_of``: returns the ``Process`` of the node that has a room."""

    def __init__(
        self,
        origin: str,
        process_of: Callable[[str], Process],
        streams: dict[str, Stream],
        gone: Gone,
    ) -> None:
        self._origin = origin
        self._process_of = process_of
        self._streams = streams
        self.gone = gone

    def resume(self, room: str, since: str) -> LogReplay:
        stream = self._streams[room]
        start = self._parse(room, since)
        is_known = True
        if order(stream.id) < order(start.id) and not self._has(room, start.id):
            # The log was lost, or a clock is wrong: the client gets the gap, and continues here.
            start.id, is_known = stream.id, False
        return LogReplay(
            self._origin,
            start,
            is_known and not stream.is_broken and self._find_ours(stream, start),
            stream.progress,
            partial(self._read, room),
            partial(self._find_start, stream),
            self.gone.watch,
        )

    def _parse(self, room: str, since: str) -> Position:
        try:
            position = Position.parse(since)
        except ValueError:
            return Position(BEGINNING)
        # No clock is that far ahead. A client with an invented position must get messages, too.
        is_possible = order(position.id)[0] <= self._process_of(room).clock.now() + _FUTURE
        return position if is_possible else Position(BEGINNING)

    def _has(self, room: str, id_: str) -> bool:
        """Whether the log has an entry that this process has not reached. It may be of an earlier
        log, made by another clock."""
        process = self._process_of(room)

        def find() -> Any:
            return self._page(room, id_, id_, 1)

        found = self._insist(room, find, process.options.timeout)
        return found is None or not found[1]

    def _find_start(self, stream: Stream) -> str | None:
        process = self._process_of(stream.room)
        outage = process.outage
        began = outage.began if outage.is_lost else time.monotonic()
        while stream.is_estimated:
            if time.monotonic() - began >= process.options.timeout or process.is_stopped:
                return None
            gevent.sleep(_START_POLL_INTERVAL)
        return stream.start

    def _run(self, room: str, call: Callable[[redis.Redis], Any]) -> Any:
        return self._process_of(room).run_for(room, call)

    def _insist(self, room: str, call: Callable[[], Any], timeout: float) -> Any:
        current = partial(self._process_of, room)
        found = current().insist(call, timeout, current)
        if found is None:
            _logger.warning("the history of the room %r is out of reach", room)
        return found

    # -- whether a client has what this process has sent

    def _find_ours(self, stream: Stream, start: Position) -> bool:
        """Finds which of this process's entries the client has received in another process, where
        this process has not found them in the log yet. False if that cannot be known."""
        origin = self._origin
        received = start.unlogged.get(origin, 0)  # almost always all of them
        # Otherwise this process has found all entries up to the client's position.
        is_behind = order(stream.id) < order(start.id)
        if is_behind or (stream.may_be_logged and stream.progress().unlogged):
            timeout = 0.0 if received else stream.process.options.timeout
            number = self._insist(stream.room, partial(self._find_last, stream, start.id), timeout)
            if number is None:
                return received > 0
            if number > received:
                start.unlogged[origin] = number
        return True

    def _find_last(self, stream: Stream, until: str) -> int:
        """The number of our last entry up to ``until``; 0 if that entry was read before."""
        process = self._process_of(stream.room)
        key, end = process.keys.log(stream.room), until
        while stream.sent:
            found: Any = self._run(
                stream.room, partial(redis.Redis.xrevrange, name=key, max=end, count=_BATCH)
            )
            for id_, fields in found:
                if fields.get(b"o") == self._origin.encode():
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
        missing: the log may be trimmed while it is being read, or lost. If the log does not have
        ``until``, it is another one than that which this process has delivered."""
        count = _FIRST_PAGE
        while True:
            page = self._insist(
                room,
                partial(self._page, room, after, until, count),
                self._process_of(room).options.timeout,
            )
            if page is None:
                yield [], True
                return
            found, gap = page
            parsed = (parse(room, id_, fields) for id_, fields in found)
            yield [entry for entry in parsed if entry is not None], gap
            after = found[-1][0].decode() if found else after
            if len(found) < count or after == until:
                break
            size = sum(len(fields.get(b"d", b"")) for _, fields in found)
            count = max(1, min(_PAGE, _PAGE_BYTES * len(found) // max(size, 1)))
        if after != until and not gap and not self._has(room, until):
            yield [], True

    def _page(self, room: str, after: str, until: str, count: int) -> tuple[Any, bool]:
        """A page, and whether messages before it are missing. None are if ``after`` is still in the
        log, since older entries are trimmed first, or if it is the floor of the log. No
        transaction, which a full Redis refuses."""
        key = self._process_of(room).keys.log(room)

        def fetch(client: redis.Redis) -> Any:
            pipeline = client.pipeline(transaction=False)
            pipeline.xrange(key, after, until, count=count + 1)
            pipeline.xinfo_groups(key)
            found, groups = pipeline.execute(raise_on_error=False)
            if isinstance(found, Exception) and "WRONGTYPE" not in str(found):
                raise found
            return found, groups

        found, groups = self._run(room, fetch)
        if isinstance(found, Exception):
            return [], True
        if found and found[0][0].decode() == after:
            return found[1:], False
        return found[:count], floor_of(groups) != after and not self._reaches(room, after)

    def _reaches(self, room: str, after: str) -> bool:
        """Whether the log is complete since ``after``, which is a time."""
        if order(after)[1] != AFTER_ALL:
            return False
        key = self._process_of(room).keys.log(room)
        return bool(self._run(room, lambda client: client.xrevrange(key, after, "-", count=1)))

    # -- the newest messages

    def newest(self, room: str, count: int) -> list[Message]:
        process = self._process_of(room)
        found: list[Message] = []
        began = process.now()
        try:
            for message in newest(partial(self._run, room), process.keys, room, count):
                found.append(message)
                turns.end_if_over(in_queue=True)
        except ERRORS as error:
            if isinstance(error, redis.ResponseError) and not must_be_left(error):
                _logger.error("the room %r has no history: %s", room, error)
            else:
                process.fail(error, began)
        return found[::-1]
