"""Positions in the log of a room, as clients send them back."""

from __future__ import annotations

import pytest

from greenws.rooms.broker import LONGEST_POSITION
from greenws.rooms.redis.positions import Position, order

pytestmark = pytest.mark.no_io


@pytest.mark.parametrize(
    ("text", "unlogged"),
    [
        ("17-0", {}),
        ("17-0+ab12cd34ef56.3", {"ab12cd34ef56": 3}),
        ("17-0+ab12cd34ef56.3+00000000000c.4", {"ab12cd34ef56": 3, "00000000000c": 4}),
    ],
)
def test_a_position_is_written_as_it_is_read(text, unlogged):
    position = Position.parse(text)
    assert (position.id, position.unlogged, str(position)) == ("17-0", unlogged, text)
    assert Position.parse(text.replace("+", " ")) == position  # a query that nobody escaped


@pytest.mark.parametrize(
    "text",
    ["", "17", "17-", "-1", "a-1", "1-1-1", "1-1+", "1-1+a", "1-1+a.b", "1-1+a.1.2", "1-1+*.1",
     "٣-1", "1-" + "1" * 30, "1-1" + "+a.1" * 20,
     "1-1" + "+0123456789abcdef.1" * 15],
)  # fmt: skip
def test_a_client_s_garbage_is_no_position(text):
    with pytest.raises(ValueError, match="not a position"):
        Position.parse(text)


def test_places_compare_as_numbers_whether_text_or_bytes():
    places = ["9-0", b"10-0", "10-2", b"10-10", "100-0"]
    assert sorted(reversed(places), key=order) == places


def test_a_position_of_too_many_processes_is_short_and_counts_as_none():
    position = Position("17-0", {f"{number:012x}": number for number in range(16)})
    assert str(Position.parse(str(position))) == str(position)
    position.unlogged["a" * 12] = 2**63
    assert len(str(position)) < LONGEST_POSITION
    with pytest.raises(ValueError, match="not a position"):
        Position.parse(str(position))
