"""Names of keys and channels."""

from __future__ import annotations

import pytest

from greenws.rooms.redis.keys import Keys, slot_of

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


@pytest.mark.parametrize(
    "room", ["r", "", "a:b@3", "zwölf", "{", "}", "{}", "}{", "%", "%7B", "a%b{"]
)
def test_in_a_cluster_all_names_of_a_room_share_its_slot(room):
    keys = Keys("p:", 0, is_cluster=True)
    names = [keys.log(room), keys.members(room), keys.last_number("x", room), keys.channel(room)]
    assert len({slot_of(name) for name in names}) == 1
    assert keys.slot(room) == slot_of(keys.log(room))
    assert keys.room_of(keys.channel(room).encode()) == room


def test_a_name_without_braces_is_its_own_hash_tag():
    assert Keys("p:", 0, is_cluster=True).log("lobby") == "p:room:{lobby}"
    assert Keys("p:", 0).log("{lobby}") == "p:room:{lobby}"
