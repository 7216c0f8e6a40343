"""Stopping a server by signals."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

import gevent

__all__ = ["stop_at_signals"]

_logger = logging.getLogger("greenws.server")


@contextlib.contextmanager
def stop_at_signals(stop: Callable[[], object]) -> Iterator[None]:
    """Calls ``stop`` at the first SIGTERM or SIGINT; the second has its default effect.

    Signals that the program handles itself are left alone, and all signals outside the main thread.
    """
    before: dict[int, Any] = {}
    watchers: list[Any] = []

    def on_signal(number: int) -> None:
        cancel()  # first, so that a second signal has its default effect at once
        _logger.info("%s: stopping", signal.Signals(number).name)
        stop()

    def cancel() -> None:
        # Without a watcher the signal has its default action again, with no Python in between.
        while watchers:
            watchers.pop().cancel()

    def restore() -> None:
        cancel()
        for number, action in before.items():
            signal.signal(number, action)
        before.clear()

    _restorers.add(restore)
    if gevent.get_hub().loop.default:  # no other loop gets signals
        for number in (signal.SIGTERM, signal.SIGINT):
            if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
                before[number] = signal.getsignal(number)
                watchers.append(gevent.signal_handler(number, on_signal, number))
    try:
        yield
    finally:
        _restorers.discard(restore)
        restore()


_restorers: set[Callable[[], None]] = set()


def _after_fork() -> None:
    """In the child: restores the default effect of the signals; it must not stop the parent's
    server."""
    for restore in list(_restorers):
        with contextlib.suppress(ValueError):  # this is not the main thread
            restore()
    _restorers.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
