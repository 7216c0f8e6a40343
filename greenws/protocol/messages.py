"""Assembles fragments and messages from frames: checks their order and limits, decodes UTF-8.

A *fragment* is the decoded payload of one frame; a message is one or more fragments. A frame's
header is checked before its payload is taken (RFC 6455, section 5.4), and text fails on its first
invalid byte (section 8.1), however it is split into frames and TCP segments. Compressed payloads
are inflated as they arrive.
"""

from __future__ import annotations

import codecs
import io
from typing import Any

from ..config import Config
from ..exceptions import InvalidPayload, MessageTooBig, PolicyViolation, ProtocolError
from .deflate import Deflate

__all__ = ["FragmentAssembler", "Utf8Decoder"]

_TEXT = 1
_CONTINUATION = 0

_MAX_LIMIT = 1 << 60  # bytes; additions to a larger limit could overflow in C


class Utf8Decoder:
    """Decodes UTF-8 in pieces. ``head`` holds the first bytes of an incomplete code point."""

    def __init__(self) -> None:
        self.head = b""

    def decode(self, piece: bytes, end: bool) -> str:
        """The characters that are complete with ``piece``. ``end``: it is the last piece.

        Raises:
            InvalidPayload: as soon as the text cannot become valid UTF-8.
        """
        if self.head:
            piece = self.head + piece
        try:
            text, taken = codecs.utf_8_decode(piece, "strict", end)
        except UnicodeDecodeError as error:
            raise InvalidPayload(f"text is not UTF-8: {error.reason}") from None
        self.head = head = piece[taken:]
        # Python's codec reports a surrogate only at its third byte; the second already shows it.
        if len(head) > 1 and head[0] == 0xED and head[1] >= 0xA0:
            raise InvalidPayload("text is not UTF-8: a surrogate")
        return text


class FragmentAssembler:
    """Takes frames in pieces, and returns fragments."""

    def __init__(self, config: Config, deflate: Deflate | None = None) -> None:
        self._deflate: Any = deflate
        size = config.max_message_size
        self._max_size = -1 if size is None else min(size, _MAX_LIMIT)
        self._max_fragments = -1 if config.max_fragments is None else config.max_fragments
        # the current message
        self.open = False
        self.gradual = False  # whether it takes the pieces of a frame as they arrive
        self._is_text = False
        self._compressed = False
        self._size = 0  # bytes, as declared by the headers
        self._inflated = 0  # bytes
        self._count = 0  # of fragments
        self._decoder: Utf8Decoder | None = None
        # what has arrived of the current frame, decoded
        self._text: io.StringIO | None = None
        self._bytes: io.BytesIO | None = None

    def begin(self, opcode: int, final: bool, length: int, compressed: bool = False) -> None:
        """Takes the header of a data frame; ``compressed``: it begins a compressed message.

        Raises:
            ProtocolError: a continuation without a message, or a new message inside another.
            MessageTooBig: the declared length exceeds ``max_message_size``.
            PolicyViolation: more fragments than ``max_fragments``.
        """
        if opcode == _CONTINUATION:
            if not self.open:
                raise ProtocolError("continuation frame without a message to continue")
            self._count += 1
        else:
            if self.open:
                raise ProtocolError("new message before the last fragment of the previous one")
            self._is_text = opcode == _TEXT
            self._compressed = compressed
            self.gradual = self._is_text or compressed
            self._inflated = 0
            self._count = 1
            self._size = 0
        limit = self._max_size
        if limit >= 0:
            if self._compressed:  # deflate makes incompressible data a little larger
                limit += (limit >> 2) + 64 * self._count
            if length > limit - self._size:
                raise self._too_big()
            self._size += length
        if 0 <= self._max_fragments < self._count:
            raise PolicyViolation(f"more than max_fragments ({self._max_fragments}) in a message")
        self.open = not final

    def add(self, piece: bytes) -> None:
        """Takes a piece of the current frame, which is not the last."""
        if self._compressed:
            piece = self._inflate(piece, False)
        if self._is_text:
            if self._text is None:
                self._text = io.StringIO()
            self._text.write(self._decode(piece, False))
        else:
            if self._bytes is None:
                self._bytes = io.BytesIO()
            self._bytes.write(piece)

    def end(self, piece: bytes) -> str | bytes:
        """Takes the last (or only) piece of the current frame; returns the fragment."""
        if self._compressed:
            piece = self._inflate(piece, not self.open)
        if self._is_text:
            if self._decoder is None and not self.open:
                try:
                    return str(piece, "utf-8")
                except UnicodeDecodeError as error:
                    raise InvalidPayload(f"text is not UTF-8: {error.reason}") from None
            text = self._decode(piece, not self.open)
            if not self.open:
                self._decoder = None
            if self._text is not None:
                self._text.write(text)
                text = self._text.getvalue()
                self._text = None
            return text
        if self._bytes is not None:
            self._bytes.write(piece)
            piece = self._bytes.getvalue()
            self._bytes = None
        return piece

    def drop(self) -> None:
        """Drops the current message."""
        self._text = self._bytes = self._decoder = None
        if self._deflate is not None:
            self._deflate.drop()

    def _inflate(self, piece: bytes, end: bool) -> bytes:
        room = -1 if self._max_size < 0 else self._max_size - self._inflated
        inflated: bytes = self._deflate.inflate(piece, end, room)
        self._inflated += len(inflated)
        if 0 <= self._max_size < self._inflated:
            if self._is_text:
                self._decode(inflated, False)  # an earlier error comes first, however it was split
            raise self._too_big()
        return inflated

    def _too_big(self) -> MessageTooBig:
        return MessageTooBig(f"message larger than max_message_size ({self._max_size} bytes)")

    def _decode(self, piece: bytes, end: bool) -> str:
        if self._decoder is None:
            self._decoder = Utf8Decoder()
        return self._decoder.decode(piece, end)
