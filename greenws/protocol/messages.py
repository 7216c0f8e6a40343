"""Frames into fragments and messages: their order, their limits, and UTF-8 as it arrives.

A *fragment* is the payload of one frame, decoded; a message is one or more of them. What is
announced is checked before it is taken (RFC 6455, section 5.4), and text fails on its first bad
byte (section 8.1), wherever the frames and the segments are cut. What is compressed is inflated as
it arrives.
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

_MOST = 1 << 60  # bytes: a larger limit is none, and could not be added to in C


class Utf8Decoder:
    """Incremental UTF-8; a code point that is cut keeps its head for the next piece."""

    def __init__(self) -> None:
        self.head = b""

    def decode(self, piece: bytes, end: bool) -> str:
        """The characters that ``piece`` completes; ``end`` forbids a cut one behind them.

        Raises:
            InvalidPayload: as soon as no continuation could be UTF-8.
        """
        if self.head:
            piece = self.head + piece
        try:
            text, taken = codecs.utf_8_decode(piece, "strict", end)
        except UnicodeDecodeError as error:
            raise InvalidPayload(f"text is not UTF-8: {error.reason}") from None
        self.head = head = piece[taken:]
        # The codec waits for the third byte of a surrogate, which the second has given away.
        if len(head) > 1 and head[0] == 0xED and head[1] >= 0xA0:
            raise InvalidPayload("text is not UTF-8: a surrogate")
        return text


class FragmentAssembler:
    """Takes frames in pieces, and gives fragments."""

    def __init__(self, config: Config, deflate: Deflate | None = None) -> None:
        self._deflate: Any = deflate
        size = config.max_message_size
        self._max_size = -1 if size is None else min(size, _MOST)
        self._max_fragments = -1 if config.max_fragments is None else config.max_fragments
        # the message at hand
        self.open = False
        self.gradual = False  # the pieces of a frame are wanted as they come
        self._is_text = False
        self._compressed = False
        self._size = 0  # as announced
        self._inflated = 0
        self._count = 0
        self._decoder: Utf8Decoder | None = None
        # the frame at hand, as far as it arrived; None while that is nothing
        self._text: io.StringIO | None = None
        self._bytes: io.BytesIO | None = None

    def begin(self, opcode: int, final: bool, length: int, compressed: bool = False) -> None:
        """Takes the header of a data frame; ``compressed``: it begins a compressed message.

        Raises:
            ProtocolError: a continuation of nothing, or a new message inside another.
            MessageTooBig: the announced length goes beyond ``max_message_size``.
            PolicyViolation: one fragment more than ``max_fragments``.
        """
        if opcode == _CONTINUATION:
            if not self.open:
                raise ProtocolError("a continuation frame that continues nothing")
            self._count += 1
        else:
            if self.open:
                raise ProtocolError("a new message inside a fragmented one")
            self._is_text = opcode == _TEXT
            self._compressed = compressed
            self.gradual = self._is_text or compressed
            self._inflated = 0
            self._count = 1
            self._size = 0
        limit = self._max_size
        if limit >= 0:
            if self._compressed:  # deflate makes what it cannot compress a little larger
                limit += (limit >> 2) + 64 * self._count
            if length > limit - self._size:
                raise self._too_big()
            self._size += length
        if 0 <= self._max_fragments < self._count:
            raise PolicyViolation(f"more than max_fragments ({self._max_fragments}) in a message")
        self.open = not final

    def add(self, piece: bytes) -> None:
        """Takes a piece of the frame that is not its last."""
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
        """Takes the last piece of the frame, which may be all of it; returns the fragment."""
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
        """Forgets the message at hand."""
        self._text = self._bytes = self._decoder = None
        if self._deflate is not None:
            self._deflate.drop()

    def _inflate(self, piece: bytes, end: bool) -> bytes:
        room = -1 if self._max_size < 0 else self._max_size - self._inflated
        inflated: bytes = self._deflate.inflate(piece, end, room)
        self._inflated += len(inflated)
        if 0 <= self._max_size < self._inflated:
            if self._is_text:
                self._decode(inflated, False)  # of two errors the first, however it was cut
            raise self._too_big()
        return inflated

    def _too_big(self) -> MessageTooBig:
        return MessageTooBig(f"message larger than max_message_size ({self._max_size} bytes)")

    def _decode(self, piece: bytes, end: bool) -> str:
        if self._decoder is None:
            self._decoder = Utf8Decoder()
        return self._decoder.decode(piece, end)
