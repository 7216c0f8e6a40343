"""``Joining``: what ``room.join()`` returns. A socket is a member for a ``with`` block, so a call
alone does nothing; whoever forgets the ``with`` is told so."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager
from types import TracebackType
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from .member import Member

__all__ = ["Joining"]

_logger = logging.getLogger("greenws.rooms")


class Joining(AbstractContextManager["Member"]):
    """``block``: what joins and leaves."""

    _has_begun = False

    def __init__(self, room: str, block: AbstractContextManager[Member]) -> None:
        self._room = room
        self._block = block

    def __enter__(self) -> Member:
        self._has_begun = True
        return self._block.__enter__()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        return self._block.__exit__(kind, error, traceback)

    def __getattr__(self, name: str) -> NoReturn:
        raise AttributeError(
            f"what room.join() returns has no {name}: it is a member that has, in a block that "
            "begins with `with room.join(socket) as member:`"
        )

    def __del__(self) -> None:
        if not self._has_begun:
            _logger.error(
                "nobody has joined the room %r: room.join() was called without 'with'", self._room
            )
