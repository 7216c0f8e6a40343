"""What carries rooms between processes: the names to import. The code is in ``greenws.rooms``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy import export as _export

if TYPE_CHECKING:
    from ..rooms.broker import Broker, BrokerUnavailable

__all__ = ["Broker", "BrokerUnavailable"]

__getattr__, __dir__ = _export(
    __name__, {"Broker": "..rooms.broker", "BrokerUnavailable": "..rooms.broker"}
)
