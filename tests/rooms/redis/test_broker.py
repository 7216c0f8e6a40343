"""Rooms over a real Redis: several brokers in one process, each as if in a process of its own."""

from __future__ import annotations

import contextlib
import json
import logging
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import gevent
import pytest
import redis

from greenws import Rooms, policies
from greenws.brokers import BrokerUnavailable
from greenws.brokers.redis import RedisBroker

from ...support.limits import limit, stays, wait_until
from ...support.redis_workers import Client, Worker, away, back
from ...support.wire import TEXT


def test_members_of_all_processes_hear_the_same_in_the_same_order(worker):
    a, b = worker(), worker()
    clients = [a.join(), a.join(), b.join(), b.join()]
    sent = []
    for number in range(50):
        a.send(text_a := f"a{number}")
        b.send(text_b := f"b{number}")
        sent += [text_a, text_b]
        if number % 10 == 0:
            gevent.sleep(0)
    heard = [client.hear(100) for client in clients]
    assert heard[0] == heard[1] == heard[2] == heard[3]
    assert sorted(heard[0]) == sorted(sent)
    for worker_ in "ab":
        numbers = [int(text[1:]) for text in heard[0] if text[0] == worker_]
        assert numbers == list(range(50))
    assert len({client.last for client in clients}) == 1


def test_what_was_not_published_to_a_process_is_read_in_the_log(worker):
    a, b = worker(), worker()
    ann, bob = a.join(), b.join()
    wait_until(lambda: a.is_idle and b.is_idle and b.broker._is_tuned)
    b.broker._hear = lambda *args: None
    a.send("one", "two")
    assert ann.hear(2) == ["one", "two"]
    assert bob.hears_no_more()
    del b.broker._hear
    a.send("three")
    assert bob.hear(3) == ["one", "two", "three"]


def test_a_connection_that_is_lost_costs_no_message(server, worker, monkeypatch):
    monkeypatch.setattr("greenws.rooms.redis.broker._ROOMS", 3)  # read with one command
    monkeypatch.setattr("greenws.rooms.redis.broker._BATCH", 5)
    a, b = worker(), worker()
    names = [f"room {number}" for number in range(10)]
    clients = {name: a.join(name) for name in names}
    for number in range(30):
        for name in names:
            b.send(str(number), room=name)
        if number % 10 == 5:
            server.call("CLIENT", "KILL", "TYPE", "pubsub")
        gevent.sleep(0.002)
    for client in clients.values():
        assert client.hear(30) == [str(number) for number in range(30)]
        assert client.hears_no_more()


def test_a_message_costs_the_same_however_many_rooms_are_open(server, worker):
    """No command names all rooms, but for those that look for what was missed."""
    a = worker()
    hear, subscribed, has_read_on = a.broker._hear, set(), gevent.event.Event()

    def note(answer: Any, fresh: set[str]) -> None:
        subscribed.update(fresh)
        hear(answer, fresh)
        if answer[0] == b"pong" and len(subscribed) == 50:
            has_read_on.set()

    a.broker._hear = note
    clients = [a.join(f"room {number}") for number in range(50)]
    assert has_read_on.wait(limit())
    wait_until(lambda: a.is_idle)
    server.call("CONFIG", "RESETSTAT")
    for number in range(100):
        a.send(str(number), room="room 7")
        clients[7].hear(1)
    commands = server.call("INFO", "commandstats")
    assert "cmdstat_xread" not in commands
    assert commands["cmdstat_eval"]["calls"] == commands["cmdstat_publish"]["calls"] == 100


def test_a_message_does_not_wait_until_all_rooms_are_open(worker):
    a = worker()
    ann = a.join()
    wait_until(lambda: a.is_idle)
    opened: list[str] = []

    def open_room(name: str) -> None:
        a.broker.open(name)
        opened.append(name)

    names = [f"room {number}" for number in range(1000)]
    opening = [gevent.spawn(open_room, name) for name in names]
    wait_until(lambda: opened)
    a.send("hello")
    assert ann.hear(1) == ["hello"]
    assert len(opened) < 500
    gevent.joinall(opening, raise_error=True)
    for name in names:
        a.broker.close(name)


def test_one_who_sends_all_the_time_holds_up_neither_rooms_nor_heartbeats(worker):
    a = worker()
    a.join("another")
    wait_until(lambda: a.is_idle)
    eval_ = a.broker._commands.eval
    is_over = False

    def eval_far_away(*args: Any) -> Any:
        gevent.sleep(0.003)
        if not is_over:
            a.send("more")  # so that something waits when the answer comes
        return eval_(*args)

    a.broker._commands.eval = eval_far_away
    a.broker._next_beat = 0
    a.send("first")
    try:
        gevent.spawn(a.join).get(timeout=limit(2))
        wait_until(lambda: a.broker._next_beat)
    finally:
        is_over = True
    wait_until(lambda: a.is_idle)


def test_much_is_appended_in_pieces(server, worker):
    """Redis gives up a subscriber behind whose back more than 32 MiB wait."""
    a, b = worker(), worker()
    a.join()
    bob = b.join(policy=policies.block(5))
    wait_until(lambda: a.is_idle and b.is_idle)
    server.call("CONFIG", "RESETSTAT")
    for number in range(40):
        a.send(f"{number} " + "x" * 100_000)
    assert [text.split()[0] for text in bob.hear(40)] == [str(number) for number in range(40)]
    assert server.call("INFO", "commandstats")["cmdstat_eval"]["calls"] >= 4


def test_the_databases_of_a_redis_have_rooms_of_their_own(server, pair, worker):
    a = worker()
    ann = a.join()
    a.send("zero")
    assert ann.hear(1) == ["zero"]
    server.url, url = server.url.replace("/0", "/1"), server.url
    b = worker()
    server.url = url
    bob = b.join()
    a.send("one of a")
    b.send("one of b")
    assert ann.hear(1) == ["one of a"]
    assert bob.hear(1) == ["one of b"]
    assert ann.hears_no_more() and bob.hears_no_more()


@pytest.mark.parametrize(
    "news", ["", "garbage", "x-y  ff 1 text \nhi", "1-1 \xff", "1 2 3 4 5 6\n"]
)
def test_garbage_that_somebody_publishes_is_logged_and_skipped(server, worker, caplog, news):
    a = worker()
    ann = a.join()
    a.send("before")
    assert ann.hear(1) == ["before"]
    assert server.call("PUBLISH", "greenws:room:r@0", news) == 1
    a.send("after")
    assert ann.hear(1) == ["after"]
    assert "news of the room 'r' that are none" in caplog.text


def test_text_and_bytes_arrive_as_they_were(worker, pair):
    a, b = worker(), worker()
    b.rooms.stamp = None
    client = b.join()
    a.rooms["r"].send("grün")
    a.rooms["r"].send(b"\x00\xff")
    a.rooms["r"].send("")
    assert client.peer.read_frame() == (True, TEXT, "grün".encode())
    assert client.peer.read_frame() == (True, 2, b"\x00\xff")
    assert client.peer.read_frame() == (True, TEXT, b"")


def test_exclude_holds_in_its_own_process(worker):
    a, b = worker(), worker()
    ann, other, far = a.join(), a.join(), b.join()
    a.rooms["r"].send("x", exclude=ann.member.socket)
    a.send("y")
    assert ann.hear(1) == ["y"]
    assert other.hear(2) == far.hear(2) == ["x", "y"]


def test_rooms_opened_while_the_reader_waits_are_heard_at_once(worker):
    a, b = worker(), worker()
    a.join("first")
    for number in range(20):
        client = a.join(f"room {number}")
        b.send("hello", room=f"room {number}")
        with gevent.Timeout(limit(0.5)):
            assert client.hear(1) == ["hello"]


def test_one_room_may_be_opened_by_many_at_once(worker):
    a, b = worker(), worker()
    joining = [gevent.spawn(a.join) for _ in range(20)]
    clients = [greenlet.get() for greenlet in joining]
    b.send("hello")
    for client in clients:
        assert client.hear(1) == ["hello"]


def test_two_connections_however_many_rooms(server, worker):
    a = worker()
    for number in range(30):
        a.join(f"room {number}")
        a.join(f"room {number}")
        a.send("hello", room=f"room {number}")
    wait_until(lambda: a.is_idle)
    assert len(server.call("CLIENT", "LIST").splitlines()) == 3  # with the one that asks


def test_a_room_that_is_left_is_not_read_any_more(worker, pair):
    a, b = worker(), worker()
    a.join("other")
    socket, peer = pair()
    with a.rooms["r"].join(socket):
        pass
    assert list(a.broker._channels) == ["other"]
    b.send("nobody hears it")
    client = a.join("r")
    b.send("hello")
    assert client.hear(1)[-1] == "hello" or client.hear(1) == ["hello"]


# -- presence


def tell(kind: str, info: dict[str, Any]) -> str:
    return f"{kind} {info['name']}"


def test_a_room_that_nobody_comes_back_to_is_not_subscribed_to(server, worker, pair):
    a = worker()
    a.join("other")
    socket, _ = pair()

    def hang(room: str) -> None:
        gevent.get_hub().switch()

    with a.rooms["r"].join(socket):
        wait_until(lambda: len(server.call("PUBSUB", "CHANNELS")) == 2)
        a.broker._look = hang
        joining = gevent.spawn(a.join)  # comes just when the other has left
    wait_until(lambda: "r" in a.broker._channels and not a.broker._changed)
    joining.kill()
    del a.broker._look
    wait_until(lambda: server.call("PUBSUB", "CHANNELS") == [b"greenws:room:other@0"])


def test_presence_across_processes(worker):
    a, b = worker(), worker()
    ann = a.join(name="ann", presence=tell)
    wait_until(lambda: a.is_idle)
    b.join(name="bob")
    assert b.names() == ["ann", "bob"]
    assert ann.hear(1) == ["join bob"]
    assert a.names() == ["ann", "bob"]
    c = worker()
    wait_until(lambda: len(c.rooms["r"]) == 2)  # it has no members there itself
    b.stop()
    assert ann.hear(1) == ["leave bob"]
    assert a.names() == c.names() == ["ann"]


def test_members_of_a_process_that_died_are_gone_after_a_while(server, worker):
    a, b, c = (worker(presence_timeout=1.0) for _ in range(3))
    b.join(name="bob")
    b.join(name="ben")
    wait_until(lambda: b.is_idle)
    ann, carl = a.join(name="ann", presence=tell), c.join(name="carl")
    assert a.names() == ["ann", "ben", "bob"] or ann.hear(1) == ["join carl"]
    wait_until(lambda: a.names() == ["ann", "ben", "bob", "carl"])
    b.die()
    wait_until(lambda: a.names() == c.names() == ["ann", "carl"])
    left = [text for text in ann.hear(3) if text != "join carl"]
    left += ann.hear(2 - len(left))
    assert sorted(left) == ["leave ben", "leave bob"]  # once, though two processes noticed
    assert ann.hears_no_more()
    assert server.call("HLEN", "greenws:here:r") == 2
    del carl


def test_the_dead_whom_nobody_has_met_are_buried_too(server, worker):
    b = worker()
    b.join(name="bob")
    wait_until(lambda: b.is_idle)
    b.die()
    server.call("DEL", f"greenws:alive:{b.broker.origin}")
    a = worker()
    ann = a.join(name="ann", presence=tell)
    assert a.names() == ["ann"]
    a.broker._next_beat = 0
    a.broker._wake.set()
    wait_until(lambda: server.call("HLEN", "greenws:here:r") == 1)
    a.send("hello")
    assert ann.hear(1) == ["hello"]  # nobody has left whom she knew


def test_one_who_was_taken_for_dead_and_then_leaves_has_left_once_for_everybody(
    server, worker, pair
):
    a, b = worker(), worker()
    ann = a.join(name="ann", presence=tell)
    wait_until(lambda: a.is_idle)
    bea = b.join(name="bea", presence=tell)
    socket, _ = pair()
    with b.rooms["r"].join(socket, name="bob"):
        assert bea.hear(1) == ["join bob"]
        assert ann.hear(2) == ["join bea", "join bob"]
        server.call("DEL", f"greenws:alive:{b.broker.origin}")
        a.broker._next_beat = 0
        a.broker._wake.set()
        assert sorted(ann.hear(2)) == ["leave bea", "leave bob"]
        assert bea.hears_no_more()
    assert bea.hear(1) == ["leave bob"]
    assert ann.hears_no_more()


def test_one_who_leaves_when_redis_has_lost_everything_has_left(server, worker, pair):
    a, b = worker(), worker()
    ann = a.join(name="ann", presence=tell)
    socket, _ = pair()
    with b.rooms["r"].join(socket, name="bob"):
        assert ann.hear(1) == ["join bob"]
        server.call("FLUSHALL")
    assert ann.hear(1) == ["leave bob"]
    assert a.names() == ["ann"]


def test_a_process_that_was_taken_for_dead_comes_back(server, worker):
    a, b = worker(presence_timeout=1.0), worker(presence_timeout=1.0)
    a.join(name="ann")
    b.join(name="bob")
    wait_until(lambda: a.names() == b.names() == ["ann", "bob"])
    server.call("DEL", f"greenws:alive:{b.broker.origin}")
    a.broker._next_beat = 0
    a.broker._wake.set()
    wait_until(lambda: a.names() == ["ann"])
    assert b.names() == ["ann", "bob"]
    wait_until(lambda: a.names() == ["ann", "bob"])


def test_a_process_that_says_once_more_who_is_there_tells_no_news(server, worker):
    a, b = worker(), worker()
    clients = [
        a.join(name="ann", presence=tell),
        a.join(name="amy", presence=tell),
        b.join(name="bob", presence=tell),
    ]
    wait_until(lambda: a.is_idle and b.is_idle)
    a.send("all are here")
    for each in clients:
        while each.hear(1) != ["all are here"]:
            pass
    entries = server.call("XLEN", "greenws:room:r")
    server.call("DEL", f"greenws:alive:{a.broker.origin}")
    a.broker._next_beat = 0
    a.broker._wake.set()
    wait_until(lambda: server.call("XLEN", "greenws:room:r") == entries + 2)
    a.send("hello")
    for each in clients:
        assert each.hear(1) == ["hello"]
    assert a.names() == b.names() == ["amy", "ann", "bob"]


def test_the_first_heartbeat_after_an_outage_buries_nobody(server, worker):
    a, b = worker(), worker()
    ann = a.join(name="ann", presence=tell)
    b.join(name="bob")
    assert ann.hear(1) == ["join bob"]
    away(server, a, b)
    let_back = {each: hold_back(each) for each in (a, b)}
    for each in (a, b):
        each.send("away")
        wait_until(lambda each=each: not each.broker._writable)
    assert ann.hear(1) == ["away"]
    server.start()
    server.call("DEL", f"greenws:alive:{b.broker.origin}")  # as it is after a long outage
    a.broker._next_beat = b.broker._next_beat = 0
    let_back[a]()
    wait_until(lambda: a.is_idle)
    assert a.broker._next_beat
    let_back[b]()
    wait_until(lambda: b.is_idle)
    assert ann.hear(1) == ["away"]  # of b, and no word of bob
    assert a.names() == ["ann", "bob"]


def hold_back(each: Worker) -> Callable[[], None]:
    """Redis stays away for a process, as far as it writes, until that is called."""
    commands = each.broker._commands

    def ping() -> None:
        raise redis.ConnectionError("not yet")

    commands.ping = ping
    return lambda: delattr(commands, "ping")


def test_nobody_is_taken_for_dead_who_comes_back_with_redis_a_moment_later(server, worker):
    a, b = worker(presence_timeout=1.0), worker(presence_timeout=1.0)
    ann = a.join(name="ann", presence=tell)
    b.join(name="bob")
    assert ann.hear(1) == ["join bob"]
    away(server, a, b)
    server.start()
    wait_until(lambda: a.is_idle)
    server.call("DEL", f"greenws:alive:{b.broker.origin}")
    a.broker._next_beat = b.broker._next_beat = time.monotonic() + 60
    a.broker._beat()
    b.broker._beat()
    b.send("hello")
    assert ann.hear(1) == ["hello"]


def test_one_who_comes_while_redis_is_away_hears_all_whatever_the_clock_says(
    server, worker, monkeypatch
):
    a, b = worker(), worker()
    monkeypatch.setattr("greenws.rooms.redis.broker.time", Clock(60))
    a.join()
    b.join("another")
    away(server, a, b)
    bob = b.join()
    back(server, a, b)
    a.send("one", "two")
    assert bob.hear(2) == ["one", "two"]


class Clock:
    """The module ``time`` of a machine that is some seconds ahead."""

    def __init__(self, ahead: float) -> None:
        self._ahead = ahead

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)

    def time(self) -> float:
        return time.time() + self._ahead


# -- Redis goes away


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


def test_local_members_hear_each_other_while_redis_is_away(server, worker):
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


def test_what_was_sent_and_not_answered_is_there_once(server, worker):
    """Redis takes a message, and the connection breaks before it says so."""
    a, b = worker(), worker()
    ann, bob = a.join(), b.join()
    wait_until(lambda: a.is_idle)
    eval_ = a.broker._commands.eval

    def lose_the_answer(*args: Any) -> Any:
        a.broker._commands.eval = eval_
        eval_(*args)
        raise redis.ConnectionError("the answer is lost")

    a.broker._commands.eval = lose_the_answer
    a.send("one", "two")
    assert ann.hear(2) == bob.hear(2) == ["one", "two"]
    a.send("three")
    assert ann.hear(1) == bob.hear(1) == ["three"]
    assert ann.hears_no_more() and bob.hears_no_more()
    assert server.call("XLEN", "greenws:room:r") == 5  # with two that joined


def test_what_was_heard_elsewhere_is_not_repeated_by_a_process_that_lags(server, worker):
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
    look_for_gaps = a.broker._look_for_gaps

    def wait() -> None:
        may_read.wait()
        look_for_gaps()

    a.broker._look_for_gaps = wait
    server.start()
    assert bob.hear(3) == ["one", "two", "three"]
    assert not a.broker._readable
    moved = a.join(since=bob.last)
    assert moved.member.is_complete
    a.send("four")
    may_read.set()
    assert moved.hear(1) == bob.hear(1) == ann.hear(1) == ["four"]
    assert moved.hears_no_more() and ann.hears_no_more()


def test_what_was_heard_elsewhere_is_not_repeated_when_redis_goes_away_later(server, worker):
    """A process has appended to the log what it has not found there yet, and hands it out."""
    a, b = worker(), worker()
    ann, bob = a.join(), b.join()
    a.send("before")
    assert ann.hear(1) == bob.hear(1) == ["before"]
    gone = gevent.event.Event()

    def lose_connection(*args: Any) -> None:
        gone.wait()
        raise redis.TimeoutError("no answer")

    a.broker._hear = lose_connection
    a.send("one", "two")
    assert bob.hear(2) == ["one", "two"]
    assert ann.hears_no_more()
    moved = a.join(since=bob.last)
    a.send("three")
    assert bob.hear(1) == ["three"]
    del a.broker._hear
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


@pytest.mark.parametrize("has_heard", [True, False])
@pytest.mark.parametrize("clock", [-60, 0, 30])
def test_a_message_logged_unknown_to_the_new_process_is_heard_once(
    server, worker, monkeypatch, clock, has_heard
):
    """There, or elsewhere before."""
    monkeypatch.setattr("greenws.rooms.redis.broker.time", Clock(clock))
    a, b = worker(), worker()
    a.join("another")
    a.broker._skew = 0
    bob = b.join()
    b.send("before")
    assert bob.hear(1) == ["before"]
    since = bob.last
    wait_until(lambda: a.is_idle)
    eval_ = a.broker._commands.eval

    def lose_the_answer(*args: Any) -> Any:
        eval_(*args)
        raise redis.ConnectionError("the answer is lost")

    a.broker._commands.eval = lose_the_answer
    a.send("sent")
    assert bob.hear(1) == ["sent"]
    wait_until(lambda: a.is_away)
    moved = a.join(since=bob.last if has_heard else since)
    a.broker._commands.eval = eval_
    a.send("new")
    assert bob.hear(1) == ["new"]
    missed = [] if has_heard else ["sent"]
    assert moved.hear(len(missed) + 1) == [*missed, "new"]
    assert moved.hears_no_more()


def test_what_was_heard_elsewhere_is_looked_for_far_back(server, worker):
    a, b = worker(), worker()
    ann, bob = a.join(), b.join()
    wait_until(lambda: a.is_idle)
    may_fail, may_return = gevent.event.Event(), gevent.event.Event()
    tune_in = a.broker._tune_in

    def fail(*args: Any) -> None:
        may_fail.wait()
        del a.broker._hear
        raise redis.TimeoutError("no answer")

    def wait() -> Any:
        may_return.wait()
        return tune_in()

    a.broker._hear, a.broker._tune_in = fail, wait
    a.send("of a")
    assert bob.hear(1) == ["of a"]
    numbers = [str(number) for number in range(700)]
    b.send(*numbers)
    assert bob.hear(700) == numbers
    may_fail.set()
    assert ann.hear(1) == ["of a"]  # ahead of the log
    moved = a.join(since=bob.last)
    may_return.set()
    assert ann.hear(700) == numbers
    a.send("new")
    assert moved.hear(1) == ["new"]


def test_what_is_sent_while_a_room_is_opened_arrives_with_what_waited_before(server, worker):
    a, b = worker(), worker()
    a.join("another")
    bob = b.join()
    b.send("start")
    assert bob.hear(1) == ["start"]
    since = bob.last
    wait_until(lambda: a.is_idle)
    eval_ = a.broker._commands.eval
    may_fail = gevent.event.Event()

    def hang(script: str, *args: Any) -> Any:
        if "XADD" in script and not may_fail.is_set():
            may_fail.wait()
            raise redis.TimeoutError("no answer")
        return eval_(script, *args)

    a.broker._commands.eval = hang
    a.send("one", "two")
    wait_until(lambda: a.broker._turn.locked())
    joining = gevent.spawn(a.join, since=since)
    wait_until(lambda: "r" in a.broker._channels)
    a.send("three")
    may_fail.set()
    ann = joining.get(timeout=limit())
    assert ann.member.is_complete
    a.send("four")
    assert ann.hear(4) == bob.hear(4) == ["one", "two", "three", "four"]
    assert ann.hears_no_more()


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


def keep_from_reading(each: Worker) -> Callable[[], None]:
    """A process lags, as far as it reads the logs, until that is called."""
    may_read, take = gevent.event.Event(), each.broker._take

    def wait(*args: Any) -> None:
        may_read.wait()
        take(*args)

    each.broker._take = wait
    return may_read.set


def test_what_was_perhaps_heard_elsewhere_is_a_gap_where_redis_cannot_tell(server, worker):
    a, b = worker(timeout=0.2), worker()
    ann, bob = a.join(), b.join()
    a.send("before")
    assert ann.hear(1) == bob.hear(1) == ["before"]
    let_read = keep_from_reading(a)
    a.send("mine")
    assert bob.hear(1) == ["mine"]
    away(server, a)
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


def test_what_redis_has_of_ours_is_not_behind_a_room_that_is_opened_without_it(
    server, worker, monkeypatch
):
    """Though the clock of this machine is behind, and nobody has noticed."""
    a, b = worker(), worker()
    bob = b.join()
    b.send("heard")
    assert bob.hear(1) == ["heard"]
    since = bob.last
    monkeypatch.setattr("greenws.rooms.redis.broker.time", Clock(-60))
    a.send("missed")
    assert bob.hear(1) == ["missed"]
    wait_until(lambda: a.is_idle)
    server.stop()
    a.send("x", room="another")
    wait_until(lambda: a.is_away)
    joining = gevent.spawn(a.join, since=since)
    wait_until(lambda: "r" in a.broker._channels)
    back(server, a, b)
    ann = joining.get(timeout=limit())
    assert ann.member.is_complete
    assert ann.hear(1) == ["missed"]
    assert ann.hears_no_more()


def test_who_comes_back_is_told_that_redis_lost_what_it_missed(server, worker):
    a, b = worker(), worker()
    ann = a.join()
    a.send("heard", "missed")
    assert ann.hear(1) == ["heard"]
    since = ann.last
    assert ann.hear(1) == ["missed"]
    server.call("FLUSHALL")
    assert not b.join(since=since).member.is_complete
    a.send("after")
    assert ann.hear(1) == ["after"]
    bob = b.join(since=since)
    assert not bob.member.is_complete
    assert bob.hear(1) == ["after"]
    fresh = b.join("another")  # of a room in which nothing was said nothing is lost
    assert b.join("another", since=fresh.last).member.is_complete


def test_a_long_history_is_fetched_in_pieces(server, worker):
    a = worker()
    sent = [f"{number}" for number in range(2345)]
    with contextlib.ExitStack() as stack:
        socket, _ = a._pair()
        since = stack.enter_context(a.rooms["r"].join(socket)).position
        a.send(*sent)
        wait_until(lambda: a.is_idle)
    server.call("CONFIG", "RESETSTAT")
    ann = a.join(since=since)
    assert ann.member.is_complete
    assert ann.hear(2345) == sent
    info = server.call("INFO", "commandstats")
    # Of 10 entries first, then of 100; with all but the first goes the oldest.
    assert info["cmdstat_xrange"]["calls"] == 1 + 2 * 24


def test_large_messages_are_fetched_few_at_a_time(server, worker):
    a = worker()
    ann = a.join()
    a.send(*(str(number).ljust(20_000, ".") for number in range(30)))
    ann.hear(30)
    sizes, command = [], a.broker._command

    def note(call: Any, **options: Any) -> Any:
        found = command(call, **options)
        if isinstance(found, list) and options.get("urgent") and isinstance(found[0], list):
            sizes.append(len(found[0]))
        return found

    a.broker._command = note
    assert len(a.join(since="0-0", gap="0-0 gap").hear(31)) == 31
    assert sizes == [10, 14, 7]


def test_a_hole_that_is_trimmed_while_a_history_is_fetched_is_told_where_it_is(server, worker):
    a = worker()
    ann = a.join()
    start = ann.last
    sent = [str(number) for number in range(1200)]
    a.send(*sent)
    ann.hear(701)
    place = ann.last
    ann.hear(499)
    command = a.broker._command

    def trim(call: Any, **options: Any) -> Any:
        found = command(call, **options)
        if found and isinstance(found[0], list) and len(found[0]) == 100:  # the second page
            server.call("XTRIM", "greenws:room:r", "MINID", place)
        return found

    a.broker._command = trim
    again = a.join(since=start, gap="0-0 gap")
    del a.broker._command
    assert not again.member.is_complete
    assert again.hear(109 + 1) == [*sent[:109], "gap"]  # and one entry that says who joined
    assert again.hear(500) == sent[700:]


def test_a_redis_that_hangs_is_away(server, worker):
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


def test_a_connection_that_redis_closes_is_no_outage(server, worker):
    """As it does to one who is too slow to read: nobody is told anything ahead of the log."""
    a, b = worker(), worker()
    ann, bob = a.join(), b.join()
    wait_until(lambda: a.is_idle and b.is_idle)
    for _ in range(5):
        server.call("CLIENT", "KILL", "TYPE", "pubsub")
        for text in ("one", "two"):
            a.send(text)
            b.send(text)
        assert ann.hear(4) == bob.hear(4)
        assert ann.last == bob.last
        assert not a.is_away and not b.is_away


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


def test_a_redis_that_hangs_is_noticed_where_nothing_is_sent(server, worker, monkeypatch):
    monkeypatch.setattr("greenws.rooms.redis.broker._PING", 0.05)
    a = worker(timeout=0.1)
    ann = a.join()
    wait_until(lambda: a.is_idle)
    server.send_signal(signal.SIGSTOP)
    try:
        wait_until(lambda: a.is_away)
    finally:
        server.send_signal(signal.SIGCONT)
    wait_until(lambda: a.is_idle)
    a.send("again")
    assert ann.hear(1) == ["again"]


@pytest.mark.parametrize("command", ["xread", "eval"])
def test_an_error_that_redis_answers_is_survived(server, worker, command):
    a, b = worker(), worker()
    ann, bob = a.join(), b.join()
    client = a.broker._commands
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


@pytest.mark.parametrize("where", ["_hear", "_append", "_say"])
def test_no_error_silences_a_process(worker, caplog, where):
    a, b = worker(), worker()
    ann, bob = a.join(), b.join()
    wait_until(lambda: a.is_idle and b.is_idle)
    works = getattr(a.broker, where)

    def fail(*args: Any) -> None:
        if getattr(a.broker, where) is fail:
            delattr(a.broker, where)
            raise RuntimeError("a bug")
        works(*args)

    setattr(a.broker, where, fail)
    a.join("another")
    for text in ("one", "two"):
        a.send(text)
        b.send(f"{text} of b")
    assert sorted(ann.hear(4)) == sorted(bob.hear(4)) == ["one", "one of b", "two", "two of b"]
    wait_until(lambda: a.is_idle)
    assert "RuntimeError: a bug" in caplog.text


def test_what_is_not_heard_is_bounded_where_commands_work(server, worker, error_log):
    """As of a user who may not use any channels."""
    server.call("ACL", "SETUSER", "u", "on", ">p", "~*", "resetchannels", "+@all")
    server.url, url = server.url.replace("//", "//u:p@"), server.url
    a = worker(max_pending=20)
    server.url = url
    ann = a.join()
    wait_until(lambda: a.is_away)
    with pytest.raises(BrokerUnavailable):
        for number in range(50):
            a.send(str(number))
            wait_until(lambda: not a.broker._unsent)
    assert len(a.broker._channels["r"].sent) <= 21  # with the one who joined
    assert ann.hear(20) == [str(number) for number in range(20)]
    (record,) = error_log.take()
    assert "does not publish" in record.getMessage()


def test_what_waits_for_redis_is_bounded(server, worker):
    a, b = worker(max_pending=20), worker()
    ann, bob = a.join(), b.join()
    away(server, a, b)
    texts = [str(number) for number in range(50)]
    with pytest.raises(BrokerUnavailable, match="max_pending"):
        a.send(*texts)
    taken = a.rooms.stats.sent
    assert taken <= 20
    back(server, a, b)
    assert bob.hear(taken) == ann.hear(taken) == texts[:taken]
    assert bob.hears_no_more() and ann.hears_no_more()


def test_a_room_that_is_opened_while_redis_is_away(server, worker):
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


def test_a_room_that_is_left_and_opened_again_while_redis_is_away(server, worker, pair):
    """Who comes now has not heard what was said before, and is not to hear it late; who comes back
    has missed it."""
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


# -- members that come back


def test_a_client_comes_back_at_another_process(worker):
    a, b = worker(), worker()
    ann = a.join()
    a.send(*"abc")
    assert ann.hear(2) == ["a", "b"]
    b.send(*"def")
    again = b.join(since=ann.last)
    assert again.member.is_complete
    a.send(*"gh")
    assert sorted(again.hear(6)) == list("cdefgh")
    assert again.hears_no_more()


def test_all_that_was_missed_once_and_in_order_under_load(worker):
    a, b = worker(), worker()
    witness, ann = a.join(), a.join()
    sending = [gevent.spawn(send, each) for each in (a, b)]
    heard = ann.hear(10)
    for each in (b, a, b, a, b):
        ann = each.join(since=ann.last)
        heard += ann.hear(17)
    gevent.joinall(sending)
    ann = a.join(since=ann.last)
    heard += ann.hear(200 - len(heard))
    assert ann.hears_no_more()
    assert heard == witness.hear(200)


def send(each: Worker) -> None:
    for number in range(100):
        each.send(f"{each.broker.origin} {number}")
        gevent.sleep(0.001)


def test_a_client_moves_while_redis_is_away(server, worker):
    """It has heard what its old process has not told Redis yet, and must not hear it again."""
    a, b = worker(), worker()
    ann, bob = a.join(), b.join()
    a.send("0")
    assert ann.hear(1) == bob.hear(1) == ["0"]
    away(server, a, b)
    a.send("a1", "a2", "a3")
    assert ann.hear(2) == ["a1", "a2"]
    assert "+" in ann.last
    same = a.join(since=ann.last)  # waits for Redis, in vain, and is told so
    assert not same.member.is_complete
    joining = gevent.spawn(b.join, since=ann.last)
    b.send("b1")
    gevent.sleep(0.05)
    back(server, a, b)
    moved = joining.get()
    a.send("a4")
    heard = moved.hear(3)
    assert sorted(heard) == ["a3", "a4", "b1"]
    assert heard.index("a3") < heard.index("a4")
    assert moved.hears_no_more()
    later = a.join(since=ann.last)
    assert sorted(later.hear(3)) == ["a3", "a4", "b1"]
    assert later.hears_no_more()
    assert same.hear(3)[0] == "a3"


def test_a_history_that_was_trimmed_does_not_reach_back(server, worker):
    a = worker(history=100)
    ann = a.join()
    start = ann.last
    heard = []
    for first in range(0, 500, 50):
        a.send(*(str(number) for number in range(first, first + 50)))
        heard += ann.hear(50)
    assert heard[-1] == "499"
    assert server.call("XLEN", "greenws:room:r") < 250
    again = a.join(since=start, gap="gap")
    assert not again.member.is_complete
    fin, opcode, payload = again.peer.read_frame()
    assert payload == b"gap"
    entries = server.call("XRANGE", "greenws:room:r", "-", "+")
    kept = again.hear(sum(fields[b"k"] == b"text" for _, fields in entries))
    assert again.hears_no_more()
    assert kept == heard[-len(kept) :]


def test_the_newest_messages(server, worker):
    a, b = worker(), worker()
    ann = a.join()
    assert b.rooms["r"].history() == []
    a.send(*"abcdefg")
    for _ in range(20):
        b.join()
    a.send("h")
    heard = ann.hear(8)
    wait_until(lambda: b.is_idle)
    history = b.rooms["r"].history(3)
    assert [text.split()[1] for text in history] == heard[-3:] == list("fgh")
    assert history[-1].split()[0] == ann.last
    assert len(b.rooms["r"].history(100)) == 8
    away(server, a, b)
    assert b.rooms["r"].history(3) == []
    server.start()


def test_without_redis_a_room_has_neither_history_nor_members(server, worker):
    a, b = worker(), worker()
    a.join(name="ann")
    a.send("hello")
    wait_until(lambda: [member.info for member in b.rooms["r"].members] == [{"name": "ann"}])
    assert b.rooms["r"].history() != []
    server.stop()
    assert b.rooms["r"].members == []  # the first to learn it
    assert b.is_away
    assert b.rooms["r"].members == b.rooms["r"].history() == []
    back(server, a, b)
    wait_until(lambda: [member.info for member in b.rooms["r"].members] == [{"name": "ann"}])


def test_a_history_that_is_asked_for_as_redis_goes_is_empty(server, worker):
    a = worker()
    a.send("hello", room="unread")
    wait_until(lambda: a.is_idle)
    server.stop()
    assert a.rooms["unread"].history() == []  # the first to learn it
    assert a.is_away


def test_the_history_of_a_key_that_is_no_log_is_empty_and_an_error(server, worker, error_log):
    a = worker()
    server.call("SET", "greenws:room:r", "not a log")
    assert a.rooms["r"].history() == []
    (record,) = error_log.take()
    assert "'r' has no history" in record.getMessage() and "WRONGTYPE" in record.getMessage()
    assert not a.is_away


def test_entries_that_redis_refuses_one_by_one_are_heard_in_their_own_process(
    server, worker, error_log
):
    a, b = worker(), worker()
    ann, bob, other = a.join(), b.join(), b.join("other")
    wait_until(lambda: a.is_idle and b.is_idle and b.broker._is_tuned)
    server.call("XADD", "greenws:room:r", "18446744073709551615-18446744073709551615", "k", "v")
    a.send("one", "two")  # no id is greater than that
    a.send("taken", room="other")
    a.send("three")
    assert ann.hear(3) == ["one", "two", "three"]
    assert other.hear(1) == ["taken"]
    assert bob.hears_no_more() and ann.hears_no_more()
    assert not a.is_away and a.is_idle
    errors = {record.getMessage() for record in error_log.take()}
    (error,) = errors
    assert error.startswith("Redis does not take messages of the room 'r': ")
    server.call("DEL", "greenws:room:r")


@pytest.mark.parametrize(
    "tail", ["+evil.5", "+" + "0" * 13 + ".5", "+0123456789AB.5", "+0123456789ab.5" * 17]
)
def test_no_name_that_a_client_invented_is_kept_or_sent_on(worker, tail):
    a = worker()
    ann = a.join()
    bob = a.join(since=ann.last + tail, gap="0-0 gap")
    assert not bob.member.is_complete
    assert bob.hear(1) == ["gap"]
    a.send("live")
    assert ann.hear(1) == bob.hear(1) == ["live"]
    assert bob.last == bob.member.position == ann.last


def test_a_position_in_the_far_future_is_a_gap(worker):
    a = worker()
    ann = a.join()
    bob = a.join(since=f"{int(time.time() * 1000) + 3_600_000}-0", gap="0-0 gap")
    assert bob.hear(1) == ["gap"]
    a.send("live")
    assert ann.hear(1) == bob.hear(1) == ["live"]


@pytest.mark.parametrize("since", ["0-0", "nonsense", "1-1+zz.4"])
def test_an_unknown_id_is_a_gap(worker, since):
    a = worker()
    assert not a.join(since=since).member.is_complete


def test_a_room_in_which_nothing_was_said_has_no_gap(worker):
    a, b = worker(), worker()
    ann = a.join()
    b.send("missed", room="r")
    assert ann.hear(1) == ["missed"]
    assert b.join(since=ann.member.position).member.is_complete
    assert b.join("quiet", since=b.join("quiet").last).member.is_complete


# -- what Redis holds


def test_one_who_leaves_while_it_is_asked_who_is_there_is_gone(server, worker, pair):
    a, b = worker(), worker()
    a.join("other")
    b.join("other")
    socket, _ = pair()
    with contextlib.ExitStack() as stack:
        stack.enter_context(b.rooms["r"].join(socket, name="bob"))
        wait_until(lambda: b.is_idle)
        away(server, a, b)
        ann = a.join(name="ann", presence=tell)
        may_go_on, has_looked, look = gevent.event.Event(), gevent.event.Event(), a.broker._look

        def look_slowly(room: str) -> Any:
            found = look(room)
            has_looked.set()
            may_go_on.wait()
            return found

        a.broker._look = look_slowly
        back(server, a, b)
        assert has_looked.wait(limit())
    b.send("bob has left")
    assert ann.hear(1) == ["bob has left"]
    may_go_on.set()
    wait_until(lambda: not a.broker._channels["r"].is_stale)
    a.send("hello")
    assert ann.hear(1) == ["hello"]
    assert a.names() == b.names() == ["ann"]


def test_keys_expire(server, worker):
    a = worker(max_age=100)
    a.join(name="ann")
    a.send("hello")
    wait_until(lambda: a.is_idle)
    keys = sorted(key.decode() for key in server.call("KEYS", "*"))
    origin = a.broker.origin
    names = [f"alive:{origin}", f"from:{origin}", "here:r", "room:r"]
    assert keys == [f"greenws:{name}" for name in names]
    assert all(server.call("TTL", key) > 0 for key in keys)
    assert server.call("TTL", "greenws:room:r") <= 100


def test_old_entries_are_trimmed_by_age(server, worker):
    a = worker(max_age=1)
    ann = a.join()
    for number in range(300):
        a.send(str(number))
    ann.hear(300)
    gevent.sleep(1.05)  # older than max_age
    a.send("new")
    ann.hear(1)
    assert 0 < server.call("XLEN", "greenws:room:r") < 120


@pytest.mark.parametrize(
    "fields",
    [
        {"x": "y"},
        {"o": "", "n": "x", "k": "text", "d": "garbage", "m": ""},
        {"o": "ff", "n": "1", "k": "virus", "d": "garbage", "m": ""},
        {"o": "ff", "n": "1", "k": "join", "d": "no json", "m": "m"},
        {"o": "ff", "n": "1", "k": "join", "d": "[]", "m": "m"},
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
    assert any("is a room of this process alone" in r.getMessage() for r in error_log.take())


def test_garbage_that_takes_the_place_of_a_log_is_told_of_once(server, worker, error_log):
    a = worker()
    ann = a.join()
    a.send("before")
    assert ann.hear(1) == ["before"]
    server.call("SET", "greenws:room:r", "garbage")
    for number in range(20):
        a.send(str(number))
        assert ann.hear(1) == [str(number)]
    assert not a.broker._channels["r"].sent
    (record,) = error_log.take()
    assert "is a room of this process alone" in record.getMessage()


def test_garbage_among_the_members_is_skipped(server, worker, caplog):
    server.call("HSET", "greenws:here:r", "x", "garbage", "y", b"\xff", "z", "ff []")
    a = worker()
    a.join(name="ann")
    assert a.names() == ["ann"]
    assert "is none" in caplog.text


def test_nothing_is_pickled(server, worker):
    a = worker()
    a.join(name="ann")
    a.send(json.dumps({"text": "hello"}))
    wait_until(lambda: a.is_idle)
    (_, join), (_, message) = server.call("XRANGE", "greenws:room:r", "-", "+")
    assert message[b"d"] == b'{"text": "hello"}'
    assert json.loads(join[b"d"]) == {"name": "ann"}


# -- and around it


def test_sockets_that_would_block_the_hub_are_refused(running):
    with pytest.raises(RuntimeError, match=r"monkey.patch_all\(\)"):
        RedisBroker(running.url)


def test_tls_that_would_block_the_hub_is_refused(server):
    with pytest.raises(RuntimeError, match=r"monkey.patch_all\(\)"):
        RedisBroker(server.url.replace("redis:", "rediss:"))


def test_a_unix_socket(server, worker, tmp_path, monkeypatch):
    path = tmp_path / "redis.sock"
    server.stop()
    monkeypatch.setattr(server, "_options", ("--unixsocket", str(path)))
    server.start()
    monkeypatch.setattr(server, "url", f"unix://{path}?db=0&socket_timeout=9")
    a = worker()
    ann = a.join()
    a.send("hello")
    assert ann.hear(1) == ["hello"]
    assert a.broker._commands.connection_pool.connection_kwargs["socket_timeout"] == 1.0


def test_a_url_makes_a_redis_broker(server):
    rooms = Rooms(server.url)
    assert isinstance(rooms.broker, RedisBroker)
    rooms.close()


@pytest.mark.parametrize(
    "options",
    ["decode_responses=true", "health_check_interval=1", "socket_timeout=0.01", "protocol=3"],
)
def test_options_in_the_url_that_would_do_harm_do_none(server, worker, options):
    server.url, url = f"{server.url}?{options}", server.url
    a = worker()
    server.url = url
    ann = a.join()
    wait_until(lambda: a.is_idle)
    stays(lambda: not a.is_away, 0.05)
    a.send("hello")
    assert ann.hear(1) == ["hello"]
    assert not a.is_away


def test_rooms_may_be_closed_while_members_are_there(server, worker, pair):
    a = worker()
    socket, _ = pair()
    with a.rooms["r"].join(socket):
        greenlets = list(a.broker._greenlets)
        a.rooms.close()
        with pytest.raises(BrokerUnavailable, match="closed"):
            a.send("too late")
    with pytest.raises(BrokerUnavailable, match="closed"):
        a.join()
    assert len(greenlets) == 3 and all(greenlet.dead for greenlet in greenlets)
    assert not a.broker._greenlets
    wait_until(lambda: len(server.call("CLIENT", "LIST").splitlines()) == 1)


def test_a_user_who_may_not_read_logs_is_told_of_once(server, worker, caplog):
    server.call("ACL", "SETUSER", "u", "on", ">p", "~*", "&*", "+@all", "-xread")
    server.url, url = server.url.replace("//", "//u:p@"), server.url
    a = worker()
    server.url = url
    ann = a.join()
    wait_until(lambda: a.is_away)
    for number in range(20):
        a.send(str(number))
        assert ann.hear(1) == [str(number)]
        gevent.sleep(0.02)
    assert caplog.text.count("Redis is away") == 1
    assert "xread" in caplog.text
    assert "Redis is back" not in caplog.text


def test_who_waits_for_redis_when_rooms_are_closed_waits_no_longer(server, worker):
    a = worker(timeout=0.3)
    a.join("other")
    wait_until(lambda: a.is_idle)
    server.send_signal(signal.SIGSTOP)
    try:
        waiting = [gevent.spawn(a.rooms["r"].history) for _ in range(3)]
        wait_until(lambda: a.broker._queue.locked())
        a.rooms.close()
        assert [each.get(timeout=limit(2)) for each in waiting] == [[], [], []]
    finally:
        server.send_signal(signal.SIGCONT)
    wait_until(lambda: len(server.call("CLIENT", "LIST").splitlines()) == 1)


def test_stopping_leaves_nothing(server, worker):
    a = worker()
    a.join()
    a.stop()
    a.rooms.close()
    wait_until(lambda: len(server.call("CLIENT", "LIST").splitlines()) == 1)


_PROGRAM = """
from gevent import monkey; monkey.patch_all()
import os, sys, gevent
from greenws import Rooms
rooms = Rooms(sys.argv[1])
"""


def run_program(server: Any, text: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", _PROGRAM + text, server.url],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=limit(30),
        text=True,
        check=True,
    ).stdout


def test_a_program_that_ends_has_sent_what_it_said(server):
    assert run_program(server, "for n in range(5): rooms['r'].send(str(n))") == ""
    assert server.call("XLEN", "greenws:room:r") == 5


def test_a_program_that_ends_without_redis_says_what_is_lost(server):
    text = "from greenws.brokers.redis import RedisBroker\n"
    text += "rooms = Rooms(RedisBroker('redis://127.0.0.1:1/0', timeout=0.1))\n"
    text += "for n in range(5): rooms['r'].send(str(n))"
    assert "5 messages that waited for Redis are lost" in run_program(server, text)


def test_flush_waits_until_redis_has_all(server, worker):
    a = worker()
    a.send("one", "two")
    assert a.rooms.flush(5)
    assert server.call("XLEN", "greenws:room:r") == 2
    away(server, a)
    a.send("three")
    assert not a.rooms.flush(0.05)
    back(server, a)
    assert a.rooms.flush(5)


def test_flush_does_not_wait_for_what_others_send_meanwhile(worker):
    a = worker()
    a.join()
    wait_until(lambda: a.is_idle)
    eval_, is_over = a.broker._commands.eval, False

    def eval_while_others_send(*args: Any) -> Any:
        if not is_over:
            a.send("more")
        return eval_(*args)

    a.broker._commands.eval = eval_while_others_send
    a.send("first")
    try:
        assert a.rooms.flush(2)
    finally:
        is_over = True
    wait_until(lambda: a.is_idle)


def test_several_threads_may_flush(server, worker):
    a = worker()
    pool = gevent.get_hub().threadpool
    a.join()
    away(server, a)

    def send_and_flush(text: str) -> bool:
        a.send(text)
        return a.rooms.flush(5)

    both = [pool.spawn(send_and_flush, text) for text in "ab"]
    mine = gevent.spawn(send_and_flush, "c")
    wait_until(lambda: a.broker._waiting == 3)
    back(server, a)
    assert mine.get() and all(each.get() for each in both)


def test_a_program_waits_once_for_redis_however_many_rooms_it_has(server):
    text = "from greenws.brokers.redis import RedisBroker\nimport time, atexit\n"
    text += "many = [Rooms(RedisBroker('redis://127.0.0.1:1/0', timeout=0.5)) for _ in range(8)]\n"
    text += "for each in many: each['r'].send('hello'); gevent.sleep(0.05)\n"
    text += "began = time.monotonic()\n"
    text += "from greenws.rooms.redis import broker as module\n"
    text += "module._end_all(); print('took', time.monotonic() - began)\n"
    text += "os._exit(0)"
    output = run_program(server, text)
    assert output.count("1 messages wait for Redis") == 8
    assert float(output.rpartition("took ")[2]) < limit(2)


def test_a_forked_process_begins_anew(server):
    text = """
rooms["r"].send("before"); rooms.flush()
child = os.fork()
rooms["r"].send("after"); rooms.flush()
if child:
    assert os.waitpid(child, 0)[1] == 0
else:
    import gc
    loops = [g for g in gc.get_objects() if isinstance(g, gevent.Greenlet) and not g.dead]
    os._exit(len(loops) != 3)
"""
    run_program(server, text)
    entries = server.call("XRANGE", "greenws:room:r", "-", "+")
    assert len(entries) == 3 and len({fields[b"o"] for _, fields in entries}) == 2


def test_nothing_gets_ahead_of_what_is_handed_out_when_redis_is_away(server, worker):
    """As where a log is written to something that lets others run."""
    a = worker(timeout=0.2)
    ann = a.join()
    wait_until(lambda: a.is_idle)

    class Talkative(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "is away" in record.getMessage():
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


def test_who_opens_a_room_and_who_waits_for_that_may_both_be_killed(worker):
    a = worker()
    a.join("another")
    wait_until(lambda: a.is_idle)
    look, blocked = a.broker._look, gevent.event.Event()

    def hang(room: str) -> Any:
        blocked.wait()
        return look(room)

    a.broker._look = hang
    both = [gevent.spawn(a.broker.open, "r") for _ in range(2)]
    gevent.sleep(0)
    gevent.killall(both)
    assert all(isinstance(each.value, gevent.GreenletExit) for each in both)
    blocked.set()
    ann = a.join()
    a.send("hello")
    assert ann.hear(1) == ["hello"]


def test_another_thread_may_be_the_first_to_send(server, worker):
    a = worker()
    gevent.get_hub().threadpool.apply(a.send, ("from a thread",))
    wait_until(lambda: server.call("XLEN", "greenws:room:r") == 1)
    assert a.rooms.flush(5)


def test_a_key_of_another_kind_leaves_the_other_rooms_alone(server, worker, error_log):
    a, b = worker(), worker()
    ann, _ = a.join(), a.join("broken")
    wait_until(lambda: a.is_idle)
    server.call("SET", "greenws:room:broken", "something else")
    server.call("CLIENT", "KILL", "TYPE", "pubsub")
    b.send("hello")
    assert ann.hear(1) == ["hello"]
    wait_until(lambda: error_log.records)
    assert "something else than a log" in error_log.take()[0].getMessage()


def test_nobody_is_buried_who_is_back(server, worker):
    a, b = worker(), worker()
    ann = a.join(name="Ann")
    bob = b.join(name="Bob")
    wait_until(lambda: a.is_idle and b.is_idle and server.call("KEYS", "greenws:alive:*"))
    b.broker._publish("r", "burial", "{}", ann.member.id)
    b.send("hello")
    assert ann.hear(1) == bob.hear(1) == ["hello"]
    assert b.names() == a.names() == ["Ann", "Bob"]


def test_a_redis_that_is_full_is_away_and_takes_all_later(server, worker):
    a, b = worker(), worker()
    ann, bob = a.join(name="Ann"), b.join(name="Bob")
    wait_until(lambda: a.is_idle and b.is_idle)
    server.call("CONFIG", "SET", "maxmemory", "1mb")
    try:
        a.send("one")
        a.join(name="Cid")
        a.send("two")
        wait_until(lambda: a.is_away)
    finally:
        server.call("CONFIG", "SET", "maxmemory", "0")
    assert ann.hear(2) == bob.hear(2) == ["one", "two"]
    wait_until(lambda: a.is_idle)
    assert worker().names() == ["Ann", "Bob", "Cid"]


@pytest.mark.parametrize("place", ["99999999999999999999-0", "99999999999999-0"])
def test_published_garbage_makes_no_room_deaf(server, worker, place):
    a, b = worker(), worker()
    ann = a.join()
    wait_until(lambda: a.is_idle and server.call("PUBSUB", "CHANNELS"))
    server.call("PUBLISH", "greenws:room:r@0", f"{place}  other 1 text m\nhello")
    b.send("hello")
    assert ann.hear(1) == ["hello"]
    assert ann.hears_no_more()


def test_presence_outlives_a_short_history(server, worker):
    a = worker(max_age=1)
    a.join(name="Ann")
    wait_until(lambda: a.is_idle)
    assert server.call("TTL", "greenws:here:r") > 30


def test_a_member_that_is_none_is_skipped(server, worker, caplog):
    server.call("HSET", "greenws:here:r", "m", "origin " + "[" * 100_000)
    a = worker()
    a.join(name="Ann")
    assert a.names() == ["Ann"]
    assert "skipped a member" in caplog.text and len(caplog.text) < 2000


def test_those_who_come_do_not_count_as_messages_that_wait(server, worker):
    a = worker(max_pending=3)
    away_from_start = a.join()
    away(server, a)
    for _ in range(5):
        a.join()
    a.send("hello")
    assert away_from_start.hear(1) == ["hello"]
    back(server, a)


def test_an_option_that_redis_py_does_not_know_is_refused(server):
    with pytest.raises(ValueError, match="foo"):
        RedisBroker(server.url + "?foo=bar")


@pytest.mark.parametrize(
    ("option", "value"),
    [("history", 0), ("history", 1.5), ("max_pending", 0), ("max_age", 0), ("max_age", 1e16)]
    + [("timeout", 0), ("presence_timeout", "15")],
)
def test_an_option_that_is_no_such_number_is_refused(server, option, value):
    with pytest.raises((TypeError, ValueError), match=option):
        RedisBroker(server.url, **{option: value})


def test_one_who_left_before_a_room_was_opened_anew_does_not_come(worker, pair, monkeypatch):
    a = worker()
    a.join("other")
    wait_until(lambda: a.is_idle)
    with monkeypatch.context() as patch:
        patch.setattr(a.broker, "_append", lambda: None)  # her entries are not in the log yet
        with a.rooms["r"].join(pair()[0], name="ann"):
            pass
        bob = a.join(name="bob", presence=tell)
    wait_until(lambda: a.is_idle)
    a.send("hello")
    assert bob.hear(1) == ["hello"]
    assert a.names() == ["bob"]


def test_a_quiet_room_has_lost_nothing_when_the_connection_breaks(server, worker):
    """Its log has expired, but this process has heard all that stood there."""
    a, b = worker(max_age=1), worker(max_age=1)
    ann = a.join()
    a.send("before")
    assert ann.hear(1) == ["before"]
    wait_until(lambda: not server.call("EXISTS", "greenws:room:r"))
    tune_in, may_return = a.broker._tune_in, gevent.event.Event()

    def wait() -> Any:
        may_return.wait()
        return tune_in()

    a.broker._tune_in = wait
    server.call("CLIENT", "KILL", "TYPE", "pubsub")
    b.send("meanwhile")
    assert b.rooms.flush(5)
    may_return.set()
    assert ann.hear(1) == ["meanwhile"]


def test_a_process_that_is_forked_while_a_thread_sends_is_not_held_up(server):
    text = """
from gevent.monkey import get_original
held = rooms.lock
start, sleep = get_original("_thread", "start_new_thread"), get_original("time", "sleep")
def hold():
    with held:
        sleep(0.5)
start(hold, ())
sleep(0.1)
child = os.fork()
if child:
    assert os.waitpid(child, 0)[1] == 0
else:
    import signal
    signal.alarm(5)
    rooms["r"].send("hello"); rooms.flush()
    os._exit(0)
"""
    run_program(server, text)
    assert server.call("XLEN", "greenws:room:r") == 1


def test_a_position_may_tell_of_less_than_its_place(server, worker):
    """As one may that was given while its client was sent what it had missed."""
    a, b = worker(timeout=0.2), worker()
    ann, bob = a.join(), b.join()
    wait_until(lambda: a.is_idle and a.broker._is_tuned)
    let_read = keep_from_reading(a)
    a.send("heard")
    assert bob.hear(1) == ["heard"]
    away(server, a)
    assert ann.hear(1) == ["heard"]
    server.start()
    moved = a.join(since=f"{bob.last}+{a.broker.origin}.1", gap="gap")
    let_read()
    a.send("new")
    assert ann.hear(1) == moved.hear(1) == ["new"]
