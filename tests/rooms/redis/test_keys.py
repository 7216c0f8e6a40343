"""Names of keys and channels."""

from __future__ import annotations

import pytest

from greenws.rooms.redis.keys import Keys

pytestmark = pytest.mark.no_io


def test_all_names_begin_with_the_prefix_and_differ():
    keys = Keys("p:", 3)
    names = [
        keys.log("x"),
        keys.members("x"),
        keys.last_number("x", "x"),
        keys.alive("x"),
        keys.channel("x"),
    ]
    assert all(name.startswith("p:") for name in names)
    assert len(set(names)) == len(names)
    assert keys.alive("x").startswith(keys.alive_prefix)


@pytest.mark.parametrize("room", ["r", "", "a:b@3", "zwölf"])
def test_a_channel_names_its_room_and_its_database(room):
    channel = Keys("p:", 3).channel(room)
    assert channel != Keys("p:", 0).channel(room)
    assert Keys("p:", 3).room_of(channel.encode()) == room
