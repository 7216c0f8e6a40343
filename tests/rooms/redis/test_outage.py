"""Redis is out of reach for a while: no message is lost, and members of a process get theirs."""

from __future__ import annotations

import logging
import signal
import sys
import time
from typing import Any

import gevent
import pytest
import redis

from greenws.rooms.redis.outage import TRANSITIONS, Event, Outage

from ...support.limits import wait_until
from ...support.redis_workers import Client, away, back


def test_nothing_is_lost_while_redis_restarts(server, worker):
    a, b = worker(), worker()
    clients = [a.join(), b.join()]
    sent = []

    def send() -> None:
        for number in range(200):
            sent.append(number)
            (a if number % 2 else b).send(f"{number}")
            gevent.sleep(0.002)

    sending = gevent.spawn(send)
    wait_until(lambda: len(sent) > 20)
    server.stop()
    wait_until(lambda: len(sent) > 60)
    server.start()
    sending.join()
    for client in clients:
        heard = [int(text) for text in client.hear(200)]
        assert sorted(heard) == sent
        for parity in (0, 1):
            assert [n for n in heard if n % 2 == parity] == list(range(parity, 200, 2))
        assert client.hears_no_more()
    assert clients[0].last == clients[1].last


def test_local_members_get_messages_while_redis_is_lost(server, worker):
    a, b = worker(), worker()
    (ann, abe), bob = (a.join(), a.join()), b.join()
    a.send("before")
    assert ann.hear(1) == abe.hear(1) == bob.hear(1) == ["before"]
    away(server, a, b)
    a.send("of a", "of a too")
    b.send("of b")
    assert ann.hear(2) == abe.hear(2) == ["of a", "of a too"]
    assert bob.hear(1) == ["of b"]
    a.join().member.room.send("of one who came meanwhile")
    assert ann.hear(1) == abe.hear(1) == ["of one who came meanwhile"]
    back(server, a, b)
    assert ann.hear(1) == abe.hear(1) == ["of b"]
    assert bob.hear(3) == ["of a", "of a too", "of one who came meanwhile"]
    a.send("after")
    for client in (ann, abe, bob):
        assert client.hear(1) == ["after"]
        assert client.hears_no_more()
    assert ann.last == bob.last


def test_what_was_received_elsewhere_is_not_repeated_when_redis_is_lost_later(server, worker):
    """A process has appended to the log what it has not found there yet, and hands it out."""
    a, b = worker(), worker()
    ann, bob = a.join(), b.join()
    a.send("before")
    assert ann.hear(1) == bob.hear(1) == ["before"]
    gone = gevent.event.Event()

    def lose_connection(*args: Any) -> None:
        gone.wait()
        raise redis.TimeoutError("no answer")

    a.node._subscriber.on_answer = lose_connection
    a.send("one", "two")
    assert bob.hear(2) == ["one", "two"]
    assert ann.hears_no_more()
    moved = a.join(since=bob.last)
    a.send("three")
    assert bob.hear(1) == ["three"]
    del a.node._subscriber.on_answer
    gone.set()
    assert ann.hear(3) == ["one", "two", "three"]
    assert moved.hear(1) == ["three"]
    wait_until(lambda: a.is_idle)
    b.send("four")
    a.send("five")
    heard = bob.hear(2)
    assert ann.hear(2) == moved.hear(2) == heard
    assert moved.hears_no_more() and ann.hears_no_more()
    assert moved.last == ann.last == bob.last


def test_who_moves_in_a_long_outage_misses_nothing(server, worker):
    a, b = worker(timeout=0.1), worker(timeout=0.1)
    ann, bob = a.join(), b.join()
    a.send("first")
    assert ann.hear(1) == bob.hear(1) == ["first"]
    away(server, a, b)
    a.send("of a")
    b.send("of b")
    assert (ann.hear(1), bob.hear(1)) == (["of a"], ["of b"])
    wait_until(lambda: time.monotonic() - b.node.process.outage.began > 0.1)
    moved = b.join(since=ann.last, gap="0-0 gap")
    assert moved.hear(1) == ["of b"]
    again = a.join(since=moved.last, gap="0-0 gap")
    a.send("more of a")
    assert again.hear(1) == ["more of a"]
    assert moved.member.is_complete and again.member.is_complete
    back(server, a, b)
    assert moved.hear(1) == ["more of a"]
    b.send("last")
    assert moved.hear(1) == again.hear(1) == ["last"]


def test_a_redis_that_hangs_is_lost(server, worker):
    a = worker(timeout=0.2)
    ann = a.join()
    wait_until(lambda: a.is_idle)
    server.send_signal(signal.SIGSTOP)
    try:
        a.send("hello")
        assert ann.hear(1) == ["hello"]
    finally:
        server.send_signal(signal.SIGCONT)
    wait_until(lambda: a.is_idle)
    a.send("again")
    assert ann.hear(1) == ["again"]


def test_threads_may_send_while_rooms_are_opened_and_redis_comes_and_goes(server, worker):
    a, b = worker(), worker()
    bob = b.join()
    a.join("other")
    wait_until(lambda: a.is_idle and b.is_idle)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    pool = gevent.get_hub().threadpool

    def send(name: str) -> None:
        for number in range(400):
            a.send(f"{name} {number}")

    try:
        sending = [pool.spawn(send, name) for name in "xy"]
        for number in range(10):
            a.join(f"room {number}")
            if number == 3:
                away(server, a, b)
            if number == 6:
                back(server, a, b)
        for each in sending:
            each.get()
    finally:
        sys.setswitchinterval(interval)
    heard = bob.hear(800)
    for name in "xy":
        of_one = [text for text in heard if text[0] == name]
        assert of_one == [f"{name} {number}" for number in range(400)]


@pytest.mark.parametrize("command", ["pipeline", "eval"])
def test_an_error_that_redis_answers_is_survived(server, worker, command):
    a, b = worker(), worker()
    ann, bob = a.join(), b.join()
    client = a.node.process.commands.client
    works = getattr(client, command)

    def fail(*args: Any, **options: Any) -> Any:
        setattr(client, command, works)
        raise redis.ResponseError("OOM command not allowed")

    setattr(client, command, fail)
    a.join("another")  # whose log is read once
    for text in ("one", "two"):
        a.send(text)
        assert ann.hear(1) == bob.hear(1) == [text]
    wait_until(lambda: getattr(client, command) is works and a.is_idle)
    b.send("three")
    assert ann.hear(1) == bob.hear(1) == ["three"]


@pytest.mark.parametrize(
    ("part", "where"),
    [
        ("_subscriber", "on_answer"),
        ("_subscriber", "_send"),
        ("_writer", "append"),
        ("_leases", "work"),
    ],
)
def test_no_error_silences_a_process(worker, caplog, part, where):
    a, b = worker(), worker()
    ann, bob = a.join(), b.join()
    wait_until(lambda: a.is_idle and b.is_idle)
    part = getattr(a.node, part)
    works = getattr(part, where)

    def fail(*args: Any) -> None:
        if getattr(part, where) is fail:
            delattr(part, where)
            raise RuntimeError("a bug")
        works(*args)

    setattr(part, where, fail)
    a.join("another")
    for text in ("one", "two"):
        a.send(text)
        b.send(f"{text} of b")
    assert sorted(ann.hear(4)) == sorted(bob.hear(4)) == ["one", "one of b", "two", "two of b"]
    wait_until(lambda: a.is_idle)
    assert "RuntimeError: a bug" in caplog.text


def test_a_room_that_is_opened_while_redis_is_lost(server, worker):
    a, b = worker(), worker()
    b.join("r", name="bob")
    wait_until(lambda: b.is_idle)
    a.join("other")
    away(server, a, b)
    ann = a.join("r", name="ann")
    a.send("hello")
    assert ann.hear(1) == ["hello"]
    assert a.names() == ["ann"]
    b.send("of b")
    back(server, a, b)
    assert ann.hear(1) == ["of b"]
    assert ann.hears_no_more()
    wait_until(lambda: a.names() == b.names() == ["ann", "bob"])


def test_a_room_that_is_left_and_opened_again_while_redis_is_lost(server, worker, pair):
    """A member that joins now must not get earlier messages late; one that comes back has missed
    them."""
    a, b = worker(), worker()
    bob = b.join()
    a.join("other")
    away(server, a, b)
    socket, peer = pair()
    with a.rooms["r"].join(socket) as member:
        first = Client(member, peer)
        a.send("heard")
        assert first.hear(1) == ["heard"]
    a.send("missed")
    returning = gevent.spawn(a.join, since=first.last)
    gevent.sleep(0.02)
    fresh = a.join()
    back(server, a, b)
    returned = returning.get()
    assert bob.hear(2) == ["heard", "missed"]
    assert returned.hear(1) == ["missed"]
    a.send("at last")
    for client in (bob, returned, fresh):
        assert client.hear(1) == ["at last"]


def test_a_broker_that_starts_before_its_redis(server, worker):
    server.stop()
    a = worker()
    ann = a.join()
    a.send("hello")
    assert ann.hear(1) == ["hello"]
    back(server, a)
    b = worker()
    bob = b.join(since=ann.last.split("+")[0])
    a.send("again")
    assert bob.hear(2) == ["hello", "again"]


def test_nothing_gets_ahead_of_what_is_handed_out_when_redis_is_lost(server, worker):
    """As where a log is written to something that lets others run."""
    a = worker(timeout=0.2)
    ann = a.join()
    wait_until(lambda: a.is_idle)

    class Talkative(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "lost connection" in record.getMessage():
                a.send("two")

    handler = Talkative()
    logging.getLogger("greenws.brokers.redis").addHandler(handler)
    server.send_signal(signal.SIGSTOP)
    try:
        a.send("one")
        assert ann.hear(2) == ["one", "two"]
    finally:
        server.send_signal(signal.SIGCONT)
        logging.getLogger("greenws.brokers.redis").removeHandler(handler)
    wait_until(lambda: a.is_idle)


# -- the states


def test_every_state_has_a_way_for_each_connection():
    writes, reads = {Event.WRITE_FAILED, Event.WRITTEN}, {Event.READ_FAILED, Event.READ}
    for state, ways in TRANSITIONS.items():
        assert len(ways) == 2 and len(set(ways) & writes) == len(set(ways) & reads) == 1
        assert state not in ways.values()


def test_it_is_lost_once_and_back_once_when_both_ways_work_again():
    told: list[str] = []
    outage = Outage(
        lambda: told.append("lost"), lambda: told.append("back"), lambda: told.append("failed")
    )
    error = redis.ConnectionError("refused")
    outage.succeed(Event.READ)
    outage.fail(Event.WRITE_FAILED, error, 17.0)
    assert (outage.is_lost, outage.is_writable, outage.is_readable) == (True, False, True)
    assert outage.began == 17.0
    outage.fail(Event.WRITE_FAILED, error, 18.0)
    outage.fail(Event.READ_FAILED, error, 19.0)
    outage.succeed(Event.WRITTEN)
    assert (outage.is_lost, outage.is_writable, outage.is_readable) == (True, True, False)
    outage.succeed(Event.READ)
    assert not outage.is_lost
    assert outage.began == 17.0
    assert told == ["failed", "lost", "failed", "failed", "back"]


def test_an_error_answer_is_not_a_lost_connection(caplog):
    outage = Outage(lambda: None, lambda: None)
    for error in (redis.ConnectionError("refused"), redis.ResponseError("OOM")):
        outage.fail(Event.WRITE_FAILED, error)
        outage.succeed(Event.WRITTEN)
    assert [each.getMessage() for each in caplog.records] == [
        "lost connection to Redis: refused",
        "reconnected to Redis",
        "Redis refuses commands: OOM",
        "Redis accepts commands again",
    ]


def test_a_redis_that_refuses_writes_answers_until_it_hangs_or_must_be_left():
    outage = Outage(lambda: None, lambda: None)
    known = [outage.is_answered]
    for error in (
        redis.ResponseError("OOM"),
        redis.TimeoutError("no answer"),
        redis.ResponseError("OOM"),
        redis.exceptions.ReadOnlyError("READONLY"),
    ):
        outage.fail(Event.WRITE_FAILED, error)
        known.append(outage.is_answered)
    assert known == [True, True, False, True, False]
    outage.succeed(Event.WRITTEN)
    assert outage.is_answered
