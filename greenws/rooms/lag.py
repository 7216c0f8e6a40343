"""What a room does about a lagging member, one that reads more slowly than the room sends.

A member lags while its connection's outbox is not empty. Only then does it own a queue, of messages
that it shares with all other lagging members, and its policy says what happens when that is full.
"""

from __future__ import annotations

import logging
import sys
import time
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

from ..config import check_range
from ..protocol.shared import SharedMessage

__all__ = ["Policy", "Queue", "TooSlow", "block", "close", "coalesce", "drop_oldest"]

_LIMIT = 1000
_LIMIT_BYTES = 16 * 2**20
_ENTRY_COST = 250  # bytes of a SharedMessage and of its place in a queue

_logger = logging.getLogger("greenws.rooms")


class TooSlow(Exception):
    """Raised by a policy: the member is closed with 1013."""


class Queue(OrderedDict[Hashable, SharedMessage]):
    """The messages that wait for a member, by the key that ``coalesce`` gives them.

    ``bytes``: their cost, objects included; a message that other queues hold too counts in each.
    ``full_since``: a time of time.monotonic().
    """

    bytes = 0
    full_since = 0.0

    def __setitem__(self, key: Hashable, message: SharedMessage) -> None:
        held = self.get(key)
        self.bytes += _cost(message) - (0 if held is None else _cost(held))
        super().__setitem__(key, message)

    def __delitem__(self, key: Hashable) -> None:
        self.bytes -= _cost(self[key])
        super().__delitem__(key)

    def pop(self, key: Hashable, *default: Any) -> Any:
        if key not in self:
            return super().pop(key, *default)
        message = self[key]
        del self[key]
        return message

    def popitem(self, last: bool = True) -> tuple[Hashable, SharedMessage]:
        if not self:
            raise KeyError("the queue is empty")
        key = next(reversed(self) if last else iter(self))
        return key, self.pop(key)

    def clear(self) -> None:
        super().clear()
        self.bytes = 0


def _cost(message: SharedMessage) -> int:
    return sys.getsizeof(message.data) + _ENTRY_COST


class Policy(ABC):
    """``limit``: messages that may wait for a member. ``limit_bytes``: bytes of memory that they
    may take; a single message may be larger."""

    patience: float | None = None
    """Seconds for which a full queue holds up senders; None: not at all."""

    limit_bytes = _LIMIT_BYTES  # for a subclass that does not call __init__

    def __init__(self, limit: int = _LIMIT, limit_bytes: int = _LIMIT_BYTES) -> None:
        if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
            raise ValueError(f"limit must be a number of messages, 1 or more, not {limit!r}")
        check_range("limit_bytes", limit_bytes, 1, sys.maxsize)
        self.limit = limit
        self.limit_bytes = limit_bytes

    def is_full(self, queue: Queue, times: int = 1) -> bool:
        """Whether the limit, or ``times`` the limit, is reached."""
        return len(queue) >= times * self.limit or queue.bytes >= times * self.limit_bytes

    @abstractmethod
    def put(self, queue: Queue, message: SharedMessage, data: str | bytes) -> int:
        """Queues ``message`` (of ``data``); returns how many others were dropped for it.

        Raises:
            TooSlow: the member is to be closed.
        """


def check(policy: Any) -> None:
    """
    Raises:
        TypeError: ``policy`` is neither a policy nor None.
    """
    if policy is not None and not isinstance(policy, Policy):
        raise TypeError(f"policy must be one such as policies.close(), called, not {policy!r}")


class close(Policy):  # the names of policies read as verbs
    """Closes a member with 1013 (try again later) when ``limit`` messages, or ``limit_bytes``, wait
    for it."""

    def put(self, queue: Queue, message: SharedMessage, data: str | bytes) -> int:
        if self.is_full(queue):
            raise TooSlow
        queue[message] = message
        return 0


class drop_oldest(Policy):
    """Drops the messages that have waited longest, beyond ``limit`` messages or ``limit_bytes``:
    for messages that are soon out of date, such as positions on a map."""

    def put(self, queue: Queue, message: SharedMessage, data: str | bytes) -> int:
        dropped = 0
        while self.is_full(queue):
            queue.popitem(last=False)
            dropped += 1
        queue[message] = message
        return dropped


class coalesce(Policy):
    """Keeps the newest message of each key: for tickers and cursors.

    ``key(data)`` returns something hashable, or None for a message that nothing may replace. If it
    raises, that is logged, and counts as None. A member for which more than ``limit`` messages or
    ``limit_bytes`` still wait is closed with 1013.
    """

    def __init__(
        self,
        key: Callable[[str | bytes], Hashable],
        limit: int = _LIMIT,
        limit_bytes: int = _LIMIT_BYTES,
    ) -> None:
        super().__init__(limit, limit_bytes)
        if not callable(key):
            raise TypeError(f"key must be a function of a message, not {key!r}")
        self.key = key

    def put(self, queue: Queue, message: SharedMessage, data: str | bytes) -> int:
        try:
            key = self.key(data)
            hash(key)
        except Exception:  # for example, the key does not expect messages about joins and leaves
            _logger.exception("coalesce: no key for %.100r", data)
            key = None
        if key is None:
            key = message
        dropped = 1 if queue.pop(key, None) is not None else 0
        if self.is_full(queue):
            raise TooSlow
        queue[key] = message
        return dropped


class block(Policy):
    """Holds up senders to the room in this process, for at most ``timeout`` seconds; a member
    whose queue stays full for longer is closed with 1013. Other processes are not held up: at ten
    times ``limit`` or ``limit_bytes`` it is closed at once."""

    def __init__(
        self, timeout: float, limit: int = _LIMIT, limit_bytes: int = _LIMIT_BYTES
    ) -> None:
        super().__init__(limit, limit_bytes)
        if not timeout > 0:
            raise ValueError(f"timeout must be a number of seconds above 0, not {timeout!r}")
        self.patience = timeout

    def put(self, queue: Queue, message: SharedMessage, data: str | bytes) -> int:
        assert self.patience is not None
        if queue.full_since and time.monotonic() - queue.full_since > self.patience:
            raise TooSlow
        if self.is_full(queue, 10):
            raise TooSlow
        queue[message] = message
        return 0
