"""The interface of brokers, which carry the messages of rooms between processes.

A room is a log that only grows. A broker gives each message its position in it, delivers the
messages to every process that has members of the room, in the order of their positions, and keeps
the last of them for members that come back. Beside the log it keeps who is in the room.

Positions are opaque: only the broker makes, orders and parses them. ``tests/rooms/conformance.py``
checks any broker against this contract.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
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
    """The broker is out of reach: a call needs it now, or too many messages wait for it."""


class Entry(NamedTuple):
    """A message as it is delivered.

    ``position``: the position of a member that has received it. ``data``: None if the log has moved
    on without a message. ``exclude``: the socket that does not get it; other processes than that of
    the socket do not know it. ``log``: for the broker's cursors. ``is_read``: it was read from the
    broker, by a greenlet that goes on reading: more may follow at once, and the hub runs soon.
    """

    position: str
    data: str | bytes | None
    exclude: WebSocket | None = None
    log: Any = None
    is_read: bool = False


class Message(NamedTuple):
    """A message of the log, and the position of a member that has received it."""

    position: str
    data: str | bytes


class Page(NamedTuple):
    """Some of the messages that a member has missed: each is a ``greenws.brokers.Message(position,
    data)``, with the position of a member that has received it. ``gap``: some before these are
    missing."""

    messages: list[Message]
    gap: bool = False


class Cursor(ABC):
    """How far a member has received a room, where that differs from its process."""

    @property
    @abstractmethod
    def is_level(self) -> bool:
        """Whether it no longer differs. Once the replay has ended, that is final."""

    @abstractmethod
    def advance(self, entry: Entry) -> bool:
        """Whether a delivered entry is new to the member."""

    def has_gap(self) -> bool:
        """Whether messages that the member received are not in the log any more, as the last
        ``advance`` has shown. The member is sent the gap."""
        return False

    @abstractmethod
    def position(self, position: str) -> str:
        """The member's position where that of its process is ``position``."""


class Replay(ABC):
    """What a member that comes back has missed, from :meth:`Broker.resume`."""

    @abstractmethod
    def begin(self) -> Cursor | None:
        """Called when the member is added to the room, which delivers to it from now on; ``pages``
        must end with what was delivered before. Does not block; the lock is held."""

    @abstractmethod
    def pages(self) -> Iterator[Page]:
        """The messages, in order. May block between pages."""


class Listener(Protocol):
    """What a broker delivers to: ``Rooms``."""

    lock: AbstractContextManager[Any]
    """Makes a step atomic for other threads; never held for long. Reentrant."""

    def deliver(self, room: str, entry: Entry) -> None:
        """Hands an entry to the members of an open room. Does not block; holds the lock."""

    def presence(self, room: str, kind: str, member: str, info: dict[str, Any]) -> None:
        """A member in another process has joined (JOIN) or left (LEAVE). Does not block."""

    def disconnect(self, room: str, code: int, reason: str, member: str | None) -> None:
        """Closes the members of an open room, or one of them. Does not block."""

    def gap(self, room: str) -> None:
        """Messages are missing between the last one delivered to an open room and the next one: the
        log no longer has them. Does not block."""

    def closed(self, room: str) -> None:
        """``close`` returned True to the broker itself, as in ``end_of``. Called in one hold of
        ``lock`` with that ``close``."""

    def wait(self, room: str) -> None:
        """Blocks while the members of a room have not all got what was delivered: for a broker
        that could deliver more."""


class Broker(ABC):
    """No call blocks unless its docstring says so.

    A room is open between the first ``open`` and the last ``close``. What is published to it is
    delivered in the order of its positions, the same in all processes, each message once.
    """

    is_shared: bool = True
    """Whether other processes have the same rooms."""

    tail_length: int = 1000
    tail_age: float = 300.0
    """How many messages of an open room, and for how many seconds, ``Rooms`` may keep encoded for
    members that come back: no more than the log keeps."""

    _listener: Listener | None = None

    def attach(self, listener: Listener) -> None:
        """
        Raises:
            ValueError: it has a listener already.
        """
        if self._listener is not None:
            raise ValueError(
                "this broker already serves other Rooms, which would receive nothing from now on"
            )
        self._listener = listener

    def detach(self) -> None:
        """Stops delivering."""
        self._listener = None

    # -- rooms

    @abstractmethod
    def open(self, room: str) -> None:
        """Begins to deliver the messages of ``room``. May block. Each ``open`` needs a ``close``.

        Raises:
            BrokerUnavailable: it was stopped.
        """

    @abstractmethod
    def close(self, room: str) -> bool:
        """Undoes one ``open``. Returns whether it was the last one, so that ``room`` is closed."""

    @abstractmethod
    def position(self, room: str) -> str:
        """The position of the last entry that was delivered to an open room; before the first one,
        the position at which the room was opened."""

    # -- messages

    @abstractmethod
    def publish(self, room: str, data: str | bytes, exclude: WebSocket | None = None) -> None:
        """Appends a message to the log, or to those that wait for it. The room need not be open.

        Raises:
            BrokerUnavailable: too much waits already, or it was stopped.
        """

    @abstractmethod
    def resume(self, room: str, since: str) -> Replay:
        """What a client has missed since a position. May block. ``since`` may be any string that
        the client sent: if it is not a position of this broker, or is too long, the client has
        missed all that is kept and some before it (a gap). Such a string is not stored."""

    @abstractmethod
    def newest(self, room: str, count: int) -> list[Message]:
        """The last ``count`` messages of a room, open or not, or as many as are kept. May block;
        empty if the broker is out of reach."""

    # -- presence

    def join(self, room: str, member: str, info: dict[str, Any]) -> None:
        """A member of this process has joined an open room. ``info`` can be encoded as JSON."""
        return

    def leave(self, room: str, member: str) -> None:
        """A member of this process has left."""
        return

    def others(self, room: str) -> dict[str, dict[str, Any]]:
        """The members of an open room in other processes, as reported to ``presence`` so far: each
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
        listener = self._listener
        self.open(room)
        try:
            return self.position(room)
        finally:
            with nullcontext() if listener is None else listener.lock:
                # The last member may have left since.
                if self.close(room) and listener is not None:
                    listener.closed(room)

    def disconnect(self, room: str, code: int, reason: str, member: str | None) -> None:
        """Makes all processes close the members of a room, or one of them. The room need not be
        open here. May block.

        Raises:
            BrokerUnavailable: it is out of reach.
        """
        if self._listener is not None:
            self._listener.disconnect(room, code, reason, member)

    # -- the end

    def receipt(self, room: str) -> Callable[[], bool]:
        """Called directly after ``publish``, with the lock held; does not block. Returns a function
        that waits until the log has that message, and returns whether it has: False if the broker
        was stopped. It may raise BrokerUnavailable: the log refuses the message. By default it
        waits for all that was published."""
        return self.flush

    def flush(self, timeout: float | None = None) -> bool:
        """Waits until all that was published is in the log, for at most ``timeout`` seconds;
        returns whether it is."""
        return True

    def stop(self) -> None:
        """Ends the broker's greenlets and connections. What waits for it is lost."""
        return
