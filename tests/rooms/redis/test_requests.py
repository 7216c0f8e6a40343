"""What is asked of a Redis, without a broker around it."""

from __future__ import annotations

import time
from typing import Any

import pytest
import redis

from greenws.rooms.redis import requests
from greenws.rooms.redis.entries import LogEntry
from greenws.rooms.redis.keys import Keys
from greenws.rooms.redis.options import Options
from greenws.rooms.redis.positions import order

KEYS = Keys("p:", 0)
ORIGIN, OTHER = "aaaaaaaaaaaa", "bbbbbbbbbbbb"


@pytest.fixture
def client(server: Any) -> Any:
    with redis.Redis.from_url(server.url) as client:
        yield client


def append(client: Any, *texts: Any, first: int = 1, room: str = "r", **options: Any) -> Any:
    entries = [LogEntry(None, ORIGIN, first + number, text) for number, text in enumerate(texts)]
    chosen = Options("redis://localhost", prefix="p:", **options)
    return requests.append(client, KEYS, chosen, ORIGIN, [(room, entry) for entry in entries])


def newest(client: Any, count: int, room: str = "r") -> list[Any]:
    found = requests.newest(lambda call: call(client), KEYS, room, count)
    return [message.data for message in found]


def test_entries_are_appended_in_order_and_found_the_newest_first(client):
    appended = append(client, "one", b"\xff", "three")
    assert appended.last_id and not appended.failed and not appended.unpublished
    assert newest(client, 10) == ["three", b"\xff", "one"]
    assert newest(client, 2) == ["three", b"\xff"]


def test_what_was_appended_is_not_appended_again(client):
    append(client, "one", "two")
    assert append(client, "one", "two", "three").last_id
    assert append(client, "three", first=3) == ("", {}, "")
    assert newest(client, 10) == ["three", "two", "one"]


def test_a_key_that_is_no_log_fails_alone(client):
    client.set(KEYS.log("r"), "x")
    assert "WRONGTYPE" in append(client, "one").failed[1]
    assert append(client, "two", first=2, room="s").failed == {}


def test_many_pages_are_read_where_others_have_written_into_the_log(client):
    for number in range(3):
        append(client, f"m{number}", first=number + 1)
        for _ in range(5):
            client.xadd(KEYS.log("r"), {"x": "y"})
    assert newest(client, 3) == ["m2", "m1", "m0"]


def test_a_look_tells_the_end_and_who_is_there(client):
    before = int(time.time() * 1000)
    look = requests.look(client, KEYS, ORIGIN, "r")
    assert (look.id, look.version, look.ours) == ("", "", 0)
    assert order(f"{before - 2}-0") < order(look.end)
    last = append(client, "one").last_id
    client.hset(KEYS.members("r"), mapping={"": "7", "m": f'{OTHER} {{"name": "Ann"}}'})
    client.hset(KEYS.members("r"), mapping={"n": f"{ORIGIN} {{}}", "o": "cccccccccccc {}"})
    client.hset(KEYS.members("r"), "p", f"{OTHER} no JSON")
    client.set(KEYS.alive(OTHER), "1")
    look = requests.look(client, KEYS, ORIGIN, "r")
    assert (look.id, look.end, look.version, look.ours) == (last, last, "7", 1)
    assert look.mine == {"n": f"{ORIGIN} {{}}"}
    assert {member: other.is_alive for member, other in look.others.items()} == {
        "m": True,
        "o": False,
    }
    assert look.alive == {"m": {"name": "Ann"}}
    assert order(append(client, "two", first=2).last_id) > order(look.end)


def test_a_disconnect_is_published(client):
    with client.pubsub() as listening:
        listening.subscribe(KEYS.channel("r"))
        assert listening.get_message(timeout=5)["type"] == "subscribe"
        requests.disconnect(client, KEYS, "r", 4001, "gone, é", "m1")
        requests.disconnect(client, KEYS, "r", 1008, "", None)
        heard = [listening.get_message(timeout=5)["data"] for _ in range(2)]
    assert heard == ["disconnect 4001 m1\ngone, é".encode(), b"disconnect 1008 \n"]


@pytest.fixture
def exact(client: Any) -> Any:
    """Logs are trimmed entry by entry."""
    before = client.config_get("stream-node-max-entries")
    client.config_set("stream-node-max-entries", 1)
    yield
    client.config_set(*before.popitem())


def test_a_log_is_trimmed_once_for_all_that_is_appended_at_once(client, exact):
    append(client, "one")
    client.config_resetstat()
    append(client, "two", "three", "four", first=2, history=2)
    called = client.info("commandstats")
    assert (called["cmdstat_xtrim"]["calls"], called["cmdstat_expire"]["calls"]) == (2, 1)
    assert newest(client, 10) == ["four", "three"]


@pytest.mark.parametrize(("history", "floor"), [(10, "1000-0"), (1, "")])
def test_a_log_begins_where_the_last_of_the_old_entries_was(client, exact, history, floor):
    client.xgroup_create(KEYS.log("r"), "greenws", id="0-1", mkstream=True)
    client.xadd(KEYS.log("r"), {"o": OTHER, "n": 1, "k": "t", "d": "old"}, id="1000-0")
    append(client, "one", "two", history=history)
    assert newest(client, 10) == ["two", "one"][:history]
    assert requests.look(client, KEYS, OTHER, "r").floor == floor
