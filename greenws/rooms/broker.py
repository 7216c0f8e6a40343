"""What carries the messages of rooms between processes: the interface, and what travels.

A room is a log that only grows. Its broker gives each entry its place there (``Entry.id``), hands
the entries to every process that has members of the room, in the order of their places, and keeps
the last of them for members that come back (``history``).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from ..exceptions import GreenwsError

if TYPE_CHECKING:
    from ..websocket import WebSocket

__all__ = [
    "JOIN",
    "LEAVE",
    "LONGEST_POSITION",
    "MESSAGE",
    "Broker",
    "BrokerUnavailable",
    "Entry",
    "Opening",
    "Position",
    "order",
]

LONGEST_POSITION = 256
"""Characters of a position, at most."""

MESSAGE = "message"
JOIN = "join"
LEAVE = "leave"


class BrokerUnavailable(GreenwsError):
    """So many messages wait for the broker to come back that it takes no more."""


class Entry(NamedTuple):
    """One entry of a room's log.

    ``id``: its place there; None if the process that sent it hands it to its own members ahead of
    the log, which is out of reach. ``origin`` and ``number``: which process sent it, and a count
    of all that this process sent. ``member``: whose ``JOIN`` or ``LEAVE`` it is, ``data`` the
    member's info as JSON. ``exclude``: the socket that does not get it, known in its own process
    alone.
    """

    id: str | None
    origin: str
    number: int
    kind: str
    data: str | bytes
    member: str = ""
    exclude: WebSocket | None = None


@dataclass
class Position:
    """Up to where somebody has heard a room: a place in its log, and what it heard ahead of that
    (the number of the last such entry, by origin). As a string, the id of a message."""

    id: str
    ahead: dict[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        return "+".join([self.id, *(f"{origin}.{number}" for origin, number in self.ahead.items())])

    @classmethod
    def parse(cls, text: str) -> Position:
        """
        Raises:
            ValueError: ``text`` is not the id of a message, or longer than ``LONGEST_POSITION``.
        """
        if len(text) > LONGEST_POSITION:
            raise ValueError(f"not the id of a message: {text[:100]!r}...")
        place, *ahead = text.replace(" ", "+").split("+")  # of a URL that nobody escaped
        time, dash, count = place.partition("-")
        if not (dash and _is_number(time) and _is_number(count)) or len(ahead) > 16:
            raise ValueError(f"not the id of a message: {text[:100]!r}")
        heard = {}
        for part in ahead:
            origin, dot, number = part.partition(".")
            if not (origin.isalnum() and origin.isascii() and _is_number(number)):
                raise ValueError(f"not the id of a message: {text[:100]!r}")
            heard[origin] = int(number)
        return cls(place, heard)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 20 and int(text) < 2**64


def order(place: str | bytes) -> tuple[int, int]:
    """A place in a log, as it compares."""
    text = place.decode() if isinstance(place, bytes) else place
    time, _, count = text.partition("-")
    return int(time), int(count)


class Opening(NamedTuple):
    """Where a room stands when a process opens it: the place of its last entry, the number of the
    last entry that the process handed out ahead of the log, and who is in it elsewhere."""

    id: str
    ahead: int
    members: dict[str, dict[str, Any]]


class Broker(ABC):
    """``deliver(room, entry)`` is called for each entry of each open room, in the order of the
    log; it does not block, and no entry is delivered while it runs."""

    origin: str = ""
    """Names this process among those that use the same broker."""

    is_shared: bool = True
    """Whether other processes read the same log, and perhaps further than this one."""

    deliver: Callable[[str, Entry], None]

    _rooms: Any = None
    """The ``Rooms`` that it carries."""

    _lock: Any = nullcontext()
    """Theirs: held in each step that other threads must not see half of, and never for long."""

    @abstractmethod
    def open(self, room: str) -> Opening:
        """Begins to deliver the entries of ``room``. May block. Each open() asks for a close()."""

    @abstractmethod
    def close(self, room: str) -> bool:
        """Whether that was the last one, and nothing of ``room`` is delivered any more."""

    @abstractmethod
    def publish(
        self,
        room: str,
        kind: str,
        data: str | bytes,
        member: str = "",
        exclude: WebSocket | None = None,
    ) -> None:
        """Appends an entry to the log, or to what waits for it. Does not block.

        Raises:
            BrokerUnavailable: too many messages wait already.
        """

    def locate(self, since: str) -> Position | None:
        """The position that a client says it has reached; None if this broker never gave it that,
        as far as it can tell. Then the client has missed something, and nothing of ``since`` is
        kept."""
        try:
            return Position.parse(since)
        except ValueError:
            return None

    @abstractmethod
    def history(self, room: str, after: str, until: str) -> tuple[bool, list[Entry]]:
        """The messages of an open room behind the place ``after``, up to ``until`` and with it; and
        whether these are all, or the oldest are forgotten. May block."""

    def last_of_ours(self, room: str, until: str, insist: bool = True) -> int | None:
        """The number of the last entry of this process up to the place ``until`` of an open room's
        log; 0 if there is none, or only far from there. May block; None if it is out of reach, for
        some time or without ``insist`` at once."""
        return 0

    @abstractmethod
    def newest(self, room: str, count: int) -> list[Entry]:
        """The last ``count`` messages of a room, open or not, as far as they are kept. May block;
        empty if the broker is out of reach."""

    @abstractmethod
    def ahead(self, room: str) -> list[Entry]:
        """The messages that were delivered ahead of the log and are not delivered from it yet."""

    @abstractmethod
    def members(self, room: str) -> dict[str, dict[str, Any]]:
        """Who is in a room that is not open here: each member's info by its id. May block."""

    def flush(self, timeout: float | None = None) -> bool:
        """Waits, at most so many seconds, until all that was published is in the log; returns
        whether it is."""
        return True

    def stop(self) -> None:
        """Ends what runs for the broker. What waits for it is lost."""
        return
