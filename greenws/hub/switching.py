"""Which greenlet and which thread runs, and giving control to another greenlet.

The compiled modules get these as C from ``_switching.h``. ``switch`` skips what gevent's own
``switch_out`` hooks would do, which no greenlet of gevent has a use for.
"""

from __future__ import annotations

from typing import Any

from gevent.monkey import get_original
from greenlet import getcurrent

__all__ = [
    "FETCHES",
    "current",
    "fetch_at",
    "fetch_object",
    "fetch_state",
    "keep_chunks",
    "load",
    "switch",
    "thread",
]

FETCHES = False
"""Whether the functions whose names begin with ``fetch`` do anything: have the processor load into
its cache what will be needed soon."""

_get_ident = get_original("_thread", "get_ident")


def load() -> None:
    """Finds greenlet's C interface, where that is used."""


def keep_chunks() -> None:
    """Has the process keep some of the memory that the Python frames of greenlets lie in, for the
    greenlets to come (where this is C, and the memory CPython's)."""


def current() -> Any:
    """The greenlet that runs."""
    return getcurrent()


def thread() -> int:
    """The thread that runs, whatever was monkey-patched."""
    ident: int = _get_ident()
    return ident


def switch(greenlet: Any) -> Any:
    """Runs ``greenlet`` until something switches back here."""
    return greenlet.switch()


def fetch_at(address: int, size: int) -> None:
    """Loads what ``id()`` gave for an object that may have gone meanwhile."""


def fetch_object(fetched: Any, size: int) -> None:
    """Loads an object of ``size`` bytes."""


def fetch_state(greenlet: Any) -> None:
    """Loads what a switch to ``greenlet`` needs; the object itself should be there."""
