"""``apply_mask``: what a client does to every payload (RFC 6455, section 5.3), and undoes here.

Pure Python; the one function that has a twin in C, which is taken where it was built.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from importlib import import_module

from .form import PURE

__all__ = ["apply_mask", "rotate_mask"]


def _apply_mask(
    data: bytes | bytearray | memoryview, mask: bytes, start: int = 0, size: int | None = None
) -> bytes:
    if size is None:
        size = len(data)
    else:
        data = data[start : start + size]
    # One XOR of two long integers costs far less than a loop over bytes.
    key = (mask * ((size >> 2) + 1))[:size]
    return (int.from_bytes(data, "little") ^ int.from_bytes(key, "little")).to_bytes(size, "little")


apply_mask: Callable[..., bytes] = _apply_mask
"""``apply_mask(data, mask, start=0, size=None)``: ``data``, or ``size`` bytes of it from ``start``
on, XOR the four bytes of ``mask``, repeated. The same call masks and unmasks. Whoever takes a
payload in pieces turns the mask in between (:func:`rotate_mask`)."""

if not PURE:
    with contextlib.suppress(ModuleNotFoundError):  # a twin that is there but broken says so
        apply_mask = import_module("greenws._masking").apply_mask


def rotate_mask(mask: bytes, offset: int) -> bytes:
    """``mask`` as it stands ``offset`` bytes into the payload."""
    offset &= 3
    return mask[offset:] + mask[:offset]
