"""Parks the threads of other hubs when the interpreter exits.

Before 3.14, CPython ends a daemon thread that asks for the GIL while the interpreter is finalized,
by unwinding its stack. On the stack of a hub that runs greenlet's C++ destructors, on memory that
belongs to other greenlets by then and without the GIL: the process crashes, with SIGSEGV in place
of its exit code. So each such thread waits for ever instead, without the GIL, from before that, as
all threads do from 3.14 on.
"""

from __future__ import annotations

import contextlib
import sys
import threading
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
_LOOK_INTERVAL = (
    0.05  # seconds between two looks whether the thread that exits waits for a parked one
)

_sleep = get_original("time", "sleep")
_start_new_thread = get_original("_thread", "start_new_thread")

_held: Any = get_original("_thread", "allocate_lock")()
_held.acquire()


def park(hubs: Iterable[Hub]) -> None:
    """Has the threads of ``hubs``, but for this one, wait for ever. Blocks until they do, for at
    most a second; threads that do not get to their hub in 50 ms are left alone."""
    running: set[int] = set()
    has_parked = False
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
            loop.run_callback_threadsafe(_held.release)  # for the next, once it was let go
        except (AttributeError, ValueError):  # it was destroyed meanwhile
            running.discard(hub.thread_ident)
        else:
            has_parked = True
    began = time.monotonic()
    while running:
        frames = sys._current_frames()
        running.intersection_update(frames)  # the others have ended
        waited = time.monotonic() - began
        in_hub = any(_is_in_hub(frames[thread]) for thread in list(running))
        if waited > (_MAX_WAIT if in_hub else _MAX_BUSY):
            break
        _sleep(_INTERVAL)
    if has_parked:
        with contextlib.suppress(RuntimeError):  # CPython 3.12 may start no more threads
            _start_new_thread(_let_go_if_needed, (here,))


def _let_go_if_needed(exiting: int) -> None:
    """Lets the threads go on if the one that exits waits for one of them: in a function that was
    registered with atexit before this module was imported, and so is called after it."""
    looks = 0
    while looks < 2:  # two, as it may have waited for a moment only
        _sleep(_LOOK_INTERVAL)
        frame = sys._current_frames().get(exiting)
        looks = looks + 1 if frame is not None and _waits(frame) else 0
    _held.release()


def _waits(frame: FrameType) -> bool:
    """Whether a thread that runs ``frame`` is in ``Thread.join()``, ``Event.wait()``..."""
    return frame.f_code.co_filename == threading.__file__


def _is_in_hub(frame: FrameType) -> bool:
    """Whether a thread that runs ``frame`` is in its hub's greenlet."""
    while frame.f_back is not None:
        frame = frame.f_back
    return frame.f_code is Hub.run.__code__
