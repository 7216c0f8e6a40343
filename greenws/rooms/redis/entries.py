"""Entries of a room's log, as they are stored in Redis."""

from __future__ import annotations

import itertools
import logging
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from ...websocket import WebSocket

__all__ = ["BYTES", "TEXT", "LogEntry", "parse"]

TEXT = "text"
BYTES = "bytes"

_FORMER_KINDS = ("join", "leave")  # of the first form, whose logs held presence too

_logger = logging.getLogger("greenws.brokers.redis")


class LogEntry(NamedTuple):
    """``id``: its stream id; None while it is unlogged. ``origin``, ``number``: the process that
    sent it, and a count of all that this process sent. ``exclude``: the socket that does not get
    it, known in that process alone."""

    id: str | None
    origin: str
    number: int
    data: str | bytes
    exclude: WebSocket | None = None

    @property
    def kind(self) -> str:
        return TEXT if isinstance(self.data, str) else BYTES


def parse(room: str, id_: bytes, fields: dict[bytes, bytes]) -> LogEntry | None:
    """The entry of a stream; None if it is not a message. One that another program wrote is
    logged."""
    try:
        kind = fields[b"k"].decode()
        if kind in _FORMER_KINDS:
            return None
        data: str | bytes = fields[b"d"]
        if kind == TEXT:
            data = fields[b"d"].decode()
        elif kind != BYTES:
            raise ValueError(f"no kind of message: {kind[:100]!r}")
        return LogEntry(id_.decode(), fields[b"o"].decode("ascii"), int(fields[b"n"]), data)
    except (KeyError, ValueError) as error:
        _logger.warning(
            "ignoring a malformed entry in the log of room %r: %s %r: %r",
            room,
            id_,
            dict(itertools.islice(fields.items(), 8)) if fields else fields,
            error,
        )
        return None
