"""The system calls on the path of a message, on non-blocking sockets.

Each returns what the kernel returns, or WOULD_BLOCK, and raises OSError. Compiled modules use the C
functions of ``_syscalls.h`` instead, which do without a socket's methods.
"""

from __future__ import annotations

import _socket
import os
import select
import time
from typing import Any

from gevent.monkey import get_original

from . import delivery

__all__ = [
    "AVAILABLE",
    "ENDS_WAITS",
    "WOULD_BLOCK",
    "accept",
    "clock",
    "close",
    "event_fd",
    "event_hung_up",
    "is_lost",
    "new_events",
    "readable",
    "receive",
    "send",
    "send_both",
    "send_prefix",
    "send_view",
    "shut_down",
    "take_events",
    "unacknowledged",
    "wait_readable",
    "watch",
    "writable",
]

WOULD_BLOCK = -1

AVAILABLE = hasattr(os, "readv")
"""Whether file functions work on a socket's descriptor, as on Unix."""

ENDS_WAITS = False
"""Whether a signal ends :func:`wait_readable` before its handler runs. Python's own calls run it,
and wait on (PEP 475)."""

_poll = get_original("select", "poll")
_close = get_original("os", "close")  # gevent's closes a socket only when its loop runs


def clock() -> int:
    """Nanoseconds of the monotonic clock."""
    return time.monotonic_ns()


def receive(fileno: int, buffer: bytearray) -> int:
    """Receives into ``buffer``, from its start; returns the number of bytes, 0 at the end of the
    stream."""
    try:
        return os.readv(fileno, (buffer,))
    except BlockingIOError:
        return WOULD_BLOCK


def readable(fileno: int) -> bool:
    """Whether a read would not block, because of input or the end of the stream."""
    return wait_readable(fileno, 0)


def wait_readable(fileno: int, milliseconds: int) -> bool:
    """Waits, in this thread, until there is input, or the end of the stream. May be False too
    early: after a signal, for example."""
    query = _poll()
    query.register(fileno, select.POLLIN)
    return bool(query.poll(milliseconds))


def writable(fileno: int) -> bool:
    """Whether a small write would not block."""
    query = _poll()
    query.register(fileno, select.POLLOUT)
    return bool(query.poll(0))


def is_lost(fileno: int) -> bool:
    """Whether the connection was reset, or both of its halves are closed."""
    query = _poll()
    query.register(fileno, 0)
    return bool(query.poll(0))


def send_prefix(fileno: int, buffer: bytearray, size: int) -> int:
    """Sends the first ``size`` bytes of ``buffer``; returns how many the kernel took."""
    try:
        with memoryview(buffer) as view, view[:size] as prefix:
            return os.write(fileno, prefix)
    except BlockingIOError:
        return WOULD_BLOCK


def send(fileno: int, data: bytes) -> int:
    """Sends ``data``; returns how many bytes the kernel took."""
    try:
        return os.write(fileno, data)
    except BlockingIOError:
        return WOULD_BLOCK


def send_view(fileno: int, data: bytes | bytearray | memoryview) -> int:
    """:func:`send` for any bytes-like object."""
    try:
        return os.write(fileno, data)
    except BlockingIOError:
        return WOULD_BLOCK


def send_both(fileno: int, header: bytes, payload: bytes | memoryview) -> int:
    """Like :func:`send`, for two pieces in one system call."""
    try:
        return os.writev(fileno, (header, payload))
    except BlockingIOError:
        return WOULD_BLOCK


def accept(listener: int) -> tuple[int, Any] | None:
    """Accepts a TCP connection; returns its descriptor, which does not block, and its address. None
    if there is none."""
    sock = _socket.socket(fileno=listener)
    try:
        fileno, address = sock._accept()  # type: ignore[attr-defined]
        accepted = _socket.socket(sock.family, sock.type, sock.proto, fileno)
    except BlockingIOError:
        return None
    finally:
        sock.detach()
    accepted.setsockopt(_socket.IPPROTO_TCP, _socket.TCP_NODELAY, 1)
    accepted.setblocking(False)
    return accepted.detach(), address


def shut_down(fileno: int) -> None:
    """Ends our half of a connection."""
    sock = _socket.socket(fileno=fileno)
    try:
        sock.shutdown(_socket.SHUT_WR)
    finally:
        sock.detach()


def close(fileno: int) -> None:
    """Closes a descriptor."""
    _close(fileno)


def unacknowledged(fileno: int) -> int:
    """:func:`.delivery.unacknowledged`."""
    return delivery.unacknowledged(fileno)


def watch(epoll: Any, poll: int, fileno: int, mask: int) -> None:
    """Makes an epoll instance watch a descriptor."""
    try:
        epoll.register(fileno, mask)
    except FileExistsError:  # the descriptor's last socket is still open in another process
        epoll.modify(fileno, mask)


def new_events(count: int) -> Any:
    """An array for the ``count`` events of one :func:`take_events`."""
    return []


def take_events(epoll: Any, fileno: int, events: Any, count: int) -> int:
    """Takes up to ``count`` events, without waiting; returns how many there were."""
    events[:] = epoll.poll(0, count)
    return len(events)


def event_fd(events: Any, index: int) -> int:
    """The descriptor of the event at ``index``."""
    return int(events[index][0])


def event_hung_up(events: Any, index: int) -> bool:
    """Whether the peer has ended its stream, or the connection is lost."""
    return bool(events[index][1] & (select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR))
