"""``select()``: waits for a message or for another object of gevent's, in one greenlet.

An exception thrown into a read, such as ``gevent.Timeout``, loses no input. So ``select()`` blocks
in a read, and the other objects have a callback that throws an exception into that read.
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

from .checks import check_number
from .waiting import functions
from .websocket import WebSocket

__all__ = ["select"]

_QUEUES = (gevent_queue.Queue, gevent_queue.SimpleQueue)
_SHUT_DOWN: Any = getattr(gevent_queue, "ShutDown", ())  # gevent 25.4
_turn_of_socket: WeakSet[WebSocket] = WeakSet()  # whose last select() returned another object


class _Ready(BaseException):
    """One of the other objects may be ready. Never escapes this module. ``args``: the object,
    unless it is a queue."""


def select(socket: WebSocket, *others: Any, timeout: float | None = None) -> tuple[Any, Any]:
    """Blocks until ``socket`` has a message or one of ``others`` is ready; returns that object, and
    the message or the object's value. Anything else that is ready is left for the next call.

    ``others`` are gevent's queues (the value is the next item, which is removed), ``Event`` (True;
    it stays set), ``AsyncResult`` and greenlets (their value). ``timeout``: seconds, None for no
    limit. ::

        source, value = select(socket, queue, timeout=30)
        if source is socket:
            handle(value)

    Raises:
        TimeoutError: nothing was ready in time; nothing is lost.
        ConnectionClosed: the connection is closed.
        TypeError: ``socket`` is not a WebSocket, or one of ``others`` is none of these.
        Exception: what ``AsyncResult.get()`` or ``Greenlet.get()`` raises.
    """
    if not isinstance(socket, WebSocket):
        raise TypeError(f"select() takes a WebSocket first, not {socket!r}")
    for other in others:
        if not isinstance(other, (*_QUEUES, Event, AsyncResult, gevent.Greenlet)):
            raise TypeError(f"select() takes queues, events and greenlets of gevent, not {other!r}")
    check_number("timeout", timeout)
    deadline = None if timeout is None else time.monotonic() + timeout
    prepared = False
    while True:
        for other in others:
            if _is_ready(other):
                if socket in _turn_of_socket:  # so that neither starves the other
                    _turn_of_socket.discard(socket)
                    try:
                        return socket, socket.receive(0)
                    except TimeoutError:
                        pass
                _turn_of_socket.add(socket)
                return other, _take(other)
        if functions and not prepared and timeout != 0:
            prepared = True
            with contextlib.suppress(TimeoutError):
                message = socket.receive(0)
                _turn_of_socket.discard(socket)
                return socket, message
            # Not in _receive(): there, the other objects throw exceptions into the greenlet.
            socket._prepare_wait()
            continue
        try:
            left = None if deadline is None else max(0, deadline - time.monotonic())
            message = _receive(socket, others, left)
        except _Ready as ready:
            if ready.args and isinstance(ready.args[0], Event):  # it may have been cleared since
                _turn_of_socket.add(socket)
                return ready.args[0], True
            continue
        except TimeoutError:
            raise TimeoutError(f"nothing was ready within {timeout} s") from None
        _turn_of_socket.discard(socket)
        return socket, message


def _receive(socket: WebSocket, others: tuple[Any, ...], timeout: float | None) -> str | bytes:
    """Receives a message; raises _Ready as soon as one of ``others`` may be ready."""
    reader = getcurrent()
    waiting = True

    def wake(*ready: object) -> None:
        nonlocal waiting
        if waiting:
            waiting = False
            reader.throw(_Ready(*ready))

    unlinks: list[Callable[[], object]] = []
    try:
        for other in others:
            unlinks.append(_link(other, wake))
        return socket._receive_prepared(timeout)
    finally:
        waiting = False
        for unlink in unlinks:
            unlink()


def _link(other: Any, wake: Callable[..., object]) -> Callable[[], object]:
    """Makes the hub call ``wake`` when ``other`` may be ready; returns a function that undoes this
    without a switch."""
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
