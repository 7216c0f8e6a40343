"""The requests to a Redis, without a broker."""

from __future__ import annotations

import itertools
import logging
import time
from types import SimpleNamespace
from typing import Any

import pytest
import redis

from greenws import rate_limit
from greenws.rooms.redis import requests
from greenws.rooms.redis.entries import LogEntry, parse
from greenws.rooms.redis.keys import Keys
from greenws.rooms.redis.options import Options
from greenws.rooms.redis.positions import order

from ...support.limits import limit

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
    assert append(client, "three", first=3) == ("", {}, "", "")
    assert newest(client, 10) == ["three", "two", "one"]


def test_a_key_that_is_no_log_fails_alone(client):
    client.set(KEYS.log("r"), "x")
    assert "WRONGTYPE" in append(client, "one").failed[1]
    assert append(client, "two", first=2, room="s").failed == {}


@pytest.mark.parametrize("command", ["xtrim", "time", "expire", "xlen"])
def test_a_redis_that_does_not_trim_appends_to_every_room_of_a_batch(server, client, command):
    server.call("ACL", "SETUSER", "u", "on", ">p", "~*", "&*", "+@all", f"-{command}")
    # So small a log that both of its limits are reached.
    options = Options("redis://localhost", prefix="p:", history=1, history_bytes=200_000)
    batch = [
        (room, LogEntry(None, ORIGIN, number, "x" * 4000))
        for number, room in enumerate(["a", "b", "c"] * 150, 1)
    ]
    with redis.Redis.from_url(server.url.replace("//", "//u:p@")) as limited:
        appended = requests.append(limited, KEYS, options, ORIGIN, batch)
        assert (appended.failed, appended.unpublished) == ({}, "")
        assert appended.untrimmed.startswith(f"{command.upper()}: ")
        lengths = [client.xinfo_stream(KEYS.log(room))["entries-added"] for room in "abc"]
        assert lengths == [150] * 3
        assert requests.append(limited, KEYS, options, ORIGIN, batch).last_id == ""  # not again


def test_messages_of_one_millisecond_in_two_logs_have_different_ids(client):
    """As of two Redis servers that both take themselves for the master."""
    options = Options("redis://localhost", prefix="p:")
    times: set[int] = set()
    deadline = time.monotonic() + limit()
    for number in itertools.count(1):
        assert time.monotonic() < deadline
        pipeline = client.pipeline()
        for origin, room in ((ORIGIN, "r"), (OTHER, "s")):
            batch = [(room, LogEntry(None, origin, number, "hello"))]
            names, values = requests.append_arguments(KEYS, options, origin, batch)
            pipeline.eval(requests.APPEND, len(names), *names, *values)
        one, other = (requests.parse_appended(found).last_id for found in pipeline.execute())
        assert one != other
        if order(one)[0] == order(other)[0]:
            times.add(order(one)[0])
        if len(times) == 3:
            return


def test_all_ids_of_a_call_follow_its_random_one(client):
    """Redis chooses ids of the next millisecond that begin at 0: in two Redis servers the same."""
    append(client, *["hello"] * 500)  # which takes more than a millisecond
    (first, count), *others = [order(id_) for id_, _ in client.xrange(KEYS.log("r"))]
    assert others == [(first, count + each) for each in range(1, 500)]


def test_a_clock_that_was_wrong_stops_no_log(client):
    """Ids only grow."""
    client.xadd(KEYS.log("s"), {"o": OTHER, "n": 1, "k": "text", "d": "old"}, id="5000-1")
    assert order(append(client, "one", room="s").last_id)[0] > time.time() * 1000 - 60_000
    client.delete(KEYS.last_number(ORIGIN, "s"))
    ahead = f"{int(time.time() * 1000) + 100_000}-7"
    client.xadd(KEYS.log("r"), {"o": OTHER, "n": 1, "k": "text", "d": "old"}, id=ahead)
    append(client, "one", "two")
    append(client, "three", first=3)
    client.xadd(KEYS.log("r"), {"x": "y"}, id=f"{order(ahead)[0]}-{2**64 - 9}")
    append(client, "four", first=4)
    found = [order(id_) for id_, _ in client.xrange(KEYS.log("r"))]
    assert {time for time, _ in found} == {order(ahead)[0]}
    assert newest(client, 9) == ["four", "three", "two", "one", "old"]


def test_a_log_whose_ids_are_ahead_of_the_clock_does_not_expire_while_it_is_used(client):
    ahead = f"{int(time.time() * 1000) + 100_000}-7"
    client.xadd(KEYS.log("r"), {"o": OTHER, "n": 1, "k": "text", "d": "old"}, id=ahead)
    client.expire(KEYS.log("r"), 10)
    append(client, "one", max_age=60.0)
    assert client.ttl(KEYS.log("r")) > 30


def test_a_log_outlives_its_last_message_by_its_age(client):
    """Its expiry is put off once in a second, in which messages may come later."""
    append(client, "one", max_age=100.0)
    end = client.execute_command("PEXPIRETIME", KEYS.log("r"))
    (id_, _) = client.xrange(KEYS.log("r"))[0]
    assert end >= (second_of(id_.decode()) + 1 + 100) * 1000


def test_a_malformed_number_counts_as_nothing_appended(client):
    client.set(KEYS.last_number(ORIGIN, "r"), "x")
    assert append(client, "one").last_id
    assert newest(client, 10) == ["one"]


def test_many_pages_are_read_where_others_have_written_into_the_log(client):
    for number in range(3):
        append(client, f"m{number}", first=number + 1)
        for _ in range(5):
            client.xadd(KEYS.log("r"), {"x": "y"})
        client.xadd(KEYS.log("r"), {"o": "other", "n": "none", "k": "text", "d": "no message"})
        client.xadd(KEYS.log("r"), {"o": "other", "n": "1", "k": "join", "d": "of the first form"})
    assert newest(client, 3) == ["m2", "m1", "m0"]
    assert newest(client, 10**30) == ["m2", "m1", "m0"]


@pytest.mark.parametrize(
    "changed",
    [
        {"o": b"\xff"},
        {"o": "Ann\u00e9"},
        {"n": "9" * 5000},
        {"n": "+"},
        {"k": b"\xff"},
        {"k": "picture"},
        {"d": b"\xff"},
    ],
)
def test_the_history_has_no_entry_that_members_are_not_sent(client, changed, caplog):
    append(client, "one")
    fields = {"o": OTHER, "n": "1", "k": "text", "d": "hello", **changed}
    client.xadd(KEYS.log("r"), fields)
    ((id_, found),) = client.xrevrange(KEYS.log("r"), count=1)
    assert parse("r", id_, found) is None
    caplog.clear()
    assert newest(client, 10) == ["one"]
    assert "malformed entry" in caplog.text


def test_a_snapshot_has_the_end_and_the_members(client):
    before = int(time.time() * 1000)
    snapshot = requests.take_snapshot(client, KEYS, ORIGIN, "r")
    assert (snapshot.id, snapshot.version, snapshot.ours) == ("", "", 0)
    assert order(f"{before - 2}-0") < order(snapshot.end)
    last = append(client, "one").last_id
    client.hset(KEYS.members("r"), mapping={"": "7", "m": f'{OTHER} {{"name": "Ann"}}'})
    client.hset(KEYS.members("r"), mapping={"n": f"{ORIGIN} {{}}", "o": "cccccccccccc {}"})
    client.hset(KEYS.members("r"), "p", f"{OTHER} no JSON")
    client.set(KEYS.alive(OTHER), "1")
    snapshot = requests.take_snapshot(client, KEYS, ORIGIN, "r")
    assert (snapshot.id, snapshot.end, snapshot.version, snapshot.ours) == (last, last, "7", 1)
    assert snapshot.mine == {"n": f"{ORIGIN} {{}}"}
    assert {member: other.is_alive for member, other in snapshot.others.items()} == {
        "m": True,
        "o": False,
    }
    assert snapshot.alive == {"m": {"name": "Ann"}}
    assert order(append(client, "two", first=2).last_id) > order(snapshot.end)


def test_a_disconnect_is_published(client):
    with client.pubsub() as listening:
        listening.subscribe(KEYS.channel("r"))
        assert listening.get_message(timeout=limit())["type"] == "subscribe"
        requests.disconnect(client, KEYS, "r", 4001, "gone, é", "m1")
        requests.disconnect(client, KEYS, "r", 1008, "", None)
        heard = [listening.get_message(timeout=limit())["data"] for _ in range(2)]
    assert heard == ["disconnect 4001 m1\ngone, é".encode(), b"disconnect 1008 \n"]


@pytest.fixture
def exact(client: Any) -> Any:
    """Logs are trimmed entry by entry."""
    before = client.config_get("stream-node-max-entries")
    client.config_set("stream-node-max-entries", 1)
    yield
    client.config_set(*before.popitem())


def calls(client: Any) -> dict[str, int]:
    """How often each command was called, also by scripts, since this was asked last."""
    found = client.info("commandstats")
    client.config_resetstat()
    called = {name.removeprefix("cmdstat_"): each["calls"] for name, each in found.items()}
    return {name: called[name] for name in called if name not in ("info", "config|resetstat")}


def second_of(id_: str) -> int:
    return order(id_)[0] // 1000


def test_a_log_is_trimmed_once_for_all_that_is_appended_at_once(client, exact):
    append(client, "one")
    calls(client)
    append(client, "two", "three", "four", first=2, history=2)
    called = calls(client)
    assert called["xtrim"] == 1 + called.get("expire", 0)  # by age, if another second has begun
    assert called["xtrim"] in (1, 2)
    assert newest(client, 10) == ["four", "three"]


def test_a_message_costs_redis_few_commands_of_which_some_are_done_once_a_second(client):
    last = append(client, "m1").last_id
    number, seen = 1, set()
    calls(client)
    while len(seen) < 2:
        number += 1
        before, last = last, append(client, f"m{number}", first=number).last_id
        is_new = second_of(before) != second_of(last)
        names = ["eval", "set", "xrevrange", "time", "xadd", "publish"]
        expected = dict.fromkeys(names, 1)
        expected |= {"xtrim": 2, "expire": 1} if is_new else {"xtrim": 1}
        assert calls(client) == expected
        seen.add(is_new)


def test_messages_of_several_rooms_are_appended_by_one_call(client):
    with client.pubsub() as listening:
        listening.subscribe(KEYS.channel("r"), KEYS.channel("s"))
        for _ in range(2):
            assert listening.get_message(timeout=limit())["type"] == "subscribe"
        rooms = ["r", "s", "r", "s"]
        entries = [LogEntry(None, ORIGIN, number, f"m{number}") for number in range(1, 5)]
        batch = list(zip(rooms, entries, strict=True))
        options = Options("redis://localhost", prefix="p:")
        for _ in range(2):  # of which the answer was lost
            requests.append(client, KEYS, options, ORIGIN, batch)
        heard = [listening.get_message(timeout=limit()) for _ in range(2)]
        assert listening.get_message() is None
    assert [newest(client, 10, room) for room in "rs"] == [["m3", "m1"], ["m4", "m2"]]
    ids = {room: [id_.decode() for id_, _ in client.xrange(KEYS.log(room))] for room in "rs"}
    for each in heard:
        room = each["channel"].decode()[len(KEYS.log("")) : -len(KEYS.suffix)]
        first, second = (1, 3) if room == "r" else (2, 4)
        one = f"{ids[room][0]}  {ORIGIN} {first} text\nm{first}"
        two = f"{ids[room][1]} {ids[room][0]} {ORIGIN} {second} text\nm{second}"
        head = f"{ids[room][1]} several {ORIGIN} 0 several\n"
        assert each["data"].decode() == head + "".join(f"{len(x)}\n{x}" for x in (one, two))


def test_a_call_that_arrives_late_takes_nothing_back(client):
    append(client, "three", first=3)
    assert append(client, "one", "two").last_id == ""
    assert requests.take_snapshot(client, KEYS, ORIGIN, "r").ours == 3
    assert newest(client, 10) == ["three"]


@pytest.mark.parametrize(("history", "floor"), [(10, "1000-0"), (1, "")])
def test_a_log_begins_where_the_last_of_the_old_entries_was(client, exact, history, floor):
    client.xgroup_create(KEYS.log("r"), "greenws", id="0-1", mkstream=True)
    client.xadd(KEYS.log("r"), {"o": OTHER, "n": 1, "k": "t", "d": "old"}, id="1000-0")
    append(client, "one", "two", history=history)
    assert newest(client, 10) == ["two", "one"][:history]
    assert requests.take_snapshot(client, KEYS, OTHER, "r").floor == floor


def test_a_publish_that_fails_in_some_rooms_only_is_logged_once_a_minute(monkeypatch, error_log):
    clock = SimpleNamespace(monotonic=lambda: seconds)
    monkeypatch.setattr(rate_limit, "time", clock)
    seconds = 100
    log = requests.RefusalLog(logging.getLogger("greenws.brokers.redis"))

    def append_in_turns(count: int) -> int:
        nonlocal seconds
        for number in range(count):
            log.note(requests.Appended("1-0", {}, "" if number % 2 else "NOPERM"))
            seconds += 1
        return len(error_log.take())

    assert append_in_turns(60) == 1
    assert append_in_turns(60) == 1
    log.note(requests.Appended("1-0", {}, ""))
    for _ in range(200):
        log.note(requests.Appended("1-0", {}, "NOPERM"))
        seconds += 1
    assert len(error_log.take()) == 1
