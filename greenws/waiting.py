"""``before_wait()``: what a greenlet does before it waits for input.

A session spends nearly all of its life in a read. What it should not hold meanwhile, such as a
connection of a database, is given back by a function that is registered here.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from typing import TypeVar

from gevent import getcurrent

__all__ = ["before_wait", "call_functions", "functions", "no_sessions", "not_before_wait"]

Function = TypeVar("Function", bound=Callable[[], object])

functions: list[Callable[[], object]] = []
"""What was registered, in order. Always this object: the reads check whether it is empty."""

no_sessions: set[object] = set()
"""Greenlets that wait for a WebSocket and are no session, but tests. Nothing is called there."""

_logger = logging.getLogger("greenws.session")


def before_wait(function: Function) -> Function:
    """Has ``function()`` called before a greenlet blocks for the input of a WebSocket: in a read,
    in ``select()`` and in ``ping()``, if nothing has arrived yet. Returns ``function``, so that it
    can be used as a decorator. Applies to all sessions of the process; a function that is
    registered twice is called once.

    The function is called in the greenlet that is about to wait, with the contexts of its
    framework, and may block. It is called once for each wait, and never in a send. What it raises
    is logged; the wait goes on. :func:`greenws.waiting.not_before_wait` undoes it.

    Raises:
        TypeError: ``function`` can't be called without arguments, or is a coroutine function.
    """
    if not callable(function):
        raise TypeError(f"before_wait() takes a function without arguments, not {function!r}")
    if inspect.iscoroutinefunction(function):
        raise TypeError(f"before_wait() takes a plain function, not the coroutine {function!r}")
    try:
        inspect.signature(function).bind()
    except TypeError as error:
        raise TypeError(f"before_wait() calls {function!r} without arguments: {error}") from None
    except ValueError:  # a built-in without a signature
        pass
    if function not in functions:
        functions.append(function)
    return function


def not_before_wait(function: Callable[[], object]) -> None:
    """Undoes :func:`before_wait`. Does nothing if ``function`` is not registered."""
    if function in functions:
        functions.remove(function)


def call_functions() -> None:
    """Calls all registered functions, in order."""
    if no_sessions and getcurrent() in no_sessions:
        return
    for function in tuple(functions):
        try:
            function()
        except Exception:
            _logger.exception("%r failed, which before_wait() has called", function)
