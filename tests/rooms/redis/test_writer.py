"""What waits for Redis, and how it comes into the logs."""

from __future__ import annotations

import collections
import threading
import time
from typing import Any

import gevent
import pytest
import redis

from greenws import policies
from greenws.brokers import BrokerUnavailable
from greenws.rate_limit import RateLimit

from ...support.limits import again_after_standstill, limit, wait_until
from ...support.redis_workers import away, back, until_all_is_read

_HELD = 0.2  # seconds in which the writer, if it waited for no lock, would have its answer


def test_a_constant_sender_holds_up_neither_rooms_nor_heartbeats(worker):
    a = worker()
    a.join("another")
    wait_until(lambda: a.is_idle)
    eval_ = a.node.process.commands.client.eval
    is_over = False

    def eval_far_away(*args: Any) -> Any:
        gevent.sleep(0.003)
        if not is_over:
            a.send("more")  # so that something waits when the answer comes
        return eval_(*args)

    a.node.process.commands.client.eval = eval_far_away
    a.node._leases.next_beat = 0
    a.send("first")
    try:
        gevent.spawn(a.join).get(timeout=limit(2))
        wait_until(lambda: a.node._leases.next_beat)
    finally:
        is_over = True
    wait_until(lambda: a.is_idle)


def test_much_is_appended_in_pieces(server, worker):
    """Redis drops a subscriber for which more than 32 MiB wait."""
    a, b = worker(), worker()
    a.join()
    bob = b.join(policy=policies.block(5))
    wait_until(lambda: a.is_idle and b.is_idle)
    server.call("CONFIG", "RESETSTAT")
    for number in range(40):
        a.send(f"{number} " + "x" * 100_000)
    assert [text.split()[0] for text in bob.hear(40)] == [str(number) for number in range(40)]
    assert server.call("INFO", "commandstats")["cmdstat_eval"]["calls"] >= 4


def test_what_was_sent_and_not_answered_is_there_once(server, worker):
    """Redis takes a message, and the connection breaks before it says so."""
    a, b = worker(), worker()
    ann, bob = a.join(), b.join()
    wait_until(lambda: a.is_idle)
    eval_ = a.node.process.commands.client.eval

    def lose_the_answer(*args: Any) -> Any:
        a.node.process.commands.client.eval = eval_
        eval_(*args)
        raise redis.ConnectionError("the answer is lost")

    a.node.process.commands.client.eval = lose_the_answer
    a.send("one", "two")
    assert ann.hear(2) == bob.hear(2) == ["one", "two"]
    a.send("three")
    assert ann.hear(1) == bob.hear(1) == ["three"]
    assert ann.hears_no_more() and bob.hears_no_more()
    assert server.call("XLEN", "greenws:room:r") == 3


def test_undelivered_messages_are_bounded_where_commands_work(server, worker, error_log):
    """As of a user who may not use any channels."""
    server.call("ACL", "SETUSER", "u", "on", ">p", "~*", "resetchannels", "+@all")
    server.url, url = server.url.replace("//", "//u:p@"), server.url
    a = worker(max_pending=20)
    server.url = url
    ann = a.join()
    wait_until(lambda: a.is_lost)
    with pytest.raises(BrokerUnavailable):
        for number in range(50):
            a.send(str(number))
            wait_until(lambda: not a.node._writer.unsent)
    assert len(a.node._streams["r"].sent) <= 21  # with the one who joined
    assert ann.hear(20) == [str(number) for number in range(20)]
    (record,) = error_log.take()
    assert "does not publish" in record.getMessage()


def test_a_redis_that_lets_no_log_expire_is_logged_once(server, worker, error_log):
    """It is asked only once in a second."""
    server.call("ACL", "SETUSER", "u", "on", ">p", "~*", "&*", "+@all", "-expire")
    a = worker(url=server.url.replace("//", "//u:p@"))
    for room in "rst":  # each a new log, and one that has just been asked for
        for _ in range(2):
            a.rooms[room].send("hello")
            wait_until(lambda: a.is_idle)
    (record,) = error_log.take()
    assert "does not trim" in record.getMessage() and "EXPIRE" in record.getMessage()


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


@again_after_standstill(0.3)
def test_old_entries_are_trimmed_by_age(server, worker, error_log):
    a = worker(max_age=1)
    ann = a.join()
    for number in range(300):
        a.send(str(number))
    ann.hear(300)
    gevent.sleep(1.05)
    a.send("new")
    ann.hear(1)
    assert 0 < server.call("XLEN", "greenws:room:r") < 120
    assert not error_log.records  # a message that was trimmed too early


def test_a_redis_that_is_full_is_lost_and_takes_all_later(server, worker):
    a, b = worker(), worker()
    ann, bob = a.join(name="Ann"), b.join(name="Bob")
    wait_until(lambda: a.is_idle and b.is_idle)
    server.call("CONFIG", "SET", "maxmemory", "1mb")
    try:
        a.send("one")
        a.join(name="Cid")
        a.send("two")
        wait_until(lambda: a.is_lost)
    finally:
        server.call("CONFIG", "SET", "maxmemory", "0")
    assert ann.hear(2) == bob.hear(2) == ["one", "two"]
    wait_until(lambda: a.is_idle)
    assert worker().names() == ["Ann", "Bob", "Cid"]


def test_those_who_come_do_not_count_as_messages_that_wait(server, worker):
    a = worker(max_pending=3)
    away_from_start = a.join()
    away(server, a)
    for _ in range(5):
        a.join()
    a.send("hello")
    assert away_from_start.hear(1) == ["hello"]
    back(server, a)


def test_a_log_is_bounded_in_bytes(server, worker):
    a = worker(history_bytes=1_000_000)
    ann = a.join()
    for number in range(100):
        a.send(f"{number} ".ljust(50_000, "."))
        ann.hear(1)
    wait_until(lambda: a.is_idle)
    assert server.call("MEMORY", "USAGE", "greenws:room:r", "SAMPLES", "0") < 1_200_000
    assert 10 <= server.call("XLEN", "greenws:room:r") <= 20
    # Small messages are bounded by their number alone.
    a.send(*(str(number) for number in range(500)), room="small")
    wait_until(lambda: a.is_idle)
    assert server.call("XLEN", "greenws:room:small") == 500
    assert len(a.rooms["r"].history(5)) == 5


def test_what_waits_for_redis_is_bounded_in_bytes(server, worker):
    a = worker(max_pending_bytes=1_000_000)
    ann = a.join()
    away(server, a)
    with pytest.raises(BrokerUnavailable, match="max_pending_bytes"):
        a.send(*["x" * 100_000] * 50)
    assert a.rooms.stats.sent == 10
    server.start()
    wait_until(lambda: a.is_idle)
    assert len(ann.hear(10)) == 10
    a.send("again")
    assert ann.hear(1) == ["again"]


def test_entries_that_redis_refuses_are_delivered_in_their_own_process(server, worker, error_log):
    a, b = worker(), worker()
    ann, bob, other = a.join(), b.join(), b.join("other")
    until_all_is_read(a, b)
    server.call("XADD", "greenws:room:r", "18446744073709551615-18446744073709551615", "k", "v")
    a.send("one", "two")  # no id is greater than that
    a.send("taken", room="other")
    a.send("three")
    assert ann.hear(3) == ["one", "two", "three"]
    with pytest.raises(BrokerUnavailable, match="does not accept messages of the room 'r'"):
        a.rooms["r"].send("four", wait=True)
    assert ann.hear(1) == ["four"]
    assert other.hear(1) == ["taken"]
    assert bob.hears_no_more() and ann.hears_no_more()
    assert not a.is_lost and a.is_idle
    errors = {record.getMessage() for record in error_log.take()}
    (error,) = errors
    assert error.startswith("Redis does not accept messages of the room 'r': ")
    for _ in range(30):  # ten lines at once, then one in six seconds
        with pytest.raises(BrokerUnavailable):
            a.rooms["r"].send("again", wait=True)
    assert 1 < len(error_log.take()) < 25
    a.node._writer._refusals = RateLimit(0.001, burst=1)
    a.node._writer._refusals.take()
    server.call("XADD", "greenws:room:s", "18446744073709551615-18446744073709551615", "k", "v")
    with pytest.raises(BrokerUnavailable):
        a.rooms["s"].send("the first", wait=True)  # which other rooms do not hide
    assert "'s'" in error_log.take()[-1].getMessage()
    a.node._writer._unreported = 1
    a.node._writer._refusals = RateLimit(1.0)
    with pytest.raises(BrokerUnavailable):
        a.rooms["r"].send("later", wait=True)
    (record,) = error_log.take()
    assert record.getMessage().endswith(" such lines, of this room or others, were left out)")
    server.call("DEL", "greenws:room:r", "greenws:room:s")


def test_a_message_of_a_thread_may_be_in_the_log_before_the_thread_begins_to_wait(worker):
    a = worker()
    a.rooms["r"].send("one", wait=True)
    writer, broker, answered, sent = a.node._writer, a.broker, threading.Event(), []
    append, receipt = writer._append, broker.receipt

    def append_and_tell(*args: Any) -> Any:
        found = append(*args)
        answered.set()
        return found

    def receipt_later(room: str) -> Any:
        if answered.wait(_HELD):  # it has not waited for the lock
            time.sleep(0.02)  # it may look for the receipt
        return receipt(room)

    writer._append, broker.receipt = append_and_tell, receipt_later

    def send() -> None:
        a.rooms["r"].send("two", wait=True)
        sent.append("two")

    sending = threading.Thread(target=send, daemon=True)
    sending.start()
    wait_until(lambda: sent)
    sending.join()
    assert not a.node.process.identity.receipts


def test_what_waits_is_read_with_the_lock_held(worker):
    a = worker()
    a.rooms["r"].send("one", wait=True)
    is_owned = a.rooms.lock._is_owned
    owned: list[bool] = []

    class Watched(collections.deque[Any]):
        def __iter__(self) -> Any:
            owned.append(is_owned())
            return super().__iter__()

    a.node._writer.unsent = Watched()
    a.rooms["r"].send("two", wait=True)
    assert owned and all(owned)


def test_a_sender_that_waits_gets_an_error_if_its_key_is_not_a_log(server, worker, error_log):
    a = worker()
    ann = a.join()
    a.rooms["r"].send("one", wait=True)
    server.call("SET", "greenws:room:r", "x")
    for text in ("two", "three"):  # the second finds that the log is broken
        with pytest.raises(BrokerUnavailable, match="does not accept messages of the room 'r'"):
            a.rooms["r"].send(text, wait=True)
    a.rooms["s"].send("taken", wait=True)
    assert ann.hear(3)[0] == "one"
    error_log.take()
