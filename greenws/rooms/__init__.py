"""Rooms: groups of sockets that get the same messages in the same order."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy import export as _export

if TYPE_CHECKING:
    from .member import Member
    from .presence import Presence
    from .room import Room, Rooms, Stats
    from .stamp import json_id

__all__ = ["Member", "Presence", "Room", "Rooms", "Stats", "json_id"]

__getattr__, __dir__ = _export(
    __name__,
    {
        "Member": ".member",
        "Presence": ".presence",
        "Room": ".room",
        "Rooms": ".room",
        "Stats": ".room",
        "json_id": ".stamp",
    },
)
