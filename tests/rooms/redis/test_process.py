"""What the parts of a broker share: waiting for Redis together."""

from __future__ import annotations

import signal
import time
from typing import Any

import gevent
import pytest
import redis

from greenws.rooms.redis.options import Options
from greenws.rooms.redis.process import Process

from ...support.limits import limit, wait_until


@pytest.fixture
def process(server: Any) -> Any:
    options = Options(server.url, "p:", 100, 10_000, 60, 10, 1000, 0.3, 15.0)
    process = Process(options, lambda: None, lambda: None, lambda: None, lambda: None)
    yield process
    process.commands.close()


def fail() -> None:
    raise redis.ConnectionError("refused")


def test_each_process_has_an_origin_and_numbers_that_grow(process):
    other = Process(process.options, lambda: None, lambda: None, lambda: None, lambda: None)
    assert process.origin != other.origin
    assert len(process.origin) == 12
    assert [process.next_number() for _ in range(3)] == [1, 2, 3]


def test_insisting_gives_what_is_found(process):
    assert process.insist(lambda: 7, 0.3) == 7
    assert not process.outage.is_away


def test_insisting_waits_until_redis_is_back(process):
    found: list[int] = []

    def call() -> int:
        if not found:
            fail()
        return found[0]

    insisting = gevent.spawn(process.insist, call, 5.0)
    wait_until(lambda: process.outage.is_away)
    found.append(7)
    assert insisting.get(timeout=limit(2)) == 7


def test_all_wait_together_for_one_outage(process):
    began = time.monotonic()
    assert process.insist(fail, 0.2) is None
    assert 0.1 < time.monotonic() - began < limit(0.4)
    began = time.monotonic()
    assert process.insist(fail, 0.2) is None  # it has been lost for so long already
    assert time.monotonic() - began < limit(0.1)


def test_insisting_without_time_tries_once(process):
    tries: list[int] = []
    assert process.insist(lambda: tries.append(1) or fail(), 0.0) is None
    assert len(tries) == 1


def test_nobody_listens_and_nothing_breaks(process):
    with process.lock:
        process.deliver("r", None)
        process.tell_presence("r", "join", "m", {})
        assert not process.tell_gap("r")
        process.wait_for_fan_out("r")


def test_joins_during_a_hang_wait_for_the_timeout_and_no_longer(server, worker):
    a = worker(timeout=0.5)
    ann = a.join()
    since = ann.last
    wait_until(lambda: a.is_idle)
    server.send_signal(signal.SIGSTOP)
    try:
        began = time.monotonic()
        joining = [
            gevent.spawn(a.join, f"room {number % 4}", since=since, gap="0-0 gap")
            for number in range(8)
        ]
        clients = [each.get(timeout=limit(10)) for each in joining]
        assert time.monotonic() - began < limit(1.0) + 0.5
    finally:
        server.send_signal(signal.SIGCONT)
    assert not any(each.member.is_complete for each in clients)
    wait_until(lambda: a.is_idle)
