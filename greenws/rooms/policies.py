"""What a room does about a member that reads more slowly than the room speaks.

A member lags while its connection's outbox is not empty. Only then does it own a queue, of messages
that it shares with all others who lag, and a policy that says what happens when that is full.
"""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

from ..protocol.shared import SharedMessage

__all__ = ["Policy", "Queue", "TooSlow", "block", "close", "coalesce", "drop_oldest"]

_LIMIT = 1000

_logger = logging.getLogger("greenws.rooms")


class TooSlow(Exception):
    """The member is to be closed with 1013; no more than that."""


class Queue(OrderedDict[Hashable, SharedMessage]):
    """What waits for a member, by what coalesces it; ``full_since`` a time of time.monotonic()."""

    full_since = 0.0


class Policy(ABC):
    """``limit``: messages that may wait for a member."""

    patience: float | None = None
    """Seconds for which a full queue holds up who sends; None: not at all."""

    def __init__(self, limit: int = _LIMIT) -> None:
        if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
            raise ValueError(f"limit is a number of messages, 1 or more, not {limit!r}")
        self.limit = limit

    @abstractmethod
    def put(self, queue: Queue, message: SharedMessage, data: str | bytes) -> int:
        """Lets ``message`` (of ``data``) wait; returns how many others were dropped for it.

        Raises:
            TooSlow: the member is to be closed.
        """


def check(policy: Any) -> None:
    """
    Raises:
        TypeError: ``policy`` is neither a policy nor None.
    """
    if policy is not None and not isinstance(policy, Policy):
        raise TypeError(f"policy is one such as policies.close(), with brackets, not {policy!r}")


class close(Policy):  # the names of policies read as verbs
    """Closes a member with 1013 (try again later) once ``limit`` messages wait for it."""

    def put(self, queue: Queue, message: SharedMessage, data: str | bytes) -> int:
        if len(queue) >= self.limit:
            raise TooSlow
        queue[message] = message
        return 0


class drop_oldest(Policy):
    """Drops the message that has waited longest: for what soon grows old, such as positions."""

    def put(self, queue: Queue, message: SharedMessage, data: str | bytes) -> int:
        dropped = 0
        if len(queue) >= self.limit:
            queue.popitem(last=False)
            dropped = 1
        queue[message] = message
        return dropped


class coalesce(Policy):
    """Keeps the newest message of each key: for tickers and cursors.

    ``key(data)`` gives a hashable; None for a message that nothing may replace, as if it raises an
    error, which is logged. A member for whom
    more than ``limit`` messages wait all the same is closed with 1013.
    """

    def __init__(self, key: Callable[[str | bytes], Hashable], limit: int = _LIMIT) -> None:
        super().__init__(limit)
        if not callable(key):
            raise TypeError(f"key is a function of a message, not {key!r}")
        self.key = key

    def put(self, queue: Queue, message: SharedMessage, data: str | bytes) -> int:
        try:
            key = self.key(data)
            hash(key)
        except Exception:  # who comes and goes is told in messages, too
            _logger.exception("coalesce: no key for %.100r", data)
            key = None
        if key is None:
            key = message
        dropped = 1 if queue.pop(key, None) is not None else 0
        if len(queue) >= self.limit:
            raise TooSlow
        queue[key] = message
        return dropped


class block(Policy):
    """Holds up who sends to the room in this process, for at most ``timeout`` seconds; a member
    whose queue stays full for longer is closed with 1013. Other processes are not held up: at ten
    times ``limit`` it is closed at once."""

    def __init__(self, timeout: float, limit: int = _LIMIT) -> None:
        super().__init__(limit)
        if not timeout > 0:
            raise ValueError(f"timeout is a number of seconds above 0, not {timeout!r}")
        self.patience = timeout

    def put(self, queue: Queue, message: SharedMessage, data: str | bytes) -> int:
        assert self.patience is not None
        if queue.full_since and time.monotonic() - queue.full_since > self.patience:
            raise TooSlow
        if len(queue) >= 10 * self.limit:
            raise TooSlow
        queue[message] = message
        return 0
