"""Clocks of processes that differ from Redis's."""

from __future__ import annotations

import time

import gevent

from greenws.rooms.redis.clock import RedisClock

from ...support.limits import limit, wait_until
from ...support.redis_workers import Clock, away, back


def test_one_that_joins_during_an_outage_gets_all_whatever_the_clock_says(
    server, worker, monkeypatch
):
    a, b = worker(), worker()
    monkeypatch.setattr("greenws.rooms.redis.clock.time", Clock(60))
    a.join()
    b.join("another")
    away(server, a, b)
    bob = b.join()
    back(server, a, b)
    a.send("one", "two")
    assert bob.hear(2) == ["one", "two"]


def test_our_entries_in_redis_are_not_after_a_room_opened_without_it(server, worker, monkeypatch):
    """Even if the clock of this machine is slow, and nobody has noticed."""
    a, b = worker(), worker()
    bob = b.join()
    b.send("heard")
    assert bob.hear(1) == ["heard"]
    since = bob.last
    monkeypatch.setattr("greenws.rooms.redis.clock.time", Clock(-60))
    a.send("missed")
    assert bob.hear(1) == ["missed"]
    wait_until(lambda: a.is_idle)
    server.stop()
    a.send("x", room="another")
    wait_until(lambda: a.is_lost)
    joining = gevent.spawn(a.join, since=since)
    wait_until(lambda: "r" in a.node._streams)
    back(server, a, b)
    ann = joining.get(timeout=limit())
    assert ann.member.is_complete
    assert ann.hear(1) == ["missed"]
    assert ann.hears_no_more()


def test_it_is_redis_s_time_once_that_is_known(monkeypatch):
    clock = RedisClock()
    assert abs(clock.now() - time.time() * 1000) < 1000
    assert clock.set(1000, 500_999) == 1_000_500
    elapsed = clock.now() - 1_000_500
    assert 0 <= elapsed < 1000 * limit(1)
    monkeypatch.setattr("greenws.rooms.redis.clock.time", Clock(-60))
    assert clock.now() >= 1_000_500  # nobody sets the monotonic clock
    assert 0 <= clock.age(clock.local() - 2) - 2000 < 1000
