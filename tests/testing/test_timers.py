"""``testing.clock()``: time that moves when the test says so."""

from __future__ import annotations

import gc
import time
import weakref

import gevent
import pytest
from gevent.event import AsyncResult, Event
from gevent.lock import Semaphore
from gevent.queue import Empty, Queue

from greenws import Config, ConnectionClosed, Rooms, Routes, testing
from greenws.brokers.memory import MemoryBroker
from greenws.testing.timers import ClockLoop, RealTimeout

from ..support.limits import limit, pace

routes = Routes()
seen = []


@routes.websocket("/ticks")
def ticks(request, socket):
    began = time.monotonic()
    for _ in range(3):
        gevent.sleep(10)
        socket.send(f"{time.monotonic() - began:.0f}")
    socket.receive()


@routes.websocket("/waits")
def waits(request, socket):
    seen.clear()
    try:
        seen.append(socket.receive(timeout=30))
    except (TimeoutError, ConnectionClosed) as error:
        seen.append(str(error))


@pytest.fixture(autouse=True)
def time_is_real_again():
    loop = gevent.get_hub().loop
    yield
    assert gevent.get_hub().loop is loop
    assert not isinstance(loop, ClockLoop)
    assert time.monotonic.__name__ == "monotonic" and time.time.__name__ == "time"


def test_time_is_stopped_until_it_is_advanced():
    with testing.clock() as clock:
        before = time.monotonic(), time.time(), time.monotonic_ns(), time.time_ns()
        assert (time.monotonic(), time.time(), time.monotonic_ns(), time.time_ns()) == before
        clock.advance(3600)
        assert time.monotonic() - before[0] == pytest.approx(3600)
        assert time.time() - before[1] == pytest.approx(3600)
        assert time.monotonic_ns() - before[2] == 3600 * 10**9
        assert time.time_ns() - before[3] == 3600 * 10**9
        assert clock.elapsed == 3600


@pytest.mark.parametrize("is_clock_first", [True, False])
def test_a_handler_that_sleeps(is_clock_first):
    began = time.monotonic()
    if is_clock_first:
        with testing.clock() as clock, testing.connect(routes, "/ticks") as socket:
            check_ticks(clock, socket)
    else:
        with testing.connect(routes, "/ticks") as socket, testing.clock() as clock:
            check_ticks(clock, socket)
    assert time.monotonic() - began < pace(2)


def check_ticks(clock, socket):
    clock.advance(9.9)
    with pytest.raises(TimeoutError):
        socket.receive(timeout=0)
    clock.advance(0.1)
    assert socket.receive(timeout=0) == "10"
    clock.advance(20)
    assert (socket.receive(), socket.receive()) == ("20", "30")
    socket.send("end")


def test_what_is_due_happens_in_its_order():
    happened = []

    def at(seconds):
        gevent.sleep(seconds)
        happened.append((seconds, round(clock.elapsed, 3)))
        if seconds == 1:
            gevent.spawn(at, 1.5).join()

    with testing.clock() as clock:
        greenlets = [gevent.spawn(at, seconds) for seconds in (3, 1, 2)]
        clock.advance(10)
        gevent.joinall(greenlets)
    assert happened == [(1, 1), (2, 2), (1.5, 2.5), (3, 3)]


def test_a_timeout_of_a_handler():
    with testing.clock() as clock, testing.connect(routes, "/waits") as socket:
        clock.advance(29.9)
        assert seen == []
        clock.advance(0.1)
        assert seen == ["no message within 30 s"]
        assert list(socket) == []


def test_timeouts_of_gevent():
    with testing.clock() as clock:
        event = Event()
        waiting = gevent.spawn(event.wait, 60)

        def limited():
            with gevent.Timeout(30, False):
                event.wait()
                return "no"
            return round(clock.elapsed)

        limited_greenlet = gevent.spawn(limited)
        clock.advance(59)
        assert limited_greenlet.get() == 30
        assert not waiting.dead
        clock.advance(1)
        assert waiting.get() is False


def test_keepalive_of_a_client_that_answers_and_of_one_that_does_not():
    config = Config(ping_interval=20, ping_timeout=20)
    with testing.clock() as clock, testing.connect(routes, "/waits", config=config) as socket:
        server = socket._run.peer
        clock.advance(25)
        assert server.latency == 0
        assert server.is_connected
    with testing.clock() as clock, testing.connect(routes, "/waits", config=config) as socket:
        socket._run.peer.read_timeout_seconds = None
        socket.stall()
        clock.advance(29)
        assert seen == []
    idle = Routes()

    @idle.websocket("/")
    def waits_for_ever(request, socket):
        try:
            socket.receive()
        except ConnectionClosed as error:
            seen.append(error.code)

    seen.clear()
    with testing.clock() as clock, testing.connect(idle, config=config) as socket:
        socket.stall()
        clock.advance(38)
        assert seen == []
        clock.advance(3)
        assert seen == [1006]


def test_a_session_ends_with_its_max_lifetime():
    config = Config(max_lifetime=3600, ping_interval=None)
    lasting = Routes()

    @lasting.websocket("/")
    def echo(request, socket):
        for message in socket:
            socket.send(message)

    with testing.clock() as clock, testing.connect(lasting, config=config) as socket:
        clock.advance(0.9 * 3600 - 1)
        socket.send("still here")
        assert socket.receive() == "still here"
        clock.advance(0.1 * 3600 + 2)
        with pytest.raises(ConnectionClosed) as caught:
            socket.receive()
        assert caught.value.code == 1001


def test_the_messages_of_a_room_age_with_the_clock():
    room = Rooms(MemoryBroker(max_age=60))["news"]
    with testing.clock() as clock:
        room.send("old")
        clock.advance(30)
        room.send("new")
        assert room.history(10) == ["old", "new"]
        clock.advance(31)
        assert room.history(10) == ["new"]


def test_messages_of_a_room_age_after_a_clock_too():
    room = Rooms(MemoryBroker(max_age=60))["news"]
    room.send("before")
    with testing.clock() as clock:
        clock.advance(50)
        room.send("within")
    assert room.history(10) == ["before", "within"]
    with testing.clock() as clock:
        clock.advance(20)
        assert room.history(10) == ["within"]
        clock.advance(50)
        assert room.history(10) == []


def test_waits_of_the_test_are_in_real_time():
    with testing.clock() as clock, testing.connect(routes, "/waits", timeout=0.02) as socket:
        with pytest.raises(TimeoutError, match="time is stopped") as caught:
            socket.receive()
        assert "no message within 0.02 s" in str(caught.value)
        socket.send("end")
        clock.advance(0)


def test_what_still_waits_at_the_end_goes_on_in_real_time():
    event = Event()
    with testing.clock() as clock:
        greenlet = gevent.spawn(event.wait, 100)
        clock.advance(99.98)
        assert not greenlet.dead
        began = time.perf_counter()  # which the clock does not stop
    assert greenlet.get(timeout=limit()) is False
    assert 0.01 < time.perf_counter() - began < pace(1)


def test_time_goes_on_at_the_end_of_the_clock_though_the_test_has_blocked():
    with testing.clock() as clock:
        greenlet = gevent.spawn(gevent.sleep, 1)
        clock.advance(0.9)
        time.sleep(0.15)  # the loop does not notice this time
        ended = time.perf_counter()
    greenlet.get(timeout=limit())
    assert time.perf_counter() - ended > 0.09


def test_what_was_waiting_before_waits_for_the_clock():
    with testing.connect(routes, "/waits"):
        greenlet = gevent.spawn(gevent.sleep, 50)
        gevent.sleep(0)
        with testing.clock() as clock:
            clock.advance(49)
            assert not greenlet.dead
            clock.advance(1)
            assert greenlet.dead


def test_an_hour_of_an_idle_connection_is_quick():
    began = time.monotonic()
    with testing.connect(routes, "/ticks") as socket, testing.clock() as clock:
        for _ in range(3):
            clock.advance(1200)
        assert [socket.receive() for _ in range(3)] == ["10", "20", "30"]
        socket.send("end")
    assert time.monotonic() - began < pace(3)


@routes.websocket("/feed")
def feed(request, socket):
    while True:
        gevent.sleep(300)
        socket.send("five minutes")


def test_the_end_of_a_connection_moves_time_as_far_as_its_handler_needs():
    began = time.monotonic()
    with testing.clock() as clock:
        with testing.connect(routes, "/feed") as socket:
            clock.advance(310)
            assert socket.receive() == "five minutes"
        assert clock.elapsed == 600
        with testing.connect(routes, "/feed") as socket:
            socket.close()  # is answered by keepalive
            assert 600 < clock.elapsed < 610
        assert clock.elapsed == 900
    assert time.monotonic() - began < pace(2)


def test_so_it_does_after_the_clock():
    began = time.monotonic()
    with testing.connect(routes, "/feed") as closed, testing.connect(routes, "/feed") as socket:
        with testing.clock() as clock:
            clock.advance(310)
            assert socket.receive() == closed.receive() == "five minutes"
            closed.close()
    assert time.monotonic() - began < pace(2)


@routes.websocket("/blocks")
def blocks(request, socket):
    with pytest.raises(ConnectionClosed):
        socket.receive()
    time.sleep(0.1)  # longer than the limit


def test_no_limit_ends_a_test_while_its_clock_lets_others_run():
    with testing.clock():
        with testing.connect(routes, "/blocks", timeout=0.05):
            pass


def test_the_test_itself_waits_in_real_time():
    began = time.monotonic()
    moment = 0.01
    with testing.clock():
        gevent.sleep(moment)
        assert not Event().wait(moment)
        with pytest.raises(gevent.Timeout), gevent.Timeout(moment):
            Event().wait()
    assert 0.03 <= time.monotonic() - began < pace(2)
    with gevent.Timeout(moment, False), testing.clock():
        Event().wait()


def test_whatever_is_built_on_timers_follows_the_clock(hub_errors):
    with testing.clock() as clock:
        happened = []
        gevent.spawn_later(5, happened.append, "later")
        greenlets = [
            gevent.spawn(Queue().get, timeout=6),
            gevent.spawn(Semaphore(0).acquire, timeout=7),
            gevent.spawn(gevent.spawn(gevent.sleep, 20).join, 8),
            gevent.spawn(gevent.wait, [Event()], 9),
            gevent.spawn(AsyncResult().wait, 10),
        ]
        clock.advance(5)
        assert happened == ["later"]
        assert not any(greenlet.dead for greenlet in greenlets)
        with pytest.raises(Empty):
            clock.advance(5)
            greenlets[0].get()
        assert all(greenlet.dead for greenlet in greenlets)
        assert "Empty" in hub_errors.take()
        clock.advance(20)


def test_a_clock_inside_of_what_another_library_made_of_time(monkeypatch):
    def frozen():
        return 1000.0

    with monkeypatch.context() as patch:
        patch.setattr(time, "monotonic", frozen)
        with testing.clock() as clock, testing.connect(routes, "/ticks") as socket:
            clock.advance(20)
            assert time.monotonic() == 1020
            assert (socket.receive(), socket.receive()) == ("10", "20")
        assert time.monotonic is frozen


def test_a_clock_after_another_library_has_replaced_time_in_a_session(monkeypatch):
    with testing.connect(routes, "/ticks") as socket:
        with monkeypatch.context() as patch:
            patch.setattr(time, "monotonic", lambda: 1e9)
            with testing.clock() as clock:
                clock.advance(9)
                with pytest.raises(TimeoutError):
                    socket.receive(timeout=0)
                clock.advance(21)
                assert [bool(socket.receive(timeout=0)) for _ in range(3)] == [True] * 3
        socket.send("end")


def test_a_clock_does_not_move_time_that_another_library_has_replaced_since(monkeypatch):
    with testing.clock() as clock:
        with monkeypatch.context() as patch:
            patch.setattr(time, "monotonic", lambda: 1e9)
            with testing.connect(routes, "/waits", timeout=0.05) as socket:
                with pytest.raises(RuntimeError, match="'with freeze_time.*, testing.clock"):
                    clock.advance(10)
                with pytest.raises(TimeoutError, match=r"time.monotonic\(\) was replaced"):
                    socket.receive()
            greenlet = gevent.spawn(gevent.sleep, 10)
            gevent.sleep(0)
        clock.advance(9)
        assert not greenlet.dead
        clock.advance(1)
        assert greenlet.dead


def test_a_wait_that_times_out_says_that_another_library_has_stopped_time(monkeypatch):
    with testing.connect(routes, "/waits", timeout=0.05) as socket:
        with monkeypatch.context() as patch:
            patch.setattr(time, "monotonic", lambda: 1000.0)
            with pytest.raises(TimeoutError, match=r"time.monotonic\(\) was replaced"):
                socket.receive()
        with pytest.raises(TimeoutError) as caught:
            socket.receive()
        assert "was replaced" not in str(caught.value)


def test_there_is_one_clock_at_a_time_and_it_goes_forward():
    with testing.clock() as clock:
        with pytest.raises(RuntimeError, match="another clock"):
            testing.clock().__enter__()
        with pytest.raises(ValueError, match="goes forward"):
            clock.advance(-1)
    with pytest.raises(RuntimeError, match="with testing.clock"):
        clock.advance(1)


def test_the_time_of_the_loop_is_gevents():
    """greenws compares it under libuv, where it tells one iteration from the next."""
    with testing.pair():
        loop = gevent.get_hub().loop
        assert isinstance(loop, ClockLoop) and loop.now() == loop.real.now()
        with testing.clock() as clock:
            clock.advance(10)
            assert loop.now() == loop.real.now()


def test_a_clock_is_freed_without_the_garbage_collector():
    gc.disable()
    try:
        with testing.clock() as clock:
            clock.advance(1)
        reference = weakref.ref(clock)
        del clock
        assert reference() is None
    finally:
        gc.enable()


def test_timers_can_be_stopped_and_closed_as_gevents_can():
    with testing.clock() as clock:
        called = []
        loop = gevent.get_hub().loop
        with loop.timer(5) as timer:
            timer.start(called.append, 1)
            assert timer.active and not timer.pending
            timer.stop()
            assert not timer.active
            clock.advance(10)
            timer.start(called.append, 2)
            clock.advance(5)
        repeating = loop.timer(1, 2)
        repeating.start(called.append, 3)
        clock.advance(5)
        repeating.again(called.append, 4)
        clock.advance(2)
        repeating.close()
        clock.advance(10)
    assert called == [2, 3, 3, 3, 4]


def test_a_limit_begins_when_it_is_set_though_the_test_has_blocked_before():
    gevent.sleep(0.001)
    time.sleep(0.2)  # as a slow fixture would; gevent's loop does not run
    began = time.monotonic()
    with pytest.raises(RealTimeout):
        RealTimeout(0.2)
        Event().wait()
    assert time.monotonic() - began > 0.19
