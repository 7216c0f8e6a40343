"""Entries of a room's log, as they stand in Redis."""

from __future__ import annotations

import itertools
import json
import logging
from typing import TYPE_CHECKING, NamedTuple

from ..broker import JOIN, LEAVE

if TYPE_CHECKING:
    from ...websocket import WebSocket

__all__ = ["BURIAL", "BYTES", "TEXT", "LogEntry", "parse"]

TEXT = "text"
BYTES = "bytes"
BURIAL = "burial"  # the leave of a member whose process died, told by another

_logger = logging.getLogger("greenws.brokers.redis")


class LogEntry(NamedTuple):
    """``id``: its stream id; None while it is unlogged. ``origin``, ``number``: the process that
    sent it, and a count of all that this process sent. ``member``: whose JOIN or LEAVE it is;
    ``data`` is its info as JSON then. ``exclude``: the socket that does not get it."""

    id: str | None
    origin: str
    number: int
    kind: str
    data: str | bytes
    member: str = ""
    exclude: WebSocket | None = None

    @property
    def is_message(self) -> bool:
        return self.kind in (TEXT, BYTES)


def parse(room: str, id_: bytes, fields: dict[bytes, bytes]) -> LogEntry | None:
    """None, and a warning in the log, if another program wrote it."""
    try:
        kind = fields[b"k"].decode()
        data: str | bytes = fields[b"d"]
        if kind not in (TEXT, BYTES, JOIN, LEAVE):
            raise ValueError("no kind")
        if kind != BYTES:
            data = fields[b"d"].decode()
        if kind in (JOIN, LEAVE) and not isinstance(json.loads(data), dict):
            raise ValueError("no info")
        return LogEntry(
            id_.decode(),
            fields[b"o"].decode("ascii"),
            int(fields[b"n"]),
            kind,
            data,
            fields[b"m"].decode(),
        )
    except (KeyError, ValueError, RecursionError, TypeError) as error:
        _logger.warning(
            "ignoring a malformed entry in the log of room %r: %s %r: %r",
            room,
            id_,
            dict(itertools.islice(fields.items(), 8)) if fields else fields,
            error,
        )
        return None
