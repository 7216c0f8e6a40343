"""``SharedMessage``: a message to many sockets, encoded once for all that can share its frame.

A server's frames are not masked (RFC 6455, section 5.1), so all connections that compress in the
same way get the same bytes: a message to a room of thousands is built and stored once. Two kinds of
frames cannot be shared: a client's, each of which has its own mask, and frames with context
takeover, where each connection has its own compressor.
"""

from __future__ import annotations

from collections.abc import Hashable

from .connection import Connection

__all__ = ["SharedBatch", "SharedMessage"]

_TEXT = 1
_BINARY = 2


class SharedMessage:
    """A complete message: text for str, binary for bytes."""

    def __init__(self, data: str | bytes) -> None:
        self.data = data
        self.count = 1  # messages
        self._frame = b""
        self._compressed: dict[Hashable, bytes] | None = None

    def frame(self, connection: Connection) -> bytes:
        """The message in one frame, as ``connection`` sends it."""
        form = None if connection.deflate is None else connection.deflate.form
        if connection.client or (connection.deflate is not None and form is None):
            return self._encode(connection)
        if form is None:
            if not self._frame:
                self._frame = self._encode(connection)
            return self._frame
        if self._compressed is None:
            self._compressed = {}
        frame = self._compressed.get(form)
        if frame is None:
            frame = self._compressed[form] = self._encode(connection)
        return frame

    def _encode(self, connection: Connection) -> bytes:
        opcode = _TEXT if isinstance(self.data, str) else _BINARY
        payload: bytes | memoryview = (
            self.data.encode() if isinstance(self.data, str) else self.data
        )
        if connection.deflate is not None:
            opcode, payload = connection.compress(opcode, True, payload, None)
        return connection.encode(opcode, True, payload)


class SharedBatch(SharedMessage):
    """Several messages, one after another, that are sent at once. ``data`` has no meaning."""

    def __init__(self, messages: list[SharedMessage]) -> None:
        SharedMessage.__init__(self, b"")
        self.count = len(messages)
        self._messages = messages

    def _encode(self, connection: Connection) -> bytes:
        return b"".join([message.frame(connection) for message in self._messages])
