"""What the peer's TCP has acknowledged, if the kernel reports it (Linux does).

An acknowledgement shows that the peer's application reads, however slowly: once its receive buffer
is full, its TCP accepts no more. (It still answers our kernel's window probes, but acknowledges no
bytes by that.) It does not show that the application is running: what fits into its receive buffer
is acknowledged for a stopped process too.
"""

from __future__ import annotations

import socket
import struct
import sys
from typing import Any

if sys.platform.startswith("linux"):
    import fcntl
    import termios

__all__ = ["Delivery", "unacknowledged"]

_IS_LINUX = sys.platform.startswith("linux")
_INFO_SIZE = 128  # bytes of the kernel's struct tcp_info, up to tcpi_bytes_acked included
_BYTES_ACKED = 120  # the offset of that field


def unacknowledged(fileno: int) -> int:
    """Bytes in the kernel that the peer has not acknowledged (SIOCOUTQ); for a Unix socket,
    approximately those that it has not read. -1 if that is unknown."""
    if not _IS_LINUX:
        return -1
    try:
        size: int = struct.unpack("i", fcntl.ioctl(fileno, termios.TIOCOUTQ, b"\0\0\0\0"))[0]
    except OSError:
        return -1
    return size


def _acknowledged(sock: Any) -> int:
    """Bytes that the peer has acknowledged since it connected; -1 if that is unknown."""
    if not _IS_LINUX:
        return -1
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO_SIZE)
    except OSError:
        return -1
    if len(info) < _INFO_SIZE:  # before Linux 4.1
        return -1
    size: int = struct.unpack_from("=Q", info, _BYTES_ACKED)[0]
    return size


class Delivery:
    """What ``sock``, a connected socket, had in the kernel when this was made."""

    __slots__ = ("_acknowledged", "_end", "_sock")

    def __init__(self, sock: Any, fileno: int) -> None:
        self._sock = sock
        # In this order: an acknowledgement in between must not make it look like more.
        self._acknowledged = _acknowledged(sock)
        self._end = self._acknowledged + max(0, unacknowledged(fileno))

    def has_progressed(self) -> bool:
        """Whether some of it was acknowledged since the last call."""
        before = self._acknowledged
        if before < self._end:
            self._acknowledged = _acknowledged(self._sock)
        return self._acknowledged > before
