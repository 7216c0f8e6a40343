"""Calls on a socket from other threads, such as sends; the socket's hub makes them in its thread.

Calls of the same greenlet or thread are made in order. Each caller has a worker greenlet, so that a
send that must wait delays only the calls of the same caller.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import gevent
from gevent.hub import Hub
from gevent.monkey import get_original

from .exceptions import GreenwsError
from .hub import switching

if TYPE_CHECKING:
    from .websocket import WebSocket

__all__ = ["CrossThreadCalls"]

_MAX_WAITING = 64  # calls; beyond it, callers wait
_POLL_INTERVAL = 0.01  # seconds

_logger = logging.getLogger("greenws.websocket")

_sleep = get_original("time", "sleep")


class CrossThreadCalls:
    """The calls on one socket. Made at the first call of another thread: most sockets have none."""

    __slots__ = ("_hub", "_incoming", "_queued", "_workers")

    def __init__(self, hub: Hub) -> None:
        self._hub: Any = hub
        self._incoming: deque[tuple[Any, Callable[..., object], tuple[Any, ...]]] = deque()
        # The rest is used in the hub's thread only.
        self._workers: dict[Any, _Worker] = {}  # by caller
        self._queued = 0  # calls that the workers have not begun

    def hand_over(
        self, socket: WebSocket, call: Callable[..., object], args: tuple[Any, ...]
    ) -> bool:
        """From any thread: makes the hub call ``call``. False if the hub has ended.

        Blocks while more than 64 calls are waiting.
        """
        caller = switching.current()
        self._incoming.append((caller, call, args))
        try:
            self._hub.loop.run_callback_threadsafe(self._distribute)
        except AttributeError:  # a destroyed hub has no loop
            return False
        sleep = gevent.sleep if isinstance(caller.parent, Hub) else _sleep
        while len(self._incoming) + self._queued > _MAX_WAITING and socket.is_connected:
            sleep(_POLL_INTERVAL)
        return True

    def is_waiting(self, caller: Any) -> bool:
        """In the hub's thread: whether a call of ``caller`` has not been made yet."""
        return caller in self._workers or any(each[0] is caller for each in self._incoming)

    def finish(self, timeout: float | None) -> None:
        """In the hub's thread: blocks until all calls that were handed over have been made, for at
        most ``timeout`` seconds."""
        self._distribute()
        gevent.joinall(list(self._workers.values()), timeout=timeout)

    def _distribute(self) -> None:
        """Gives the incoming calls to the workers of their callers."""
        while self._incoming:
            caller, call, args = self._incoming.popleft()
            worker = self._workers.get(caller)
            if worker is None:
                worker = self._workers[caller] = _Worker(self._work, caller)
                worker.start()
            worker.calls.append((call, args))
            self._queued += 1

    def _work(self, caller: Any) -> None:
        calls = self._workers[caller].calls
        try:
            while calls:
                call, args = calls.popleft()
                self._queued -= 1
                try:
                    call(*args)
                except (GreenwsError, RuntimeError, ValueError) as error:
                    _logger.debug("a send from another thread failed: %s", error)
        finally:
            self._queued -= len(calls)
            del self._workers[caller]


class _Worker(gevent.Greenlet):  # type: ignore[type-arg]
    """Makes the calls of one caller."""

    def __init__(self, run: Callable[[Any], None], caller: Any) -> None:
        super().__init__(run, caller)
        self.calls: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
