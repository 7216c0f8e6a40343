"""``SharedMessage``: a message to many sockets, encoded once for all that want it alike.

A server's frames are not masked, so the bytes for one connection are the bytes for all of them
(RFC 6455, section 5.1), or for all that agreed to compress alike: what is sent to a room of
thousands is built and kept once. A client's frames have a mask each, and with context takeover each
connection compresses for itself.
"""

from __future__ import annotations

from collections.abc import Hashable

from .connection import Protocol

__all__ = ["SharedMessage"]

_TEXT = 1
_BINARY = 2


class SharedMessage:
    """A whole message: text for str, binary for bytes."""

    def __init__(self, data: str | bytes) -> None:
        self.data = data
        self._frame = b""
        self._compressed: dict[Hashable, bytes] | None = None

    def frame(self, protocol: Protocol) -> bytes:
        """The one frame of the message, as the connection of ``protocol`` sends it."""
        form = None if protocol.deflate is None else protocol.deflate.form
        if protocol.client or (protocol.deflate is not None and form is None):
            return self._encode(protocol)
        if form is None:
            if not self._frame:
                self._frame = self._encode(protocol)
            return self._frame
        if self._compressed is None:
            self._compressed = {}
        frame = self._compressed.get(form)
        if frame is None:
            frame = self._compressed[form] = self._encode(protocol)
        return frame

    def _encode(self, protocol: Protocol) -> bytes:
        opcode = _TEXT if isinstance(self.data, str) else _BINARY
        payload: bytes | memoryview = (
            self.data.encode() if isinstance(self.data, str) else self.data
        )
        if protocol.deflate is not None:
            opcode, payload = protocol.compress(opcode, True, payload, None)
        return protocol.encode(opcode, True, payload)
