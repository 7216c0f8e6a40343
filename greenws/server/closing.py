"""Closing the sessions of a server that stops, all at once or over some seconds."""

from __future__ import annotations

import random
import time
from collections.abc import Iterable

import gevent

from ..opcodes import CloseCode
from ..websocket import WebSocket

__all__ = ["close_sessions", "drain_sessions"]

_PAUSE = 0.01  # seconds between two groups of sessions that are closed
_SHARE = 0.75  # part of the grace for sending Closes; the last clients need time to answer


def drain_sessions(
    sockets: Iterable[WebSocket], seconds: float, grace: float | None
) -> gevent.Greenlet[..., None] | None:
    """Closes ``sockets`` within ``seconds``, and within the ``grace`` of the server. Returns the
    greenlet that does it; None if all were closed at once."""
    if grace is not None:
        seconds = min(seconds, _SHARE * grace)
    if seconds > 0:
        return gevent.spawn(close_sessions, sockets, seconds)
    close_sessions(sockets, 0)
    return None


def close_sessions(sockets: Iterable[WebSocket], seconds: float) -> None:
    """Sends Close (1001) to all ``sockets``, in random order, spread over ``seconds``. Blocks for
    that time."""
    waiting = [socket for socket in sockets if socket.is_connected]
    random.shuffle(waiting)
    count = len(waiting)
    began = time.monotonic()
    while waiting:
        share = 1.0 if seconds <= 0 else (time.monotonic() - began) / seconds
        left = count - int(count * share) if share < 1 else 0
        while len(waiting) > left:
            waiting.pop().start_closing(CloseCode.GOING_AWAY)
        if waiting:
            gevent.sleep(_PAUSE)
