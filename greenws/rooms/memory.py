"""``MemoryBroker``: rooms of one process. The log of a room is a deque.

The memory of the logs is counted in bytes, objects included, for each log and for all together.
When all together are too large, the oldest log is dropped first: the one to which nothing was sent
for longest, rooms without members before others.
"""

from __future__ import annotations

import sys
import time
from bisect import bisect_right
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

from ..config import check_range, check_seconds
from ..surroundings import processes
from .ages import age_time
from .broker import LONGEST_POSITION, Broker, Entry, Message, Page, Replay

if TYPE_CHECKING:
    from ..websocket import WebSocket

__all__ = ["MemoryBroker"]

_ENTRY_COST = 200  # bytes of an entry and of its place in a log
_LOG_COST = 1200  # bytes of an empty log and of its place among the others
_PAGE = 100  # messages in a page of a replay


class _Kept(NamedTuple):
    time: float
    number: int
    data: str | bytes

    @property
    def cost(self) -> int:
        return sys.getsizeof(self.data) + _ENTRY_COST


class _Log:
    def __init__(self, room: str, first: int) -> None:
        self.first = first  # the number before that of the oldest entry that is kept
        self.entries: deque[_Kept] = deque()
        self.bytes = _LOG_COST + sys.getsizeof(room)

    @property
    def last(self) -> int:
        return self.entries[-1].number if self.entries else self.first

    def append(self, entry: _Kept) -> None:
        self.entries.append(entry)
        self.bytes += entry.cost

    def drop_oldest(self) -> int:
        """Returns how many bytes that saves."""
        entry = self.entries.popleft()
        self.first = entry.number
        self.bytes -= entry.cost
        return entry.cost

    def after(self, number: int, count: int) -> list[_Kept]:
        index = bisect_right(self.entries, number, key=lambda entry: entry.number)
        return list(islice(self.entries, index, index + count))


class MemoryBroker(Broker):
    """Keeps the last ``history`` messages of a room for members that come back, none for longer
    than ``max_age`` seconds. ``history_bytes``: memory that the messages of one room may take,
    ``max_bytes``: that those of all rooms may take. ``clock`` returns the time in seconds; by
    default real time, or that of ``testing.clock()``.

    Raises:
        TypeError, ValueError: the value of an option is not allowed.
    """

    is_shared = False

    def __init__(
        self,
        history: int = 100,
        max_age: float = 300.0,
        clock: Callable[[], float] | None = None,
        *,
        history_bytes: int = 16 * 2**20,
        max_bytes: int = 64 * 2**20,
    ) -> None:
        check_range("history", history, 0, sys.maxsize)
        check_range("history_bytes", history_bytes, 0, sys.maxsize)
        check_range("max_bytes", max_bytes, 0, sys.maxsize)
        check_seconds("max_age", max_age)
        self.tail_length, self.tail_age = history, max_age
        self._history = history
        self._history_bytes = history_bytes
        self._max_bytes = max_bytes
        self._bytes = 0  # of all logs
        self._max_age = max_age
        self._clock = clock or age_time.now
        self._epoch = str(int(time.time() * 1000))  # tells our positions from another process's
        self._last = 0  # number of the last entry of any room
        self._forgotten = 0  # up to here, entries of some room were dropped with its log
        self._opened: dict[str, int] = {}
        self._logs: OrderedDict[str, _Log] = OrderedDict()  # the one written last is the last

    @property
    def _lock(self) -> AbstractContextManager[Any]:
        return nullcontext() if self._listener is None else self._listener.lock

    def open(self, room: str) -> None:
        if processes.are_several:
            processes.warn_memory()
        with self._lock:
            self._opened[room] = self._opened.get(room, 0) + 1

    def close(self, room: str) -> bool:
        self._opened[room] -= 1
        if self._opened[room]:
            return False
        del self._opened[room]
        return True

    def position(self, room: str) -> str:
        return self._position(self._last)

    def end_of(self, room: str) -> str:
        return self.position(room)

    def publish(self, room: str, data: str | bytes, exclude: WebSocket | None = None) -> None:
        if processes.are_several:
            processes.warn_memory()
        with self._lock:
            self._last += 1
            self._keep(room, _Kept(self._clock(), self._last, data))
            if self._listener is not None and room in self._opened:
                entry = Entry(self._position(self._last), data, exclude)
                self._listener.deliver(room, entry)

    def _keep(self, room: str, entry: _Kept) -> None:
        if not self._history:
            self._forgotten = entry.number
            return
        log = self._logs.get(room)
        if log is None:
            log = self._logs[room] = _Log(room, self._forgotten)
            self._bytes += log.bytes
        self._logs.move_to_end(room)
        log.append(entry)
        self._bytes += entry.cost
        while len(log.entries) > self._history or log.bytes > self._history_bytes:
            self._bytes -= log.drop_oldest()
            if not log.entries:
                self._forget(room)
                break
        if self._bytes > self._max_bytes:
            self._shrink()
        if room in self._logs:
            self._trim(room, entry.time)
        while self._logs:
            idle = next(iter(self._logs))
            if entry.time - self._logs[idle].entries[-1].time <= self._max_age:
                break
            self._forget(idle)

    def _trim(self, room: str, now: float) -> None:
        log = self._logs[room]
        while log.entries and now - log.entries[0].time > self._max_age:
            self._bytes -= log.drop_oldest()
        if not log.entries:
            self._forget(room)

    def _shrink(self) -> None:
        """Drops logs until an eighth of ``max_bytes`` is free. It is rare, because looking for
        rooms without members is slow where there are many rooms."""
        target = self._max_bytes - self._max_bytes // 8
        empty = [room for room in self._logs if room not in self._opened]
        for room in [*empty, *(room for room in self._logs if room in self._opened)]:
            log = self._logs[room]
            while log.entries and self._bytes > target:
                self._bytes -= log.drop_oldest()
            if not log.entries:
                self._forget(room)
            if self._bytes <= target:
                return

    def _forget(self, room: str) -> None:
        log = self._logs.pop(room)
        self._bytes -= log.bytes
        self._forgotten = max(self._forgotten, log.last)

    def resume(self, room: str, since: str) -> Replay:
        return _Replay(self, room, self._parse(since))

    def _parse(self, since: str) -> int:
        """The number in a position of this broker; -1 for any other string."""
        number = since[len(self._epoch) + 1 :]
        if len(since) > LONGEST_POSITION or not (number.isascii() and number.isdigit()):
            return -1
        is_ours = since == self._position(int(number)) and int(number) <= self._last
        return int(number) if is_ours else -1

    def page(self, room: str, after: int, until: int) -> tuple[Page, int]:
        """Some messages with numbers above ``after``, up to ``until``, and the number from which to
        continue; ``until`` at the end."""
        with self._lock:
            log = self._trimmed(room)
            found = [] if log is None else log.after(after, _PAGE)
            gap = after < (self._forgotten if log is None else log.first)
        messages = [
            Message(self._position(entry.number), entry.data)
            for entry in found
            if entry.number <= until
        ]
        is_end = len(messages) < _PAGE
        return Page(messages, gap), until if is_end else found[-1].number

    @property
    def last(self) -> int:
        """The number of the last entry of any room."""
        return self._last

    def newest(self, room: str, count: int) -> list[Message]:
        with self._lock:
            log = self._trimmed(room)
            found = [] if log is None else list(log.entries)[-count:]
        return [Message(self._position(entry.number), entry.data) for entry in found]

    def _trimmed(self, room: str) -> _Log | None:
        if room in self._logs:
            self._trim(room, self._clock())
        return self._logs.get(room)

    def _position(self, number: int) -> str:
        return f"{self._epoch}-{number}"


class _Replay(Replay):
    """Makes a page when the previous one has been sent, so a slow client holds only one."""

    def __init__(self, broker: MemoryBroker, room: str, after: int) -> None:
        self._broker = broker
        self._room = room
        self._after = after
        self._until = 0

    def begin(self) -> None:
        self._until = self._broker.last

    def pages(self) -> Iterator[Page]:
        while self._after < self._until:
            page, self._after = self._broker.page(self._room, self._after, self._until)
            yield page
