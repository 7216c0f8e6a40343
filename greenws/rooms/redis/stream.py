"""``Stream``: a room that is open in this process, and how far it has been delivered here.

This process delivers its own messages to its own members when it reads them in the log, so that all
processes have the same order. Only while Redis is out of reach, it delivers them *unlogged*, at
once, and does not deliver them again when they appear in the log.
"""

from __future__ import annotations

import logging
import time
from array import array
from bisect import bisect_left
from collections import deque
from contextlib import suppress

from gevent.event import Event

from ..broker import Entry
from .entries import LogEntry, parse
from .positions import Position, order
from .process import Process
from .replay import Progress

__all__ = ["Stream"]

_RECENT = 100  # ids to remember, for a log that loses its last entries
_LEFT = 16  # the same, of other masters' logs, each with the last delivered one
_KEYS = 500  # delivered entries to know again, at least; a writer sends so many at once

_logger = logging.getLogger("greenws.brokers.redis")


class Stream:
    """``id``: the stream id of the last delivered entry, empty until the room is open; ``start``:
    the id at which it was opened. ``is_estimated``: the log was out of reach then, so ``id`` is a
    time by this machine's clock, not an entry; ``is_floor``: it is the end of a log that had no
    entries; ``floor``: that of the log (snapshot.lua) when a snapshot was taken, if it was known;
    ``opened_at``: when, by the monotonic clock. ``recent``: ids of the last delivered entries;
    ``left``: those at which a log was left that another one has taken the place of. ``sent``: what
    this process sent and has not found in the log; ``may_be_logged``: some of it may be in the log
    before ``id``, in a part that was not read. ``unlogged``: the number of the last entry in
    ``sent`` that was delivered unlogged, or 0."""

    def __init__(self, room: str, process: Process) -> None:
        self.room = room
        self.openers = 1
        self.has_failed = False  # the greenlet that opened it was killed
        self.opened = Event()
        self.id = self.start = self.floor = ""
        self.is_estimated = self.is_floor = False
        self.opened_at = time.monotonic()
        self.recent: deque[str] = deque(maxlen=_RECENT)
        self.left: deque[str] = deque(maxlen=_LEFT)
        self._keys = array("q")  # of the last delivered entries
        self._last: int | None = None  # that of the last delivered entry
        self._delivered = array("q")  # sorted: those from before the log was another one
        self.sent: deque[LogEntry] = deque()
        self.may_be_logged = False
        self.unread_since = 0.0  # when the oldest of these was sent, or a time before that
        self.unlogged = 0
        self.is_broken = False  # the key does not hold a log
        self.process = process

    def begin(
        self,
        id_: str,
        *,
        is_estimated: bool = False,
        is_floor: bool = False,
        keeps_recent: bool = False,
    ) -> None:
        """Continues after ``id_``. ``keeps_recent``: what was delivered before may be in the log
        again, after a Redis that does not have it was taken for its master. It may have another id
        there: a process whose connection to the first one was cut has sent it to both."""
        if keeps_recent:
            self.left.append(self.id)
            # What follows the others is delivered from now on, if this log has them.
            later = [each for each in self.left if order(each) > order(id_)]
            self.left = deque(later, maxlen=_LEFT)
        else:
            self.left.clear()
            self.recent.clear()
            del self._keys[:]
        self.id = self.start = id_
        self.is_estimated = is_estimated
        self.is_floor = is_floor
        self.may_be_logged = bool(self.sent)
        self._delivered = array("q", sorted(self._keys))
        self.recent.append(id_)
        self._last = None

    def is_last(self, fields: dict[bytes, bytes]) -> bool:
        """Whether the entry with our id is the one that was delivered last. If Redis has lost that
        one, such as a replica that was behind, one that came later may have its id: it is a time,
        and the clock of another machine may be behind."""
        return self._last is None or _key(fields) == self._last

    @property
    def position(self) -> str:
        if not self.unlogged:
            return self.id
        return str(Position(self.id, {self.process.origin: self.unlogged}))

    def progress(self) -> Progress:
        unlogged = [each for each in self.sent if each.number <= self.unlogged]
        return Progress(self.id, unlogged, self.is_estimated)

    def expect(self, entry: LogEntry) -> None:
        """Notes an entry that this process has sent."""
        if not self.sent:
            self.may_be_logged = False
            self.unread_since = self.process.clock.local()
        self.sent.append(entry)

    def forget_found(self, number: int) -> None:
        """Drops what was sent up to ``number``: Redis has all of that, and nothing after it."""
        while self.sent and self.sent[0].number <= number:
            self.sent.popleft()
        self.may_be_logged = False

    def take(self, id_: bytes, fields: dict[bytes, bytes]) -> None:
        """Delivers an entry of the log. The lock is held."""
        self.id = id_.decode()
        self.is_estimated = self.is_floor = False
        self.recent.append(self.id)
        self._last = key = _key(fields)
        self._keys.append(key)
        if len(self._keys) == 2 * _KEYS:
            del self._keys[:_KEYS]
        entry = parse(self.room, id_, fields)
        if entry is None:
            self.process.deliver(self.room, Entry(self.position, None))
            return
        found = bisect_left(self._delivered, key)
        is_repeated = self._delivered[found : found + 1] == array("q", [key])
        if entry.origin == self.process.origin:
            is_repeated = is_repeated or entry.number <= self.unlogged
            while self.sent and self.sent[0].number <= entry.number:
                sent = self.sent.popleft()
                if sent.number == entry.number:
                    entry = entry._replace(exclude=sent.exclude)
            if entry.number >= self.unlogged:
                self.unlogged = 0
        if is_repeated:
            self.process.deliver(self.room, Entry(self.position, None))
        else:
            self._deliver(entry)

    def deliver_unlogged(self, entry: LogEntry) -> None:
        """Delivers an entry before the log has it. The lock is held."""
        self.unlogged = entry.number
        self._deliver(entry)

    def deliver_all_unlogged(self) -> None:
        """Delivers all in ``sent``: the log may not have it for a long time."""
        with self.process.lock:
            for entry in list(self.sent):
                if entry.number > self.unlogged and self.id:
                    self.deliver_unlogged(entry)

    def deliver_failed(self, entry: LogEntry) -> None:
        """Delivers an entry that Redis refused, at least in this process."""
        with self.process.lock, suppress(ValueError):
            self.sent.remove(entry)
            if entry.number > self.unlogged:
                self.deliver_unlogged(entry)

    def break_off(self) -> None:
        with self.process.lock:
            self.is_broken = True
            self.deliver_all_unlogged()
            self.sent.clear()
        _logger.error(
            "the Redis key of the room %r does not hold a log: the room reaches this process only, "
            "until the key is deleted and all members have left",
            self.room,
        )

    def _deliver(self, entry: LogEntry) -> None:
        is_read = entry.id is not None
        self.process.deliver(
            self.room, Entry(self.position, entry.data, entry.exclude, entry, is_read)
        )


def _key(fields: dict[bytes, bytes]) -> int:
    """The same for the same entry in two logs; a hash, since many are kept."""
    return hash((fields.get(b"o"), fields.get(b"n")))
