"""Sending a member what it has missed, at the client's own pace."""

from __future__ import annotations

from itertools import islice

from gevent.event import Event

from ..protocol.shared import SharedBatch, SharedMessage
from ..websocket import WebSocket
from . import turns
from .broker import Replay
from .fanout import FanOut
from .member import Member

__all__ = ["send_missed", "send_tail"]

_MAX_UNSENT = 2**17  # bytes that wait for a client that is sent what it missed
_BATCH, _BATCH_BYTES = 64, 2**14  # messages, and bytes, from which on one system call sends them


def send_missed(member: Member, replay: Replay, fan_out: FanOut) -> None:
    """Sends the pages of a replay, with the member's ``gap`` before each page that messages are
    missing before, and then what was delivered since. Blocks as the client's pace requires.

    Raises:
        ConnectionClosed: the client is gone.
    """
    socket, pace = member.socket, _Pace(member.socket)
    for page in replay.pages():
        if page.gap:
            member.is_complete = False
            if member.gap is not None:
                socket.send(member.gap)
        ready: list[SharedMessage] = []
        size = 0
        for position, data in page.messages:
            stamped = fan_out.stamped_or_skipped(position, data)
            if stamped is None:
                continue
            ready.append(SharedMessage(stamped))
            size += len(stamped)
            is_over = turns.is_over()
            if is_over or size >= _BATCH_BYTES or len(ready) >= _BATCH:
                _send_pages(socket, ready, fan_out)
                pace.keep(size)
                ready, size = [], 0
            if is_over:
                turns.end(in_queue=True)
        if ready:
            _send_pages(socket, ready, fan_out)
            pace.keep(size)
    _end(member, pace)


def _send_pages(socket: WebSocket, messages: list[SharedMessage], fan_out: FanOut) -> None:
    """Sends messages that only this client gets, in one system call."""
    fan_out.stats.delivered += len(messages)
    *first, last = messages
    if first and not socket._offer(SharedBatch(first), hold=True):
        for each in first:
            socket.send(each.data)
    socket.send(last.data)  # which also looks whether the client is still there


def send_tail(member: Member, tail: list[tuple[str, SharedMessage]], fan_out: FanOut) -> None:
    """Like :func:`send_missed`, for messages of the tail, which are encoded once for all members.

    Raises:
        ConnectionClosed: the client is gone.
    """
    socket, pace = member.socket, _Pace(member.socket)
    start = 0
    while start < len(tail):
        ready: list[SharedMessage] = []
        size = 0
        for _, message in islice(tail, start, start + _BATCH):
            ready.append(message)
            size += len(message.data)
            if size >= _BATCH_BYTES:
                break
        start += len(ready)
        fan_out.stats.delivered += len(ready)
        batch = ready[0] if len(ready) == 1 else SharedBatch(ready)
        if not socket.is_connected or not socket._offer(batch):
            for message in ready:
                socket.send(message.data)
        pace.keep(size)
        turns.end_if_over(in_queue=True)
    _end(member, pace)


def _end(member: Member, pace: _Pace) -> None:
    """Sends what was delivered during the replay."""
    send = member.socket.send
    while (waiting := member._next_waiting()) is not None:
        send(waiting)
        pace.keep(len(waiting))
        turns.end_if_over(in_queue=True)
    member._end_replay()


class _Pace:
    """Blocks while ``_MAX_UNSENT`` bytes wait for the client. Sends alone would go on up to
    ``write_high_water``: too much memory when many clients come back and do not read."""

    def __init__(self, socket: WebSocket) -> None:
        self._socket = socket
        self._unsent = 0  # bytes at most, since nothing waited

    def keep(self, size: int) -> None:
        """Counts ``size`` bytes, which were sent."""
        socket = self._socket
        if not socket._has_backlog or socket._is_in_other_thread():
            self._unsent = 0
            return
        self._unsent += size
        if self._unsent > _MAX_UNSENT:
            is_ready = Event()
            socket._when_ready(is_ready.set)  # or the connection is lost, as the next send says
            is_ready.wait()
            self._unsent = 0
