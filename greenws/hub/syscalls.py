"""The system calls on the path of a message, on non-blocking sockets.

Each returns what the kernel does, or WOULD_BLOCK, and raises OSError. The compiled modules get
them as C from ``_syscalls.h``, without the detour through a socket's methods.
"""

from __future__ import annotations

import os
import select
from typing import Any

from gevent.monkey import get_original

__all__ = [
    "AVAILABLE",
    "WOULD_BLOCK",
    "event_ends",
    "event_fd",
    "is_lost",
    "new_events",
    "readable",
    "receive",
    "send",
    "send_both",
    "send_start",
    "wait",
]

WOULD_BLOCK = -1

AVAILABLE = hasattr(os, "readv")
"""Whether a socket's descriptor is a file's, as on Unix."""

_poll = get_original("select", "poll")


def receive(fileno: int, buffer: bytearray) -> int:
    """Fills ``buffer`` from its start; the number of bytes, 0 at the end of the stream."""
    try:
        return os.readv(fileno, (buffer,))
    except BlockingIOError:
        return WOULD_BLOCK


def readable(fileno: int) -> bool:
    """Whether a read would not block: there is input, or the end of it."""
    inquiry = _poll()
    inquiry.register(fileno, select.POLLIN)
    return bool(inquiry.poll(0))


def is_lost(fileno: int) -> bool:
    """Whether the connection was reset, or both of its halves are closed."""
    inquiry = _poll()
    inquiry.register(fileno, 0)
    return bool(inquiry.poll(0))


def send_start(fileno: int, buffer: bytearray, size: int) -> int:
    """Sends of the first ``size`` bytes of ``buffer`` as many as the kernel takes."""
    try:
        with memoryview(buffer) as view, view[:size] as start:
            return os.write(fileno, start)
    except BlockingIOError:
        return WOULD_BLOCK


def send(fileno: int, data: bytes) -> int:
    """Sends of ``data`` as many bytes as the kernel takes."""
    try:
        return os.write(fileno, data)
    except BlockingIOError:
        return WOULD_BLOCK


def send_both(fileno: int, header: bytes, payload: bytes) -> int:
    """:func:`send` for two pieces in one call."""
    try:
        return os.writev(fileno, (header, payload))
    except BlockingIOError:
        return WOULD_BLOCK


def new_events(count: int) -> Any:
    """Room for the events of one :func:`wait`."""
    return []


def wait(epoll: Any, fileno: int, events: Any, count: int) -> int:
    """Takes up to ``count`` events that are there, without waiting, and says how many."""
    events[:] = epoll.poll(0, count)
    return len(events)


def event_fd(events: Any, index: int) -> int:
    """The descriptor of an event."""
    return int(events[index][0])


def event_ends(events: Any, index: int) -> bool:
    """Whether the peer has ended its stream, or the connection is lost."""
    return bool(events[index][1] & (select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR))
