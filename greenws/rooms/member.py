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

from ..opcodes import CloseCode
from ..protocol.shared import SharedMessage
from ..websocket import WebSocket
from .broker import Cursor, Entry
from .lag import Policy, Queue, TooSlow

if TYPE_CHECKING:
    from .presence import Moment, Presence
    from .room import Room

__all__ = ["Audience", "Member"]

UNFLUSHED_TIMEOUT = 5.0  # seconds for which a sender waits for the hub of another thread
REPLAY_LIMIT = 1000  # messages that may wait for a replaying member, whatever its policy
REPLAY_LIMIT_BYTES = 16 * 2**20  # the same, in bytes

_logger = logging.getLogger("greenws.rooms")


class Audience(Protocol):
    """The fan-out of a room, as its members call it."""

    name: str
    lock: Any
    stats: Any

    def settle(self, member: Member) -> None:
        """Whether it is prompt may have changed."""

    def hold_up(self, member: Member) -> None:
        """Senders wait: its queue is full."""

    def let_go(self, member: Member) -> None:
        """Senders no longer wait for it."""

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
        """Names this member only, even if others have the same ``presence_key``."""
        self.id = self.token if presence_key is None else presence_key
        """The id of its :class:`Presence`, which others see."""
        self.linger = linger
        """Seconds for which it still counts after it has left."""
        self.room = room
        self.socket = socket
        self.info = info
        """The info that it joined with; others see it in ``room.members``."""
        self.gap = gap
        """The message that it is sent where messages are missing."""
        self.is_complete = True
        """False after a gap: it has missed messages that it cannot get."""
        self._policy = policy
        self._audience = audience
        self._cursor: Cursor | None = None
        self._queue: Queue | None = None
        self._is_replaying = False
        self._present: Moment | None = None
        self._is_unflushed = False

    @property
    def position(self) -> str:
        """The id of the last message that was delivered to this member, or that it was excluded
        from: the client gives it as ``since`` when it comes back."""
        with self._audience.lock:
            position = self._audience.position_of(self)
            return position if self._cursor is None else self._cursor.position(position)

    @property
    def present(self) -> list[Presence] | None:
        """Who was in the room when the block began, itself included; None if it joined without
        ``presence``. The list is made when it is read."""
        with self._audience.lock:  # of the room, whose members share what this reads
            return None if self._present is None else self._present.everybody()

    @property
    def waiting(self) -> int:
        """Messages that wait for this member: it lags, is replaying, or its thread had no turn."""
        queue = self._queue
        return 0 if queue is None else len(queue)

    @property
    def _is_prompt(self) -> bool:
        """Whether messages go straight to its socket, the same as to other prompt members."""
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
            if self._queue is None:  # closed while the lock was free
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

    def _learn(self, now: Moment | None) -> None:
        """It is sent changes up to now. If that is during its replay, the handler has not sent
        ``present`` yet, which must include them."""
        if self._is_replaying and self._present is not None:
            self._present = now

    # -- what is delivered

    def _receive(self, entry: Entry, message: SharedMessage, stamp: Any) -> bool:
        """Takes an entry if it is new to this member. ``stamp`` is called with the position and the
        data."""
        if self._cursor is not None and self._cursor.is_level:
            self._level()  # the cursor no longer differs from the process
        if self._cursor is not None and not self._cursor.is_level:
            is_new = self._cursor.advance(entry)
            if self._cursor.has_gap():
                self._send_gap()
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

    def _send_gap(self) -> None:
        """Sends the gap: messages are missing before the next one."""
        self.is_complete = False
        if self.gap is not None:
            self._take(SharedMessage(self.gap), self.gap)

    def _take(self, message: SharedMessage, data: str | bytes) -> None:
        """Sends a message now, or puts it into the queue."""
        if self._queue is not None or not self.socket._offer(message):
            self._put(message, data)

    def _put(self, message: SharedMessage, data: str | bytes) -> None:
        """Puts a message that the socket did not take into the queue, by the policy."""
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
            # It is not slow: it could not have read these yet. But memory must be bounded.
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
            self._close(CloseCode.INTERNAL_ERROR)
        else:
            if self._policy.is_full(queue) and self._block_timeout is not None:
                queue.full_since = queue.full_since or time.monotonic()
                self._audience.hold_up(self)

    def _exceeds_replay_limit(self, queue: Queue) -> bool:
        limit = max(REPLAY_LIMIT, 10 * self._policy.limit)
        limit_bytes = max(REPLAY_LIMIT_BYTES, self._policy.limit_bytes)
        return len(queue) >= limit or queue.bytes >= limit_bytes

    def _drain(self) -> None:
        """Sends what waits, as much as the connection takes."""
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
        """From now on, what its connection does not take counts as lag."""
        if self._is_unflushed and self._queue is not None:
            self._is_unflushed = False
            self._queue.full_since = 0.0
            self._audience.let_go(self)
            self._audience.stats.lagging += 1

    # -- senders that wait for it

    @property
    def _block_timeout(self) -> float | None:
        """Seconds for which it holds up senders while its queue is full."""
        if self._is_replaying:
            return None
        return UNFLUSHED_TIMEOUT if self._is_unflushed else self._policy.patience

    @property
    def _waits_for_hub(self) -> bool:
        """Whether its queue is full only because the hub of its thread had no turn."""
        return self._is_unflushed and self.socket._is_in_other_thread()

    def _make_room(self) -> float:
        """Seconds for which a sender must still wait for this member; 0 if it need not."""
        with self._audience.lock:
            if self._queue is None or self._block_timeout is None:
                self._audience.let_go(self)
                return 0.0
            if self._is_unflushed and not self.socket._is_in_other_thread():
                self._drain()
                return 0.0
            left = self._queue.full_since + self._block_timeout - time.monotonic()
            if left <= 0 and self._is_unflushed:
                # Its thread hangs, perhaps because it waits for this one.
                self._stop_waiting_for_hub()
            elif left <= 0:
                self._close_slow()
            return max(left, 0.0)

    # -- the end

    def _close_slow(self) -> None:
        self._audience.stats.closed += 1
        self._close(CloseCode.TRY_AGAIN_LATER, "You read too slowly.")

    def _disconnect(self, code: int, reason: str) -> None:
        """Closes it for ``room.disconnect()``."""
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
