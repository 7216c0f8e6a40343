"""Names of keys and channels. All begin with a prefix, for an ACL.

In a cluster, all keys of a room share its name as their hash tag. Braces in it are escaped, as
``%7B`` and ``%7D``, and so is ``%``; a room without a name is ``%``.
"""

from __future__ import annotations

from redis.crc import key_slot

__all__ = ["Keys", "slot_of"]

_ESCAPES = {"%": "%25", "{": "%7B", "}": "%7D"}
_ESCAPE = str.maketrans(_ESCAPES)


def _escape(room: str) -> str:
    if "{" in room or "}" in room or "%" in room:  # translate() is slow, and this is done often
        return room.translate(_ESCAPE)
    return room or "%"


def _tag(room: str) -> str:
    return f"{{{_escape(room)}}}"


def _room(tag: str) -> str:
    name = tag[1:-1]
    if name == "%":
        return ""
    for character in reversed(_ESCAPES):
        name = name.replace(_ESCAPES[character], character)
    return name


def slot_of(key: str) -> int:
    """The slot of a key in a cluster."""
    return int(key_slot(key.encode()))


class Keys:
    """``database``: its number, since channels are shared by all databases of a Redis.

    Raises:
        ValueError: ``prefix`` cannot be that of a cluster.
    """

    def __init__(self, prefix: str, database: int, is_cluster: bool = False) -> None:
        if is_cluster and set("{}") & set(prefix):
            raise ValueError(f"prefix must not contain braces in a cluster: {prefix!r}")
        self._prefix = prefix
        self.is_cluster = is_cluster
        self.suffix = f"@{database}"
        self.publish = "SPUBLISH" if is_cluster else "PUBLISH"
        self.subscribe = "SSUBSCRIBE" if is_cluster else "SUBSCRIBE"
        self.unsubscribe = "SUNSUBSCRIBE" if is_cluster else "UNSUBSCRIBE"
        self.alive_prefix = f"{prefix}alive:"
        self.script_alive_prefix = "" if is_cluster else self.alive_prefix
        """For scripts; empty in a cluster, where they may use keys of one slot only."""

    def log(self, room: str) -> str:
        return f"{self._prefix}room:{_tag(room) if self.is_cluster else room}"

    def members(self, room: str) -> str:
        return f"{self._prefix}here:{_tag(room) if self.is_cluster else room}"

    def last_number(self, origin: str, room: str) -> str:
        """The key of the number of a process's last appended entry; in a cluster, in that room."""
        return f"{self._prefix}from:{origin}{':' + _tag(room) if self.is_cluster else ''}"

    def alive(self, origin: str) -> str:
        return f"{self.alive_prefix}{origin}"

    def probe(self, number: int) -> str:
        """A key for checking whether a node accepts writes; each number may be in another slot."""
        return f"{self._prefix}probe:{number}"

    def channel(self, room: str) -> str:
        return self.log(room) + self.suffix

    def room_of(self, channel: bytes) -> str:
        start = len(self._prefix) + len("room:")
        name = channel.decode()[start : -len(self.suffix)]
        return _room(name) if self.is_cluster else name

    def slot(self, room: str) -> int:
        return slot_of(_escape(room))
