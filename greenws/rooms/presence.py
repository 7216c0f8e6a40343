"""Presence: who is in a room, in all processes, and the changes that watchers are sent."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from types import FunctionType
from typing import TYPE_CHECKING, Any, NamedTuple

from ..checks import describe
from .broker import JOIN, LEAVE

if TYPE_CHECKING:
    from .member import Member

__all__ = ["Change", "Moment", "Presence", "Roster", "Watch", "id_of", "pack", "unpack_all"]

PresenceFormat = Callable[..., "str | bytes | dict[str, Any] | None"]


class Presence(NamedTuple):
    """Somebody in a room, in any process: a member's id, and the info that it joined with. Members
    with the same ``presence_key`` are one, with the key as id and the info of one of them."""

    id: str
    info: dict[str, Any]


class Change(NamedTuple):
    """A member joins (JOIN) or leaves (LEAVE). ``after``: who is there then; None if nobody
    watches."""

    kind: str
    who: Presence
    after: Moment | None = None


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
        if _takes(function, 3) or _takes(function, 2):
            return cls(function, _takes(function, 3))
        if callable(function):
            for count in (3, 2):
                try:
                    inspect.signature(function).bind(*[None] * count)
                except TypeError:
                    continue
                except ValueError:  # as of some that are written in C
                    pass
                return cls(_hashable(function), count == 3)
            raise TypeError(
                "presence is called with three arguments, (kind, id, info), and "
                f"{describe(function)} does not take them"
            )
        raise TypeError(f"presence must be a function (kind, id, info), not {function!r}")

    def __call__(self, change: Change) -> str | bytes | dict[str, Any] | None:
        kind, (key, info), _ = change
        return self.function(kind, key, info) if self.takes_id else self.function(kind, info)


def _takes(function: Any, count: int) -> bool:
    """Whether it is a plain function of so many arguments. :mod:`inspect` needs 0.1 ms for that,
    which is a third of what it costs to join."""
    if type(function) is not FunctionType or function.__defaults__ or vars(function):
        return False
    code = function.__code__
    return (code.co_argcount, code.co_kwonlyargcount, code.co_flags & inspect.CO_VARARGS) == (
        *(count, 0, 0),
    )


def _hashable(function: Callable[..., Any]) -> Callable[..., Any]:
    """Watchers with the same function are grouped by it."""
    try:
        hash(function)
    except TypeError:
        return functools.partial(function)
    return function


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


class _Era:
    """Who was in a room when it began, and the changes since then. Members that join one after the
    other share it: a list for each of 3,000 watchers would hold 9 million references, which the
    garbage collector visits."""

    def __init__(self, everybody: dict[str, Presence]) -> None:
        self.beginning = list(everybody.values())
        self.changes: list[tuple[str, Presence]] = []
        self._found: dict[str, Presence] | None = None  # who was there after the first changes
        self._count = 0  # so many of them

    @property
    def is_long(self) -> bool:
        return len(self.changes) > 64 + len(self.beginning) // 4

    def everybody(self, count: int) -> list[Presence]:
        """Who was there after that many changes."""
        found, start = self._found, self._count
        self._found = None  # until all changes are made: a signal may interrupt this
        if found is None or start > count:
            found, start = {who.id: who for who in self.beginning}, 0
        for kind, who in self.changes[start:count]:
            if kind == JOIN:
                found[who.id] = who
            else:
                del found[who.id]
        # Members that join one after the other mostly ask one after the other, too.
        if not self.is_long:
            self._found, self._count = found, count
        return list(found.values())


class Moment(NamedTuple):
    """A moment in the life of a room."""

    era: _Era
    changes: int  # of those in the era

    def everybody(self) -> list[Presence]:
        return self.era.everybody(self.changes)


class _Group(NamedTuple):
    """Watchers with the same function."""

    watch: Watch
    members: dict[Member, None]


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
        self._group_by_watch: dict[Watch, _Group] = {}  # only to join one
        self._groups: dict[int, _Group] = {}  # of watchers, by their own numbers
        self._group_of: dict[Member, _Group] = {}
        self._era: _Era | None = None  # the current one, if somebody watches

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
            group = self._group_by_watch.get(watch)
            if group is None:
                group = self._group_by_watch[watch] = _Group(watch, {})
            self._groups[id(group)] = self._group_of[member] = group
            group.members[member] = None
        return self._add(who)

    def leave(self, member: Member) -> Change | None:
        self.stop_watching(member)
        return self._remove(self._here.pop(member.token))

    def stop_watching(self, member: Member) -> None:
        group = self._group_of.pop(member, None)
        if group is None:
            return
        del group.members[member]
        if not group.members:
            del self._groups[id(group)]
            # The hash of an object of the application may have changed.
            if self._group_by_watch.get(group.watch) is group:
                del self._group_by_watch[group.watch]

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
        return self._changed(JOIN, who)

    def _remove(self, who: Presence) -> Change | None:
        count = self._counts.pop(who.id, 1) - 1
        if count > 1:
            self._counts[who.id] = count
        return None if count else self._changed(LEAVE, self._everybody.pop(who.id))

    def _changed(self, kind: str, who: Presence) -> Change:
        if not self._groups:
            self._era = None
            return Change(kind, who)
        if self._era is not None:
            self._era.changes.append((kind, who))
        return Change(kind, who, self.now())

    def everybody(self) -> list[Presence]:
        return list(self._everybody.values())

    def now(self) -> Moment:
        """For a watcher: who is there now, and what was told before."""
        if self._era is None or self._era.is_long:
            self._era = _Era(self._everybody)
        return Moment(self._era, len(self._era.changes))

    @property
    def watching(self) -> int:
        """The number of watchers: members that are sent changes of presence."""
        return len(self._group_of)

    def watchers(self) -> list[tuple[Watch, list[Member]]]:
        """The watchers, by the function that makes their messages."""
        return [(group.watch, list(group.members)) for group in self._groups.values()]
