"""Names of keys and channels. All begin with a prefix, for an ACL."""

from __future__ import annotations

__all__ = ["Keys"]


class Keys:
    """``database``: its number; channels have the same names in all databases of a Redis."""

    def __init__(self, prefix: str, database: int) -> None:
        self._prefix = prefix
        self.suffix = f"@{database}"
        self.alive_prefix = f"{prefix}alive:"

    def log(self, room: str) -> str:
        return f"{self._prefix}room:{room}"

    def members(self, room: str) -> str:
        return f"{self._prefix}here:{room}"

    def last_number(self, origin: str) -> str:
        """Of the last entry of a process that was appended."""
        return f"{self._prefix}from:{origin}"

    def alive(self, origin: str) -> str:
        return f"{self.alive_prefix}{origin}"

    def channel(self, room: str) -> str:
        return self.log(room) + self.suffix

    def room_of(self, channel: bytes) -> str:
        return channel.decode()[len(self.log("")) : -len(self.suffix)]
