"""What the parts of a broker share: waiting for Redis together."""

from __future__ import annotations

import signal
import threading
import time
from typing import Any

import gevent
import pytest
import redis

from greenws.rooms.redis.options import Options
from greenws.rooms.redis.process import Identity, Process

from ...support.forking import in_child
from ...support.limits import again_after_standstill, limit, pace, stays, wait_until


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
    assert not process.outage.is_lost


def test_insisting_waits_until_redis_is_back(process):
    found: list[int] = []

    def call() -> int:
        if not found:
            fail()
        return found[0]

    insisting = gevent.spawn(process.insist, call, 5.0)
    wait_until(lambda: process.outage.is_lost)
    found.append(7)
    assert insisting.get(timeout=limit(2)) == 7


@again_after_standstill(0.05)
def test_all_wait_together_for_one_outage(process):
    process = Process(process.options, lambda: None, lambda: None, lambda: None, lambda: None)
    began = time.monotonic()
    assert process.insist(fail, 0.2) is None
    assert 0.1 < time.monotonic() - began < pace(0.4)
    began = time.monotonic()
    assert process.insist(fail, 0.2) is None  # it has been lost for so long already
    assert time.monotonic() - began < pace(0.1)


def test_insisting_without_time_tries_once(process):
    tries: list[int] = []
    assert process.insist(lambda: tries.append(1) or fail(), 0.0) is None
    assert len(tries) == 1


def test_nobody_listens_and_nothing_breaks(process):
    with process.lock:
        process.deliver("r", None)
        process.report_presence("r", "join", "m", {})
        assert not process.send_gap("r")
        process.wait_for_fan_out("r")


@again_after_standstill(0.2)
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
        assert time.monotonic() - began < pace(1.0) + 0.5
    finally:
        server.send_signal(signal.SIGCONT)
    assert not any(each.member.is_complete for each in clients)
    wait_until(lambda: a.is_idle)


# -- senders that wait


class Stopped:
    """Whether the broker was stopped, and how often a sender has asked."""

    def __init__(self) -> None:
        self.value = False
        self.asked = 0

    def __call__(self) -> bool:
        self.asked += 1
        return self.value


@pytest.fixture
def identity() -> Identity:
    identity = Identity()
    identity.note_published(next(identity.numbers))
    return identity


def test_a_sender_that_waits_in_the_writer_s_hub_does_not_poll(identity):
    receipt, stopped = identity.receipt(gevent.get_hub()), Stopped()
    sending = gevent.spawn(receipt.wait, "r", stopped)
    stays(lambda: not sending.dead)
    assert stopped.asked == 1
    identity.wake_senders()
    wait_until(lambda: stopped.asked == 2)
    stays(lambda: not sending.dead and stopped.asked == 2)
    identity.receipts[1].end()
    assert sending.get(timeout=limit()) is True


def test_a_sender_that_waits_is_woken_from_another_thread(identity):
    receipt, stopped = identity.receipt(gevent.get_hub()), Stopped()
    sending = gevent.spawn(receipt.wait, "r", stopped)
    wait_until(lambda: stopped.asked)
    stopped.value = True
    waking = threading.Thread(target=identity.wake_senders)
    waking.start()
    assert sending.get(timeout=limit()) is False
    waking.join()


def test_a_sender_of_another_thread_polls_until_the_log_has_its_message(identity):
    receipt, stopped = identity.receipt(None), Stopped()
    sending = gevent.spawn(receipt.wait, "r", stopped)
    wait_until(lambda: stopped.asked > 2)
    receipt.end()
    assert sending.get(timeout=limit()) is True


@pytest.mark.parametrize("polls", [False, True])
def test_a_sender_that_waits_in_the_parent_waits_in_its_forked_child_without_asking(worker, polls):
    identity = worker().node.process.identity
    identity.note_published(next(identity.numbers))
    receipt, stopped = identity.receipt(None if polls else gevent.get_hub()), Stopped()
    sending = gevent.spawn(receipt.wait, "r", stopped)
    wait_until(lambda: stopped.asked)

    def waits() -> None:
        asked = stopped.asked
        stopped.value = True
        stays(lambda: not sending.dead and stopped.asked == asked)

    in_child(waits)
    receipt.end()
    assert sending.get(timeout=limit()) is True
