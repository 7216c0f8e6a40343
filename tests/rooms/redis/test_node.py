"""One Redis: what it has of a room, and how another one takes that over."""

from __future__ import annotations

from typing import Any

import gevent
import pytest
from gevent.event import Event

from greenws.rooms.broker import BrokerUnavailable

from ...support.limits import limit, wait_until
from ...support.redis_workers import away, back


def test_it_knows_of_rooms_that_are_open_that_wait_and_whose_members_wait(server, worker):
    a = worker()
    a.join("open")
    wait_until(lambda: a.is_idle)
    assert a.node.rooms() == {"open"}
    away(server, a)
    a.send("unlogged", room="waits")
    assert a.node.rooms() == {"open", "waits"}
    assert a.node.is_used
    back(server, a)
    assert a.node.rooms() == {"open"}


def test_what_one_releases_another_adopts(server, worker):
    """As between the nodes of a cluster, though these two use the same Redis."""
    a, b = worker(), worker()
    b.broker.detach()
    b.broker.attach(a.rooms)
    ann = a.join(name="ann")
    a.send("one")
    assert ann.hear(1) == ["one"]
    wait_until(lambda: a.is_idle)
    away(server, a)
    a.send("two")
    moved = a.node.release("r")
    assert a.node.rooms() == set()
    assert [entry.data for _, entry in moved.waiting] == ["two"]
    b.node.start()
    b.node.adopt("r", moved)
    assert b.node.rooms() == {"r"}
    a.broker.parts[0] = b.node
    server.start()
    wait_until(lambda: b.is_idle)
    assert ann.hear(1) == ["two"]
    assert [text.split(" ", 1)[1] for text in b.rooms["r"].history()] == ["one", "two"]
    a.node.stop()


def test_a_stopped_one_opens_nothing(worker):
    a = worker()
    a.node.stop()
    a.node.stop()
    call: Any
    for call in (lambda: a.node.open("r"), lambda: a.node.publish("r", "x")):
        with pytest.raises(BrokerUnavailable, match="closed"):
            call()


def test_a_second_call_of_stop_waits_for_what_the_first_ends(worker):
    node = worker().node
    node.start()
    is_ending, may_end = Event(), Event()

    def end_slowly() -> None:
        try:
            Event().wait()
        finally:
            is_ending.set()
            may_end.wait(limit())

    node._greenlets.append(gevent.spawn(end_slowly))
    gevent.sleep(0)
    first = gevent.spawn(node.stop)
    is_ending.wait(limit())
    second = gevent.spawn(node.stop)
    gevent.idle()
    assert not node.process.commands.is_closed
    may_end.set()
    gevent.joinall([first, second], raise_error=True)
    assert node.process.commands.is_closed


def test_those_who_wait_until_a_room_is_open_come_in_by_turns(worker, monkeypatch):
    """All of them wake at the same moment."""
    ended: list[Any] = []
    end_if_over = "greenws.rooms.turns.end_if_over"
    monkeypatch.setattr(end_if_over, lambda **_: ended.append(gevent.getcurrent()))
    a = worker()
    joining = [gevent.spawn(a.join) for _ in range(5)]
    gevent.joinall(joining, raise_error=True)
    assert len(set(ended) & set(joining)) == 4
