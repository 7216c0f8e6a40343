"""Parks the threads of other hubs when the interpreter exits.

Before 3.14, CPython ends a daemon thread that asks for the GIL while the interpreter is finalized,
by unwinding its stack. On the stack of a hub that runs greenlet's C++ destructors, on memory that
belongs to other greenlets by then and without the GIL: the process crashes, with SIGSEGV in place
of its exit code. So each such thread waits for ever instead, without the GIL, from before that, as
all threads do from 3.14 on.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from types import FrameType
from typing import Any

from gevent.hub import Hub
from gevent.monkey import get_original

from . import switching

__all__ = ["park"]

_MAX_WAIT = 1.0  # seconds for threads that are in their hub, and only need the processor
_MAX_BUSY = 0.05  # seconds for threads that run a handler; most end their turn in 5 ms
_INTERVAL = 0.001  # seconds

_sleep = get_original("time", "sleep")

_held: Any = get_original("_thread", "allocate_lock")()
_held.acquire()


def park(hubs: Iterable[Hub]) -> None:
    """Has the threads of ``hubs``, but for this one, wait for ever. Blocks until they do, for at
    most a second; threads that do not get to their hub in 50 ms are left alone."""
    running: set[int] = set()
    here = switching.thread_id()
    for hub in hubs:
        loop: Any = hub.loop
        if loop is None or hub.thread_ident == here:
            continue
        running.add(hub.thread_ident)
        try:
            # The loop calls one straight after the other, and both are C: a thread that is no
            # longer counted holds the GIL until it waits.
            loop.run_callback_threadsafe(running.discard, hub.thread_ident)
            loop.run_callback_threadsafe(_held.acquire)
        except AttributeError:  # it was destroyed meanwhile
            running.discard(hub.thread_ident)
    began = time.monotonic()
    while running:
        frames = sys._current_frames()
        running.intersection_update(frames)  # the others have ended
        waited = time.monotonic() - began
        in_hub = any(_is_in_hub(frames[thread]) for thread in list(running))
        if waited > (_MAX_WAIT if in_hub else _MAX_BUSY):
            break
        _sleep(_INTERVAL)


def _is_in_hub(frame: FrameType) -> bool:
    """Whether a thread that runs ``frame`` is in its hub's greenlet."""
    while frame.f_back is not None:
        frame = frame.f_back
    return frame.f_code is Hub.run.__code__
