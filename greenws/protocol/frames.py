"""Frames on the wire (RFC 6455, section 5.2): a parser and an encoder.

The parser reads from a borrowed buffer, and copies only what it has not read when the owner wants
the buffer back (``keep``), so an idle connection owns no buffer. It can return a payload in the
pieces in which it arrives, because text must fail on its first invalid byte, and because a declared
length alone must never cause an allocation of that size.
"""

from __future__ import annotations

import os
from typing import Any

from ..exceptions import ProtocolError
from . import masking

__all__ = [
    "MAX_HEADER",
    "FrameParser",
    "Masks",
    "encode_frame",
    "encode_header",
    "write_frame",
    "write_masked_frame",
]

MAX_HEADER = 14
"""The most bytes that a header can have, with its mask."""

_RSV1 = 0x40
_NO_BUFFER = bytearray()  # never written to
_POOL_SIZE = 4096  # random bytes from one system call


class FrameParser:
    """Splits a byte stream into frame headers and unmasked pieces of payloads.

    ``expect_mask`` is True for a server, which must reject unmasked frames, and False for a client,
    which must reject masked ones (RFC 6455, section 5.1). ``allow_compressed``: permessage-deflate
    was negotiated, so the first frame of a message may have RSV1 set (RFC 7692, section 6).
    """

    def __init__(self, expect_mask: bool, allow_compressed: bool = False) -> None:
        self.expect_mask = expect_mask
        self.allow_compressed = allow_compressed
        # The unread bytes are data[position:end]; ``owned`` says whether ``data`` is our own copy.
        self.data = _NO_BUFFER
        self.position = 0
        self.end = 0
        self.owned = True
        # the header of the current frame
        self.final = True
        self.compressed = False
        self.opcode = 0
        self.length = 0
        self.key: Any = masking.read_key(bytearray(4), 0)
        self.remaining = 0
        self._gathered: Any = None

    def feed(self, data: bytearray, size: int) -> None:
        """Adds the first ``size`` bytes of ``data`` to the input; borrows them until ``keep()``."""
        if self.position == self.end:
            self.data = data
            self.position = 0
            self.end = size
            self.owned = False
        else:
            self.keep()
            del self.data[: self.position]
            self.data += memoryview(data)[:size]
            self.position = 0
            self.end = len(self.data)

    def keep(self) -> None:
        """Stops using the borrowed buffer, and copies what is unread; frees an empty copy."""
        if self.position == self.end:
            self.data = _NO_BUFFER
            self.position = 0
            self.end = 0
            self.owned = True
        elif not self.owned:
            self.data = self.data[self.position : self.end]
            self.end -= self.position
            self.position = 0
            self.owned = True

    def drop(self) -> None:
        """Drops all input."""
        self._gathered = None
        self.position = self.end
        self.keep()

    def next_header(self) -> bool:
        """Parses the next header; False if it has not arrived completely.

        Raises:
            ProtocolError: on the first byte that is not allowed.
        """
        data = self.data
        position = self.position
        available = self.end - position
        if available < 2:
            if available:
                _check_first(data[position], self.allow_compressed)
            return False
        first = data[position]
        second = data[position + 1]
        length = second & 127
        masked = second > 127
        if first & 0x70 or first & 7 > 2 or (first & 8 and first < 128):
            _check_first(first, self.allow_compressed)
        if masked != self.expect_mask:
            raise ProtocolError(
                "a server must not mask its frames" if masked else "a client must mask its frames"
            )
        if length > 125 and first & 8:
            raise ProtocolError("control frame longer than 125 bytes")

        size = 2
        if length == 126:
            size = 4
            if available < 4:
                return False
            length = data[position + 2] << 8 | data[position + 3]
            if length < 126:
                raise ProtocolError(f"length {length} must be encoded in 7 bits")
        elif length == 127:
            size = 10
            if available > 2 and data[position + 2] > 127:
                raise ProtocolError("the most significant bit of a 64-bit length must be 0")
            if available > 7 and not any(data[position + 2 : position + 8]):
                raise ProtocolError("a length below 65536 must be encoded in 7 or 16 bits")
            if available < 10:
                return False
            length = int.from_bytes(data[position + 2 : position + 10], "big")
        if masked and available < size + 4:
            return False
        position += size
        if masked:
            self.key = masking.read_key(self.data, position)
            position += 4
        self.position = position
        self.final = first > 127
        self.compressed = first & _RSV1 != 0
        self.opcode = first & 15
        self.length = length
        self.remaining = length
        return True

    def has_payload(self) -> bool:
        """Whether the rest of the current payload has arrived."""
        return self.end - self.position >= self.remaining

    def gather(self) -> None:
        """Unmasks and stores the part of the current payload that has arrived. :meth:`take` returns
        it with the rest."""
        size = self.end - self.position
        if size > self.remaining:
            size = self.remaining
        if size == 0:
            return
        used = self.length - self.remaining
        self._gathered = masking.gather(
            self._gathered, used, self.data, self.position, size, self.key, self.length
        )
        self.position += size
        self.remaining -= size
        self.key = masking.turn_key(self.key, size)

    def take(self) -> bytes:
        """The part of the current payload that has arrived, unmasked, including what was
        gathered."""
        if self._gathered is not None:
            self.gather()
            payload = masking.gathered(self._gathered)
            self._gathered = None
            return payload
        size = self.end - self.position
        if size > self.remaining:
            size = self.remaining
        if size == 0:
            return b""
        start = self.position
        self.position += size
        self.remaining -= size
        if not self.expect_mask:
            return masking.copy(self.data, start, size)
        payload = masking.unmask(self.data, start, size, self.key)
        if self.remaining:
            self.key = masking.turn_key(self.key, size)
        return payload

    def has_frame(self) -> bool:
        """Whether another whole frame follows the current one in the input."""
        available = self.end - self.position
        if available - 2 < self.remaining:
            return False
        position = self.position + self.remaining
        available = self.end - position
        if available < 2:
            return False
        data = self.data
        length = data[position + 1] & 127
        size = 6 if self.expect_mask else 2
        if length == 126:
            size += 2
            if available >= 4:
                length = data[position + 2] << 8 | data[position + 3]
        elif length == 127:
            size += 8
            if available < 10 or data[position + 2] > 127:
                return False
            length = int.from_bytes(data[position + 2 : position + 10], "big")
        return available - size >= length


def _check_first(first: int, allow_compressed: bool) -> None:
    """Rejects reserved bits, reserved opcodes and fragmented control frames."""
    opcode = first & 15
    if first & 0x70 and not allow_compressed:
        raise ProtocolError("reserved bits must be 0: no extension was negotiated")
    if first & 0x30 or (first & _RSV1 and (opcode == 0 or opcode & 8)):
        raise ProtocolError("only RSV1 may be set, and only in the first frame of a message")
    if opcode & 7 > 2:
        raise ProtocolError(f"opcode {opcode} is reserved")
    if opcode & 8 and first < 128:
        raise ProtocolError("a control frame must not be fragmented")


def encode_header(opcode: int, final: bool, length: int, mask: bytes = b"") -> bytes:
    """The header of a frame. ``mask``: 4 bytes for a client's frame, empty for a server's.

    ``opcode`` may be combined with RSV1 (0x40).
    """
    first = opcode | 128 if final else opcode
    masked = 128 if mask else 0
    if length < 126:
        return bytes((first, masked | length)) + mask
    if length < 65536:
        return bytes((first, masked | 126, length >> 8, length & 255)) + mask
    return bytes((first, masked | 127)) + length.to_bytes(8, "big") + mask


def encode_frame(opcode: int, final: bool, payload: bytes | memoryview, mask: bytes = b"") -> bytes:
    """A whole frame, as bytes."""
    if mask:
        payload = masking.apply_mask(payload, mask)
    return encode_header(opcode, final, len(payload), mask) + payload


def write_frame(buffer: bytearray, position: int, opcode: int, final: bool, payload: bytes) -> int:
    """Writes an unmasked frame into ``buffer``, which must have room for MAX_HEADER bytes and
    ``payload``; returns the position of its end. ``payload``: less than 64 KiB."""
    out = buffer
    length = len(payload)
    out[position] = opcode | 128 if final else opcode
    if length < 126:
        out[position + 1] = length
        position += 2
    else:
        out[position + 1] = 126
        out[position + 2] = length >> 8
        out[position + 3] = length & 255
        position += 4
    return masking.place(buffer, position, payload)


def write_masked_frame(
    buffer: bytearray, position: int, opcode: int, final: bool, payload: bytes, masks: Masks
) -> int:
    """Like :func:`write_frame`, with a mask from ``masks``."""
    out = buffer
    length = len(payload)
    out[position] = opcode | 128 if final else opcode
    if length < 126:
        out[position + 1] = 128 | length
        position += 2
    else:
        out[position + 1] = 254
        out[position + 2] = length >> 8
        out[position + 3] = length & 255
        position += 4
    start = masks.advance()
    return masking.place_masked(buffer, position, masks.pool, start, payload)


class Masks:
    """Masking keys, each for one frame, that nobody can predict (RFC 6455, section 5.3).

    They come from the kernel's generator, a thousand with one system call.
    """

    def __init__(self) -> None:
        self.pool = bytearray()
        self.position = 0
        self.end = 0

    def advance(self) -> int:
        """The position of the next key in ``pool``."""
        if self.position >= self.end:
            self.pool = bytearray(os.urandom(_POOL_SIZE))
            self.end = _POOL_SIZE
            self.position = 0
        position = self.position
        self.position = position + 4
        return position

    def take(self) -> bytes:
        """The next key."""
        position = self.advance()
        return bytes(self.pool[position : position + 4])

    def drop(self) -> None:
        """Drops the remaining keys: in a forked child, the parent has the same."""
        self.end = 0
