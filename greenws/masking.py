"""``apply_mask``: what a client does to every payload (RFC 6455, section 5.3), and undoes here.

Pure Python; the one function that has a twin in C.
"""

from __future__ import annotations

__all__ = ["apply_mask"]


def apply_mask(data: bytes | bytearray | memoryview, mask: bytes) -> bytes:
    """``data`` XOR the four bytes of ``mask``, repeated; the same call masks and unmasks.

    Whoever takes a payload in pieces turns the mask in between (:func:`rotate_mask`).
    """
    size = len(data)
    # One XOR of two long integers costs far less than a loop over bytes.
    key = (mask * ((size >> 2) + 1))[:size]
    return (int.from_bytes(data, "little") ^ int.from_bytes(key, "little")).to_bytes(size, "little")


def rotate_mask(mask: bytes, offset: int) -> bytes:
    """``mask`` as it stands ``offset`` bytes into the payload."""
    offset &= 3
    return mask[offset:] + mask[:offset]
