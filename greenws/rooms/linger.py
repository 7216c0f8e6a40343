"""Members that have left and still count for a while: a page that is reloaded comes back at once,
and watchers should not see it leave and join."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, NamedTuple

import gevent

__all__ = ["Lingering"]


class _Lingering(NamedTuple):
    timer: Any
    end: Callable[[], None]


class Lingering:
    """The lingering members of one room. All calls but those of timers hold ``lock``."""

    def __init__(self, lock: Any) -> None:
        self._lock = lock
        self._waiting: dict[str, dict[str, _Lingering]] = {}  # by id, and by token

    def add(self, id: str, token: str, seconds: float, end: Callable[[], None]) -> None:
        """Calls ``end`` after ``seconds``, in the hub: it must not block."""
        # Without a reference a timer does not keep the program from ending.
        timer = gevent.get_hub().loop.timer(seconds, ref=False)
        self._waiting.setdefault(id, {})[token] = _Lingering(timer, end)
        timer.start(self._on_timer, os.getpid(), id, token)

    def _on_timer(self, process: int, id: str, token: str) -> None:
        if process == os.getpid():  # a child that was forked has nothing of its parent's to end
            with self._lock:
                self._end(id, token)

    def end(self, id: str | None) -> None:
        """Stops counting those with this id, or all."""
        for each in list(self._waiting) if id is None else [id]:
            for token in list(self._waiting.get(each, ())):
                self._end(each, token)

    def forget(self) -> None:
        """Drops all, without calling ``end``."""
        waiting, self._waiting = self._waiting, {}
        for tokens in waiting.values():
            for each in tokens.values():
                each.timer.close()

    def _end(self, id: str, token: str) -> None:
        tokens = self._waiting.get(id, {})
        lingering = tokens.pop(token, None)
        if lingering is None:
            return
        if not tokens:
            del self._waiting[id]
        lingering.timer.close()
        lingering.end()
