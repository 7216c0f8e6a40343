"""``SharedMessage``: a message to many sockets, encoded once for all that want it alike.

A server's frames are not masked, so the bytes for one connection are the bytes for all of them
(RFC 6455, section 5.1): what is sent to a room of thousands is built and kept once. A client's
frames have a mask each.
"""

from __future__ import annotations

from .protocol import Protocol

__all__ = ["SharedMessage"]

_TEXT = 1
_BINARY = 2


class SharedMessage:
    """A whole message: text for str, binary for bytes."""

    def __init__(self, data: str | bytes) -> None:
        self.data = data
        self._frame = b""

    def frame(self, protocol: Protocol) -> bytes:
        """The one frame of the message, as the connection of ``protocol`` sends it."""
        if protocol.client:
            return self._encode(protocol)
        if not self._frame:
            self._frame = self._encode(protocol)
        return self._frame

    def _encode(self, protocol: Protocol) -> bytes:
        if isinstance(self.data, str):
            return protocol.encode(_TEXT, True, self.data.encode())
        return protocol.encode(_BINARY, True, self.data)
