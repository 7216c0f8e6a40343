"""Which of several Redis has a room."""

from __future__ import annotations

import pytest

from greenws.rooms.redis.spread import Spread, addresses_of

pytestmark = pytest.mark.no_io

ROOMS = [f"room {number}" for number in range(300)]


def spread(*urls: str) -> Spread:
    return Spread([address for _, address in addresses_of(list(urls))])


def test_rooms_are_spread_alike():
    indices = [spread("redis://a", "redis://b", "redis://c").index(room) for room in ROOMS]
    assert all(60 <= indices.count(index) for index in range(3))


def test_the_order_of_the_list_makes_no_difference():
    there, back = spread("redis://a", "redis://b"), spread("redis://b", "redis://a")
    assert all(there.index(room) == 1 - back.index(room) for room in ROOMS)


def test_one_more_takes_only_its_share_of_the_rooms():
    two, three = spread("redis://a", "redis://b"), spread("redis://a", "redis://b", "redis://c")
    moved = [room for room in ROOMS if three.index(room) != two.index(room)]
    assert {three.index(room) for room in moved} == {2}
    assert 60 <= len(moved) <= 140


def test_where_a_room_is_stays_as_it_is():
    """Or a newer release would look for messages elsewhere than an older one."""
    pair = spread("redis://one", "redis://two/3")
    assert [pair.index(room) for room in ("", "lobby", "zwölf", "r")] == [0, 1, 1, 0]


def test_who_connects_and_what_is_the_default_make_no_difference():
    plain = spread("redis://one", "redis://two/3")
    full = spread("redis://one:6379/0", "redis://user:secret@two:6379?db=3")
    assert all(plain.index(room) == full.index(room) for room in ROOMS)


@pytest.mark.parametrize(
    ("url", "error", "match"),
    [
        ([], TypeError, "list"),
        ([b"redis://a"], TypeError, "list"),
        (b"redis://a", TypeError, "list"),
        (17, TypeError, "list"),
        (["redis://a", "redis://x:secret@a:6379/0"], ValueError, "listed twice"),
        (["redis://a", "http://b"], ValueError, "redis://"),
    ],
)
def test_what_is_no_list_of_redis(url, error, match):
    with pytest.raises(error, match=match) as caught:
        addresses_of(url)
    assert "secret" not in str(caught.value)
