"""Checks the arguments of the methods of ``Room`` and ``greenws.Sender`` before a broker gets them.
Imports no gevent."""

from __future__ import annotations

import json
from typing import Any

from .. import checks
from ..checks import wrong_message
from .presence import Presence

__all__ = ["check_close", "check_count", "check_name", "check_redis", "member_id", "message"]


def check_name(name: Any) -> None:
    """
    Raises:
        TypeError: it is not a str.
        UnicodeEncodeError: UTF-8 cannot encode it.
    """
    if not isinstance(name, str):
        raise TypeError(f"a room name must be a str, not {name!r}")
    name.encode()  # brokers use UTF-8


def check_redis(error: ImportError) -> None:
    """``error``: why the modules for Redis cannot be imported.

    Raises:
        ImportError: redis-py is missing, or too old.
    """
    if (error.name or "").partition(".")[0] == "redis":
        text = f"{error}; pip install redis (or 'greenws-wsgi[redis]')"
        raise ImportError(text, name=error.name) from None


def check_count(count: Any) -> None:
    """
    Raises:
        TypeError: it is not an int.
    """
    if isinstance(count, bool) or not isinstance(count, int):
        raise TypeError(f"count must be a number of messages, not {count!r}")


def message(data: Any) -> str | bytes:
    """What is sent for ``data``: text, bytes, or a dict, which is sent as the text of its JSON.

    Raises:
        TypeError: it is none of these, or JSON cannot hold a part of it.
        UnicodeEncodeError: UTF-8 cannot encode it.
        ValueError: JSON cannot hold a number in it, such as NaN.
    """
    if isinstance(data, dict):
        data = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    if isinstance(data, str):
        data.encode()
        return data
    try:
        return bytes(memoryview(data))
    except TypeError:
        raise wrong_message(data) from None


def check_close(code: int, reason: str) -> None:
    """
    Raises:
        TypeError: ``code`` is not an int, or ``reason`` not a str.
        ValueError: ``code`` may not be sent, or ``reason`` is longer than 123 bytes.
    """
    checks.check_close(code, reason)
    checks.check_sendable(code, reason)


def member_id(member: Any) -> str | None:
    """The id of the member to disconnect; None for all.

    Raises:
        TypeError: it is not a presence, str or int.
        ValueError: it is empty, or has a line break.
    """
    if member is None:
        return None
    if isinstance(member, Presence):
        member = member.id
    if isinstance(member, bool) or not isinstance(member, str | int):
        raise TypeError(f"member must be a member, a presence, an id or None, not {member!r}")
    text = str(member)
    text.encode()
    if text == "" or "\n" in text:
        raise ValueError(f"member is {text!r}: give the id of a member, or None to disconnect all")
    return text
