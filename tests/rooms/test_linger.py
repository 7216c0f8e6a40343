"""Members with a ``presence_key``: a person with three tabs is one; a reload is not reported."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import pytest

from greenws import Rooms
from greenws.rooms import Presence

from ..support.forking import in_child
from ..support.limits import wait_until
from ..support.wire import CLOSE


def tell(kind: str, id: str, info: dict[str, Any]) -> str:
    return f"{kind} {id}"


class Someone:
    def __init__(self, room: Any, pair: Any, **options: Any) -> None:
        self.socket, self.peer = pair()
        self._stack = contextlib.ExitStack()
        self.member = self._stack.enter_context(room.join(self.socket, **options))
        self.leave = self._stack.close

    def hears(self, *texts: str) -> None:
        for text in texts:
            assert self.peer.read_frame()[2].decode() == text

    def hears_nothing(self) -> bool:
        return self.peer.is_silent(0.05)


@pytest.fixture
def rooms() -> Iterator[Rooms]:
    rooms = Rooms()
    yield rooms
    rooms.close()


@pytest.fixture
def join(rooms: Rooms, pair: Any) -> Iterator[Callable[..., Someone]]:
    there: list[Someone] = []

    def join(**options: Any) -> Someone:
        there.append(Someone(rooms["r"], pair, **options))
        return there[-1]

    yield join
    for each in there:
        each.leave()


def test_a_person_with_three_tabs_is_there_once(rooms, join):
    bob = join(presence=tell)
    tabs = [join(presence=tell, presence_key=7, name="Ann") for _ in range(3)]
    bob.hears("join 7")
    ann = Presence("7", {"name": "Ann"})
    assert rooms["r"].members == [Presence(bob.member.id, {}), ann]
    assert len(rooms["r"]) == 2
    assert all(tab.member.present == rooms["r"].members for tab in tabs)
    assert all(tab.member.id == "7" for tab in tabs)
    tabs[0].leave()
    tabs[1].leave()
    assert bob.hears_nothing()
    tabs[2].leave()
    bob.hears("leave 7")
    assert all(tab.hears_nothing() for tab in tabs)  # they were not told of themselves


def test_a_reload_is_not_reported(rooms, join):
    bob = join(presence=tell)
    ann = join(presence_key="ann", presence_linger=30)
    bob.hears("join ann")
    ann.leave()
    assert len(rooms["r"]) == 2
    assert rooms.stats.members == 1
    again = join(presence_key="ann")
    rooms["r"].disconnect(member="nobody")
    again.leave()
    assert bob.hears_nothing()


def test_one_who_does_not_come_back_is_gone_after_its_linger(rooms, join):
    bob = join(presence=tell)
    ann = join(presence_key="ann", presence_linger=0.05)
    ann.leave()
    bob.hears("join ann", "leave ann")
    bob.leave()
    assert len(rooms) == 0


def test_a_room_stays_open_while_somebody_lingers(rooms, join):
    ann = join(presence_key="ann", presence_linger=0.05)
    ann.leave()
    assert [each.id for each in rooms["r"].members] == ["ann"]
    assert len(rooms) == 1
    wait_until(lambda: len(rooms) == 0)
    assert rooms["r"].members == []


def test_a_disconnected_member_does_not_linger(rooms, join):
    bob = join(presence=tell)
    away = join(presence_key="ann", presence_linger=30)
    away.leave()
    ann = join(presence_key="ann", presence_linger=30)
    rooms["r"].disconnect(member="ann")
    assert ann.peer.read_frame()[1] == CLOSE
    ann.leave()
    bob.hears("join ann", "leave ann")


def test_a_member_is_disconnected_alone_and_a_presence_with_all_its_tabs(rooms, join):
    one, two, three = (join(presence_key="ann", name=str(n)) for n in range(3))
    rooms["r"].disconnect(4000, "tab", one.member)
    assert one.peer.read_frame()[1] == CLOSE
    assert two.hears_nothing()
    rooms["r"].disconnect(4000, "all", rooms["r"].members[0])
    assert [each.peer.read_frame()[1] for each in (two, three)] == [CLOSE, CLOSE]


def test_closed_rooms_do_not_report_lingering_members(join, rooms, caplog):
    bob = join(presence=tell)
    join(presence_key="ann", presence_linger=0.02).leave()
    bob.hears("join ann")
    rooms.close()
    assert bob.hears_nothing()


def test_a_forked_child_leaves_the_lingering_members_of_its_parent_alone(rooms, join):
    bob = join(presence=tell)
    join(presence_key="ann", presence_linger=0.2).leave()

    def child() -> None:
        gevent.sleep(0.4)
        assert len(rooms["r"]) == 2

    in_child(child)
    bob.hears("join ann", "leave ann")
    assert bob.hears_nothing()


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"presence_key": None, "presence_linger": 1}, ValueError, "needs a presence_key"),
        ({"presence_key": "a", "presence_linger": -1}, ValueError, "presence_linger"),
        ({"presence_key": "a", "presence_linger": "1"}, TypeError, "presence_linger"),
        ({"presence_key": b"a"}, TypeError, "presence_key"),
        ({"presence_key": ""}, ValueError, "presence_key"),
        ({"presence_key": "a\nb"}, ValueError, "presence_key"),
        ({"": "x"}, TypeError, "must not be empty"),
    ],
)
def test_what_join_does_not_take(rooms, pair, options, error, match):
    socket, _ = pair()
    with pytest.raises(error, match=match):
        with rooms["r"].join(socket, **options):
            pass
    assert len(rooms) == 0
