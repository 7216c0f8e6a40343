"""``Writer``: appends what this process sends, in order and each entry once.

Entries wait here until Redis has answered that they are in the log. A script skips entries that it
has appended before, by their numbers, so a batch whose answer was lost can be sent again.
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

from ...rate_limit import RateLimit
from .. import turns
from ..broker import BrokerUnavailable
from .entries import LogEntry
from .process import Process
from .requests import APPEND, Appended, RefusalLog, append, append_arguments, parse_appended
from .stream import Stream

__all__ = ["Writer"]

_BATCH = 500  # entries that one command appends at most
_BATCH_BYTES = 2**20  # bytes that one command appends, or a little more
_REFUSED = 1000  # rooms whose first refusal is always logged
_ENTRY_COST = 250  # bytes of an entry that waits, besides its data
_DIGEST = hashlib.sha1(APPEND.encode(), usedforsecurity=False).hexdigest()

_logger = logging.getLogger("greenws.brokers.redis")


def _cost(entry: LogEntry) -> int:
    return sys.getsizeof(entry.data) + _ENTRY_COST


class Writer:
    """``streams``: the open rooms. ``wake``: called when there is something to append; may be
    called from any thread."""

    def __init__(
        self, process: Process, streams: dict[str, Stream], wake: Callable[[], None]
    ) -> None:
        self.unsent: deque[tuple[str, LogEntry]] = deque()
        self.last_added = "0-0"  # the stream id of our last entry that is known to be in a log
        self._process = process
        self._streams = streams
        self._wake = wake
        self._unsent_bytes = 0
        self._refusal_log = RefusalLog(_logger)
        self._refusals = RateLimit(1 / 6, burst=10)  # lines in the log
        self._refused: set[str] = set()  # rooms that have had a line
        self._unreported = 0  # lines that were left out

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
                process.identity.note_published(entry.number, "its key does not hold a log")
                stream.deliver_unlogged(entry)
                return
            process.identity.note_published(entry.number)
            self.unsent.append((room, entry))
            self._unsent_bytes += _cost(entry)
            if stream is not None:
                stream.expect(entry)
                if process.outage.is_lost and stream.id:
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
            "sends without a pause lets no other greenlet run: put a gevent.sleep(0) into it"
        )

    def holds(self, number: int) -> bool:
        """Whether an entry, or one before it, is still not in its log."""
        with self._process.lock:
            return bool(self.unsent) and self.unsent[0][1].number <= number

    def last_number(self) -> int:
        """The number of the last entry that waits."""
        with self._process.lock:
            return self.unsent[-1][1].number if self.unsent else 0

    def append(self) -> None:
        """Appends a batch of the entries that wait."""
        batch = []
        size = 0
        with self._process.lock:  # a thread may be adding one, or its receipt
            first = list(itertools.islice(self.unsent, _BATCH))
        for each in first:
            batch.append(each)
            size += len(each[1].data)
            if size >= _BATCH_BYTES:
                break
        if not batch:
            return
        if self._process.link is None:
            appended = self._process.commands.run(partial(self._append, batch), urgent=True)
            self._confirm(batch, appended)
            self._forget({entry.number for _, entry in batch})
            self._take(batch, appended)
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
        commands, link = process.commands, process.link
        assert link is not None
        found = commands.run(partial(self._call_each, batches), urgent=True)
        appended = [
            (batch, parse_appended(each))
            for batch, each in zip(batches, found, strict=True)
            if not isinstance(each, Exception)
        ]
        for batch, each in appended:
            self._confirm(batch, each)
        # All together: what is left may have to be copied.
        self._forget({entry.number for batch, _ in appended for _, entry in batch})
        for batch, each in appended:
            self._take(batch, each)
        failure: Exception | None = None
        for each in found:
            if isinstance(each, redis.exceptions.NoScriptError):
                commands.run(lambda client: client.script_load(APPEND), urgent=True)
            elif isinstance(each, Exception) and (failure is None or link.redirect(each)):
                failure = failure or each
        if failure is not None:
            raise failure

    def _call_each(self, batches: list[list[tuple[str, LogEntry]]], client: Any) -> list[Any]:
        """What the script answers to each batch, or an error."""
        process = self._process
        pipeline = client.pipeline(transaction=False)
        for batch in batches:
            keys, values = append_arguments(process.keys, process.options, process.origin, batch)
            pipeline.evalsha(_DIGEST, len(keys), *keys, *values)
        found: list[Any] = pipeline.execute(raise_on_error=False)
        return found

    def _take(self, batch: list[tuple[str, LogEntry]], appended: Appended) -> None:
        if appended.last_id:
            self.last_added = appended.last_id
        self._refusal_log.note(appended)
        if appended.failed:
            self._report(batch, appended.failed)

    def _confirm(self, batch: list[tuple[str, LogEntry]], appended: Appended) -> None:
        """Tells senders that wait what happened to their entries."""
        receipts = self._process.identity.receipts
        for _, entry in batch if receipts else ():
            receipt = receipts.pop(entry.number, None)
            if receipt is not None:
                receipt.end(appended.failed.get(entry.number, ""))

    def _forget(self, numbers: set[int]) -> None:
        """Drops entries that were appended. They are the first that wait, unless a node of a
        cluster has refused some in between."""
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
        """Removes and returns the entries that wait for ``room``."""
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
                self._log_refused(room, why)
            if stream is not None:
                stream.deliver_failed(entry)

    def _log_refused(self, room: str, why: str) -> None:
        is_first = room not in self._refused and len(self._refused) < _REFUSED
        if not self._refusals.take() and not is_first:
            self._unreported += 1
            return
        if is_first:
            self._refused.add(room)
        also = f" ({self._unreported} such lines, of this room or others, were left out)"
        _logger.error(
            "Redis does not accept messages of the room %r: %s%s",
            *(room, why, also if self._unreported else ""),
        )
        self._unreported = 0

    def give_way(self) -> None:
        """Lets other greenlets run between two batches."""
        gevent.sleep(0)  # they may send more
        turns.end_if_over()
