"""``select()``: one greenlet waits for a message or for anything else of gevent's.

A read survives an exception thrown into it, a ``gevent.Timeout`` for one, and loses nothing. So the
other things are linked to a callback that throws such an exception into the read that waits.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Any
from weakref import WeakSet

import gevent
from gevent import GreenletExit, getcurrent
from gevent import queue as gevent_queue
from gevent.event import AsyncResult, Event
from greenlet import greenlet

from .websocket import WebSocket

__all__ = ["select"]

_QUEUES = (gevent_queue.Queue, gevent_queue.SimpleQueue)
_SHUT_DOWN: Any = getattr(gevent_queue, "ShutDown", ())  # gevent 25.4
_served_another: WeakSet[WebSocket] = WeakSet()  # whose last select() did not give a message


class _Ready(BaseException):
    """Something else is there; never leaves this module. ``args``: what the hub told of it, the
    thing itself unless it is a queue."""


def select(socket: WebSocket, *others: Any, timeout: float | None = None) -> tuple[Any, Any]:
    """Blocks until ``socket`` has a message or one of ``others`` is ready, and returns which it was
    and what it gave; whatever else is ready stays for the next call.

    ``others``: gevent's queues (the next item, taken out), ``Event`` (True; it stays set),
    ``AsyncResult`` and greenlets (the value). ``timeout`` in seconds, None for ever. ::

        source, value = select(socket, queue, timeout=30)
        if source is socket:
            handle(value)

    Raises:
        TimeoutError: nothing came; nothing is lost.
        ConnectionClosed: the connection is over.
        TypeError: one of ``others`` is nothing that can be waited for.
        Whatever ``AsyncResult.get()`` or ``Greenlet.get()`` would raise.
    """
    for other in others:
        if not isinstance(other, (*_QUEUES, Event, AsyncResult, gevent.Greenlet)):
            raise TypeError(f"select() takes queues, events and greenlets of gevent, not {other!r}")
    deadline = None if timeout is None else time.monotonic() + timeout
    while True:
        for other in others:
            if _is_ready(other):
                if socket in _served_another:  # neither side can starve the other
                    _served_another.discard(socket)
                    try:
                        return socket, socket.receive(0)
                    except TimeoutError:
                        pass
                _served_another.add(socket)
                return other, _take(other)
        try:
            left = None if deadline is None else max(0, deadline - time.monotonic())
            message = _receive(socket, others, left)
        except _Ready as ready:
            if ready.args and isinstance(ready.args[0], Event):  # which may be clear again by now
                _served_another.add(socket)
                return ready.args[0], True
            continue
        except TimeoutError:
            raise TimeoutError(f"nothing came within {timeout} s") from None
        _served_another.discard(socket)
        return socket, message


def _receive(socket: WebSocket, others: tuple[Any, ...], timeout: float | None) -> str | bytes:
    """Raises _Ready as soon as one of ``others`` may be ready."""
    reader = getcurrent()
    waiting = True

    def wake(*what: object) -> None:
        nonlocal waiting
        if waiting:
            waiting = False
            reader.throw(_Ready(*what))

    unlinks: list[Callable[[], object]] = []
    try:
        for other in others:
            unlinks.append(_link(other, wake))
        return socket.receive(timeout)
    finally:
        waiting = False
        for unlink in unlinks:
            unlink()


def _link(other: Any, wake: Callable[..., object]) -> Callable[[], object]:
    """Has the hub call ``wake`` when ``other`` is ready; returns what undoes that, without a
    switch to anybody else."""
    if not isinstance(other, _QUEUES):
        other.rawlink(wake)
        return lambda: other.unlink(wake)
    hub = gevent.get_hub()

    def peek() -> None:
        with contextlib.suppress(_SHUT_DOWN):
            other.peek()
        hub.loop.run_callback(wake)

    watch = greenlet(peek, hub)
    start = hub.loop.run_callback(watch.switch)

    def stop() -> None:
        start.stop()
        if not watch.dead:
            watch.parent = getcurrent()
            watch.throw(GreenletExit)

    return stop


def _is_ready(other: Any) -> bool:
    if isinstance(other, _QUEUES):
        return not other.empty() or bool(getattr(other, "is_shutdown", False))
    return bool(other.ready())


def _take(other: Any) -> Any:
    if isinstance(other, _QUEUES):
        return other.get_nowait()
    return True if isinstance(other, Event) else other.get(block=False)
