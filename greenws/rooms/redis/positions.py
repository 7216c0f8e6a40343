"""Positions in the log of a room: a stream id, and what was received *unlogged*.

While Redis is out of reach, a process delivers what it sends to its own members at once, before the
log has it. So a position has more than a stream id: for each such process (its *origin*), the
number of its last entry that was received unlogged, as in ``17-0+ab12cd34ef56.5``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from ..broker import LONGEST_POSITION

__all__ = ["Position", "order"]

_MAX_ORIGINS = 16
_TOO_MANY = "too-many"  # cannot be an origin
_ORIGIN = re.compile("[0-9a-f]{12}")


@dataclass
class Position:
    """``id``: a stream id; ``unlogged``: numbers by origin."""

    id: str
    unlogged: dict[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        """With more processes than fit, the text is not a valid position: the client then gets a
        gap, and no message twice."""
        unlogged = (f"{origin}.{number}" for origin, number in self.unlogged.items())
        text = "+".join([self.id, *unlogged])
        return text if len(text) <= LONGEST_POSITION else f"{self.id}+{_TOO_MANY}"

    @classmethod
    def parse(cls, text: str) -> Position:
        """
        Raises:
            ValueError: ``text`` is not a position that a broker can have made.
        """
        if len(text) > LONGEST_POSITION:
            raise ValueError(f"not a position: {text[:100]!r}...")
        id_, *rest = text.replace(" ", "+").split("+")  # from a URL in which "+" was not escaped
        time, dash, count = id_.partition("-")
        if not (dash and _is_number(time) and _is_number(count)) or len(rest) > _MAX_ORIGINS:
            raise ValueError(f"not a position: {text[:100]!r}")
        unlogged = {}
        for part in rest:
            origin, dot, number = part.partition(".")
            if not (_ORIGIN.fullmatch(origin) and _is_number(number)):
                raise ValueError(f"not a position: {text[:100]!r}")
            unlogged[origin] = int(number)
        return cls(id_, unlogged)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 20 and int(text) < 2**64


def order(id_: str | bytes) -> tuple[int, int]:
    """The sort key of a stream id."""
    text = id_.decode() if isinstance(id_, bytes) else id_
    time, _, count = text.partition("-")
    return int(time), int(count)
