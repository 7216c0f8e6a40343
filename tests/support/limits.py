"""How long a test waits at most for what happens at once when all is well.

Every upper limit of the tests comes from :func:`limit`, or :func:`pace` where a duration is
judged, so that none fails because the machine is busy. Lower limits (nothing may time out early)
are exact and stand in the tests.
"""

from __future__ import annotations

import functools
import os
import threading
import time
import warnings
from collections.abc import Callable
from typing import Any

import gevent
import pytest

from .leftovers import drop_errors, live_greenlets

__all__ = ["again_after_standstill", "eventually", "limit", "pace", "stays", "wait_until"]

_SECONDS = 5.0  # of an idle machine; only a failure takes so long
_STANDSTILL = 3.0  # for so long a machine may stand still, or one process on it
_LOOK_EVERY = 0.01
_PROCESSORS = len(os.sched_getaffinity(0))


def _load() -> float:
    """How many threads want a processor: now, or on average of the last minute, if that is more."""
    with open("/proc/loadavg", encoding="ascii") as file:
        average, _, _, running, _ = file.read().split()
    return max(float(average), int(running.split("/")[0]))


def pace(seconds: float = _SECONDS) -> float:
    """``seconds`` of an idle machine, as they last on this one with its load of the moment: the
    bound of a duration that is measured."""
    return seconds * (1 + _load() / _PROCESSORS)


def limit(seconds: float = _SECONDS) -> float:
    """How long to wait for what must come, and takes at most ``seconds`` on an idle machine."""
    return pace(seconds) + _STANDSTILL


def again_after_standstill(
    seconds: float, tries: int = 5
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Runs a test again if it failed and its process was stopped for ``seconds``: for timeouts of
    what is tested that must not expire, and for measurements. pytest's summary tells of it."""

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(test)
        def run(*args: Any, **kwargs: Any) -> None:
            first: BaseException | None = None
            for left in reversed(range(tries)):
                before = set(live_greenlets())
                watch = _Watch()
                try:
                    return test(*args, **kwargs)
                except (Exception, gevent.Timeout, pytest.fail.Exception) as error:
                    watch.stop()
                    if watch.longest < seconds or not left:
                        raise error from first
                    first = first or error
                    warnings.warn(
                        f"again after {watch.longest:.2f} s of standstill: {error!r}", stacklevel=2
                    )
                finally:
                    watch.stop()
                gevent.killall(set(live_greenlets()) - before)
                drop_errors()
                if caplog := kwargs.get("caplog"):
                    caplog.clear()

        return run

    return decorate


class _Watch(threading.Thread):
    """Measures for how long the process did not run. A thread, for which greenlets that block the
    hub are no standstill."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.longest = 0.0
        self._is_over = threading.Event()
        self._last = time.monotonic()  # or it would miss a standstill before it runs
        self.start()

    def run(self) -> None:
        is_over = False
        while not is_over:
            is_over = self._is_over.wait(_LOOK_EVERY)
            now = time.monotonic()
            self.longest = max(self.longest, now - self._last)
            self._last = now

    def stop(self) -> None:
        self._is_over.set()
        self.join()


def wait_until(condition: Callable[[], Any], seconds: float = _SECONDS) -> Any:
    """Lets other greenlets run until ``condition()`` holds, and returns what it gave."""
    began = time.monotonic()
    while not (result := condition()):
        assert time.monotonic() - began < limit(seconds), "waited in vain"
        gevent.sleep(0.002)
    return result


def stays(condition: Callable[[], Any], seconds: float = 0.03) -> None:
    """Asserts that ``condition()`` holds all the while. Short, since nothing shows that nothing
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
