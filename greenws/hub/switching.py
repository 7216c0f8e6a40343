"""The current greenlet and thread, switching to another greenlet, and prefetching for it.

Compiled modules use the C functions of ``_switching.h`` instead. ``switch`` does not call gevent's
``switch_out`` hooks, which no greenlet of gevent's own uses.
"""

from __future__ import annotations

from typing import Any

from gevent.monkey import get_original
from greenlet import getcurrent

__all__ = [
    "PREFETCHES",
    "current",
    "keep_chunks",
    "load",
    "prefetch_at",
    "prefetch_object",
    "prefetch_state",
    "switch",
    "thread_id",
    "use_small_chunk",
]

PREFETCHES = False
"""Whether the ``prefetch_*`` functions do anything. In C they load memory into the processor's
cache."""

_get_ident = get_original("_thread", "get_ident")


def load() -> None:
    """Imports greenlet's C API, in the C form."""


def keep_chunks() -> None:
    """Makes the process reuse the memory in which CPython keeps a greenlet's Python frames (in the
    C form, on CPython 3.11 and later; see ``_chunks.h``)."""


def use_small_chunk() -> None:
    """Makes the current greenlet, which has just begun, keep its Python frames in less memory (as
    above)."""


def current() -> Any:
    """The current greenlet."""
    return getcurrent()


def thread_id() -> int:
    """The id of the current native thread, monkey-patched or not."""
    ident: int = _get_ident()
    return ident


def switch(greenlet: Any) -> Any:
    """Runs ``greenlet`` until something switches back here."""
    return greenlet.switch()


def prefetch_at(address: int) -> None:
    """Prefetches the object at an ``id()``, which may have been freed since."""


def prefetch_object(target: Any) -> None:
    """Prefetches the first 256 bytes of an object."""


def prefetch_state(greenlet: Any) -> None:
    """Prefetches what a switch to ``greenlet`` uses. The greenlet itself should be cached."""
