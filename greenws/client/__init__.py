"""The client: ``connect()`` and ``reconnect()``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy import export as _export

if TYPE_CHECKING:
    from .exchange import Response
    from .opening import connect
    from .retrying import is_permanent, reconnect

__all__ = ["Response", "connect", "is_permanent", "reconnect"]

__getattr__, __dir__ = _export(
    __name__,
    {
        "Response": ".exchange",
        "connect": ".opening",
        "is_permanent": ".retrying",
        "reconnect": ".retrying",
    },
)
