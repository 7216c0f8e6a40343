"""``MemoryBroker``: rooms of one process. The log of a room is a deque."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..config import check_range, check_seconds
from .broker import MESSAGE, Broker, Entry, Opening, Position

if TYPE_CHECKING:
    from ..websocket import WebSocket

__all__ = ["MemoryBroker"]


class _Log:
    def __init__(self, first: int, length: int) -> None:
        self.first = first  # the count before that of the oldest entry that is kept
        self.entries: deque[tuple[float, Entry]] = deque(maxlen=length)


class MemoryBroker(Broker):
    """Keeps the last ``history`` messages of a room for members that come back, none for longer
    than ``max_age`` seconds.

    Raises:
        TypeError, ValueError: one of them is no such number.
    """

    is_shared = False

    def __init__(
        self,
        history: int = 100,
        max_age: float = 300.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        check_range("history", history, 0, sys.maxsize)
        check_seconds("max_age", max_age)
        self.deliver: Callable[[str, Entry], None] = lambda room, entry: None
        self._history = history
        self._max_age = max_age
        self._clock = clock
        self._epoch = str(int(time.time() * 1000))  # ids of another process are none of ours
        self._last = 0
        self._forgotten = 0  # up to here, the history of some room was dropped with its log
        self._opened: dict[str, int] = {}
        self._logs: dict[str, _Log] = {}
        self._next_sweep = 0.0

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
            log = self._logs[room] = _Log(self._forgotten, self._history)
        if len(log.entries) == self._history:
            log.first = log.entries[0][1].number
        log.entries.append((now, entry))
        if now >= self._next_sweep:
            self._next_sweep = now + self._max_age / 4
            for name in list(self._logs):
                self._trim(name, now)

    def _trim(self, room: str, now: float) -> None:
        log = self._logs[room]
        while log.entries and now - log.entries[0][0] > self._max_age:
            log.first = log.entries.popleft()[1].number
        if not log.entries:
            self._forgotten = max(self._forgotten, log.first)
            del self._logs[room]

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
