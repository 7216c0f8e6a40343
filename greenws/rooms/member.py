"""``Member``: a socket in a room. It owns its queue and its cursor.

A member is *prompt* while it has neither: then the fan-out hands messages straight to its socket.
It has a queue while it lags (its connection's outbox is not empty), while it is sent what it missed
(*replaying*), and while what another thread sent waits for the hub of its session (*unflushed*). It
has a cursor while it has received more, or less, than the members around it.
"""

from __future__ import annotations

import logging
import secrets
import time
from typing import TYPE_CHECKING, Any, Protocol

from ..protocol.shared import SharedMessage
from ..websocket import WebSocket
from .broker import Cursor, Entry
from .lag import Policy, Queue, TooSlow

if TYPE_CHECKING:
    from .presence import Presence
    from .room import Room

__all__ = ["Audience", "Member"]

INTERNAL_ERROR = 1011
TRY_AGAIN_LATER = 1013
UNFLUSHED_TIMEOUT = 5.0  # seconds for which a sender waits for the hub of another thread
REPLAY_LIMIT = 1000  # messages that may wait at least for a member that is sent what it missed
REPLAY_LIMIT_BYTES = 16 * 2**20  # the same, in bytes

_logger = logging.getLogger("greenws.rooms")


class Audience(Protocol):
    """What a member tells of itself: the fan-out of its room."""

    name: str
    lock: Any
    stats: Any

    def settle(self, member: Member) -> None:
        """Whether it is prompt may have changed."""

    def hold_up(self, member: Member) -> None:
        """Senders wait: its queue is full."""

    def let_go(self, member: Member) -> None:
        """They do not wait for it any more."""

    def remove(self, member: Member) -> None:
        """Nothing more is sent to it."""

    def position_of(self, member: Member) -> str: ...


class Member:
    """A socket in a room, from ``room.join()``."""

    def __init__(
        self,
        room: Room,
        socket: WebSocket,
        info: dict[str, Any],
        policy: Policy,
        audience: Audience,
        gap: str | bytes | None = None,
        presence_key: str | None = None,
        linger: float = 0.0,
    ) -> None:
        self.token = secrets.token_hex(8)
        """Names this member alone, also among those with its ``presence_key``."""
        self.id = self.token if presence_key is None else presence_key
        """What others know it by: the id of its :class:`Presence`."""
        self.linger = linger
        """Seconds for which it is counted after it has left."""
        self.room = room
        self.socket = socket
        self.info = info
        """What it joined with, which others see in ``room.members``."""
        self.gap = gap
        """What it is sent where it has missed messages."""
        self.present: list[Presence] | None = None
        """Who was in the room when it joined, itself included, if it is told who comes and goes
        since then; else None."""
        self.is_complete = True
        """False once it was told of a gap: it has missed messages."""
        self._policy = policy
        self._audience = audience
        self._cursor: Cursor | None = None
        self._queue: Queue | None = None
        self._is_replaying = False
        self._is_unflushed = False

    @property
    def position(self) -> str:
        """The id of the last message that this member was sent, or might have been: what the client
        gives as ``since`` when it comes back."""
        with self._audience.lock:
            position = self._audience.position_of(self)
            return position if self._cursor is None else self._cursor.position(position)

    @property
    def waiting(self) -> int:
        """Messages that wait for this member, since it lags or is sent what it missed, or for its
        thread."""
        queue = self._queue
        return 0 if queue is None else len(queue)

    @property
    def _is_prompt(self) -> bool:
        """Whether a message may go straight to its socket, the same as to others."""
        return self._queue is None and self._cursor is None

    @property
    def is_lagging(self) -> bool:
        """Whether messages wait for it because its connection accepts no more."""
        return self._queue is not None and not self._is_replaying and not self._is_unflushed

    # -- what it missed

    def _begin_replay(self, cursor: Cursor | None) -> None:
        self._is_replaying = True
        self._queue = Queue()
        self._cursor = cursor

    def _next_waiting(self) -> str | bytes | None:
        """Takes a message out of the queue."""
        with self._audience.lock:
            if not self._queue:
                return None
            data: str | bytes = self._queue.popitem(last=False)[1].data
            return data

    def _end_replay(self) -> None:
        with self._audience.lock:
            self._is_replaying = False
            if self._queue is None:  # it was closed meanwhile
                return
            if not self._queue:
                self._queue = None
            else:  # another thread has sent something just now
                self._is_unflushed = True
                self.socket._call_in_hub(self._drain)
            self._level()

    def _level(self) -> None:
        if self._cursor is not None and self._cursor.is_level and not self._is_replaying:
            self._cursor = None
        self._audience.settle(self)

    # -- what is delivered

    def _receive(self, entry: Entry, message: SharedMessage, stamp: Any) -> bool:
        """Takes an entry, if it is new to this member; ``stamp(position, data)``."""
        if self._cursor is not None and self._cursor.is_level:
            self._level()  # the broker has forgotten what it was for
        if self._cursor is not None and not self._cursor.is_level:
            is_new = self._cursor.advance(entry)
            if is_new and entry.data is not None and entry.exclude is not self.socket:
                message = SharedMessage(stamp(self._cursor.position(entry.position), entry.data))
            if self._cursor.is_level:
                self._level()
            if not is_new:
                return False
        if entry.data is None or entry.exclude is self.socket:
            return False
        self._take(message, entry.data)
        return True

    def _tell_gap(self) -> None:
        """Messages are missing before those to come."""
        self.is_complete = False
        if self.gap is not None:
            self._take(SharedMessage(self.gap), self.gap)

    def _take(self, message: SharedMessage, data: str | bytes) -> None:
        """Sends a message now, or puts it into the queue."""
        if self._queue is not None or not self.socket._offer(message):
            self._put(message, data)

    def _put(self, message: SharedMessage, data: str | bytes) -> None:
        """Puts a message that the socket did not take into the queue, as the policy has it."""
        queue = self._queue
        if queue is None:
            queue = self._queue = Queue()
            if self.socket._is_in_other_thread():
                self._is_unflushed = True
                self.socket._call_in_hub(self._drain)
            else:
                self._audience.stats.lagging += 1
                self.socket._when_ready(self._drain)
            self._audience.settle(self)
        try:
            # What it could not have read yet is not its fault; but memory has an end.
            if self._is_replaying or self._is_unflushed:
                if self._exceeds_replay_limit(queue):
                    raise TooSlow
                queue[message] = message
            else:
                self._audience.stats.dropped += self._policy.put(queue, message, data)
        except TooSlow:
            self._close_slow()
        except Exception:
            _logger.exception("the policy of a member of the room %r failed", self._audience.name)
            self._close(INTERNAL_ERROR)
        else:
            if self._policy.is_full(queue) and self._block_timeout is not None:
                queue.full_since = queue.full_since or time.monotonic()
                self._audience.hold_up(self)

    def _exceeds_replay_limit(self, queue: Queue) -> bool:
        limit = max(REPLAY_LIMIT, 10 * self._policy.limit)
        limit_bytes = max(REPLAY_LIMIT_BYTES, self._policy.limit_bytes)
        return len(queue) >= limit or queue.bytes >= limit_bytes

    def _drain(self) -> None:
        """Sends what waits, as far as the connection takes it."""
        with self._audience.lock:
            queue = self._queue
            if queue is None:
                return
            self._stop_waiting_for_hub()
            while queue:
                key, message = next(iter(queue.items()))
                if not self.socket._offer(message):
                    self.socket._when_ready(self._drain)
                    break
                queue.pop(key, None)
            if not self._policy.is_full(queue):
                queue.full_since = 0.0
                self._audience.let_go(self)
            if not queue:
                self._audience.stats.lagging -= 1
                self._queue = None
                self._audience.settle(self)

    def _stop_waiting_for_hub(self) -> None:
        """What its connection does not take from now on is lag."""
        if self._is_unflushed and self._queue is not None:
            self._is_unflushed = False
            self._queue.full_since = 0.0
            self._audience.let_go(self)
            self._audience.stats.lagging += 1

    # -- senders that wait for it

    @property
    def _block_timeout(self) -> float | None:
        """Seconds for which it holds up senders when its queue is full."""
        if self._is_replaying:
            return None
        return UNFLUSHED_TIMEOUT if self._is_unflushed else self._policy.patience

    @property
    def _waits_for_hub(self) -> bool:
        """Whether its queue is full only since the hub of another thread had no turn."""
        return self._is_unflushed and self.socket._is_in_other_thread()

    def _make_room(self) -> float:
        """Seconds for which a sender is to wait for this member; 0 if no longer."""
        with self._audience.lock:
            if self._queue is None or self._block_timeout is None:
                self._audience.let_go(self)
                return 0.0
            if self._is_unflushed and not self.socket._is_in_other_thread():
                self._drain()
                return 0.0
            left = self._queue.full_since + self._block_timeout - time.monotonic()
            if left <= 0 and self._is_unflushed:
                # Its thread hangs; perhaps it waits for this one.
                self._stop_waiting_for_hub()
            elif left <= 0:
                self._close_slow()
            return max(left, 0.0)

    # -- the end

    def _close_slow(self) -> None:
        self._audience.stats.closed += 1
        self._close(TRY_AGAIN_LATER, "You read too slowly.")

    def _disconnect(self, code: int, reason: str) -> None:
        """It is not wanted here any more."""
        self.linger = 0.0
        self._close(code, reason)

    def _close(self, code: int, reason: str = "") -> None:
        """Sends it nothing more, and closes its socket without waiting."""
        self._drop()
        self.socket.start_closing(code, reason)

    def _drop(self) -> None:
        """Sends it nothing more."""
        self._audience.remove(self)
        self._audience.let_go(self)
        if self.is_lagging:
            self._audience.stats.lagging -= 1
        self._queue = None
