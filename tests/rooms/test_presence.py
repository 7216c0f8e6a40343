"""Who is in a room: a change that makes no difference is not reported."""

from __future__ import annotations

import functools
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest

from greenws.rooms.broker import JOIN, LEAVE
from greenws.rooms.presence import Change, Presence, Roster, Watch, id_of, pack, unpack_all

pytestmark = pytest.mark.no_io


class Member(SimpleNamespace):
    """As much of one as a roster knows."""

    __hash__ = object.__hash__


def member(id: str, token: str | None = None) -> Any:
    return Member(id=id, token=token or id, info={"name": token or id})


def watch(kind: str, info: dict[str, Any]) -> str:
    return f"{kind} {info['name']}"


def ids(roster: Roster) -> list[str]:
    return sorted(each.id for each in roster.everybody())


def test_members_of_this_process_come_and_go():
    roster = Roster()
    ann = member("ann")
    assert roster.join(ann, None) == Change(JOIN, Presence("ann", {"name": "ann"}))
    assert ids(roster) == ["ann"]
    assert roster.leave(ann) == Change(LEAVE, Presence("ann", {"name": "ann"}))
    assert ids(roster) == []


def test_members_of_other_processes_come_and_go_once():
    roster = Roster()
    roster.open({"bob": {"name": "Bob"}})
    assert roster.change(JOIN, "bob", {"name": "Bob"}) is None
    assert roster.change(JOIN, "cid", {"name": "Cid"}) == Change(
        JOIN, Presence("cid", {"name": "Cid"})
    )
    assert ids(roster) == ["bob", "cid"]
    # A process that died says nothing of its members: who they were is known here.
    assert roster.change(LEAVE, "bob", {}) == Change(LEAVE, Presence("bob", {"name": "Bob"}))
    assert roster.change(LEAVE, "bob", {}) is None
    assert ids(roster) == ["cid"]


def test_other_processes_cannot_change_who_is_here():
    roster = Roster()
    roster.join(member("ann"), None)
    assert roster.change(LEAVE, "ann", {}) is None
    assert roster.change(JOIN, "ann", {}) is None
    assert ids(roster) == ["ann"]


def test_members_with_one_key_come_with_the_first_and_go_with_the_last():
    roster = Roster()
    first, second = member("ann", "1"), member("ann", "2")
    ann = Presence("ann", {"name": "1"})
    assert roster.join(first, None) == Change(JOIN, ann)
    assert roster.join(second, None) is None
    assert roster.change(JOIN, "3", pack(member("ann", "3"))) is None
    assert roster.everybody() == [ann]
    assert roster.leave(first) is None
    assert roster.change(LEAVE, "3", {}) is None
    assert roster.everybody() == [ann]
    assert roster.leave(second) == Change(LEAVE, ann)
    assert roster.everybody() == []


def test_a_room_is_opened_with_each_key_once_and_closed_without_those_elsewhere():
    roster = Roster()
    tabs = {token: pack(member("ann", token)) for token in "12"}
    assert unpack_all({**tabs, "bob": pack(member("bob"))}) == [
        Presence("ann", {"name": "1"}),
        Presence("bob", {"name": "bob"}),
    ]
    roster.open(tabs)
    assert roster.everybody() == [Presence("ann", {"name": "1"})]
    assert roster.change(LEAVE, "1", {}) is None
    roster.close()
    assert roster.everybody() == []
    roster.open(tabs)
    assert ids(roster) == ["ann"]


@pytest.mark.parametrize(("key", "error"), [(True, TypeError), (1.0, TypeError), ("", ValueError)])
def test_what_is_no_key(key, error):
    with pytest.raises(error, match="presence_key"):
        id_of(key)
    assert (id_of(17), id_of("17")) == ("17", "17")


def test_a_room_that_is_closed_forgets_the_others():
    roster = Roster()
    roster.open({"bob": {}})
    roster.close()
    assert ids(roster) == []


def test_watchers_are_known_by_their_function():
    roster = Roster()
    ann, bob, cid, dan = (member(name) for name in ("ann", "bob", "cid", "dan"))

    def other(kind: str, info: dict[str, Any]) -> None:
        return None

    roster.join(ann, watch)
    roster.join(bob, other)
    roster.join(cid, watch)
    roster.join(dan, None)
    assert roster.watchers() == [(watch, [ann, cid]), (other, [bob])]
    assert roster.watching == 3
    roster.stop_watching(ann)
    roster.leave(bob)
    assert roster.watchers() == [(watch, [cid])]
    assert roster.watching == 1


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda kind, id, info: (kind, id, info), ("join", "ann", {})),
        (lambda kind, info: (kind, info), ("join", {})),
        (lambda *arguments: arguments, ("join", "ann", {})),
        (dict.fromkeys, None),
    ],
)
def test_a_watch_calls_the_newer_form_and_the_older_one(function, expected):
    watch = Watch.of(function)
    if expected is not None:
        assert watch(Change(JOIN, Presence("ann", {}))) == expected
    assert watch == Watch.of(function)


@pytest.mark.parametrize("function", [None, "x", lambda: None, lambda a: None, lambda *, a: None])
def test_what_is_no_watch(function):
    told = r"must be a function \(kind, id, info\)|three arguments, \(kind, id, info\)"
    with pytest.raises(TypeError, match=told):
        Watch.of(function)


@pytest.mark.parametrize("seed", range(5))
def test_a_moment_is_who_was_there_then_whenever_it_is_read(seed):
    random = Random(seed)
    roster, watching = Roster(), Watch.of(watch)
    here: list[Any] = []
    moments = []
    for number in range(600):
        if here and random.random() < 0.4:
            roster.leave(here.pop(random.randrange(len(here))))
        else:
            here.append(member(f"user {number % 50}", str(number)))
            change = roster.join(here[-1], watching if random.random() < 0.5 else None)
            assert change is None or not roster.watching or change.after == roster.now()
        moments.append((roster.now(), ids(roster)))
        then, expected = random.choice(moments)
        assert sorted(each.id for each in then.everybody()) == expected
    for then, expected in moments:
        assert sorted(each.id for each in then.everybody()) == expected


def test_watchers_that_join_one_after_the_other_share_the_list_of_who_is_there():
    roster, watching = Roster(), Watch.of(watch)
    moments = []
    for number in range(1000):
        roster.join(member(str(number)), watching)
        moments.append(roster.now())
    eras = {id(each.era): each.era for each in moments}.values()
    assert sum(len(era.beginning) + len(era.changes) for era in eras) < 10 * 1000
    for number, each in enumerate(moments):
        assert len(each.everybody()) == number + 1
    assert all(era._found is None for era in eras if era is not roster.now().era)


def test_nothing_is_kept_for_watchers_that_have_left():
    roster = Roster()
    ann = member("ann")
    roster.join(ann, Watch.of(watch))
    assert roster.join(member("bob"), None).after is not None
    roster.leave(ann)
    assert roster._era is None
    assert roster.join(member("cid"), None).after is None
    assert roster.watchers() == []


class Unhashable:
    __hash__ = None  # type: ignore[assignment]

    def __call__(self, kind: str, id: str, info: dict[str, Any]) -> str:
        return f"{kind} {id}"


def test_a_function_that_cannot_be_hashed_makes_messages_too():
    roster = Roster()
    roster.join(member("ann"), Watch.of(Unhashable()))
    ((found, _),) = roster.watchers()
    assert found(Change(JOIN, Presence("bob", {}))) == "join bob"


class Changeable(Unhashable):
    number = 0

    def __hash__(self) -> int:
        return self.number


def test_a_watcher_leaves_even_if_the_hash_of_its_function_has_changed():
    roster, function = Roster(), Changeable()
    ann, bob = member("ann"), member("bob")
    roster.join(ann, Watch.of(function))
    function.number = 1
    roster.join(bob, Watch.of(function))
    roster.leave(ann)
    assert [members for _, members in roster.watchers()] == [[bob]]
    roster.leave(bob)
    assert roster.watchers() == []
    assert roster.watching == 0


def test_a_list_of_who_is_there_that_is_interrupted_is_made_again():
    roster = Roster()
    bob = member("bob")
    roster.join(member("ann"), Watch.of(watch))
    roster.join(bob, None)
    first = roster.now()
    roster.leave(bob)
    first.everybody()
    era, changes = first.era, first.era.changes

    class Interrupted(list[Any]):
        def __getitem__(self, key: Any) -> Any:
            yield from changes[key]
            raise KeyboardInterrupt

    era.changes = Interrupted(changes)
    with pytest.raises(KeyboardInterrupt):
        era.everybody(len(changes))
    era.changes = changes
    assert {who.id for who in era.everybody(len(changes))} == {"ann"}


@functools.wraps(watch)
def wrapping(*args: Any) -> str:
    return watch(*args)


def test_a_plain_function_needs_no_inspection(monkeypatch):
    def inspect(function: Any) -> Any:
        raise AssertionError

    assert Watch.of(wrapping).takes_id is False  # as what it wraps
    assert Watch.of(lambda kind, info, *more: "").takes_id is True
    monkeypatch.setattr("inspect.signature", inspect)
    assert Watch.of(watch).takes_id is False
    assert Watch.of(lambda kind, id, info: "").takes_id is True
