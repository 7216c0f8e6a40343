"""How long a test waits at most for what happens at once when all is well.

Every upper limit of the tests comes from :func:`limit`, so that none fails because the machine is
busy. Lower limits (nothing may time out early) are exact and stand in the tests.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import gevent

__all__ = ["eventually", "limit", "stays", "wait_until"]

_SECONDS = 5.0  # of an idle machine; only a failure takes so long
_PROCESSORS = len(os.sched_getaffinity(0))


def _load() -> float:
    """How many threads want a processor: now, or on average of the last minute, if that is more."""
    with open("/proc/loadavg", encoding="ascii") as file:
        average, _, _, running, _ = file.read().split()
    return max(float(average), int(running.split("/")[0]))


def limit(seconds: float = _SECONDS) -> float:
    """``seconds`` of an idle machine, as they last on this one with its load of the moment."""
    return seconds * (1 + _load() / _PROCESSORS)


def wait_until(condition: Callable[[], Any], seconds: float = _SECONDS) -> Any:
    """Lets other greenlets run until ``condition()`` holds, and returns what it gave."""
    began = time.monotonic()
    while not (result := condition()):
        assert time.monotonic() - began < limit(seconds), "waited in vain"
        gevent.sleep(0.002)
    return result


def stays(condition: Callable[[], Any], seconds: float = 0.03) -> None:
    """Asserts that ``condition()`` holds all the while. Short, since nothing tells that nothing
    will happen: a test that should fail may pass on a busy machine, never the other way round."""
    began = time.monotonic()
    assert condition()
    while time.monotonic() - began < seconds:
        gevent.sleep(0.005)
        assert condition()


def eventually(get: Callable[[], Any], expected: Any, seconds: float = _SECONDS) -> None:
    """Asserts that ``get()`` becomes ``expected``, without letting the hub run."""
    began = time.monotonic()
    while (value := get()) != expected and time.monotonic() - began < limit(seconds):
        time.sleep(0.01)
    assert value == expected
