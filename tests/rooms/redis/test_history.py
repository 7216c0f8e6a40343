"""What members that come back have missed, read in logs."""

from __future__ import annotations

import contextlib
import time
from typing import Any

import gevent
import pytest
import redis

from ...support.limits import wait_until
from ...support.play import Line
from ...support.redis_workers import (
    away,
    back,
    keep_from_reading,
    until_all_is_read,
    until_published_has_arrived,
)


def test_what_was_received_elsewhere_is_searched_far_back(server, worker):
    a, b = worker(), worker()
    ann, bob = a.join(), b.join()
    wait_until(lambda: a.is_idle)
    may_fail, may_return = gevent.event.Event(), gevent.event.Event()
    tune_in = a.node._subscriber.connect

    def fail(*args: Any) -> None:
        may_fail.wait()
        del a.node._subscriber.on_answer
        raise redis.TimeoutError("no answer")

    def wait() -> Any:
        may_return.wait()
        return tune_in()

    a.node._subscriber.on_answer, a.node._subscriber.connect = fail, wait
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


def test_what_was_appended_before_a_room_was_opened_again_is_not_repeated(server, worker, pair):
    """A process does not know yet that it has appended that, as the answer was lost."""
    line = Line(server.port)
    a, b = worker(url=line.url), worker()
    socket, peer = pair()
    bob = b.join()
    wait_until(lambda: a.is_idle)

    def lose(*args: Any) -> None:
        del a.node._writer._take
        line.cut()
        raise redis.ConnectionError("the answer was lost")

    with a.rooms["r"].join(socket):
        a.node._writer._take = lose
        a.send("once")
        assert bob.hear(1) == ["once"]
        wait_until(lambda: a.is_lost)
    stayed = a.join()
    line.mend()
    wait_until(lambda: a.is_idle)
    moved = a.join(since=bob.last, gap="0-0 gap")
    a.send("next")
    assert moved.hear(1) == ["next"]
    assert stayed.hear(1)
    wait_until(lambda: a.is_idle)  # it has the answer, too
    line.close()


def test_one_that_comes_back_gets_the_gap_if_redis_lost_what_it_missed(server, worker, error_log):
    a, b = worker(), worker()
    ann = a.join(gap="0-0 gap")
    a.send("heard", "missed")
    assert ann.hear(1) == ["heard"]
    since = ann.last
    assert ann.hear(1) == ["missed"]
    server.call("FLUSHALL")
    assert not b.join(since=since).member.is_complete
    a.send("after")
    assert ann.hear(2) == ["gap", "after"]  # who has stayed may have missed something, too
    bob = b.join(since=since)
    assert not bob.member.is_complete
    assert bob.hear(1) == ["after"]
    assert "or Redis has lost them" in error_log.take()[0].getMessage()
    fresh = b.join("another")  # of a room in which nothing was said nothing is lost
    assert b.join("another", since=fresh.last).member.is_complete


def test_one_that_has_received_nothing_gets_the_gap_if_redis_lost_messages(
    server, worker, error_log
):
    a = worker()
    since = a.rooms["r"].position
    assert a.join(since=since).member.is_complete
    a.send("missed")
    assert a.rooms.flush(5)
    server.call("FLUSHALL")
    b = worker()
    bob = b.join()
    b.send("after")
    assert bob.hear(1) == ["after"]
    again = b.join(since=since, gap="0-0 gap")
    assert again.hear(2) == ["gap", "after"]
    assert b.join(since=bob.last).member.is_complete
    error_log.take()  # as who had stayed was told


def test_a_position_in_a_lost_log_is_a_gap_in_a_new_log_by_a_slow_clock(server, worker):
    a = worker()
    with contextlib.ExitStack() as stack:
        socket, _ = a._pair()
        since = stack.enter_context(a.rooms["r"].join(socket)).position
    wait_until(lambda: a.is_idle)
    server.call("DEL", "greenws:room:r")
    server.call("XADD", "greenws:room:r", "1-1", "o", "x", "n", "1", "k", "text", "d", "anew")
    ann = a.join(since=since, gap="0-0 gap")
    assert ann.hear(1) == ["gap"]
    a.send("live")
    assert ann.hear(1) == ["live"]


def test_a_position_of_an_empty_room_is_a_gap_once_the_first_message_was_trimmed(server, worker):
    a = worker(history=100)
    ann = a.join()
    since = ann.last
    for _ in range(6):
        a.send(*map(str, range(50)))
        ann.hear(50)
    b = worker(history=100)
    assert not b.join(since=since).member.is_complete
    assert b.join(since=ann.last).member.is_complete


def test_a_long_history_is_fetched_in_pieces(server, worker):
    a = worker()
    sent = [f"{number}" for number in range(2345)]
    with contextlib.ExitStack() as stack:
        socket, _ = a._pair()
        since = stack.enter_context(a.rooms["r"].join(socket)).position
        a.send(*sent)
        until_all_is_read(a)
    server.call("CONFIG", "RESETSTAT")
    ann = a.join(since=since)
    assert ann.member.is_complete
    assert ann.hear(2345) == sent
    info = server.call("INFO", "commandstats")
    # Of 10 entries first, then of 100.
    assert info["cmdstat_xrange"]["calls"] in (25, 26)  # one in reading on


def test_large_messages_are_fetched_few_at_a_time(server, worker, monkeypatch):
    monkeypatch.setattr("greenws.rooms.redis.history._PAGE_BYTES", 2**16)
    a = worker()
    ann = a.join()
    a.send(*(str(number).ljust(5_000, ".") for number in range(30)))
    ann.hear(30)
    sizes, read = [], a.node._history._page

    def note(*args: Any) -> Any:
        found = read(*args)
        sizes.append(len(found[0]))
        return found

    a.node._history._page = note
    assert len(a.join(since="0-0", gap="0-0 gap").hear(31)) == 31
    assert sizes == [10, 13, 7]


def test_a_gap_that_is_trimmed_during_a_replay_is_sent_where_it_is(server, worker):
    a, b = worker(), worker()
    ann = a.join()
    start = ann.last
    sent = [str(number) for number in range(1200)]
    a.send(*sent)
    ann.hear(701)
    place = ann.last
    ann.hear(499)
    wait_until(lambda: a.is_idle)
    read = b.node._history._page

    def trim(*args: Any) -> Any:
        found = read(*args)
        if len(found[0]) == 100:  # the second page
            server.call("XTRIM", "greenws:room:r", "MINID", place)
        return found

    b.node._history._page = trim
    again = b.join(since=start, gap="0-0 gap")
    del b.node._history._page
    assert not again.member.is_complete
    assert again.hear(110 + 1) == [*sent[:110], "gap"]
    assert again.hear(500) == sent[700:]


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
    a.send(*(str(number) for number in range(1200)))
    wait_until(lambda: a.is_idle)
    history = b.rooms["r"].history(1201)
    assert [text.split()[1] for text in history] == ["h", *map(str, range(1200))]
    away(server, a, b)
    assert b.rooms["r"].history(3) == []
    server.start()


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


def test_a_room_without_messages_has_no_gap(worker):
    a, b = worker(), worker()
    ann = a.join()
    b.send("missed", room="r")
    assert ann.hear(1) == ["missed"]
    assert b.join(since=ann.member.position).member.is_complete
    assert b.join("quiet", since=b.join("quiet").last).member.is_complete


def test_a_position_may_tell_of_less_than_its_place(server, worker):
    """As one may that was given while its client was sent what it had missed."""
    a, b = worker(timeout=0.2, presence_timeout=0.4), worker()  # a heartbeat notices the loss
    ann, bob = a.join(), b.join()
    until_all_is_read(a)
    let_read = keep_from_reading(a)
    a.send("heard")
    assert bob.hear(1) == ["heard"]
    server.stop()
    wait_until(lambda: a.is_lost)  # by a command; it does not read
    assert ann.hear(1) == ["heard"]
    server.start()
    moved = a.join(since=f"{bob.last}+{a.node.origin}.1", gap="gap")
    let_read()
    a.send("new")
    assert ann.hear(1) == moved.hear(1) == ["new"]


def test_without_redis_a_room_has_neither_history_nor_members(server, worker):
    a, b = worker(), worker()
    a.join(name="ann")
    a.send("hello")
    wait_until(lambda: [member.info for member in b.rooms["r"].members] == [{"name": "ann"}])
    wait_until(lambda: b.rooms["r"].history() != [])
    server.stop()
    assert b.rooms["r"].members == []  # the first to learn it
    assert b.is_lost
    assert b.rooms["r"].members == b.rooms["r"].history() == []
    back(server, a, b)
    wait_until(lambda: [member.info for member in b.rooms["r"].members] == [{"name": "ann"}])


def test_a_history_that_is_asked_for_as_redis_goes_is_empty(server, worker):
    a = worker()
    a.send("hello", room="unread")
    wait_until(lambda: a.is_idle)
    server.stop()
    assert a.rooms["unread"].history() == []  # the first to learn it
    assert a.is_lost


def test_one_that_comes_back_to_a_process_without_members_gets_all_while_redis_is_full(
    server, worker
):
    a, b = worker(), worker()
    ann = a.join()
    a.send("heard")
    assert ann.hear(1) == ["heard"]
    since = ann.last
    a.send("missed")
    assert ann.hear(1) == ["missed"]
    b.send("hello", room="other")
    wait_until(lambda: a.is_idle and b.is_idle)
    server.call("CONFIG", "SET", "maxmemory", "1mb")
    try:
        b.send("mine")
        wait_until(lambda: b.is_lost)
        b.node.process.outage.began -= 60  # longer than anybody waits
        moved = b.join(since=since, gap="0-0 gap")
        assert moved.member.is_complete
        assert moved.hear(2) == ["missed", "mine"]
    finally:
        server.call("CONFIG", "SET", "maxmemory", "0")
    assert ann.hear(1) == ["mine"]
    wait_until(lambda: b.is_idle)
    a.send("new")
    assert moved.hear(1) == ann.hear(1) == ["new"]


def test_one_that_comes_back_gets_the_gap_where_a_key_is_no_log(server, worker, error_log):
    """Messages that are sent in a process during that time are not kept."""
    a, b = worker(), worker()
    ann, bob = a.join(), b.join()
    a.send("first")
    assert ann.hear(1) == bob.hear(1) == ["first"]
    wait_until(lambda: a.is_idle and b.is_idle)
    server.call("SET", a.node.process.keys.log("r"), "no log")
    for each, client in ((a, ann), (b, bob)):
        each.send("breaks off")
        assert client.hear(1) == ["breaks off"]
        wait_until(lambda each=each: each.node._streams["r"].is_broken)
    since = ann.last
    b.send("missed")
    assert not b.join(since=since).member.is_complete
    assert all("does not hold a log" in each.getMessage() for each in error_log.take())


def test_the_history_of_a_key_that_is_no_log_is_empty_and_an_error(server, worker, error_log):
    a = worker()
    server.call("SET", "greenws:room:r", "not a log")
    assert a.rooms["r"].history() == []
    (record,) = error_log.take()
    assert "'r' has no history" in record.getMessage() and "WRONGTYPE" in record.getMessage()
    assert not a.is_lost


def test_what_a_client_received_is_lost_before_its_new_process_reads_it(server, worker, error_log):
    a, b = worker(), worker()
    ann, bob = a.join(), b.join(gap="0-0 gap")
    a.send("one")
    assert ann.hear(1) == bob.hear(1) == ["one"]
    until_all_is_read(a, b)
    b.node._subscriber._on_entry = lambda *args: None
    a.send("two")
    assert ann.hear(1) == ["two"]
    wait_until(lambda: a.is_idle)
    until_published_has_arrived(b)
    cat = b.join(gap="0-0 gap", since=ann.last)
    _, (id_, _) = server.call("XRANGE", "greenws:room:r", "-", "+")
    server.call("XDEL", "greenws:room:r", id_)
    del b.node._subscriber._on_entry
    a.send("three")
    assert bob.hear(1) == ["three"]
    assert cat.hear(2) == ["gap", "three"]
    assert not cat.member.is_complete
    error_log.take()


def test_a_log_that_has_lost_what_a_process_had_read_is_a_gap_to_who_comes_back(
    server, worker, error_log
):
    """The process does not know yet."""
    a, b = worker(), worker()
    ann = a.join()
    a.send("one")
    assert ann.hear(1) == ["one"]
    since = ann.last
    a.send("two", "three")
    assert ann.hear(2) == ["two", "three"]
    b.join()
    until_published_has_arrived(a)
    until_published_has_arrived(b)
    _, *lost = server.call("XRANGE", "greenws:room:r", "-", "+")
    server.call("XDEL", "greenws:room:r", *(id_ for id_, _ in lost))
    cat = b.join(since=since, gap="0-0 gap")
    assert cat.hear(1) == ["gap"]
    assert not cat.member.is_complete
