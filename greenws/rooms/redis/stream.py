"""``Stream``: a room that is open in this process, and how far it has been delivered here.

What this process sends is delivered to its own members when it comes back from the log, so that all
processes have one order. Only while Redis is lost it is delivered *unlogged*, at once; what then
comes back from the log is not delivered again.
"""

from __future__ import annotations

import logging
from collections import deque
from contextlib import suppress

from gevent.event import Event

from ..broker import Entry
from .entries import LogEntry, parse
from .positions import Position
from .process import Process
from .replay import Snapshot

__all__ = ["Stream"]

_logger = logging.getLogger("greenws.brokers.redis")


class Stream:
    """``id``: the stream id of the last entry that was delivered, empty until the room is open.
    ``sent``: what this process sent and has not found in the log. ``unlogged``: the number of the
    last of that which was delivered unlogged, or 0."""

    def __init__(self, room: str, process: Process) -> None:
        self.room = room
        self.openers = 1
        self.opened = Event()
        self.id = ""
        self.sent: deque[LogEntry] = deque()
        self.unread_since = 0.0  # when the oldest of these was sent, or a time before that
        self.unlogged = 0
        self.is_broken = False  # the key holds something that is no log
        self._process = process

    @property
    def position(self) -> str:
        if not self.unlogged:
            return self.id
        return str(Position(self.id, {self._process.origin: self.unlogged}))

    def snapshot(self) -> Snapshot:
        return Snapshot(self.id, [each for each in self.sent if each.number <= self.unlogged])

    def expect(self, entry: LogEntry) -> None:
        """This process has sent an entry."""
        if not self.sent:
            self.unread_since = self._process.clock.local()
        self.sent.append(entry)

    def forget_found(self, number: int) -> None:
        """Redis has all that this process has sent up to that number."""
        while self.sent and self.sent[0].number <= number:
            self.sent.popleft()

    def take(self, id_: bytes, fields: dict[bytes, bytes]) -> None:
        """Delivers an entry of the log. The lock is held."""
        self.id = id_.decode()
        entry = parse(self.room, id_, fields)
        if entry is None:
            return
        is_repeated = False
        if entry.origin == self._process.origin:
            is_repeated = entry.number <= self.unlogged
            while self.sent and self.sent[0].number <= entry.number:
                sent = self.sent.popleft()
                if sent.number == entry.number:
                    entry = entry._replace(exclude=sent.exclude)
            if entry.number >= self.unlogged:
                self.unlogged = 0
        if is_repeated:
            self._process.deliver(self.room, Entry(self.position, None))
        else:
            self._deliver(entry)

    def deliver_unlogged(self, entry: LogEntry) -> None:
        """The lock is held."""
        self.unlogged = entry.number
        self._deliver(entry)

    def deliver_all_unlogged(self) -> None:
        """What this process has sent, and perhaps will not find in the log for long."""
        with self._process.lock:
            for entry in list(self.sent):
                if entry.number > self.unlogged and self.id:
                    self.deliver_unlogged(entry)

    def deliver_failed(self, entry: LogEntry) -> None:
        """An entry that cannot be in the log is delivered in this process at least."""
        with self._process.lock, suppress(ValueError):
            self.sent.remove(entry)
            if entry.number > self.unlogged:
                self.deliver_unlogged(entry)

    def break_off(self) -> None:
        with self._process.lock:
            self.is_broken = True
            self.deliver_all_unlogged()
            self.sent.clear()
        _logger.error(
            "the key of the room %r holds something else than a log: it is a room of this process "
            "alone until that is gone and the room was empty",
            self.room,
        )

    def _deliver(self, entry: LogEntry) -> None:
        self._process.deliver(self.room, Entry(self.position, entry.data, entry.exclude, entry))
