"""``Writer``: appends what this process sends, in order and each entry once.

What is sent waits here until Redis has answered that it is in the log. A script drops what it has
appended before, by the number, so that a batch whose answer was lost can be sent again.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import sys
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

import gevent
import redis.exceptions

from .. import turns
from ..broker import BrokerUnavailable
from .entries import LogEntry
from .process import Process
from .requests import APPEND, Appended, append, append_arguments, parse_appended
from .stream import Stream

__all__ = ["Writer"]

_BATCH = 500  # entries that one command appends at most
_BATCH_BYTES = 2**20  # bytes that one command appends, or a little more
_ENTRY_COST = 250  # bytes of an entry that waits, beside its data
_DIGEST = hashlib.sha1(APPEND.encode(), usedforsecurity=False).hexdigest()

_logger = logging.getLogger("greenws.brokers.redis")


def _cost(entry: LogEntry) -> int:
    return sys.getsizeof(entry.data) + _ENTRY_COST


class Writer:
    """``streams``: the rooms that are open. ``wake``: is set when something is to be done; may be
    called from any thread."""

    def __init__(
        self, process: Process, streams: dict[str, Stream], wake: Callable[[], None]
    ) -> None:
        self.unsent: deque[tuple[str, LogEntry]] = deque()
        self.last_added = "0-0"  # the stream id of our last entry in any log, as far as is known
        self._process = process
        self._streams = streams
        self._wake = wake
        self._unsent_bytes = 0
        self._is_unpublished = False  # Redis does not publish

    def publish(self, room: str, data: str | bytes, exclude: Any) -> None:
        """
        Raises:
            BrokerUnavailable: too much waits already.
        """
        self._check_pending(room)
        process = self._process
        with process.lock:
            entry = LogEntry(None, process.origin, process.next_number(), data, exclude)
            stream = self._streams.get(room)
            if stream is not None and stream.is_broken:
                stream.deliver_unlogged(entry)
                return
            self.unsent.append((room, entry))
            self._unsent_bytes += _cost(entry)
            if stream is not None:
                stream.expect(entry)
                if process.outage.is_away and stream.id:
                    stream.deliver_unlogged(entry)
        self._wake()

    def _check_pending(self, room: str) -> None:
        options = self._process.options
        stream = self._streams.get(room)
        count, size = len(self.unsent), self._unsent_bytes
        if stream is not None and not self._process.outage.is_readable:
            count = max(count, len(stream.sent))
        if count < options.max_pending and size < options.max_pending_bytes:
            return
        what = f"{count} messages" if count >= options.max_pending else f"{size} bytes"
        option = "max_pending" if count >= options.max_pending else "max_pending_bytes"
        raise BrokerUnavailable(
            f"{what} wait for Redis already ({option}): is it up, and does it keep up? A loop that "
            "sends without a pause lets nobody else run; it needs a gevent.sleep(0)"
        )

    def holds(self, number: int) -> bool:
        """Whether an entry, or one before it, is still not in its log."""
        with self._process.lock:
            return bool(self.unsent) and self.unsent[0][1].number <= number

    def last_number(self) -> int:
        """Of the last entry that waits."""
        with self._process.lock:
            return self.unsent[-1][1].number if self.unsent else 0

    def append(self) -> None:
        """Appends a batch of what waits."""
        batch = []
        size = 0
        for each in list(itertools.islice(self.unsent, _BATCH)):  # a thread may add some
            batch.append(each)
            size += len(each[1].data)
            if size >= _BATCH_BYTES:
                break
        if not batch:
            return
        if self._process.link is None:
            self._take(batch, self._process.commands.run(partial(self._append, batch), urgent=True))
            return
        # A script touches keys of one slot, so of one room.
        rooms: dict[str, list[tuple[str, LogEntry]]] = {}
        for each in batch:
            rooms.setdefault(each[0], []).append(each)
        self._append_each(list(rooms.values()))

    def _append(self, batch: list[tuple[str, LogEntry]], client: Any) -> Appended:
        process = self._process
        return append(client, process.keys, process.options, process.origin, batch)

    def _append_each(self, batches: list[list[tuple[str, LogEntry]]]) -> None:
        process = self._process

        def run(client: Any) -> Any:
            pipeline = client.pipeline(transaction=False)
            for batch in batches:
                keys, values = append_arguments(
                    process.keys, process.options, process.origin, batch
                )
                pipeline.evalsha(_DIGEST, len(keys), *keys, *values)
            return pipeline.execute(raise_on_error=False)

        commands, link = process.commands, process.link
        assert link is not None
        found: Any = commands.run(run, urgent=True)
        failure: Exception | None = None
        for batch, each in zip(batches, found, strict=True):
            if not isinstance(each, Exception):
                self._take(batch, parse_appended(each))
            elif isinstance(each, redis.exceptions.NoScriptError):
                commands.run(lambda client: client.script_load(APPEND), urgent=True)
            elif failure is None or link.redirect(each):
                failure = failure or each
        if failure is not None:
            raise failure

    def _take(self, batch: list[tuple[str, LogEntry]], appended: Appended) -> None:
        self._forget({entry.number for _, entry in batch})
        if appended.last_id:
            self.last_added = appended.last_id
        if appended.unpublished and not self._is_unpublished:
            _logger.error(
                "Redis does not publish what is sent, so that nobody hears it: %s",
                appended.unpublished,
            )
        self._is_unpublished = bool(appended.unpublished)
        if appended.failed:
            self._report(batch, appended.failed)

    def _forget(self, numbers: set[int]) -> None:
        """What has been appended. It is the first of what waits, or between what a node of a
        cluster has refused."""
        with self._process.lock:
            while self.unsent and self.unsent[0][1].number in numbers:
                _, entry = self.unsent.popleft()
                numbers.discard(entry.number)
                self._unsent_bytes -= _cost(entry)
            if numbers:
                self._drop(lambda each: each[1].number in numbers)

    def _drop(self, is_meant: Callable[[tuple[str, LogEntry]], bool]) -> list[tuple[str, LogEntry]]:
        dropped = [each for each in self.unsent if is_meant(each)]
        if dropped:
            self.unsent = deque(each for each in self.unsent if not is_meant(each))
            self._unsent_bytes -= sum(_cost(entry) for _, entry in dropped)
        return dropped

    # -- in a cluster: a room that another node has now

    def release(self, room: str) -> list[tuple[str, LogEntry]]:
        """What waits for it."""
        return self._drop(lambda each: each[0] == room)

    def adopt(self, waiting: list[tuple[str, LogEntry]]) -> None:
        self.unsent.extend(waiting)
        self._unsent_bytes += sum(_cost(entry) for _, entry in waiting)
        if waiting:
            self._wake()

    def _report(self, batch: list[tuple[str, LogEntry]], failed: dict[int, str]) -> None:
        reported: set[str] = set()
        for room, entry in batch:
            why = failed.get(entry.number)
            stream = self._streams.get(room)
            if why is None or (stream is not None and stream.is_broken):
                continue
            if stream is not None and "WRONGTYPE" in why:
                stream.break_off()
                continue
            if room not in reported:
                reported.add(room)
                _logger.error("Redis does not take messages of the room %r: %s", room, why)
            if stream is not None:
                stream.deliver_failed(entry)

    def give_way(self) -> None:
        """Between two batches."""
        gevent.sleep(0)  # somebody else may run, and send more
        turns.end_if_over()
