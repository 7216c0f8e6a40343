"""Masking and unmasking payloads (RFC 6455, section 5.3), and copying them.

``apply_mask`` is implemented in C too, in ``_masking.c``, which is used if it was built. The other
functions are for ``frames.py``, whose compiled form uses those of ``_masking.h`` instead.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from ..form import PURE

__all__ = [
    "apply_mask",
    "copy",
    "gather",
    "gathered",
    "place",
    "place_masked",
    "read_key",
    "turn_key",
    "unmask",
]


def _apply_mask(data: bytes | bytearray | memoryview, mask: bytes) -> bytes:
    size = len(data)
    # One XOR of two long integers is much faster than a loop over bytes.
    key = (mask * ((size >> 2) + 1))[:size]
    return (int.from_bytes(data, "little") ^ int.from_bytes(key, "little")).to_bytes(size, "little")


apply_mask: Callable[[bytes | bytearray | memoryview, bytes], bytes] = _apply_mask
"""``apply_mask(data, mask)``: ``data`` XOR the four bytes of ``mask``, repeated. The same call
masks and unmasks."""

if not PURE:
    with contextlib.suppress(ModuleNotFoundError):  # a broken build raises another ImportError
        from ._masking import apply_mask


def read_key(data: bytearray, position: int) -> bytes:
    """The masking key at ``position``. Opaque: only the functions below use it."""
    return bytes(data[position : position + 4])


def turn_key(key: bytes, offset: int) -> bytes:
    """``key`` rotated for the part of the payload that begins at ``offset``."""
    offset &= 3
    return key[offset:] + key[:offset]


def unmask(data: bytearray, start: int, size: int, key: bytes) -> bytes:
    """``size`` bytes of ``data`` from ``start``, unmasked."""
    return _apply_mask(data[start : start + size], key)


def copy(data: bytearray, start: int, size: int) -> bytes:
    """``size`` bytes of ``data`` from ``start``, unchanged."""
    return bytes(data[start : start + size])


def gather(
    gathered: bytearray | None,
    used: int,
    data: bytearray,
    start: int,
    size: int,
    key: bytes,
    length: int,
) -> bytearray:
    """Unmasks ``size`` bytes as :func:`unmask` does, and stores them after the first ``used`` bytes
    of ``gathered``; returns ``gathered``, or a larger buffer that replaces it. ``length`` is that
    of the whole payload. The buffer is at most four times as large as what has arrived."""
    if gathered is None:
        gathered = bytearray()
    gathered += unmask(data, start, size, key)
    return gathered


def gathered(gathered: bytearray) -> bytes:
    """The whole payload, when all of it has been gathered."""
    return bytes(gathered)


def place(buffer: bytearray, position: int, data: bytes) -> int:
    """Copies ``data`` into ``buffer``, which must have room; returns the position of its end."""
    end = position + len(data)
    buffer[position:end] = data
    return end


def place_masked(buffer: bytearray, position: int, keys: bytearray, start: int, data: bytes) -> int:
    """Copies the key at ``start`` of ``keys`` into ``buffer``, followed by ``data``, masked with
    it; returns the position of its end."""
    key = bytes(keys[start : start + 4])
    end = position + 4 + len(data)
    buffer[position:end] = key + _apply_mask(data, key)
    return end
