"""Processes that have died are dropped from positions."""

from __future__ import annotations

import contextlib
import time
from typing import Any

import pytest

from greenws.rooms.broker import LONGEST_POSITION
from greenws.rooms.redis.origins import Gone
from greenws.rooms.redis.positions import Position
from greenws.rooms.redis.replay import LogCursor

from ...support.limits import wait_until
from ...support.play import Line

OURS, THEIRS, OTHERS = (f"{number}" * 12 for number in range(3))
GRACE = 3600.0


class Later:
    """The module ``time``, some seconds on."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def monotonic(self) -> float:
        return time.monotonic() + self.seconds


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> Later:
    later = Later()
    monkeypatch.setattr("greenws.rooms.redis.origins.time", later)
    return later


@pytest.fixture
def gone() -> Gone:
    return Gone(OURS, GRACE, contextlib.nullcontext)


def cursor(*origins: str, ahead: str = "") -> LogCursor:
    made = LogCursor(OURS, ahead, dict.fromkeys(origins, 5))
    made.end_replay()
    return made


def test_a_process_that_has_not_lived_for_long_is_dropped(gone, later):
    member = cursor(THEIRS, OTHERS)
    gone.watch(member)
    for seconds in (0, GRACE - 1):
        later.seconds = seconds
        gone.check(lambda origins: origins - {OTHERS})
        assert set(member.unlogged) == {THEIRS, OTHERS}
    later.seconds = GRACE + 1
    gone.check(lambda origins: origins - {OTHERS})
    assert member.position("9-0") == f"9-0+{OTHERS}.5"
    gone.watch(another := cursor(THEIRS))
    assert another.is_level


def test_a_process_that_lives_again_is_not_dropped(gone, later):
    member = cursor(THEIRS)
    gone.watch(member)
    gone.check(lambda origins: origins)
    later.seconds = GRACE - 1
    gone.check(lambda origins: set())
    later.seconds = GRACE + 1
    gone.check(lambda origins: origins)
    assert not member.is_level


def test_one_that_does_not_have_all_of_the_log_keeps_its_place(gone, later):
    ahead, replaying = cursor(THEIRS, ahead="9-0"), LogCursor(OURS, "", {THEIRS: 5})
    for each in (ahead, replaying):
        gone.watch(each)
    gone.check(lambda origins: origins)
    later.seconds = GRACE + 1
    gone.check(lambda origins: origins)
    assert ahead.unlogged == replaying.unlogged == {THEIRS: 5}


def test_nothing_is_asked_while_no_position_names_anybody(gone):
    gone.watch(cursor())
    gone.watch(cursor(OURS))
    gone.check(lambda origins: pytest.fail("it asked"))


def test_what_clients_invent_is_not_kept_without_end(gone, later):
    for number in range(300):
        member = cursor(*(f"{number:06x}{other:06x}" for other in range(10)))
        gone.watch(member)
        gone.check(lambda origins: origins)
    assert len(gone._missing) == 1000


def test_a_position_stays_short_however_many_processes_came_and_went(
    server, worker, later, error_log
):
    """Each is killed during an outage, with what a client has of it alone."""
    staying = worker(presence_timeout=0.2)
    bob = staying.join()
    gone = staying.node._history.gone
    last: Any = bob.last
    for number in range(12):
        line = Line(server.port)
        dying = worker(url=line.url)
        visitor = dying.join(since=last, gap="0-0 gap")
        line.cut()
        wait_until(lambda dying=dying: dying.is_lost)
        dying.send(f"lost {number}")
        assert visitor.hear(1) == [f"lost {number}"]
        assert dying.node.origin in visitor.last
        dying.die()
        line.close()
        with contextlib.ExitStack() as stack:
            socket, peer = staying._pair()
            member = stack.enter_context(
                staying.rooms["r"].join(socket, since=visitor.last, gap="0-0 gap")
            )
            assert len(visitor.last) <= LONGEST_POSITION
            assert member.is_complete and dying.node.origin in member.position
            wait_until(lambda dying=dying: dying.node.origin in gone._missing)
            later.seconds += 2 * GRACE  # an hour more than max_age
            wait_until(lambda member=member: "+" not in member.position)
            staying.send(f"kept {number}")
            last, text = peer.read_frame()[2].decode().split(" ", 1)
            assert text == f"kept {number}" and "+" not in last
            assert member._is_prompt
        assert bob.hear(1) == [f"kept {number}"]
    assert all("that waited for Redis are lost" in each.getMessage() for each in error_log.take())


def test_messages_of_a_process_cut_off_beyond_max_age_arrive_once(server, worker, later):
    staying = worker(presence_timeout=0.2, max_age=60)
    line = Line(server.port)
    cut_off = worker(url=line.url, presence_timeout=0.2, max_age=60)
    visitor = cut_off.join()
    line.cut()
    wait_until(lambda: cut_off.is_lost)
    cut_off.send("unlogged")
    assert visitor.hear(1) == ["unlogged"]
    moved = staying.join(since=visitor.last, gap="0-0 gap")
    gone = staying.node._history.gone
    wait_until(lambda: cut_off.node.origin in gone._missing)
    later.seconds = 61.0
    looks: list[set[str]] = []
    gone.check(lambda origins: looks.append(origins) or origins)
    assert looks == [{cut_off.node.origin}]
    line.mend()
    wait_until(lambda: cut_off.is_idle)
    staying.send("after")
    assert moved.hear(1) == ["after"]
    line.close()


def test_more_processes_than_a_position_holds_are_a_gap():
    """As in a long outage, where a client goes from process to process."""
    member = cursor(*(f"{number:012x}" for number in range(1, 15)))
    position = member.position(f"1795946308084-0+{OURS}.5")
    assert len(position) <= LONGEST_POSITION
    assert position.count("+") == 15
    another = cursor(*(f"{number:012x}" for number in range(1, 17)))
    position = another.position(f"1795946308084-0+{OURS}.5")
    assert len(position) <= LONGEST_POSITION
    with pytest.raises(ValueError, match="not a position"):
        Position.parse(position)
