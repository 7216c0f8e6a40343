"""Calls that block a thread, made in another one while this one's hub goes on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gevent

__all__ = ["in_thread"]


def in_thread(function: Callable[..., Any], *args: Any) -> Any:
    """What ``function`` returns, or raises; the hub prints no traceback of that."""

    def call() -> tuple[Any, BaseException | None]:
        try:
            return function(*args), None
        except BaseException as error:
            return None, error

    found, error = gevent.get_hub().threadpool.apply(call)
    if error is not None:
        raise error
    return found
