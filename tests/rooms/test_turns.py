"""Turns: a greenlet that ends one lets the kernel be polled."""

from __future__ import annotations

import gc
import socket
import threading
import time

import gevent
import pytest
from gevent import socket as gevent_socket

from greenws.rooms import turns

from ..support.limits import wait_until


def spin(seconds: float = turns.SECONDS) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


def receiver(heard: list[bytes]) -> socket.socket:
    """The other end of a socket on which a greenlet waits."""
    ours, theirs = gevent_socket.socketpair()

    def receive() -> None:
        with ours:
            while data := ours.recv(10):
                heard.append(data)

    gevent.spawn(receive)
    gevent.sleep(0.01)
    return theirs


def test_the_end_of_a_turn_lets_sockets_and_timers_in():
    heard: list[bytes] = []
    with receiver(heard) as peer:
        peer.send(b"x")
        gevent.sleep(0)
        gevent.sleep(0)
        assert heard == []  # gevent.sleep(0) polls nothing
        turns.end()
        turns.end()  # gevent hands what it polled to the greenlet by then
        assert heard == [b"x"]
    wait_until(lambda: gc.collect() or True)


def test_a_turn_is_over_by_time_until_it_ends():
    turns.end()
    assert not turns.is_over()
    spin()
    assert turns.is_over()
    assert turns.is_over()
    turns.end()
    assert not turns.is_over()
    spin()
    gevent.sleep(0)  # which is no end
    assert turns.is_over()


def test_greenlets_that_run_without_a_poll_in_between_share_a_turn():
    def look() -> bool:
        first = turns.is_over()
        spin(turns.SECONDS / 2)
        return first

    turns.end()
    found = [each.get() for each in [gevent.spawn(look) for _ in range(4)]]
    assert (found[0], found[-1]) == (False, True)


def test_a_sleep_of_somebody_else_begins_no_turn():
    def sleep() -> None:
        gevent.sleep(0.5)

    turns.end()
    turns.is_over()
    spin()
    sleeping = gevent.spawn(sleep)
    gevent.sleep(0)
    assert turns.is_over()
    sleeping.kill()


def test_end_if_over_waits_only_then():
    ran: list[int] = []
    turns.end()
    gevent.spawn(ran.append, 1)
    turns.end_if_over()
    assert ran == []
    turns.is_over()
    spin()
    turns.end_if_over()
    assert ran == [1]


def test_a_hub_cannot_wait_and_goes_on():
    done: list[bool] = []

    def in_hub() -> None:
        turns.is_over()
        spin()
        done.append(turns.is_over())
        turns.end()
        done.append(True)

    gevent.get_hub().loop.run_callback(in_hub)
    wait_until(lambda: len(done) == 2)
    assert done == [True, True]


def test_a_thread_without_a_hub_has_no_turns():
    found: list[object] = []

    def run() -> None:
        found.append(turns.is_over())
        spin()
        found.append(turns.is_over())
        turns.end()
        found.append(gevent._hub_local.get_hub_if_exists())

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == [False, False, None]


@pytest.mark.parametrize("in_queue", [True, False])
@pytest.mark.parametrize("number", [1, 100])
def test_many_that_end_their_turns_all_come_back(number, in_queue):
    done: list[int] = []

    def run(each: int) -> None:
        for _ in range(20):
            turns.end(in_queue)
        done.append(each)

    gevent.joinall([gevent.spawn(run, each) for each in range(number)])
    assert sorted(done) == list(range(number))


def test_greenlets_that_have_ended_their_turns_share_one():
    """3,000 timers that all fire at once would be no turns at all."""
    loop = gevent.get_hub().loop
    ran: list[int] = []

    def run() -> None:
        turns.end(in_queue=True)
        ran.append(loop.iteration)
        spin(0.6 * turns.SECONDS)

    gevent.joinall([gevent.spawn(run) for _ in range(10)])
    if loop.iteration >= 0:  # libuv does not count
        assert max(ran.count(each) for each in ran) <= 2


def test_one_that_serves_all_others_does_not_wait_for_each_of_them():
    ran: list[int] = []

    def run() -> None:
        while True:
            turns.end(in_queue=True)
            ran.append(1)
            spin(0.6 * turns.SECONDS)

    busy = [gevent.spawn(run) for _ in range(50)]
    gevent.sleep(0)
    try:
        for _ in range(5):
            turns.end()
        assert len(ran) < 50
    finally:
        gevent.killall(busy)
