"""What carries rooms between processes: the names to import. The code is in ``greenws.rooms``.

``Broker`` is the interface; the other names are what a broker of your own hands over or gets.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy import export as _export

if TYPE_CHECKING:
    from ..rooms.broker import (
        Broker,
        BrokerUnavailable,
        Cursor,
        Entry,
        Listener,
        Message,
        Page,
        Replay,
    )

__all__ = [
    "Broker",
    "BrokerUnavailable",
    "Cursor",
    "Entry",
    "Listener",
    "Message",
    "Page",
    "Replay",
]

__getattr__, __dir__ = _export(__name__, dict.fromkeys(__all__, "..rooms.broker"))
