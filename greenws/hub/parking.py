"""Parks the threads of other hubs when the interpreter exits.

Before 3.14, CPython ends a daemon thread that asks for the GIL while the interpreter is finalized,
by unwinding its stack. On the stack of a hub, that runs greenlet's C++ destructors without the GIL,
on memory that belongs to other greenlets by then: the process crashes with SIGSEGV. So before that,
each such thread is made to wait for ever without the GIL, as all threads do from 3.14 on.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterable
from types import FrameType
from typing import Any

from gevent.hub import Hub
from gevent.monkey import get_original

from . import switching

__all__ = ["is_parked", "park", "prepare"]

_MAX_WAIT = 1.0  # seconds for threads that are in their hub, and only need the processor
_MAX_BUSY = 0.05  # seconds for threads that run a handler; most end their turn in 5 ms
_INTERVAL = 0.001  # seconds
_CHECK_INTERVAL = 0.05  # seconds between two checks for a parked thread that is waited for

_sleep = get_original("time", "sleep")
_start_new_thread = get_original("_thread", "start_new_thread")

_allocate_lock = get_original("_thread", "allocate_lock")

_parked: list[Hub] = []
_job: list[Any] = []  # of the thread that was started early: its lock, and then its arguments

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_job.clear)


def is_parked(hub: Hub) -> bool:
    """Whether the thread of ``hub`` waits for the end of the process."""
    return hub in _parked


def park(hubs: Iterable[Hub]) -> None:
    """Makes the threads of ``hubs``, except this one, wait for ever. Blocks until they do, for at
    most a second; threads that do not reach their hub in 50 ms are left alone."""
    running: set[int] = set()
    locks: dict[int, Any] = {}  # the lock that each parked thread waits for
    here = switching.thread_id()
    for hub in hubs:
        loop: Any = hub.loop
        if loop is None or hub.thread_ident == here:
            continue
        lock = _allocate_lock()
        lock.acquire()
        running.add(hub.thread_ident)
        try:
            # The loop calls one straight after the other, and both are C: a thread that is no
            # longer counted holds the GIL until it waits.
            loop.run_callback_threadsafe(running.discard, hub.thread_ident)
            loop.run_callback_threadsafe(lock.acquire)
        except (AttributeError, ValueError):  # it has been destroyed
            running.discard(hub.thread_ident)
        else:
            locks[hub.thread_ident] = lock
            _parked.append(hub)
    began = time.monotonic()
    while running:
        frames = sys._current_frames()
        running.intersection_update(frames)  # the others have ended
        waited = time.monotonic() - began
        in_hub = any(_is_in_hub(frames[thread]) for thread in list(running))
        if waited > (_MAX_WAIT if in_hub else _MAX_BUSY):
            break
        _sleep(_INTERVAL)
    if locks and _job:
        _job.append((here, locks))
        _job[0].release()
    elif locks:
        with contextlib.suppress(RuntimeError):
            _start_new_thread(_release_awaited, (here, locks))


def prepare() -> None:
    """Called in each thread whose hub may be parked. CPython 3.12 cannot start threads at exit, so
    there the thread that :func:`park` may need is started now."""
    main = threading.main_thread().ident
    if sys.version_info[:2] == (3, 12) and not _job and switching.thread_id() != main:
        lock = _allocate_lock()
        lock.acquire()
        _job.append(lock)
        _start_new_thread(_release_awaited_later, ())


def _release_awaited_later() -> None:
    _job[0].acquire()
    _release_awaited(*_job[1])


def _release_awaited(exiting: int, locks: dict[int, Any]) -> None:
    """Releases parked threads that the exiting thread waits for, in a function that was registered
    with atexit before this module was imported, and so runs after ours."""
    before: set[int] = set()
    while locks:
        _sleep(_CHECK_INTERVAL)
        now = _awaited(sys._current_frames().get(exiting), set(locks))
        for thread in now & before:  # twice, since one check may catch a short wait
            locks.pop(thread).release()
        before = now


def _awaited(frame: FrameType | None, parked: set[int]) -> set[int]:
    """The threads among ``parked`` that a thread at ``frame`` may wait for without a timeout."""
    timeout = -1 if frame is None else frame.f_locals.get("timeout")
    while frame is not None and frame.f_code.co_filename == threading.__file__:
        if frame.f_code is threading.Thread.join.__code__:
            return {frame.f_locals["self"].ident} & parked
        if frame.f_back is None or frame.f_back.f_code.co_filename != threading.__file__:
            return parked if timeout in (None, -1) else set()
        frame = frame.f_back
    return set()


def _is_in_hub(frame: FrameType) -> bool:
    """Whether a thread at ``frame`` is in its hub's greenlet."""
    while frame.f_back is not None:
        frame = frame.f_back
    return frame.f_code is Hub.run.__code__
