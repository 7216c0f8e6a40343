"""The tail of a room: what came after a position, as far as that is kept."""

from __future__ import annotations

from typing import Any

import pytest

from greenws.protocol.shared import SharedMessage
from greenws.rooms.ages import age_time
from greenws.rooms.tail import Tail


@pytest.fixture
def tail() -> Tail:
    tail = Tail(lambda: 100_000, 10, 60.0)
    tail.begin("0")
    for number in range(1, 6):
        tail.append(str(number), SharedMessage(f"text {number}"))
    return tail


def texts(tail: Tail, position: str) -> list[Any] | None:
    found = tail.after(position)
    return None if found is None else [message.data for _, message in found]


def test_what_came_after_a_position(tail):
    assert texts(tail, "0") == [f"text {number}" for number in range(1, 6)]
    assert texts(tail, "3") == ["text 4", "text 5"]
    assert texts(tail, "5") == []


@pytest.mark.parametrize("position", ["6", "", "x" * 1000])
def test_a_position_that_the_room_has_not_had_is_not_known(tail, position):
    assert tail.after(position) is None


def test_the_messages_are_the_same_for_all(tail):
    (first,), (second,) = tail.after("4"), tail.after("4")
    assert first[1] is second[1]


def test_where_the_log_only_moved_on_there_is_a_position_and_no_message(tail):
    tail.append("6", None)
    tail.append("7", SharedMessage("text 7"))
    assert texts(tail, "5") == ["text 7"]
    assert texts(tail, "6") == ["text 7"]


def test_positions_are_forgotten_with_what_came_after_them(tail):
    for number in range(6, 13):
        tail.append(str(number), SharedMessage(f"text {number}"))
    assert [texts(tail, str(number)) is None for number in range(4)] == [True, True, False, False]
    assert len(texts(tail, "2")) == 10
    assert len(tail._numbers) == 11


def test_it_is_bounded_in_bytes_that_messages_cost_twice(tail):
    for number in range(6, 12):
        tail.append(str(number), SharedMessage("x" * 20_000))
        assert tail.bytes <= 100_000
    assert texts(tail, "8") is None
    assert len(texts(tail, "9")) == 2


def test_a_message_that_is_too_large_is_not_kept(tail):
    tail.append("6", SharedMessage("x" * 200_000))
    assert (tail.bytes, texts(tail, "5"), texts(tail, "6")) == (0, None, [])
    tail.append("7", SharedMessage("text 7"))
    assert texts(tail, "6") == ["text 7"]


def test_after_a_hole_nothing_before_it_is_known(tail):
    tail.begin(None)
    assert tail.after("5") is None
    tail.append("9", SharedMessage("text 9"))
    assert tail.after("5") is None
    assert texts(tail, "9") == []


def test_it_keeps_nothing_for_longer_than_its_age(tail, monkeypatch):
    now = age_time.now
    monkeypatch.setattr(age_time, "now", lambda: now() + 61)
    assert texts(tail, "3") is None
    assert texts(tail, "5") == []
