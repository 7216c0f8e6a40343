"""Which of several Redis has a room: the one with the highest hash of its name and the room's
(rendezvous hashing). So all processes agree, whatever the order of their lists, and a Redis that is
added takes only its share of the rooms. Imports no gevent."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from .url import Address, check_url, parse

__all__ = ["Spread", "addresses_of"]


class Spread:
    def __init__(self, addresses: list[Address]) -> None:
        self._seeds = [hashlib.blake2b(each.name.encode(), digest_size=32) for each in addresses]

    def index(self, room: str) -> int:
        """The index of the Redis that has a room."""
        if len(self._seeds) == 1:
            return 0
        encoded = b"\0" + room.encode()

        def weight(index: int) -> bytes:
            copied = self._seeds[index].copy()
            copied.update(encoded)
            return copied.digest()

        return max(range(len(self._seeds)), key=weight)


def addresses_of(url: Any) -> list[tuple[str, Address]]:
    """Parses ``url``, one or several. Connects to nothing.

    Raises:
        TypeError: it is neither a str nor a list of them.
        ValueError: one is invalid, or is listed twice.
    """
    listed: list[Any] = [url]
    if isinstance(url, Sequence) and not isinstance(url, (str, bytes)):
        listed = list(url)
    if not listed or not all(isinstance(each, str) for each in listed):
        raise TypeError(
            "url must be that of a Redis, such as 'redis://localhost', or a list of some, not "
            f"{url!r}"
        )
    for each in listed:
        check_url(each)
    addresses = [parse(each) for each in listed]
    names = [each.name for each in addresses]
    if len(set(names)) < len(names):
        raise ValueError(f"a Redis is listed twice: {', '.join(names)}")
    return list(zip(listed, addresses, strict=True))
