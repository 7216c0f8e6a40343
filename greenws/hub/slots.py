"""Lists of waiters by descriptor.

Compiled modules use the C functions of ``_slots.h`` instead, which assume that the list holds only
waiters and None: checking each type would cost more than the rest.
"""

from __future__ import annotations

from typing import TypeVar

__all__ = ["waiter_at"]

Slot = TypeVar("Slot")


def waiter_at(waiters: list[Slot], index: int) -> Slot:
    """The waiter at ``index``, or None."""
    return waiters[index]
