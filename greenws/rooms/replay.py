"""Sending a member what it has missed, at the client's own pace."""

from __future__ import annotations

from gevent.event import Event

from ..protocol.shared import SharedMessage
from ..websocket import WebSocket
from .broker import Replay
from .fanout import FanOut
from .member import Member
from .turns import end_if_over

__all__ = ["send_missed", "send_tail"]

_MAX_UNSENT = 2**17  # bytes that wait for a client that is sent what it missed


def send_missed(member: Member, replay: Replay, fan_out: FanOut) -> None:
    """Sends the pages of a replay, the member's ``gap`` before each of which messages are missing,
    and then what was delivered meanwhile. The member's own pace is the limit: sends block.

    Raises:
        ConnectionClosed: the client is gone.
    """
    send, pace = member.socket.send, _Pace(member.socket)
    for page in replay.pages():
        if page.gap:
            member.is_complete = False
            if member.gap is not None:
                send(member.gap)
        for position, data in page.messages:
            stamped = fan_out.stamped_or_skipped(position, data)
            if stamped is not None:
                fan_out.stats.delivered += 1
                send(stamped)
                pace.keep(stamped)
            end_if_over()
    _end(member, pace)


def send_tail(member: Member, tail: list[tuple[str, SharedMessage]], fan_out: FanOut) -> None:
    """As :func:`send_missed`, for messages that others want too, encoded once for all.

    Raises:
        ConnectionClosed: the client is gone.
    """
    socket, pace = member.socket, _Pace(member.socket)
    for _, message in tail:
        fan_out.stats.delivered += 1
        if not socket.is_connected or not socket._offer(message):
            socket.send(message.data)
        pace.keep(message.data)
        end_if_over()
    _end(member, pace)


def _end(member: Member, pace: _Pace) -> None:
    """Sends what was delivered meanwhile."""
    send = member.socket.send
    while (waiting := member._next_waiting()) is not None:
        send(waiting)
        pace.keep(waiting)
        end_if_over()
    member._end_replay()


class _Pace:
    """Blocks while ``_MAX_UNSENT`` bytes wait for the client. A send would go on up to
    ``write_high_water``, and many that come back and do not read would have that much each."""

    def __init__(self, socket: WebSocket) -> None:
        self._socket = socket
        self._unsent = 0  # bytes at most, since nothing waited

    def keep(self, data: str | bytes) -> None:
        """``data`` was sent."""
        socket = self._socket
        if not socket._has_backlog or socket._is_in_other_thread():
            self._unsent = 0
            return
        self._unsent += len(data)
        if self._unsent > _MAX_UNSENT:
            is_ready = Event()
            socket._when_ready(is_ready.set)  # or the connection is lost, as the next send says
            is_ready.wait()
            self._unsent = 0
