"""What a client does to every payload (RFC 6455, section 5.3), and undoes here; and plain copies.

Pure Python. ``apply_mask`` has a twin in C, which is taken where it was built. The rest is for
``frames.py``, which gets it as C from ``_masking.h`` where it is compiled.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from importlib import import_module

from ..form import PURE

__all__ = [
    "apply_mask",
    "copy",
    "gather",
    "gathered",
    "place",
    "read_key",
    "turn_key",
    "unmask",
]


def _apply_mask(data: bytes | bytearray | memoryview, mask: bytes) -> bytes:
    size = len(data)
    # One XOR of two long integers costs far less than a loop over bytes.
    key = (mask * ((size >> 2) + 1))[:size]
    return (int.from_bytes(data, "little") ^ int.from_bytes(key, "little")).to_bytes(size, "little")


apply_mask: Callable[[bytes | bytearray | memoryview, bytes], bytes] = _apply_mask
"""``apply_mask(data, mask)``: ``data`` XOR the four bytes of ``mask``, repeated. The same call
masks and unmasks."""

if not PURE:
    with contextlib.suppress(ModuleNotFoundError):  # a twin that is there but broken says so
        apply_mask = import_module("greenws.protocol._masking").apply_mask


def read_key(data: bytearray, position: int) -> bytes:
    """The masking key at ``position``. What it is, only the functions here know."""
    return bytes(data[position : position + 4])


def turn_key(key: bytes, offset: int) -> bytes:
    """``key`` as it stands ``offset`` bytes into the payload."""
    offset &= 3
    return key[offset:] + key[:offset]


def unmask(data: bytearray, start: int, size: int, key: bytes) -> bytes:
    """``size`` bytes of ``data`` from ``start`` on, unmasked."""
    return _apply_mask(data[start : start + size], key)


def copy(data: bytearray, start: int, size: int) -> bytes:
    """``size`` bytes of ``data`` from ``start`` on, as they are."""
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
    """Puts :func:`unmask`'s result behind the first ``used`` bytes of what is ``gathered`` of a
    payload of ``length`` bytes; returns that. It takes four times the memory of what came, at
    most."""
    if gathered is None:
        gathered = bytearray()
    gathered += unmask(data, start, size, key)
    return gathered


def gathered(gathered: bytearray) -> bytes:
    """The payload, when all of it is gathered."""
    return bytes(gathered)


def place(buffer: bytearray, position: int, data: bytes) -> int:
    """Puts ``data`` into ``buffer``, which has room for it; returns the position behind it."""
    end = position + len(data)
    buffer[position:end] = data
    return end
