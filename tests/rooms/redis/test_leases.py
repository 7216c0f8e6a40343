"""Presence: who is in a room, reported to all processes and corrected after faults."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Any

import gevent
import redis

from ...support.limits import limit, wait_until
from ...support.redis_workers import Worker, away, until_all_is_read, until_published_has_arrived


def tell(kind: str, info: dict[str, Any]) -> str:
    return f"{kind} {info['name']}"


def tell_id(kind: str, id: str, info: dict[str, Any]) -> str:
    return f"{kind} {id}"


ANN: dict[str, Any] = {"presence_key": "ann", "name": "Ann", "presence": tell_id}


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
    ann = a.join(name="ann", presence=tell)
    assert a.names() == ["ann", "ben", "bob"]
    carl = c.join(name="carl")
    assert ann.hear(1) == ["join carl"]
    wait_until(lambda: c.names() == ["ann", "ben", "bob", "carl"])
    b.die()
    wait_until(lambda: a.names() == c.names() == ["ann", "carl"])
    assert sorted(ann.hear(2)) == ["leave ben", "leave bob"]  # once, though two processes noticed
    assert ann.hears_no_more()
    assert server.call("HLEN", "greenws:here:r") == 2 + 1  # with their version
    del carl


def test_dead_processes_that_nobody_has_met_are_reaped_too(server, worker):
    b = worker()
    b.join(name="bob")
    wait_until(lambda: b.is_idle)
    b.die()
    server.call("DEL", f"greenws:alive:{b.node.origin}")
    a = worker()
    ann = a.join(name="ann", presence=tell)
    assert a.names() == ["ann"]
    a.node._leases.next_beat = 0
    a.node._wake_leases.set()
    wait_until(lambda: server.call("HLEN", "greenws:here:r") == 1 + 1)
    a.send("hello")
    assert ann.hear(1) == ["hello"]  # nobody has left whom she knew


def test_one_who_was_taken_for_dead_comes_back_and_then_leaves_for_everybody(server, worker, pair):
    a, b = worker(), worker()
    ann = a.join(name="ann", presence=tell)
    wait_until(lambda: a.is_idle)
    bea = b.join(name="bea", presence=tell)
    socket, _ = pair()
    with b.rooms["r"].join(socket, name="bob"):
        assert bea.hear(1) == ["join bob"]
        assert ann.hear(2) == ["join bea", "join bob"]
        server.call("DEL", f"greenws:alive:{b.node.origin}")
        a.node._leases.next_beat = 0
        a.node._wake_leases.set()
        assert sorted(ann.hear(2)) == ["leave bea", "leave bob"]
        assert sorted(ann.hear(2)) == ["join bea", "join bob"]  # as b hears of that
        assert bea.hears_no_more()
    assert bea.hear(1) == ann.hear(1) == ["leave bob"]
    assert a.names() == b.names() == ["ann", "bea"]


def test_one_who_leaves_when_redis_has_lost_everything_has_left(server, worker, pair):
    a, b = worker(presence_timeout=1.0), worker(presence_timeout=1.0)  # a heartbeat notices it
    ann = a.join(name="ann", presence=tell)
    socket, _ = pair()
    with b.rooms["r"].join(socket, name="bob"):
        assert ann.hear(1) == ["join bob"]
        until_all_is_read(a, b)
        server.call("FLUSHALL")
    assert ann.hear(1) == ["leave bob"]
    # Where both heartbeats come before that, it was reported earlier, and bob is there once more.
    wait_until(lambda: a.names() == ["ann"])


def test_a_process_that_was_taken_for_dead_comes_back(server, worker):
    a, b = worker(), worker()
    ann = a.join(name="ann", presence=tell)
    b.join(name="bob")
    assert ann.hear(1) == ["join bob"]
    wait_until(lambda: a.is_idle)  # no beat is under way, which would set the time of the next
    server.call("DEL", f"greenws:alive:{b.node.origin}")
    a.node._leases.next_beat = 0
    a.node._wake_leases.set()
    assert ann.hear(2) == ["leave bob", "join bob"]
    assert a.names() == b.names() == ["ann", "bob"]


def test_asserting_members_again_reports_no_change(server, worker):
    a, b = worker(), worker()
    clients = [
        a.join(name="ann", presence=tell),
        a.join(name="amy", presence=tell),
        b.join(name="bob", presence=tell),
    ]
    # Messages and presence have no common order.
    wait_until(lambda: a.names() == b.names() == ["amy", "ann", "bob"])
    wait_until(lambda: a.is_idle and b.is_idle)
    a.send("all are here")
    for each in clients:
        while each.hear(1) != ["all are here"]:
            pass
    server.call("DEL", f"greenws:alive:{a.node.origin}")
    a.node._leases.next_beat = 0
    a.node._wake_leases.set()
    wait_until(lambda: server.call("EXISTS", f"greenws:alive:{a.node.origin}") and a.is_idle)
    a.send("hello")
    for each in clients:
        assert each.hear(1) == ["hello"]
    assert a.names() == b.names() == ["amy", "ann", "bob"]


def test_the_first_heartbeat_after_an_outage_removes_nobody(server, worker):
    a, b = worker(), worker()
    ann = a.join(name="ann", presence=tell)
    b.join(name="bob")
    assert ann.hear(1) == ["join bob"]
    away(server, a, b)
    let_back = {each: hold_back(each) for each in (a, b)}
    for each in (a, b):
        each.send("away")
        wait_until(lambda each=each: not each.node.process.outage.is_writable)
    assert ann.hear(1) == ["away"]
    server.start()
    server.call("DEL", f"greenws:alive:{b.node.origin}")  # as it is after a long outage
    a.node._leases.next_beat = b.node._leases.next_beat = 0
    let_back[a]()
    wait_until(lambda: a.is_idle)
    wait_until(lambda: a.node._leases.next_beat)
    let_back[b]()
    wait_until(lambda: b.is_idle)
    assert ann.hear(1) == ["away"]  # of b, and no word of bob
    assert a.names() == ["ann", "bob"]


def hold_back(each: Worker) -> Callable[[], None]:
    """A process cannot write to Redis until the returned function is called."""
    commands = each.node.process.commands.client

    def set_(*args: Any, **options: Any) -> None:
        raise redis.ConnectionError("not yet")

    commands.set = set_
    return lambda: delattr(commands, "set")


def test_nobody_is_taken_for_dead_who_comes_back_with_redis_a_moment_later(server, worker):
    a, b = worker(presence_timeout=1.0), worker(presence_timeout=1.0)
    ann = a.join(name="ann", presence=tell)
    b.join(name="bob")
    assert ann.hear(1) == ["join bob"]
    away(server, a, b)
    server.start()
    wait_until(lambda: a.is_idle)
    server.call("DEL", f"greenws:alive:{b.node.origin}")
    a.node._leases.next_beat = b.node._leases.next_beat = time.monotonic() + 60
    a.node._leases._beat()
    b.node._leases._beat()
    b.send("hello")
    assert ann.hear(1) == ["hello"]


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
        may_go_on, has_looked, look = (
            gevent.event.Event(),
            gevent.event.Event(),
            a.node._leases.snapshot,
        )

        def look_slowly(room: str, **options: Any) -> Any:
            found = look(room, **options)
            if "begin_log" in options:  # whoever reads on does not wait
                return found
            has_looked.set()
            may_go_on.wait()
            return found

        a.node._leases.snapshot = look_slowly
        server.start()
        assert has_looked.wait(limit())
        until_published_has_arrived(a)  # and hears what is told
    b.send("bob has left")
    assert ann.hear(1) == ["bob has left"]
    # That he left is told on a way of its own.
    wait_until(lambda: a.node._leases._rooms["r"].published)
    may_go_on.set()
    wait_until(lambda: a.is_idle)
    a.send("hello")
    assert ann.hear(1) == ["hello"]
    assert a.names() == b.names() == ["ann"]


def test_garbage_among_the_members_is_skipped(server, worker, caplog):
    server.call("HSET", "greenws:here:r", "x", "garbage", "y", b"\xff", "z", "ff []")
    a = worker()
    a.join(name="ann")
    assert a.names() == ["ann"]
    assert "ignoring a malformed member of room 'r'" in caplog.text


def test_a_process_that_is_back_is_not_reaped(server, worker):
    a, b = worker(), worker()
    ann = a.join(name="Ann")
    bob = b.join(name="Bob")
    wait_until(lambda: a.names() == b.names() == ["Ann", "Bob"])
    wait_until(lambda: a.is_idle and b.is_idle)
    assert len(server.call("KEYS", "greenws:alive:*")) == 2
    b.node._leases._reap({a.node.origin})
    b.send("hello")
    assert ann.hear(1) == bob.hear(1) == ["hello"]
    until_all_is_read(a, b)
    assert b.names() == a.names() == ["Ann", "Bob"]


def test_presence_outlives_a_short_history(server, worker):
    a = worker(max_age=1)
    a.join(name="Ann")
    wait_until(lambda: a.is_idle)
    assert server.call("TTL", "greenws:here:r") > 30


def test_a_malformed_member_is_skipped(server, worker, caplog):
    server.call("HSET", "greenws:here:r", "m", "origin " + "[" * 100_000)
    a = worker()
    a.join(name="Ann")
    assert a.names() == ["Ann"]
    assert "malformed member" in caplog.text and len(caplog.text) < 2000


def test_one_that_left_before_a_room_was_reopened_does_not_join(worker, pair, monkeypatch):
    a = worker()
    a.join("other")
    wait_until(lambda: a.is_idle)
    with monkeypatch.context() as patch:
        patch.setattr(a.node._leases, "_send_pending", lambda: None)  # Redis knows nothing yet
        with a.rooms["r"].join(pair()[0], name="ann"):
            pass
        bob = a.join(name="bob", presence=tell)
    wait_until(lambda: a.is_idle)
    a.send("hello")
    assert bob.hear(1) == ["hello"]
    assert a.names() == ["bob"]


def test_a_person_with_tabs_in_several_processes_is_there_once(worker):
    a, b, c = worker(), worker(), worker()
    bob = a.join(name="bob", presence=tell_id)
    with contextlib.ExitStack() as tabs:
        for each in (a, b, c):
            member = tabs.enter_context(each.rooms["r"].join(each._pair()[0], **ANN))
            assert {who.id for who in member.present} == {bob.member.id, "ann"}
            wait_until(lambda each=each: each.is_idle)
        assert bob.hear(1) == ["join ann"]
        assert [len(each.rooms["r"]) for each in (a, b, c)] == [2, 2, 2]
        assert len(worker().rooms["r"]) == 2  # which has no members there
    assert bob.hear(1) == ["leave ann"]
    assert bob.hears_no_more()


def test_a_reload_that_comes_to_another_process_is_not_reported(worker):
    a, b = worker(), worker()
    bob = b.join(name="bob", presence=tell_id)
    with a.rooms["r"].join(a._pair()[0], **ANN, presence_linger=0.3):
        assert bob.hear(1) == ["join ann"]
    with b.rooms["r"].join(b._pair()[0], **ANN):
        wait_until(lambda: not a.rooms["r"]._is_open)
        wait_until(lambda: a.is_idle and b.is_idle)
        assert bob.hears_no_more()
    assert bob.hear(1) == ["leave ann"]


def test_a_tab_of_a_process_that_died_is_not_the_person(server, worker):
    a, b = worker(presence_timeout=1.0), worker(presence_timeout=1.0)
    bob = a.join(name="bob", presence=tell_id)
    b.join(**ANN)
    assert bob.hear(1) == ["join ann"]
    with a.rooms["r"].join(a._pair()[0], **ANN):
        b.die()
        wait_until(lambda: server.call("HLEN", "greenws:here:r") == 2 + 1)
        assert bob.hears_no_more()
    assert bob.hear(1) == ["leave ann"]


def test_one_who_was_dead_when_the_room_was_opened_is_there_once_its_process_lives(server, worker):
    b = worker()
    b.join(name="bob")
    wait_until(lambda: b.is_idle)
    b.node._leases.next_beat += 3600  # or b may be alive again at once
    server.call("DEL", f"greenws:alive:{b.node.origin}")
    a = worker()
    ann = a.join(name="ann", presence=tell)
    assert a.names() == ["ann"]
    b.node._leases.prove_alive()
    a.node._leases.next_beat = 0
    a.node._wake_leases.set()
    assert ann.hear(1) == ["join bob"]
    assert a.names() == ["ann", "bob"]


def test_two_masters_with_as_many_changes_each_are_told_apart(server, worker):
    """Both had the same members once. Processes go over from one to the other, which no error
    tells them."""
    a, b, c = worker(), worker(), worker()
    key = "greenws:here:r"
    a.join(name="ann")
    wait_until(lambda: a.is_idle)
    b.join(name="bob")
    wait_until(lambda: b.is_idle and a.names() == ["ann", "bob"])
    server.call("COPY", key, "second")
    b.join(name="ben")
    wait_until(lambda: b.is_idle and a.names() == ["ann", "ben", "bob"])
    server.call("RENAME", "second", key)
    c.join(name="carl")
    wait_until(lambda: c.is_idle)
    server.call("CLIENT", "KILL", "TYPE", "pubsub")
    everybody = ["ann", "ben", "bob", "carl"]
    wait_until(lambda: a.names() == b.names() == c.names() == everybody)


def test_a_change_that_only_the_master_before_has_taken_is_made_again(server, worker, pair):
    """The process has its answer, and loses the connection before that master has published it."""
    a, b = worker(), worker()
    key = "greenws:here:r"
    a.join(name="amy")
    b.join(name="bob")
    socket, _ = pair()
    with a.rooms["r"].join(socket, name="ann"):
        wait_until(lambda: a.names() == b.names() == ["amy", "ann", "bob"])
        until_all_is_read(a)
        server.call("COPY", key, "second")
        a.node._subscriber.on_message = b.node._subscriber.on_message = lambda *args: None
    wait_until(lambda: a.is_idle)
    until_published_has_arrived(a)
    until_published_has_arrived(b)
    assert len(server.call("HKEYS", key)) == 3  # two of them, and the version
    server.call("RENAME", "second", key)
    del a.node._subscriber.on_message, b.node._subscriber.on_message
    server.call("CLIENT", "KILL", "TYPE", "pubsub")
    wait_until(lambda: a.names() == b.names() == ["amy", "bob"])


def test_one_whose_leave_was_lost_with_a_master_has_left_once_its_room_is_open_again(
    server, worker, pair
):
    a, b = worker(), worker()
    key = "greenws:here:r"
    b.join(name="bob")
    socket, _ = pair()
    with a.rooms["r"].join(socket, name="ann"):
        wait_until(lambda: b.names() == ["ann", "bob"])
        server.call("COPY", key, "second")
    wait_until(lambda: a.is_idle and b.names() == ["bob"])
    server.call("RENAME", "second", key)
    server.call("CLIENT", "KILL", "TYPE", "pubsub")
    wait_until(lambda: b.names() == ["ann", "bob"])
    a.node._leases.check = lambda rooms: None  # it needs no look at versions
    a.join(name="amy")
    wait_until(lambda: a.names() == b.names() == ["amy", "bob"])


def test_one_whose_leave_was_lost_with_a_master_has_left_although_its_room_is_closed(
    server, worker, pair
):
    a, b = worker(), worker()
    key = "greenws:here:r"
    b.join(name="bob")
    a.join("other")
    socket, _ = pair()
    with a.rooms["r"].join(socket, name="ann"):
        wait_until(lambda: b.names() == ["ann", "bob"])
        server.call("COPY", key, "second")
    wait_until(lambda: a.is_idle and b.names() == ["bob"])
    server.call("RENAME", "second", key)
    server.call("CLIENT", "KILL", "TYPE", "pubsub")
    wait_until(lambda: b.names() == ["ann", "bob"])
    a.node._leases.come_back()
    wait_until(lambda: b.names() == ["bob"])


def test_leaves_are_remembered_for_a_while_up_to_a_thousand(worker):
    a = worker()
    a.join("other")
    leases = a.node._leases
    with a.node.process.lock:
        leases.pending["r"] = {f"{number}": None for number in range(600)}
        leases.pending["s"] = {f"{number}": None for number in range(600)}
    leases._wake()
    wait_until(lambda: a.is_idle)
    assert len(leases._left) == 1000
    with a.node.process.lock:
        moved = leases.release("s")  # as to another node of a cluster, which sends them again
        assert moved.pending is not None and len(moved.pending) == 600
        assert len(leases._left) == 400
        leases.adopt("s", moved)
    wait_until(lambda: a.is_idle)
    assert len(leases._left) == 1000
    leases._left = {each: sent - 31.0 for each, sent in leases._left.items()}
    leases.come_back()
    wait_until(lambda: not leases._left)


def test_a_change_that_redis_knows_needs_no_look_at_the_members(worker, pair, monkeypatch):
    """A member leaves before its join was sent."""
    a = worker()
    a.join(name="bob")
    leases = a.node._leases
    wait_until(lambda: a.is_idle and not leases._rooms["r"].unconfirmed)
    with monkeypatch.context() as patch:
        patch.setattr(leases, "_send_pending", lambda: None)
        with a.rooms["r"].join(pair()[0], name="ann"):
            pass
    leases._wake()
    wait_until(lambda: a.is_idle)
    assert leases._rooms["r"].unconfirmed == set()
