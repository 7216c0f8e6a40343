"""Sending a member what it has missed, at the client's own pace."""

from __future__ import annotations

from ..protocol.shared import SharedMessage
from .broker import Replay
from .fanout import FanOut
from .member import Member
from .turns import end_if_over

__all__ = ["send_missed", "send_tail"]


def send_missed(member: Member, replay: Replay, fan_out: FanOut) -> None:
    """Sends the pages of a replay, the member's ``gap`` before each of which messages are missing,
    and then what was delivered meanwhile. The member's own pace is the limit: sends block.

    Raises:
        ConnectionClosed: the client is gone.
    """
    send = member.socket.send
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
            end_if_over()
    _end(member)


def send_tail(member: Member, tail: list[tuple[str, SharedMessage]], fan_out: FanOut) -> None:
    """As :func:`send_missed`, for messages that others want too, encoded once for all.

    Raises:
        ConnectionClosed: the client is gone.
    """
    socket = member.socket
    for _, message in tail:
        fan_out.stats.delivered += 1
        if not socket.is_connected or not socket.offer(message):
            socket.send(message.data)
        end_if_over()
    _end(member)


def _end(member: Member) -> None:
    """Sends what was delivered meanwhile."""
    send = member.socket.send
    while (waiting := member.next_waiting()) is not None:
        send(waiting)
        end_if_over()
    member.end_replay()
