"""Cursors and replays over a log, without Redis: who has received what, and where."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from greenws.rooms.broker import Entry
from greenws.rooms.redis.entries import LogEntry
from greenws.rooms.redis.positions import Position
from greenws.rooms.redis.replay import LogCursor, LogReplay, Progress

pytestmark = pytest.mark.no_io

OURS, THEIRS = "0" * 12, "f" * 12


def logged(id_: str | None, origin: str, number: int) -> LogEntry:
    return LogEntry(id_, origin, number, f"{origin[0]}{number}")


def delivered(entry: LogEntry, position: str = "9-0") -> Entry:
    return Entry(position, entry.data, None, entry)


def test_a_level_cursor_changes_nothing():
    cursor = LogCursor(OURS, "", {})
    assert cursor.is_level
    assert cursor.advance(delivered(logged("5-0", THEIRS, 1)))
    assert cursor.position("5-0") == "5-0"


def test_a_member_that_is_further_in_the_log_gets_nothing_again():
    cursor = LogCursor(OURS, "7-0", {})
    cursor.end_replay()
    assert cursor.position("5-0") == "7-0"
    assert not cursor.advance(delivered(logged("6-0", THEIRS, 1)))
    assert not cursor.advance(delivered(logged("7-0", THEIRS, 2)))
    assert cursor.advance(delivered(logged("8-0", THEIRS, 3)))
    assert cursor.is_level
    assert not cursor.has_gap()


@pytest.mark.parametrize("ahead", ["7-0", f"7-{2**64 - 1}"])
def test_a_member_gets_the_gap_where_the_log_has_lost_the_entry_that_it_was_at(ahead):
    """A time is not an entry."""
    cursor = LogCursor(OURS, ahead, {})
    cursor.end_replay()
    assert not cursor.advance(delivered(logged("6-0", THEIRS, 1)))
    assert cursor.advance(delivered(logged("8-0", THEIRS, 3)))
    assert cursor.has_gap() == (ahead == "7-0")
    assert cursor.advance(delivered(logged("9-0", THEIRS, 4)))
    assert not cursor.has_gap()


def test_an_entry_that_was_delivered_unlogged_before_is_in_the_log():
    cursor = LogCursor(OURS, "7-0", {})
    cursor.end_replay()
    assert not cursor.advance(Entry("7-0", None))
    assert cursor.advance(delivered(logged("8-0", THEIRS, 3)))
    assert not cursor.has_gap()


def test_what_a_member_received_unlogged_elsewhere_it_does_not_get_from_the_log():
    cursor = LogCursor(OURS, "", {THEIRS: 4})
    cursor.end_replay()
    assert cursor.position("5-0") == f"5-0+{THEIRS}.4"
    assert cursor.position(f"5-0+{OURS}.2") == f"5-0+{THEIRS}.4+{OURS}.2"
    assert not cursor.advance(delivered(logged("6-0", THEIRS, 3)))
    assert not cursor.is_level
    assert not cursor.advance(delivered(logged("7-0", THEIRS, 4)))
    assert cursor.is_level
    assert cursor.advance(delivered(logged("8-0", THEIRS, 5)))


def test_what_was_delivered_unlogged_before_is_not_new_when_it_is_found_in_the_log():
    cursor = LogCursor(OURS, "7-0", {})
    assert not cursor.advance(Entry("8-0", None))
    assert not cursor.is_level


def replay(since: str, until: Progress, *pages: Any, is_known: bool = True) -> LogReplay:
    def read(after: str, end: str) -> Iterator[tuple[list[LogEntry], bool]]:
        assert (after, end) == (since.partition("+")[0], until.id)
        yield from pages

    return LogReplay(OURS, Position.parse(since), is_known, lambda: until, read)


def texts(each: LogReplay) -> list[Any]:
    """ "gap", and the position and text of each message."""
    found: list[Any] = []
    for page in each.pages():
        found += ["gap"] * page.gap
        found += [tuple(message) for message in page.messages]
    return found


def test_0_0_may_mean_an_unknown_position():
    """So the log is asked, though the process is as far."""
    each = replay("0-0", Progress("0-0", []), ([], True))
    each.begin()
    assert texts(each) == ["gap"]


def test_pages_of_the_log_come_first_and_then_what_is_unlogged():
    unlogged = [logged(None, OURS, 8), logged(None, OURS, 9)]
    first = ([logged("5-0", THEIRS, 1)], False), ([logged("6-0", THEIRS, 2)], True)
    each = replay("4-0", Progress("6-0", unlogged), *first)
    cursor = each.begin()
    assert texts(each) == [
        ("5-0", "f1"),
        "gap",
        ("6-0", "f2"),
        (f"6-0+{OURS}.8", "08"),
        (f"6-0+{OURS}.9", "09"),
    ]
    assert cursor.is_level


def test_the_log_is_not_read_for_a_client_that_is_where_its_process_is():
    """Redis may be out of reach: that would be a gap where nothing is missing."""
    each = replay(f"4-0+{THEIRS}.2", Progress("4-0", [logged(None, OURS, 8)]), ([], True))
    cursor = each.begin()
    assert texts(each) == [(f"4-0+{THEIRS}.2+{OURS}.8", "08")]
    assert not cursor.is_level


def test_what_is_found_in_the_log_is_not_sent_unlogged_again():
    page = ([logged("5-0", OURS, 8)], False)
    each = replay("4-0", Progress("5-0", [logged(None, OURS, 8), logged(None, OURS, 9)]), page)
    each.begin()
    assert texts(each) == [("5-0", "08"), (f"5-0+{OURS}.9", "09")]


def test_what_was_received_unlogged_is_skipped_in_the_log():
    page = [logged("5-0", THEIRS, 1), logged("6-0", THEIRS, 2), logged("7-0", THEIRS, 3)]
    each = replay(f"4-0+{THEIRS}.2", Progress("7-0", []), (page, False))
    cursor = each.begin()
    assert texts(each) == [("7-0", "f3")]
    assert cursor.is_level


def test_a_client_that_is_further_waits_for_its_process():
    each = replay("7-0", Progress("5-0", []))
    cursor = each.begin()
    assert texts(each) == []
    assert (cursor.is_level, cursor.position("5-0")) == (False, "7-0")


@pytest.mark.parametrize("since", ["7-0", "3-0"])
def test_rather_a_gap_than_anything_twice_where_it_is_not_known(since):
    """A client may have heard from another process what this one has not found in the log yet."""
    each = replay(since, Progress("5-0", [logged(None, OURS, 8)]), is_known=False)
    each.begin()
    assert texts(each) == ["gap"]


@pytest.mark.parametrize(
    ("start", "since", "expected", "position"),
    [
        ("6-0", "5-0", ["gap", ("6-0", "f2")], "9-0"),  # reads on from there
        ("4-0", "5-0", [], "5-0"),  # it is further than where the log begins here
        (None, "5-0", ["gap"], "9-0"),  # Redis is still lost
    ],
)
def test_a_log_that_was_out_of_reach_is_read_to_where_its_delivery_begins(
    start, since, expected, position
):
    def read(after: str, end: str) -> Iterator[tuple[list[LogEntry], bool]]:
        assert (after, end) == (since, max(start, since))
        yield ([logged("6-0", THEIRS, 2)], True) if start > since else ([], False)

    until = Progress("9-0", [], is_estimated=True)
    each = LogReplay(OURS, Position.parse(since), True, lambda: until, read, lambda: start)
    cursor = each.begin()
    assert texts(each) == expected
    assert cursor.position("4-0" if start == "4-0" else "9-0") == position


def test_what_is_found_in_the_log_during_a_replay_is_no_longer_called_unlogged():
    """Else a position would tell of less than its stream id, and messages would come twice."""
    page = ([logged("5-0", THEIRS, 1), logged("6-0", THEIRS, 2)], False)
    each = replay(f"4-0+{THEIRS}.2", Progress("6-0", []), page)
    cursor = each.begin()
    assert cursor.advance(delivered(logged("7-0", THEIRS, 3)))
    assert cursor.position("7-0") == "7-0"
    assert texts(each) == []  # both were received unlogged
    assert cursor.is_level
    assert cursor.position("8-0") == "8-0"
