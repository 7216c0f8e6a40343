"""How far a room was delivered, and what was delivered unlogged."""

from __future__ import annotations

import sys
from typing import Any

import gevent
import pytest
import redis

from greenws.brokers import BrokerUnavailable
from greenws.rooms.redis.stream import Stream

from ...support.limits import wait_until
from ...support.redis_workers import Clock, away, back, keep_from_reading


def test_what_was_received_elsewhere_is_not_repeated_by_a_process_that_lags(server, worker):
    """A process appends to the log again, which it cannot read yet."""
    a, b = worker(), worker()
    ann, bea = a.join(), b.join()
    a.send("before")
    assert ann.hear(1) == bea.hear(1) == ["before"]
    away(server, a, b)
    a.send("one", "two", "three")
    assert ann.hear(3) == ["one", "two", "three"]
    bob = b.join()
    may_read = gevent.event.Event()
    read_on = a.node._subscriber.read_on

    def wait(rooms: list[str]) -> None:
        may_read.wait()
        read_on(rooms)

    a.node._subscriber.read_on = wait
    server.start()
    assert bob.hear(3) == ["one", "two", "three"]
    assert not a.node.process.outage.is_readable
    moved = a.join(since=bob.last)
    assert moved.member.is_complete
    a.send("four")
    may_read.set()
    assert moved.hear(1) == bob.hear(1) == ann.hear(1) == ["four"]
    assert moved.hears_no_more() and ann.hears_no_more()


@pytest.mark.parametrize("has_heard", [True, False])
@pytest.mark.parametrize("clock", [-60, 0, 30])
def test_a_message_logged_unknown_to_the_new_process_arrives_once(
    server, worker, monkeypatch, clock, has_heard
):
    """There, or elsewhere before."""
    monkeypatch.setattr("greenws.rooms.redis.clock.time", Clock(clock))
    a, b = worker(timeout=1.0), worker(timeout=1.0)
    a.join("another")
    a.node.process.clock._skew = 0
    bob = b.join()
    b.send("before")
    assert bob.hear(1) == ["before"]
    since = bob.last
    wait_until(lambda: a.is_idle)
    eval_ = a.node.process.commands.client.eval

    def lose_the_answer(*args: Any) -> Any:
        eval_(*args)
        raise redis.ConnectionError("the answer is lost")

    a.node.process.commands.client.eval = lose_the_answer
    a.send("sent")
    assert bob.hear(1) == ["sent"]
    wait_until(lambda: a.is_lost)
    moved = a.join(since=bob.last if has_heard else since)
    a.node.process.commands.client.eval = eval_
    a.send("new")
    assert bob.hear(1) == ["new"]
    missed = [] if has_heard else ["sent"]
    assert moved.hear(len(missed) + 1) == [*missed, "new"]
    assert moved.hears_no_more()


def test_a_client_ahead_of_its_new_process_misses_nothing_without_redis(server, worker):
    a, b = worker(timeout=0.2), worker()
    ann, bob = a.join(), b.join()
    a.send("before")
    assert ann.hear(1) == bob.hear(1) == ["before"]
    let_read = keep_from_reading(a)
    b.send("heard")
    assert bob.hear(1) == ["heard"]
    server.stop()
    moved = a.join(since=bob.last, gap="gap")
    assert moved.member.is_complete
    server.start()
    let_read()
    assert ann.hear(1) == ["heard"]
    wait_until(lambda: a.is_idle and b.is_idle)
    b.send("new")
    assert ann.hear(1) == moved.hear(1) == ["new"]


def test_what_was_perhaps_received_elsewhere_is_a_gap_if_redis_does_not_know(server, worker):
    a, b = worker(timeout=0.2), worker()
    ann, bob = a.join(), b.join()
    a.send("before")
    assert ann.hear(1) == bob.hear(1) == ["before"]
    let_read = keep_from_reading(a)
    a.send("mine")
    assert bob.hear(1) == ["mine"]
    server.stop()
    a.node._leases.next_beat = 0  # it reads nothing, and notices only when it writes
    a.node._wake_leases.set()
    wait_until(lambda: a.is_lost)
    assert ann.hear(1) == ["mine"]  # ahead of the log
    moved = a.join(since=bob.last, gap="0-0 gap")
    assert not moved.member.is_complete
    assert moved.hear(1) == ["gap"]
    a.send("new")
    assert moved.hear(1) == ann.hear(1) == ["new"]
    let_read()
    back(server, a, b)
    assert bob.hear(1) == ["new"]
    assert moved.hears_no_more() and ann.hears_no_more()


@pytest.mark.parametrize(
    "fields",
    [
        {"x": "y"},
        {"o": "", "n": "x", "k": "text", "d": "garbage", "m": ""},
        {"o": "ff", "n": "1", "k": "virus", "d": "garbage", "m": ""},
        {"o": "ff", "n": "1", "k": "text", "d": b"\xff\xfe", "m": ""},
        {"o": b"\xff", "n": "1", "k": "text", "d": "x", "m": ""},
    ],
)
def test_garbage_in_a_log_is_logged_and_skipped(server, worker, caplog, fields):
    a = worker()
    ann = a.join()
    a.send("before")
    wait_until(lambda: a.is_idle)
    flat = [part for pair in fields.items() for part in pair]
    server.call("XADD", "greenws:room:r", "*", *flat)
    a.send("after")
    assert ann.hear(2) == ["before", "after"]
    assert "malformed entry" in caplog.text
    assert a.join(since=ann.member.position).member.is_complete


def test_what_was_delivered_of_another_log_takes_few_bytes(worker):
    stream = Stream("r", worker().node.process)
    stream.begin("5-0")
    stream._keys.extend(range(900, 0, -1))
    stream.begin("10-0", keeps_recent=True)
    assert sys.getsizeof(stream._delivered) < 10_000  # kept for each room


def test_where_a_log_was_left_is_forgotten_once_it_is_read_from_there_or_later(worker):
    """Otherwise a log that has lost what came after that would be repeated."""
    stream = Stream("r", worker().node.process)
    stream.begin("10-0")
    for delivered, at in (("20-0", "12-0"), ("30-0", "21-0")):
        stream.id = delivered
        stream.begin(at, keeps_recent=True)
    assert list(stream.left) == ["30-0"]


def test_garbage_in_the_place_of_a_log_leaves_the_other_rooms_alone(server, worker, error_log):
    a, b = worker(), worker()
    server.call("SET", "greenws:room:r", "garbage")
    server.call("SET", "greenws:here:r", "garbage")
    ann, fine, far = a.join(), a.join("fine"), b.join("fine")
    a.send("local")
    a.send("everywhere", room="fine")
    assert ann.hear(1) == ["local"]
    assert fine.hear(1) == far.hear(1) == ["everywhere"]
    a.send("still local")
    assert ann.hear(1) == ["still local"]
    wait_until(lambda: a.is_idle)
    assert any("the room reaches this process only" in r.getMessage() for r in error_log.take())


def test_garbage_in_place_of_a_log_is_logged_once(server, worker, error_log):
    a = worker()
    ann = a.join()
    a.send("before")
    assert ann.hear(1) == ["before"]
    server.call("SET", "greenws:room:r", "garbage")
    for number in range(20):
        a.send(str(number))
        assert ann.hear(1) == [str(number)]
    assert not a.node._streams["r"].sent
    (record,) = error_log.take()
    assert "the room reaches this process only" in record.getMessage()


def test_a_key_of_another_kind_leaves_the_other_rooms_alone(server, worker, error_log):
    a, b = worker(), worker()
    ann, _ = a.join(), a.join("broken")
    wait_until(lambda: a.is_idle)
    server.call("SET", "greenws:room:broken", "something else")
    server.call("CLIENT", "KILL", "TYPE", "pubsub")
    b.send("hello")
    assert ann.hear(1) == ["hello"]
    wait_until(lambda: error_log.records)
    assert "does not hold a log" in error_log.take()[0].getMessage()
    with pytest.raises(BrokerUnavailable, match="does not hold a log"):
        a.rooms["broken"].send("here alone", wait=True)
