"""Pub/Sub messages, reading on in logs, and connections that break."""

from __future__ import annotations

import math
import signal
from typing import Any

import gevent
import pytest
import redis

from greenws.brokers import BrokerUnavailable
from greenws.rooms import turns
from greenws.rooms.broker import BEGINNING

from ...support.limits import again_after_standstill, limit, wait_until
from ...support.play import Line
from ...support.redis_server import RedisServer
from ...support.redis_workers import Worker, away, until_all_is_read, until_published_has_arrived
from ...support.wire import CLOSE

LOG = "greenws:room:r"


def test_what_was_not_published_to_a_process_is_read_in_the_log(worker):
    a, b = worker(), worker()
    ann, bob = a.join(), b.join()
    until_all_is_read(a, b)
    b.node._subscriber.on_answer = lambda *args: None
    a.send("one", "two")
    assert ann.hear(2) == ["one", "two"]
    assert bob.hears_no_more()
    del b.node._subscriber.on_answer
    a.send("three")
    assert bob.hear(3) == ["one", "two", "three"]


def test_a_connection_that_is_lost_costs_no_message(server, worker, monkeypatch):
    monkeypatch.setattr("greenws.rooms.redis.listener._ROOMS", 3)  # read with one command
    monkeypatch.setattr("greenws.rooms.redis.listener._BATCH", 5)
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
    """No command names all rooms, except those that look for missed messages."""
    a = worker()
    hear, subscribed, has_read_on = a.node._subscriber.on_answer, set(), gevent.event.Event()

    def note(answer: Any) -> None:
        subscribed.update(a.node._subscriber._fresh)
        hear(answer)
        if answer[0] == b"pong" and len(subscribed) == 50:
            has_read_on.set()

    a.node._subscriber.on_answer = note
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


@pytest.mark.parametrize(
    "news",
    [
        *["", "garbage", "x-y  ff 1 text \nhi", "1-1 \xff", "1 2 3 4 5 6\n"],
        *["several\n7", "1-1 several\nx\ny", "1-1 several\n-1\ny"],
        "1-1 several o 0 several\n1\nxy",
    ],
)
def test_garbage_that_somebody_publishes_is_logged_and_skipped(server, worker, caplog, news):
    a = worker()
    ann = a.join()
    a.send("before")
    assert ann.hear(1) == ["before"]
    assert server.call("PUBLISH", "greenws:room:r@0", news) == 1
    a.send("after")
    assert ann.hear(1) == ["after"]
    until_all_is_read(a)
    assert "malformed Pub/Sub message for room 'r'" in caplog.text


def test_rooms_opened_while_the_reader_waits_get_messages_at_once(worker):
    a, b = worker(), worker()
    a.join("first")
    for number in range(20):
        client = a.join(f"room {number}")
        b.send("hello", room=f"room {number}")
        with gevent.Timeout(limit(0.5)):
            assert client.hear(1) == ["hello"]


def test_a_room_that_is_left_is_not_read_any_more(worker, pair):
    a, b = worker(), worker()
    a.join("other")
    socket, peer = pair()
    with a.rooms["r"].join(socket):
        pass
    assert list(a.node._streams) == ["other"]
    b.send("nobody hears it")
    client = a.join("r")
    b.send("hello")
    assert client.hear(1)[-1] == "hello" or client.hear(1) == ["hello"]


def test_a_room_that_nobody_comes_back_to_is_not_subscribed_to(server, worker, pair):
    a = worker()
    a.join("other")
    socket, _ = pair()

    def hang(room: str, **options: Any) -> None:
        gevent.get_hub().switch()

    with a.rooms["r"].join(socket):
        wait_until(lambda: len(server.call("PUBSUB", "CHANNELS")) == 2)
        a.node._leases.snapshot = hang
        joining = gevent.spawn(a.join)  # comes just when the other has left
    wait_until(lambda: "r" in a.node._streams and not a.node._subscriber.changed)
    joining.kill()
    del a.node._leases.snapshot
    wait_until(lambda: server.call("PUBSUB", "CHANNELS") == [b"greenws:room:other@0"])


def test_a_connection_that_redis_closes_is_no_outage(server, worker):
    """As it does to a slow reader: nothing is delivered unlogged."""
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
        assert not a.is_lost and not b.is_lost


def test_a_redis_that_hangs_is_noticed_where_nothing_is_sent(server, worker, monkeypatch):
    monkeypatch.setattr("greenws.rooms.redis.listener._PING_INTERVAL", 0.05)
    a = worker(timeout=0.1)
    ann = a.join()
    wait_until(lambda: a.is_idle)
    server.send_signal(signal.SIGSTOP)
    try:
        wait_until(lambda: a.is_lost)
    finally:
        server.send_signal(signal.SIGCONT)
    wait_until(lambda: a.is_idle)
    a.send("again")
    assert ann.hear(1) == ["again"]


def test_a_user_who_may_not_read_logs_is_logged_once(server, worker, caplog):
    server.call("ACL", "SETUSER", "u", "on", ">p", "~*", "&*", "+@all", "-xrange")
    server.url, url = server.url.replace("//", "//u:p@"), server.url
    a = worker()
    server.url = url
    ann = a.join()
    wait_until(lambda: a.is_lost)
    for number in range(20):
        a.send(str(number))
        assert ann.hear(1) == [str(number)]
        gevent.sleep(0.02)
    assert caplog.text.count("Redis refuses commands: ") == 1
    assert "xrange" in caplog.text
    assert "again" not in caplog.text


@pytest.mark.parametrize("place", ["99999999999999999999-0", "99999999999999-0"])
def test_published_garbage_makes_no_room_deaf(server, worker, place):
    a, b = worker(), worker()
    ann = a.join()
    wait_until(lambda: a.is_idle and server.call("PUBSUB", "CHANNELS"))
    server.call("PUBLISH", "greenws:room:r@0", f"{place}  other 1 text m\nhello")
    b.send("hello")
    assert ann.hear(1) == ["hello"]
    assert ann.hears_no_more()


def join_with_an_old_log(server: RedisServer, each: Worker) -> Any:
    """A member that has received all of a log whose messages are too old by now: one of them from
    the log, and one that was published since."""
    server.call("FLUSHALL")  # if the test is run again
    first, second = (
        ("o", "0123456789ab", "n", number, "k", "text", "d", data)
        for number, data in [("1", "old"), ("2", "live")]
    )
    server.call("XADD", "greenws:room:r", "1-1", *first)
    each.node._leases._next_renewal = math.inf  # so that it is still there
    member = each.join(since=BEGINNING, gap="0-0 gap")
    assert member.hear(2) == ["gap", "old"]  # nobody knows what was before
    until_published_has_arrived(each)
    server.call("XADD", "greenws:room:r", "1-2", *second)
    server.call("PUBLISH", "greenws:room:r@0", "1-2 1-1 0123456789ab 2 text\nlive")
    assert member.hear(1) == ["live"]
    return member


def renew(server: RedisServer, each: Worker) -> None:
    """Lets a process keep the log of its open room, without what is too old."""
    each.node._leases._next_renewal = each.node._leases.next_beat = 0.0
    each.node._wake_leases.set()
    wait_until(lambda: not server.call("XLEN", "greenws:room:r"))


@again_after_standstill(0.3)
def test_a_quiet_room_has_lost_nothing_when_the_connection_breaks(server, worker, error_log):
    """Nothing is left of its log, but this process has received all of it."""
    a, b = worker(), worker()
    ann = join_with_an_old_log(server, a)
    renew(server, a)
    tune_in, may_return = a.node._subscriber.connect, gevent.event.Event()

    def wait() -> Any:
        may_return.wait()
        return tune_in()

    a.node._subscriber.connect = wait
    until_all_is_read(a)
    server.call("CLIENT", "KILL", "TYPE", "pubsub")
    b.send("meanwhile")
    assert b.rooms.flush(limit())
    may_return.set()
    assert ann.hear(1) == ["meanwhile"]
    assert not error_log.records  # which of a trimmed message would be logged


def test_members_that_stay_get_the_gap_when_redis_has_lost_its_data(server, worker, error_log):
    a, b = worker(), worker()
    ann, quiet = a.join(gap="0-0 gap"), a.join("s", gap="0-0 gap")
    a.send("before")
    assert ann.hear(1) == ["before"]
    until_all_is_read(a)
    server.call("FLUSHALL")
    server.call("CLIENT", "KILL", "TYPE", "pubsub")
    assert ann.hear(1) == quiet.hear(1) == ["gap"]  # once
    b.send("after")
    assert ann.hear(1) == ["after"]
    assert len(error_log.take()) == 2


def test_a_log_that_starts_again_by_a_slow_clock_is_delivered(server, worker, error_log):
    a = worker()
    ann = a.join(gap="0-0 gap")
    until_all_is_read(a)
    server.call("DEL", "greenws:room:r")
    for number in (1, 2):
        entry = ("o", "x", "n", str(number), "k", "text", "d", f"anew {number}")
        server.call("XADD", "greenws:room:r", f"1-{number}", *entry)
    server.call("CLIENT", "KILL", "TYPE", "pubsub")
    assert ann.hear(3) == ["gap", "anew 1", "anew 2"]
    a.send("live")
    assert ann.hear(1) == ["live"]
    error_log.take()


@pytest.mark.parametrize("later", [True, False])
def test_a_log_that_has_lost_its_last_entries_goes_on_and_repeats_nothing(
    server, worker, error_log, later
):
    """As that of a replica which had not got them when its master failed. If its clock is behind, a
    new entry may have the id of one that was lost."""
    a = worker()
    ann = a.join(gap="0-0 gap")
    a.send("one", "two", "three")
    assert ann.hear(3) == ["one", "two", "three"]
    until_all_is_read(a)
    ids = [id_ for id_, _ in server.call("XRANGE", "greenws:room:r", "-", "+")]
    server.call("XDEL", "greenws:room:r", *ids[1:])
    time, _, count = ids[0].decode().partition("-")
    server.call("XSETID", "greenws:room:r", ids[0])
    entry = ("o", "x", "n", "1", "k", "text", "d", "another two")
    new = f"{time}-{int(count) + 1000}" if later else ids[2]
    server.call("XADD", "greenws:room:r", new, *entry)
    server.call("CLIENT", "KILL", "TYPE", "pubsub")
    assert ann.hear(2) == ["gap", "another two"]
    a.send("live")
    assert ann.hear(1) == ["live"]
    error_log.take()


@pytest.mark.parametrize("kept", [0, 2])
def test_a_log_that_is_another_for_a_while_repeats_nothing(server, worker, error_log, kept):
    """Two Redis servers took themselves for the master. ``kept``: how many of the first three
    messages the other one has."""
    a = worker()
    ann = a.join(gap="0-0 gap")
    a.send("one", "two", "three")
    assert ann.hear(3) == ["one", "two", "three"]
    until_all_is_read(a)
    log = "greenws:room:r"
    ids = [id_ for id_, _ in server.call("XRANGE", log, "-", "+")]
    server.call("RENAME", log, "first")
    if kept:
        server.call("COPY", "first", log)
        server.call("XDEL", log, *ids[kept:])
        server.call("XSETID", log, ids[kept - 1])
    server.call("CLIENT", "KILL", "TYPE", "pubsub")
    assert ann.hear(1) == ["gap"]
    a.send("four")
    assert ann.hear(1) == ["four"]
    until_all_is_read(a)
    server.call("RENAME", "first", log)
    server.call("CLIENT", "KILL", "TYPE", "pubsub")
    assert ann.hear(1) == ["gap"]
    a.send("five")
    assert ann.hear(1) == ["five"]
    error_log.take()


def cut(server, client) -> list[str]:
    """What a member hears when its process subscribes again, up to a message."""
    server.call("CLIENT", "KILL", "TYPE", "pubsub")
    heard = client.hear(1)
    server.call("XADD", LOG, "*", "o", "y", "n", "99", "k", "text", "d", "live")
    server.call("CLIENT", "KILL", "TYPE", "pubsub")
    while heard[-1] != "live":
        heard += client.hear(1)
    return heard


def test_two_masters_in_turn_repeat_nothing_and_keep_nothing_back(server, worker, error_log):
    """With more of a room on each than is remembered, at the same time, so ids show no order."""
    other, line = RedisServer(), Line(server.port)
    try:
        a, b, c = worker(url=line.url), worker(), worker(url=other.url)
        ann = a.join(gap="0-0 gap")

        def send(when: str) -> list[list[str]]:
            """To the first master by one process, and to the other by another."""
            sent: list[list[str]] = [[], []]
            for number in range(0, 150, 30):
                for each, texts in ((b, sent[0]), (c, sent[1])):
                    some = [f"{when} {number + more}" for more in range(30)]
                    each.send(*some)
                    wait_until(lambda each=each: each.is_idle)
                    texts += some
            return sent

        b.send("before")
        assert ann.hear(1) == ["before"]
        other.call("RESTORE", LOG, 0, server.call("DUMP", LOG))
        here, there = send("first")
        assert ann.hear(150) == here
        line.lead_to(other.port)
        heard = ann.hear(2)
        while heard[-1] != there[-1]:
            heard += ann.hear(1)
        assert heard == ["gap", *there[1 - len(heard) :]]
        here, there = send("then")
        assert ann.hear(150) == there
        line.lead_to(server.port)
        assert ann.hear(151) == ["gap", *here]
        # The first one loses more than is remembered, and not what came before that.
        texts = [str(number) for number in range(1200)]
        b.send(*texts)
        assert ann.hear(1200) == texts
        until_all_is_read(a)
        lost = server.call("XREVRANGE", LOG, "+", "-", "COUNT", 120)
        server.call("XDEL", LOG, *(id_ for id_, _ in lost))
        assert cut(server, ann) == ["gap", "live"]
        error_log.take()
    finally:
        line.close()
        other.close()


def test_a_log_that_has_lost_more_than_is_remembered_repeats_nothing(server, worker, error_log):
    a = worker()
    ann = a.join(gap="0-0 gap")
    texts = [str(number) for number in range(150)]
    a.send(*texts)
    assert ann.hear(150) == texts
    until_all_is_read(a)
    ids = [id_ for id_, _ in server.call("XRANGE", LOG, "-", "+")]
    server.call("XDEL", LOG, *ids[30:])
    assert cut(server, ann) == ["gap", "live"]
    error_log.take()


def test_a_room_that_was_opened_after_what_a_log_has_lost_repeats_nothing(
    server, worker, error_log
):
    a, b = worker(), worker()
    ann = a.join(gap="0-0 gap")
    a.send("one", "two", "three")
    assert ann.hear(3) == ["one", "two", "three"]
    bob = b.join(gap="0-0 gap", since=ann.last)
    until_all_is_read(a, b)
    ids = [id_ for id_, _ in server.call("XRANGE", LOG, "-", "+")]
    server.call("XDEL", LOG, *ids[2:])
    assert cut(server, bob) == ["gap", "live"]
    error_log.take()


def test_messages_that_are_in_both_logs_are_not_repeated(server, worker, error_log):
    """The answer of the first master was lost, so their sender sent them to the second one, too."""
    a = worker()
    ann = a.join(gap="0-0 gap")
    texts = [str(number) for number in range(150)]
    a.send(*texts)
    assert ann.hear(150) == texts
    until_all_is_read(a)
    _, *others = server.call("XRANGE", LOG, "-", "+")
    server.call("XDEL", LOG, *(id_ for id_, _ in others))
    for _, fields in others:
        server.call("XADD", LOG, "*", *(part for pair in fields.items() for part in pair))
    assert cut(server, ann) == ["gap", "live"]
    error_log.take()


def test_what_is_published_before_the_log_was_read_is_not_trusted(server, worker, error_log):
    """That of another master may follow an entry with the id of our last one, which is a time."""
    a = worker()
    ann = a.join(gap="0-0 gap")
    a.send("one")
    assert ann.hear(1) == ["one"]
    until_all_is_read(a)
    ((before, _),) = server.call("XRANGE", LOG, "-", "+")
    server.call("DEL", LOG)
    server.call("XADD", LOG, before, "o", "y", "n", "7", "k", "text", "d", "another one")
    id_ = server.call("XADD", LOG, "*", "o", "y", "n", "8", "k", "text", "d", "two")
    subscriber, channel = a.node._subscriber, f"{LOG}@0".encode()
    subscriber.on_answer([b"subscribe", channel, 1])
    subscriber.on_answer([b"message", channel, b"%s %s y 8 text\ntwo" % (id_, before)])
    assert ann.hear(3) == ["gap", "another one", "two"]
    error_log.take()


@again_after_standstill(0.3)
def test_a_room_in_which_nobody_speaks_outlives_the_age_of_its_messages(server, worker, error_log):
    a = worker()
    ann = join_with_an_old_log(server, a)
    server.call("EXPIRE", "greenws:room:r", 60)
    renew(server, a)
    wait_until(lambda: server.call("TTL", "greenws:room:r") > 60)
    b = worker()
    bob = b.join(since=ann.last)
    assert bob.member.is_complete
    assert b.rooms["r"].history() == []
    until_all_is_read(a, b)
    server.call("CLIENT", "KILL", "TYPE", "pubsub")
    a.send("new")
    assert ann.hear(1) == bob.hear(1) == ["new"]
    assert bob.member.is_complete
    assert not error_log.records  # which of a trimmed message would be logged


def test_members_that_stay_get_the_gap_if_their_process_was_too_far_behind(
    server, worker, error_log, monkeypatch
):
    monkeypatch.setattr("greenws.rooms.redis.listener._BATCH", 50)
    a, b = worker(history=100), worker(history=100)
    ann = a.join(gap="0-0 gap")
    bob = a.join()
    a.send("before")
    assert ann.hear(1) == bob.hear(1) == ["before"]
    until_all_is_read(a)
    a.node._subscriber.on_message = lambda *args: None  # it hears nothing
    b.send(*(str(number) for number in range(1000)))
    wait_until(lambda: b.is_idle)
    until_published_has_arrived(a)
    del a.node._subscriber.on_message
    b.send("after")
    heard = ann.hear(2)
    assert heard[0] == "gap"
    while heard[-1] != "after":
        heard += ann.hear(1)
    numbers = [int(text) for text in heard[1:-1]]
    assert numbers == list(range(numbers[0], 1000))
    assert numbers[0] > 0
    assert not ann.member.is_complete
    assert not bob.member.is_complete
    assert bob.hear(len(numbers) + 1) == heard[1:]  # without gap=, the rest
    assert "are lost to this process" in error_log.take()[0].getMessage()


def test_two_holes_are_two_gaps(server, worker, error_log, monkeypatch):
    monkeypatch.setattr("greenws.rooms.redis.listener._BATCH", 50)
    a, b = worker(history=100), worker(history=100)
    ann = a.join(gap="0-0 gap")
    until_all_is_read(a)
    read_once, pages = a.node._subscriber._read_once, []

    def read_slowly(*args: Any) -> list[str]:
        """After the first page more is sent than the log keeps."""
        found = read_once(*args)
        pages.append(found)
        if len(pages) == 1:
            b.send(*(f"late {number}" for number in range(1000)))
            wait_until(lambda: b.is_idle)
        return found

    a.node._subscriber.on_message = lambda *args: None
    b.send(*(str(number) for number in range(1000)))
    wait_until(lambda: b.is_idle)
    until_published_has_arrived(a)
    a.node._subscriber._read_once = read_slowly
    del a.node._subscriber.on_message
    b.send("now")
    heard = ann.hear(1)
    while heard[-1] != "late 999":
        heard += ann.hear(1)
    assert heard.count("gap") == 2
    assert heard[0] == "gap"
    assert "late" in heard[heard.index("gap", 1) + 1]
    assert len(error_log.take()) == 2


def test_large_messages_that_were_missed_are_read_a_few_at_a_time(worker):
    a, b = worker(), worker()
    ann = a.join()
    until_all_is_read(a)
    subscriber, sizes = a.node._subscriber, []
    fetch = subscriber._fetch

    def watch(*args: Any, **options: Any) -> Any:
        found = fetch(*args, **options)
        sizes.append(sum(len(fields[b"d"]) for _, fields in found[0][0]))
        return found

    subscriber.on_message = lambda *args: None  # as if nothing came
    texts = [f"{number} {'x' * 400_000}" for number in range(30)]
    b.send(*texts)
    wait_until(lambda: b.is_idle)
    until_published_has_arrived(a)
    del subscriber.on_message
    subscriber._fetch = watch
    b.send("now")
    assert ann.hear(31) == [*texts, "now"]
    assert max(sizes) < 1.7e6


def test_disconnect_closes_members_of_all_processes(worker):
    a, b = worker(), worker()
    ann, bob, bea = a.join(), b.join(), b.join()
    until_all_is_read(a, b)
    a.send("before")
    a.rooms["r"].disconnect(4001, "bye", bob.member.id)
    assert bob.hear(1) == ["before"]
    assert bob.peer.read_frame()[2] == b"\x0f\xa1bye"
    assert ann.hear(1) == bea.hear(1) == ["before"]
    a.send("still here")
    assert ann.hear(1) == bea.hear(1) == ["still here"]
    b.rooms["r"].disconnect(4002)
    assert ann.peer.read_frame()[2] == bea.peer.read_frame()[2] == b"\x0f\xa2"


@pytest.mark.parametrize("key", ["Ann  Smith, é", 7])
def test_a_member_is_disconnected_by_its_key(worker, key):
    a, b = worker(), worker()
    ann, bob = b.join(presence_key=key), b.join(presence_key="Ann")
    until_all_is_read(b)
    a.rooms["r"].disconnect(4001, "two\nlines", key)
    assert ann.peer.read_frame() == (True, CLOSE, b"\x0f\xa1two\nlines")
    assert bob.hears_no_more()


def test_disconnect_says_when_redis_is_out_of_reach(server, worker):
    a = worker(timeout=0.2)
    a.join()
    away(server, a)
    with pytest.raises(BrokerUnavailable, match="out of reach"):
        a.rooms["r"].disconnect(4001)


def test_a_disconnect_of_another_program_breaks_nothing(server, worker):
    a = worker()
    ann = a.join()
    until_all_is_read(a)
    for text in ("disconnect x ", "disconnect 1005 \nbye", "disconnect", b"disconnect 1000 \n\xff"):
        server.call("PUBLISH", "greenws:room:r@0", text)
    a.send("hello")
    assert ann.hear(1) == ["hello"]


def test_a_gap_in_a_log_that_is_bounded_in_bytes_is_sent(server, worker, error_log):
    a, b = worker(history_bytes=500_000), worker(history_bytes=500_000)
    ann = a.join(gap="0-0 gap")
    a.send("before")
    assert ann.hear(1) == ["before"]
    until_all_is_read(a)
    a.node._subscriber.on_message = lambda *args: None
    for number in range(40):
        b.send(f"{number} ".ljust(50_000, "."))
        wait_until(lambda: b.is_idle)
    until_published_has_arrived(a)
    del a.node._subscriber.on_message
    b.send("after")
    heard = ann.hear(2)
    assert heard[0] == "gap"
    assert int(heard[1].split()[0]) > 20
    assert "are lost to this process" in error_log.take()[0].getMessage()


def test_what_is_sent_in_a_row_is_published_together(server, worker, monkeypatch):
    monkeypatch.setattr(turns, "end_if_over", lambda **_: None)  # it may take several turns
    a, b = worker(), worker()
    ann, bob = a.join(), b.join()
    other = b.join("other")
    a.send("before")
    assert ann.hear(1) == bob.hear(1) == ["before"]
    until_all_is_read(a, b)
    server.call("CONFIG", "RESETSTAT")
    texts = [f"{number} " + "x" * 1000 for number in range(100)]
    with redis.Redis(port=server.port) as client, client.pubsub() as published:
        published.subscribe("greenws:room:r@0")
        assert published.get_message(timeout=limit())["type"] == "subscribe"
        for text in texts:
            a.send(text)
        a.send("elsewhere", room="other")
        message = published.get_message(timeout=limit())["data"]
    assert ann.hear(100) == bob.hear(100) == texts
    assert other.hear(1) == ["elsewhere"]
    commands = server.call("INFO", "commandstats")
    assert commands["cmdstat_publish"]["calls"] <= 2 + 2  # 64 KiB at a time
    assert "cmdstat_xrange" not in commands  # nothing was missed
    # A process that knows single messages only takes it for one that it cannot place, and reads.
    id_, before, _, number, kind = message.partition(b"\n")[0].split(b" ")
    ids = [id_ for id_, _ in server.call("XRANGE", "greenws:room:r", "-", "+")]
    assert id_ in ids[2:] and (before, number, kind) == (b"several", b"0", b"several")
