"""Presence: who is in a room, in whichever process, and telling the members that want to know."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

from .broker import JOIN, LEAVE

if TYPE_CHECKING:
    from .member import Member

__all__ = ["Change", "Presence", "Roster", "Watch"]

PresenceFormat = Callable[..., "str | bytes | None"]


class Presence(NamedTuple):
    """Who is in a room, in whichever process: a member's id, and the info it joined with."""

    id: str
    info: dict[str, Any]


class Change(NamedTuple):
    """A member that comes (JOIN) or goes (LEAVE)."""

    kind: str
    who: Presence


class Watch(NamedTuple):
    """What makes the message that tells a member of a change. ``takes_id``: it is called with the
    kind, the id and the info; as an older form without the id."""

    function: PresenceFormat
    takes_id: bool

    @classmethod
    def of(cls, function: Any) -> Watch:
        """
        Raises:
            TypeError: it takes neither three arguments nor two.
        """
        if callable(function):
            for count in (3, 2):
                try:
                    inspect.signature(function).bind(*[None] * count)
                except TypeError:
                    continue
                except ValueError:  # as of some that are written in C
                    pass
                return cls(function, count == 3)
        raise TypeError(f"presence is a function of a kind, an id and an info, not {function!r}")

    def __call__(self, change: Change) -> str | bytes | None:
        kind, (key, info) = change
        return self.function(kind, key, info) if self.takes_id else self.function(kind, info)


class Roster:
    """Who is in one room: the members of this process as they come and go, those of others as the
    broker tells. Both change at once; a change that makes no difference is none."""

    def __init__(self) -> None:
        self._here: dict[str, Presence] = {}
        self._elsewhere: dict[str, Presence] = {}
        self._watchers: dict[Member, Watch] = {}

    def open(self, others: dict[str, dict[str, Any]]) -> None:
        self._elsewhere = {key: Presence(key, info) for key, info in others.items()}

    def close(self) -> None:
        self._elsewhere = {}

    def join(self, member: Member, watch: Watch | None) -> Change:
        who = self._here[member.id] = Presence(member.id, member.info)
        if watch is not None:
            self._watchers[member] = watch
        return Change(JOIN, who)

    def leave(self, member: Member) -> Change:
        self.stop_telling(member)
        return Change(LEAVE, self._here.pop(member.id))

    def stop_telling(self, member: Member) -> None:
        self._watchers.pop(member, None)

    def change(self, kind: str, key: str, info: dict[str, Any]) -> Change | None:
        """A member of another process."""
        known = self._elsewhere.get(key)
        if key in self._here or (known is None) != (kind == JOIN):
            return None
        if known is not None:
            del self._elsewhere[key]
            return Change(LEAVE, known)
        who = self._elsewhere[key] = Presence(key, info)
        return Change(JOIN, who)

    def everybody(self) -> list[Presence]:
        return [*self._elsewhere.values(), *self._here.values()]

    def askers(self, change: Change) -> Iterable[tuple[Watch, list[Member]]]:
        """Who is to be told of a change, by what makes the message."""
        found: dict[Watch, list[Member]] = {}
        for member, watch in self._watchers.items():
            if member.id != change.who.id:
                found.setdefault(watch, []).append(member)
        return found.items()
