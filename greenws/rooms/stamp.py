"""Stamps: functions that make the message for members, from its position in the log and the data
sent to the room. Imports no gevent."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["check", "json_id"]

Stamp = Callable[[str, "str | bytes"], "str | bytes"]


def json_id(position: str, data: str | bytes) -> str | bytes:
    """A ``stamp`` for :class:`Rooms` whose messages are JSON objects: puts ``"id"`` before their
    other keys, so that they cannot have an ``"id"`` of their own.

    Raises:
        ValueError: ``data`` is not the text of a JSON object.
    """
    if not isinstance(data, str) or not data.startswith("{"):
        raise ValueError(f"with stamp=json_id a message is a JSON object, not {data[:100]!r}")
    rest = data[1:].lstrip()
    return f'{{"id":"{position}"{"" if rest.startswith("}") else ","}{rest}'


def check(stamp: Any) -> None:
    """
    Raises:
        TypeError: it is neither None nor a function.
    """
    if stamp is not None and not callable(stamp):
        raise TypeError(f"stamp is a function of an id and data, such as json_id, not {stamp!r}")
