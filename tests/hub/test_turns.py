"""Turns: while a greenlet never waits, the kernel is polled, timers fire and signals arrive."""

from __future__ import annotations

import os
import signal
from concurrent.futures import ThreadPoolExecutor

import gevent
import pytest
from gevent.hub import Hub
from greenlet import greenlet

from greenws.hub.turns import Turns, after_poll, end_turn_if_due, turns_of

from ..support.limits import limit, wait_until
from ..support.polls import MOST, MOST_READ, Polls


def work(polls, steps=300, until=lambda: False):
    for _ in range(steps):
        if until():
            return
        polls.step()
        end_turn_if_due()


def test_a_turn_ends_with_a_poll_of_the_kernel():
    with Polls() as polls:
        gevent.spawn(work, polls).join()
    assert polls.total == 300
    assert polls.most <= MOST


def test_a_callback_of_the_loop_comes_before_the_poll():
    """Why a turn does not end with one."""
    switch = gevent.getcurrent().switch
    with Polls() as polls:
        for _ in range(40):
            polls.step()
            gevent.get_hub().loop.run_callback(switch)
            gevent.get_hub().switch()
    assert polls.most >= 20


def test_a_turn_on_a_hub_that_was_destroyed_blocks_nobody():
    def take_turn():
        hub = gevent.get_hub()
        hub.destroy()
        turns = Turns()
        while not turns.is_over(hub):
            pass
        turns.end(hub)
        return "went on"

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(take_turn).result() == "went on"


def test_quick_steps_end_a_turn_too():
    with Polls() as polls:

        def count():
            while polls.count < 20:
                end_turn_if_due()

        greenlet = gevent.spawn(count)
        greenlet.join(limit())
        assert greenlet.ready()
        greenlet.kill()


def test_a_slow_step_after_quick_ones_reads_the_clock():
    """Quick steps make the readings rare; slow ones do not wait for the next."""
    with Polls() as polls:

        def run():
            for _ in range(1000):
                end_turn_if_due()
            for _ in range(60):
                polls.step(0.002)
                end_turn_if_due(is_slow=True)

        gevent.spawn(run).join()
    assert polls.total == 60
    assert polls.most <= MOST_READ


def test_timers_fire_between_turns():
    fired = []
    timer = gevent.get_hub().loop.timer(0.005, 0.005)
    timer.start(lambda: fired.append(polls.total))
    with Polls() as polls:
        gevent.spawn(work, polls).join()
    timer.close()
    gaps = [after - before for before, after in zip([0, *fired], [*fired, 300], strict=True)]
    assert max(gaps) <= 2 * MOST


def test_a_signal_arrives_between_turns():
    arrived = []
    watcher = gevent.signal_handler(signal.SIGUSR1, arrived.append, 1)
    with Polls() as polls:
        greenlet = gevent.spawn(work, polls, 2000, lambda: arrived)
        os.kill(os.getpid(), signal.SIGUSR1)
        greenlet.join()
    watcher.cancel()
    assert polls.total <= 2 * MOST


def test_greenlets_share_the_time_between_two_polls():
    done = [0, 0, 0]

    def run(index):
        while sum(done) < 600:
            polls.step()
            done[index] += 1
            end_turn_if_due()

    with Polls() as polls:
        gevent.joinall([gevent.spawn(run, index) for index in range(3)])
    assert polls.most <= MOST
    assert min(done) > 50, done


def test_the_main_greenlet_and_the_hub_are_left_alone():
    with Polls() as polls:
        work(polls, 100)
    assert polls.count == 0
    called = []

    def callback():
        work(polls, 100)
        turns_of(hub).end(hub)
        called.append(polls.count)

    hub = gevent.get_hub()
    with Polls() as polls:
        hub.loop.run_callback(callback)
        gevent.sleep(0.01)
    assert called == [0]


@pytest.mark.parametrize("how", ["killed", "timed out"])
def test_a_greenlet_that_leaves_its_turn_is_not_switched_to_again(how):
    hub = gevent.get_hub()
    turns = turns_of(hub)
    woken = []

    def leave():
        try:
            turns.end(hub)
        except BaseException as error:
            woken.append(type(error))
        gevent.sleep(0.02)  # a stray switch would end this early, with another result
        woken.append("slept")

    with gevent.Timeout(limit()):
        greenlet = gevent.Greenlet(leave)
        greenlet.start()
        if how == "killed":
            hub.loop.run_callback(lambda: greenlet.kill(block=False))
        else:
            hub.loop.run_callback(greenlet.throw, TimeoutError)
        greenlet.join()
    assert woken == [gevent.GreenletExit if how == "killed" else TimeoutError, "slept"]


def test_a_raw_greenlet_that_fails_after_its_turn_does_not_stop_the_others(hub_errors):
    hub = gevent.get_hub()
    turns = turns_of(hub)
    done = []

    def fail():
        turns.end(hub)
        raise RuntimeError("after its turn")

    def go_on():
        turns.end(hub)
        done.append(1)

    for run in (fail, go_on):
        hub.loop.run_callback(greenlet(run, hub).switch)
    wait_until(lambda: done)
    assert done == [1]
    assert "after its turn" in hub_errors.take()


def test_what_a_parent_has_queued_does_not_run_in_a_child():
    hub = gevent.get_hub()
    turns = turns_of(hub)
    ran = []

    def end():
        turns.end(hub)
        ran.append(os.getpid())

    gevent.spawn(end)
    done = []

    def fork():
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                gevent.sleep(0.02)
                status = len(ran)
            finally:
                os._exit(status)
        done.append(os.waitpid(pid, 0)[1])

    gevent.spawn(fork).join()
    assert done == [0]
    wait_until(lambda: ran)
    assert ran == [os.getpid()]


def test_the_hub_is_not_kept_alive():
    assert turns_of(gevent.get_hub()) is turns_of(gevent.get_hub())
    turns = Turns()
    assert not any(isinstance(value, Hub) for value in getattr(turns, "__dict__", {}).values())


def test_after_poll_comes_after_a_poll():
    counts = []
    with Polls() as polls:
        gevent.sleep(0)
        timer = after_poll(gevent.get_hub().loop, lambda: counts.append(polls.count))
        before = polls.count
        while not counts:
            gevent.sleep(0)
        timer.close()
    assert counts[0] - before <= 2
