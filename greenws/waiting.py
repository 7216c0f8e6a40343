"""``before_wait()``: registers functions to call before a greenlet waits for input.

A session spends nearly all of its life in a read. Such a function gives back what the session
should not hold during that time, such as a database connection.
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
"""The registered functions, in order. Always the same list: reads check whether it is empty."""

no_sessions: set[object] = set()
"""Greenlets that wait for a WebSocket but run a test, not a session. There, nothing is called."""

_logger = logging.getLogger("greenws.session")


def before_wait(function: Function) -> Function:
    """Registers ``function``, which takes no arguments. It is called before a greenlet blocks for
    the input of a WebSocket: in a read, in ``select()`` and in ``ping()``, if nothing has arrived
    yet. Returns ``function``, so it can be used as a decorator. It applies to all sessions of the
    process; a function that is registered twice is called once.

    The function is called in the greenlet that is about to wait, in its framework's contexts, and
    may block. It is called once for each wait, and never in a send. An exception is logged, and the
    wait goes on. :func:`greenws.waiting.not_before_wait` undoes the registration.

    Raises:
        TypeError: ``function`` cannot be called without arguments, or is a coroutine function.
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
            _logger.exception("%r failed; it was registered with before_wait()", function)
