"""What a member that comes back has missed, and its cursor until it is level with its process.

A client may come from a process that has read further in the log than this one, or that delivered
messages unlogged that this one finds in the log only later. The cursor accounts for both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

from ..broker import Cursor, Entry, Message, Page, Replay
from .positions import Position, order
from .requests import PERHAPS_AFTER_ALL

if TYPE_CHECKING:
    from .entries import LogEntry

__all__ = ["LogCursor", "LogReplay", "Progress"]


class Progress(NamedTuple):
    """How far a process has delivered a room: the stream id of the last entry, and the messages
    that it delivered unlogged and has not found in the log yet. ``is_estimated``: the log is out
    of reach, and the id is a time."""

    id: str
    unlogged: list[LogEntry]
    is_estimated: bool = False


ReadLog = Callable[[str, str], Iterator[tuple[list["LogEntry"], bool]]]


class LogCursor(Cursor):
    """``ahead``: the stream id that the member has reached, where this process has not.
    ``unlogged``: numbers of the last entries that it received unlogged, by origin."""

    def __init__(self, origin: str, ahead: str, unlogged: dict[str, int]) -> None:
        self.ahead = ahead
        # Whether the log has that entry. A time is not one.
        self._is_there = not ahead or order(ahead)[1] >= PERHAPS_AFTER_ALL
        self._has_gap = False
        self.unlogged = unlogged
        self._is_replaying = True
        self._origin = origin
        # Origins with no unlogged messages any more, whose numbers the replay still needs.
        self._logged: set[str] = set()

    @property
    def is_level(self) -> bool:
        return not self.ahead and not self.unlogged

    def advance(self, entry: Entry) -> bool:
        logged: LogEntry | None = entry.log
        self._has_gap = False
        if logged is None:  # it was delivered unlogged before
            if not self._is_there:
                self._is_there = Position.parse(entry.position).id == self.ahead
            return False
        if self.ahead and logged.id is not None:
            if order(logged.id) <= order(self.ahead):
                self._is_there = self._is_there or logged.id == self.ahead
                return False
            self._has_gap = not self._is_there
            self.ahead = ""
            if not self._is_replaying:
                self.unlogged.pop(self._origin, None)  # all of that is in the log by now
        last = self.unlogged.get(logged.origin, 0)
        if logged.id is not None and logged.number >= last:
            if self._is_replaying:
                self._logged.add(logged.origin)
            else:
                self.unlogged.pop(logged.origin, None)
        return logged.number > last

    def has_gap(self) -> bool:
        return self._has_gap

    def end_replay(self) -> None:
        self._is_replaying = False
        if not self.ahead:
            self._logged.add(self._origin)  # the same for all members of the process
        for origin in self._logged:
            self.unlogged.pop(origin, None)
        self._logged.clear()

    def forget(self, origins: set[str]) -> None:
        """Drops processes that will append nothing more."""
        if origins and not self.ahead and not self._is_replaying:
            for origin in origins:
                self.unlogged.pop(origin, None)

    def position(self, position: str) -> str:
        if self.is_level:
            return position
        common = Position.parse(position)
        id_ = self.ahead if self.ahead and order(common.id) < order(self.ahead) else common.id
        own = {key: last for key, last in self.unlogged.items() if key not in self._logged}
        return str(Position(id_, {**own, **common.unlogged}))


class LogReplay(Replay):
    """``is_known``: whether it is known which of this process's own entries the client has
    received. ``progress``: returns how far this process has delivered the room. ``read``: returns
    the entries between two stream ids in pages, each with whether some before it are missing.
    ``find_start``: returns where this process began to deliver a log that was out of reach; None
    if it still is. ``on_end``: called when all pages have been read."""

    def __init__(
        self,
        origin: str,
        since: Position,
        is_known: bool,
        progress: Callable[[], Progress],
        read: ReadLog,
        find_start: Callable[[], str | None] = lambda: None,
        on_end: Callable[[LogCursor], None] = lambda cursor: None,
    ) -> None:
        self._origin = origin
        self._since = since
        self._is_known = is_known
        self._progress = progress
        self._read = read
        self._find_start = find_start
        self._on_end = on_end
        self._until = Progress("", [])
        self._cursor: LogCursor | None = None

    def begin(self) -> LogCursor:
        self._until = self._progress()
        is_ahead = self._until.is_estimated or order(self._until.id) < order(self._since.id)
        self._cursor = LogCursor(
            self._origin, self._since.id if is_ahead else "", self._since.unlogged
        )
        return self._cursor

    def pages(self) -> Iterator[Page]:
        cursor = self._cursor
        assert cursor is not None
        unlogged = self._until.unlogged
        received = cursor.unlogged
        at = Position(self._since.id, received)
        known = 0  # of our own entries, those that this process has not found in the log may be
        until, is_known = self._until.id, self._is_known
        is_estimated = self._until.is_estimated
        if is_estimated and is_known:
            start = self._find_start()
            until, is_known = start or until, start is not None
            if is_known and order(until) >= order(self._since.id):
                cursor.ahead = ""
            else:
                until = self._since.id
        if unlogged and not self._is_known:  # a gap is better than a message twice
            received[self._origin] = unlogged[-1].number
        if order(until) < order(self._since.id):
            if unlogged and not is_known:
                yield Page([], gap=True)
        elif is_known and until == self._since.id != "0-0" and not is_estimated:
            # Nothing to read, so Redis may be out of reach. But 0-0 may stand for "unknown".
            pass
        elif is_known:
            for entries, gap in self._read(self._since.id, until):
                numbers = [each.number for each in entries if each.origin == self._origin]
                known = max([known, *numbers])
                yield Page(self._new(entries, at), gap)
        else:  # the log is still out of reach
            yield Page([], gap=True)
        yield Page(self._new([each for each in unlogged if each.number > known], at))
        cursor.end_replay()
        self._on_end(cursor)

    def _new(self, entries: list[LogEntry], at: Position) -> list[Message]:
        """The messages that the client has not received; ``at`` moves on."""
        messages = []
        for entry in entries:
            last = at.unlogged.get(entry.origin, 0)
            if entry.id is None:
                if entry.number > last:
                    at.unlogged[entry.origin] = entry.number
            else:
                at.id = entry.id
                if entry.number >= last:
                    at.unlogged.pop(entry.origin, None)
            if entry.number > last:
                messages.append(Message(str(at), entry.data))
        return messages
