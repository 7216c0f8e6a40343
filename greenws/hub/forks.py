"""Which process this is. Every object that a forked child must not use remembers its own, and
compares them before it asks the kernel for anything.

A hook of ``os.register_at_fork`` alone comes too late: the hooks of others may run before it, and
may run the hub. The compiled modules get these as C from ``_forks.h``, where the number is a
variable that ``fork()`` itself sets.
"""

from __future__ import annotations

import os

__all__ = ["load", "process"]


def load() -> None:
    """Has the number kept up to date, where that is needed."""


def process() -> int:
    """The number of the process that runs."""
    return os.getpid()
