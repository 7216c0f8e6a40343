"""Turns: nobody holds a hub for longer than ``SECONDS`` while others could run.

``gevent.sleep(0)`` does not end a turn: gevent runs up to 50 callbacks before it polls the kernel,
and sockets, timers and signals wait for all of them. A timer fires after the next poll.

``hub/turns.py`` counts steps of microseconds. A slice takes long enough to read the clock each
time. Besides, this module is used where a lock is held, so that no turn may end, and in threads
without a hub.

The few greenlets that serve all others, such as the one that goes on with a fan-out, continue after
each poll. Members that come back, thousands at once, wait in one queue with all handlers that have
ended their turns, that of ``hub/turns.py``.
"""

from __future__ import annotations

import time
from typing import Any

from gevent import getcurrent
from gevent._hub_local import get_hub_if_exists
from gevent.hub import Waiter

from ..hub.turns import SECONDS, after_poll, turns_of

__all__ = ["SECONDS", "end", "end_if_over", "is_over"]


class _Turn:
    """The turn of all greenlets of a hub that run without a poll in between."""

    __slots__ = ("iteration", "began")

    def __init__(self) -> None:
        self.iteration = -1.0  # of the loop
        self.began = 0.0


def is_over() -> bool:
    """Whether a turn has passed without a poll of the kernel, since somebody first asked. Never in
    a thread without a hub: nobody waits for it."""
    hub: Any = get_hub_if_exists()
    if hub is None:
        return False
    turn = getattr(hub, "_greenws_turn", None)
    if turn is None:
        turn = hub._greenws_turn = _Turn()
    loop = hub.loop
    iteration = loop.iteration
    if iteration < 0:  # libuv does not count; its time changes with each poll, and with timers
        iteration = loop.now()
    now = time.monotonic()
    if iteration != turn.iteration:
        turn.iteration, turn.began = iteration, now
        return False
    return bool(now - turn.began >= SECONDS)


def end(in_queue: bool = False) -> None:
    """Lets the kernel be polled and everybody else run. Does nothing in a hub, which cannot wait,
    and in a thread without one. ``in_queue``: waits in the queue, as one of many."""
    hub: Any = get_hub_if_exists()
    if hub is None or getcurrent() is hub or hub.loop is None:
        return
    if in_queue:
        turns_of(hub).end(hub)
        return
    waiter: Any = Waiter(hub)
    timer = after_poll(hub.loop, lambda: waiter.switch(None))
    try:
        waiter.get()
    finally:
        timer.close()


def end_if_over(in_queue: bool = False) -> None:
    if is_over():
        end(in_queue)
