"""Presence: who is in a room, in all processes, and the changes that watchers are sent."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from ..checks import describe
from .broker import JOIN, LEAVE

if TYPE_CHECKING:
    from .member import Member

__all__ = ["Change", "Presence", "Roster", "Watch", "id_of", "pack", "unpack_all"]

PresenceFormat = Callable[..., "str | bytes | dict[str, Any] | None"]


class Presence(NamedTuple):
    """Somebody in a room, in any process: a member's id, and the info that it joined with. Members
    with the same ``presence_key`` are one, with the key as id and the info of one of them."""

    id: str
    info: dict[str, Any]


class Change(NamedTuple):
    """A member joins (JOIN) or leaves (LEAVE)."""

    kind: str
    who: Presence


class Watch(NamedTuple):
    """The function that makes the message about a change. ``takes_id``: it is called with the kind,
    the id and the info; the older form gets no id."""

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
            raise TypeError(
                "presence is called with three arguments, (kind, id, info), and "
                f"{describe(function)} does not take them"
            )
        raise TypeError(f"presence must be a function (kind, id, info), not {function!r}")

    def __call__(self, change: Change) -> str | bytes | dict[str, Any] | None:
        kind, (key, info) = change
        return self.function(kind, key, info) if self.takes_id else self.function(kind, info)


_KEY = ""  # the name of the presence_key among those of an info, for the broker


def id_of(key: Any) -> str:
    """A ``presence_key`` as an id.

    Raises:
        TypeError: it is neither str nor int.
        ValueError: it is empty, or has a line break.
        UnicodeEncodeError: UTF-8 cannot encode it.
    """
    if isinstance(key, bool) or not isinstance(key, str | int):
        raise TypeError(f"presence_key must be a str or an int, not {key!r}")
    if key == "":
        raise ValueError("presence_key is empty: give the id of the user, or None")
    text = str(key)
    text.encode()
    if "\n" in text:
        raise ValueError(f"presence_key must not contain a line break: {text!r}")
    return text


def pack(member: Member) -> dict[str, Any]:
    """A member's info and key, as a broker carries them."""
    return member.info if member.token == member.id else {_KEY: member.id, **member.info}


def unpack(token: str, packed: dict[str, Any]) -> Presence:
    key = packed.get(_KEY)
    if not isinstance(key, str):
        return Presence(token, packed)
    return Presence(key, {name: value for name, value in packed.items() if name != _KEY})


def unpack_all(packed: dict[str, dict[str, Any]]) -> list[Presence]:
    """The presences of the members that a broker returned, each id once."""
    found: dict[str, Presence] = {}
    for token, each in packed.items():
        who = unpack(token, each)
        found.setdefault(who.id, who)
    return list(found.values())


class Roster:
    """Who is in one room: the members of this process, and those of others as the broker reports
    them. A change of members that does not change who is there returns None.

    Members with the same ``presence_key`` are one, which joins with the first of them, and that
    one's info, and leaves with the last.
    """

    def __init__(self) -> None:
        self._here: dict[str, Presence] = {}  # by the token of each member
        self._elsewhere: dict[str, Presence] = {}
        self._everybody: dict[str, Presence] = {}  # by id
        self._counts: dict[str, int] = {}  # members, of those ids that have several
        self._watchers: dict[Member, Watch] = {}

    def open(self, others: dict[str, dict[str, Any]]) -> None:
        for token, packed in others.items():
            who = self._elsewhere[token] = unpack(token, packed)
            self._add(who)

    def close(self) -> None:
        for who in self._elsewhere.values():
            self._remove(who)
        self._elsewhere = {}

    def join(self, member: Member, watch: Watch | None) -> Change | None:
        who = self._here[member.token] = Presence(member.id, member.info)
        if watch is not None:
            self._watchers[member] = watch
        return self._add(who)

    def leave(self, member: Member) -> Change | None:
        self.stop_watching(member)
        return self._remove(self._here.pop(member.token))

    def stop_watching(self, member: Member) -> None:
        self._watchers.pop(member, None)

    def change(self, kind: str, token: str, packed: dict[str, Any]) -> Change | None:
        """A member of another process joins or leaves."""
        known = self._elsewhere.get(token)
        if token in self._here or (known is None) != (kind == JOIN):
            return None
        if known is not None:
            del self._elsewhere[token]
            return self._remove(known)
        who = self._elsewhere[token] = unpack(token, packed)
        return self._add(who)

    def _add(self, who: Presence) -> Change | None:
        if who.id in self._everybody:
            self._counts[who.id] = self._counts.get(who.id, 1) + 1
            return None
        self._everybody[who.id] = who
        return Change(JOIN, who)

    def _remove(self, who: Presence) -> Change | None:
        count = self._counts.pop(who.id, 1) - 1
        if count > 1:
            self._counts[who.id] = count
        return None if count else Change(LEAVE, self._everybody.pop(who.id))

    def everybody(self) -> list[Presence]:
        return list(self._everybody.values())

    @property
    def watching(self) -> int:
        """The number of watchers: members that are sent changes of presence."""
        return len(self._watchers)

    def watchers(self) -> dict[Watch, list[Member]]:
        """The watchers, by the function that makes their messages."""
        found: dict[Watch, list[Member]] = {}
        for member, watch in self._watchers.items():
            found.setdefault(watch, []).append(member)
        return found
