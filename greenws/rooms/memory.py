"""``MemoryBroker``: rooms of one process. The log of a room is a deque.

What the logs cost is counted in bytes, objects included, for each log and for all of them. When all
are too large, the oldest log goes first: the one in which nothing was sent for longest, rooms
without members before the others.
"""

from __future__ import annotations

import sys
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..config import check_range, check_seconds
from .broker import MESSAGE, Broker, Entry, Opening, Position

if TYPE_CHECKING:
    from ..websocket import WebSocket

__all__ = ["MemoryBroker"]


_ENTRY_COST = 400  # bytes of an entry, its position and its place in a log
_LOG_COST = 1200  # bytes of an empty log and its place among the others


class _Log:
    def __init__(self, room: str, first: int) -> None:
        self.first = first  # the number before that of the oldest entry that is kept
        self.entries: deque[tuple[float, Entry]] = deque()
        self.bytes = _LOG_COST + sys.getsizeof(room)

    def append(self, now: float, entry: Entry) -> None:
        self.entries.append((now, entry))
        self.bytes += _cost(entry)

    def drop_oldest(self) -> int:
        """Returns how many bytes that saves."""
        entry = self.entries.popleft()[1]
        self.first = entry.number
        cost = _cost(entry)
        self.bytes -= cost
        return cost


def _cost(entry: Entry) -> int:
    return sys.getsizeof(entry.data) + _ENTRY_COST


class MemoryBroker(Broker):
    """Keeps the last ``history`` messages of a room for members that come back, none for longer
    than ``max_age`` seconds. ``history_bytes``: what the messages of one room may cost in memory,
    ``max_bytes``: those of all rooms.

    Raises:
        TypeError, ValueError: one of them is no such number.
    """

    is_shared = False

    def __init__(
        self,
        history: int = 100,
        max_age: float = 300.0,
        clock: Callable[[], float] = time.monotonic,
        *,
        history_bytes: int = 16 * 2**20,
        max_bytes: int = 64 * 2**20,
    ) -> None:
        check_range("history", history, 0, sys.maxsize)
        check_range("history_bytes", history_bytes, 0, sys.maxsize)
        check_range("max_bytes", max_bytes, 0, sys.maxsize)
        check_seconds("max_age", max_age)
        self.deliver: Callable[[str, Entry], None] = lambda room, entry: None
        self._history = history
        self._history_bytes = history_bytes
        self._max_bytes = max_bytes
        self._bytes = 0  # of all logs
        self._max_age = max_age
        self._clock = clock
        self._epoch = str(int(time.time() * 1000))  # ids of another process are none of ours
        self._last = 0
        self._forgotten = 0  # up to here, the history of some room was dropped with its log
        self._opened: dict[str, int] = {}
        self._logs: OrderedDict[str, _Log] = OrderedDict()  # the one written last is the last

    def open(self, room: str) -> Opening:
        with self._lock:
            self._opened[room] = self._opened.get(room, 0) + 1
            return Opening(self._id(self._last), 0, {})

    def close(self, room: str) -> bool:
        self._opened[room] -= 1
        if self._opened[room]:
            return False
        del self._opened[room]
        return True

    def publish(
        self,
        room: str,
        kind: str,
        data: str | bytes,
        member: str = "",
        exclude: WebSocket | None = None,
    ) -> None:
        self._last += 1
        entry = Entry(self._id(self._last), self.origin, self._last, kind, data, member, exclude)
        if kind == MESSAGE:
            self._keep(room, entry)
        self.deliver(room, entry)

    def _keep(self, room: str, entry: Entry) -> None:
        if not self._history:
            self._forgotten = entry.number
            return
        now = self._clock()
        log = self._logs.get(room)
        if log is None:
            log = self._logs[room] = _Log(room, self._forgotten)
            self._bytes += log.bytes
        self._logs.move_to_end(room)
        log.append(now, entry)
        self._bytes += _cost(entry)
        while len(log.entries) > self._history or log.bytes > self._history_bytes:
            self._bytes -= log.drop_oldest()
            if not log.entries:
                self._forget(room)
                break
        if self._bytes > self._max_bytes:
            self._shrink()
        if room in self._logs:
            self._trim(room, now)
        while self._logs:
            idle = next(iter(self._logs))
            if now - self._logs[idle].entries[-1][0] <= self._max_age:
                break
            self._forget(idle)

    def _trim(self, room: str, now: float) -> None:
        log = self._logs[room]
        while log.entries and now - log.entries[0][0] > self._max_age:
            self._bytes -= log.drop_oldest()
        if not log.entries:
            self._forget(room)

    def _shrink(self) -> None:
        """Forgets logs until an eighth of ``max_bytes`` is free: to look for the rooms without
        members at each message would be slow where there are many."""
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
        last = log.entries[-1][1].number if log.entries else log.first
        self._forgotten = max(self._forgotten, last)

    def locate(self, since: str) -> Position | None:
        position = super().locate(since)
        if position is None or position.ahead:
            return None
        epoch, _, number = position.id.partition("-")
        is_known = epoch == self._epoch and (int(number) <= self._last or self.is_shared)
        return position if is_known else None

    def history(self, room: str, after: str, until: str) -> tuple[bool, list[Entry]]:
        epoch, _, count = after.partition("-")
        last = int(count) if epoch == self._epoch else -1
        end = int(until.partition("-")[2])
        with self._lock:
            log = self._trimmed(room)
            entries = () if log is None else log.entries
            complete = last >= (self._forgotten if log is None else log.first)
            return complete, [entry for _, entry in entries if last < entry.number <= end]

    def newest(self, room: str, count: int) -> list[Entry]:
        with self._lock:
            log = self._trimmed(room)
            return [entry for _, entry in log.entries][-count:] if log is not None else []

    def _trimmed(self, room: str) -> _Log | None:
        if room in self._logs:
            self._trim(room, self._clock())
        return self._logs.get(room)

    def ahead(self, room: str) -> list[Entry]:
        return []

    def members(self, room: str) -> dict[str, dict[str, Any]]:
        return {}

    def _id(self, number: int) -> str:
        return f"{self._epoch}-{number}"
