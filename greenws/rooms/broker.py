"""What carries the messages of rooms between processes: the contract.

A room is a log that only grows. A broker gives each message its position there, delivers the
messages to every process that has members of the room, in the order of their positions, and keeps
the last of them for members that come back. Apart from the log it knows who is in the room.

Positions are opaque: only the broker makes, orders and parses them. ``tests/rooms/conformance.py``
checks any broker against this contract.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from ..exceptions import GreenwsError

if TYPE_CHECKING:
    from ..websocket import WebSocket

__all__ = [
    "BEGINNING",
    "JOIN",
    "LEAVE",
    "LONGEST_POSITION",
    "Broker",
    "BrokerUnavailable",
    "Cursor",
    "Entry",
    "Listener",
    "Message",
    "Page",
    "Replay",
]

JOIN = "join"
LEAVE = "leave"

BEGINNING = "0-0"
"""The position before the first message of any room."""

LONGEST_POSITION = 256
"""Characters of a position, at most; all of them stand in a JSON string unescaped."""


class BrokerUnavailable(GreenwsError):
    """So many messages wait for the broker to come back that it takes no more."""


class Entry(NamedTuple):
    """A message as it is delivered.

    ``position``: of a member that has received it. ``data``: None where the log has only moved
    on. ``exclude``: the socket that does not get it, known in its own process alone. ``log``:
    whatever the broker's cursors need to know of it. ``is_read``: whoever delivers it goes on
    reading, so that others may follow at once, and the hub runs soon.
    """

    position: str
    data: str | bytes | None
    exclude: WebSocket | None = None
    log: Any = None
    is_read: bool = False


class Message(NamedTuple):
    """A message as it is kept, and the position of a member that has received it."""

    position: str
    data: str | bytes


class Page(NamedTuple):
    """Some of the messages that a member has missed. ``gap``: some before these are missing."""

    messages: list[Message]
    gap: bool = False


class Cursor(ABC):
    """Up to where a member has received a room, where that differs from its process."""

    @property
    @abstractmethod
    def is_level(self) -> bool:
        """Whether it does not differ any more; it never will again once the replay has ended."""

    @abstractmethod
    def advance(self, entry: Entry) -> bool:
        """Whether a delivered entry is new to the member."""

    @abstractmethod
    def position(self, position: str) -> str:
        """The member's position where that of its process is ``position``."""


class Replay(ABC):
    """What a member that comes back has missed, from :meth:`Broker.resume`."""

    @abstractmethod
    def begin(self) -> Cursor | None:
        """The member is added to the room: what is delivered from now on it gets from there, and
        ``pages`` are to end with what was delivered before. Does not block; the lock is held."""

    @abstractmethod
    def pages(self) -> Iterator[Page]:
        """Some messages after others. May block in between."""


class Listener(Protocol):
    """What a broker delivers to: ``Rooms``."""

    lock: AbstractContextManager[Any]
    """Held in each step that other threads must not see half of, and never for long. The thread
    that holds it may take it again."""

    def deliver(self, room: str, entry: Entry) -> None:
        """Hands an entry to the members of an open room. Does not block; holds the lock."""

    def presence(self, room: str, kind: str, member: str, info: dict[str, Any]) -> None:
        """A member in another process has come (JOIN) or gone (LEAVE). Does not block."""

    def disconnect(self, room: str, code: int, reason: str, member: str | None) -> None:
        """Closes the members of an open room, or one. Does not block."""

    def gap(self, room: str) -> None:
        """Messages are missing between what was delivered to an open room and what will be, since
        the log does not hold them any more. Does not block."""

    def wait(self, room: str) -> None:
        """Blocks while what was delivered to a room is still being handed out: for a broker that
        could deliver more."""


class Broker(ABC):
    """Every call but those that say so returns without blocking.

    A room is open between the first ``open`` and the last ``close``. What is published to it is
    delivered in the order of its positions, the same in all processes, each message once.
    """

    is_shared: bool = True
    """Whether other processes have the same rooms."""

    tail_length: int = 1000
    tail_age: float = 300.0
    """Messages of an open room, and seconds for which, that ``Rooms`` may keep encoded for members
    that come back: no more than the log keeps."""

    _listener: Listener | None = None

    def attach(self, listener: Listener) -> None:
        """
        Raises:
            ValueError: it has a listener already.
        """
        if self._listener is not None:
            raise ValueError("this broker carries other Rooms, which would hear nothing any more")
        self._listener = listener

    def detach(self) -> None:
        """Delivers nothing any more."""
        self._listener = None

    # -- rooms

    @abstractmethod
    def open(self, room: str) -> None:
        """Begins to deliver the messages of ``room``. May block. Each ``open`` asks for a
        ``close``.

        Raises:
            BrokerUnavailable: it was stopped.
        """

    @abstractmethod
    def close(self, room: str) -> bool:
        """Whether that was the last one, and nothing of ``room`` is delivered any more."""

    @abstractmethod
    def position(self, room: str) -> str:
        """The position of the last entry of an open room that was delivered, or of where it was
        opened."""

    # -- messages

    @abstractmethod
    def publish(self, room: str, data: str | bytes, exclude: WebSocket | None = None) -> None:
        """Appends a message to the log, or to what waits for it. The room need not be open.

        Raises:
            BrokerUnavailable: too much waits already, or it was stopped.
        """

    @abstractmethod
    def resume(self, room: str, since: str) -> Replay:
        """What a client has missed since a position. May block. ``since`` is whatever the client
        has sent: where it is no position of this broker's, or a longer one, all that is kept was
        missed, and some before it. Nothing of such a string is kept."""

    @abstractmethod
    def newest(self, room: str, count: int) -> list[Message]:
        """The last ``count`` messages of a room, open or not, as far as they are kept. May block;
        empty if the broker is out of reach."""

    # -- presence

    def join(self, room: str, member: str, info: dict[str, Any]) -> None:
        """A member has come, in this process, to an open room. ``info`` is what JSON can hold."""
        return

    def leave(self, room: str, member: str) -> None:
        """It has gone."""
        return

    def others(self, room: str) -> dict[str, dict[str, Any]]:
        """Who is in an open room in other processes, as far as that was told by ``presence``: each
        member's info by its id."""
        return {}

    def members(self, room: str) -> dict[str, dict[str, Any]]:
        """Who is in a room that is not open here. May block."""
        return {}

    # -- reach

    def end_of(self, room: str) -> str:
        """The position of the last message of a room, open or not. May block.

        Raises:
            BrokerUnavailable: it is out of reach.
        """
        return self.position(room)

    def disconnect(self, room: str, code: int, reason: str, member: str | None) -> None:
        """Has all processes close the members of a room, open here or not, or one of them. May
        block.

        Raises:
            BrokerUnavailable: it is out of reach.
        """
        if self._listener is not None:
            self._listener.disconnect(room, code, reason, member)

    # -- the end

    def flush(self, timeout: float | None = None) -> bool:
        """Waits, at most so many seconds, until all that was published is in the log; returns
        whether it is."""
        return True

    def stop(self) -> None:
        """Ends what runs for the broker. What waits for it is lost."""
        return
