"""The number of this process. Every object that a forked child must not use stores it, and compares
it with the current one before each system call.

A hook of ``os.register_at_fork`` would come too late: other hooks may run before it, and may run
the hub. Compiled modules use C from ``_forks.h``, where ``fork()`` itself sets the number.
"""

from __future__ import annotations

import os

__all__ = ["load", "process"]


def load() -> None:
    """Makes ``fork()`` update the number, in the C form."""


def process() -> int:
    """The number of the current process."""
    return os.getpid()
