"""``TestSocket`` and ``pair()``: waits that are bounded and explained, clients that misbehave."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time

import gevent
import pytest
from gevent.event import Event
from gevent.queue import Queue

from greenws import (
    Config,
    ConnectionClosed,
    OpcodeType,
    Rooms,
    Routes,
    WebSocket,
    policies,
    select,
    testing,
)
from greenws.testing.sockets import open_runs, warn_of_open_runs

from ..support.limits import again_after_standstill, limit, pace

routes = Routes()
ended = []


@routes.websocket("/echo")
def echo(request, socket):
    try:
        for message in socket:
            socket.send(message)
    finally:
        ended.append(socket.close_code)


@routes.websocket("/sleep")
def sleep(request, socket):
    gevent.sleep(60)  # in vain


@routes.websocket("/other-library")
def other_library(request, socket):
    socket.send_json({})


@routes.websocket("/flood")
def flood(request, socket):
    for _ in range(1000):
        socket.send("x" * 10_000)


@routes.websocket("/pieces")
def pieces(request, socket):
    socket.send_string_message("one ", final=False)
    socket.send_string_message("two")
    socket.send_ping(b"answer")
    socket.send(repr(socket.read_bytes_message()))
    socket.receive()


@pytest.fixture(autouse=True)
def nothing_is_left_open():
    yield
    assert not open_runs
    assert type(gevent.get_hub().loop).__mro__[1] is not testing.timers.ClockLoop


# -- bounded waits


@again_after_standstill(0.5)
def test_a_read_that_times_out_fails_in_time_and_shows_where_the_handler_waits():
    began = time.monotonic()
    with testing.connect(routes, "/echo", timeout=0.05) as socket:
        with pytest.raises(TimeoutError) as caught:
            socket.receive()
    assert 0.05 <= time.monotonic() - began < pace(2)
    text = str(caught.value)
    assert text.startswith("no message within 0.05 s")
    assert "test_sockets.py:" in text and "in echo: for message in socket:" in text
    assert "handler: received 0, sent 0" in text and "test: received 0, sent 0" in text


def test_a_shorter_limit_of_a_read_counts_and_a_longer_one_does_not():
    with testing.connect(routes, "/echo", timeout=0.05) as socket:
        for timeout, said in ((0.01, "0.01"), (100, "0.05"), (None, "0.05")):
            with pytest.raises(TimeoutError, match=f"no message within {said} s"):
                socket.receive(timeout=timeout)
        with pytest.raises(TypeError, match="timeout must be a number of seconds or None, not '5'"):
            socket.receive(timeout="5")
        with pytest.raises(ValueError, match="timeout must be"):
            socket.receive(timeout=-3)


def test_reads_of_fragments_and_iteration_are_bounded_too():
    with testing.connect(routes, "/echo", timeout=0.02) as socket:
        assert socket.read_string_message() == (None, OpcodeType.INVALID, True)
        assert socket.read_bytes_message() == (None, OpcodeType.INVALID, True)
        assert socket.is_connected
        with pytest.raises(TimeoutError, match="no message within 0.02 s"):
            next(socket)
        socket.read_timeout_seconds = 0.01
        with pytest.raises(TimeoutError, match="no message within 0.01 s"):
            next(socket)
        assert socket.read_timeout_seconds == 0.01
        socket.send("after all")
        socket.read_timeout_seconds = -1
        assert next(socket) == "after all"


def test_a_poll_lets_everybody_run_first():
    with testing.connect(routes, "/echo") as socket:
        with pytest.raises(TimeoutError):
            socket.receive(timeout=0)
        socket.send("there")
        assert socket.receive(timeout=0) == "there"
        socket.send("again")
        socket.read_timeout_seconds = 0
        assert socket.read_string_message().data == "again"


def test_fragments_and_pings():
    with testing.connect(routes, "/pieces") as socket:
        assert socket.read_string_message() == ("one ", OpcodeType.TEXT, False)
        assert socket.read_string_message() == ("two", OpcodeType.CONTINUATION, True)
        assert "PONG" in socket.receive()
        assert socket.ping() >= 0


def test_a_ping_that_nobody_answers():
    with pytest.raises(TimeoutError, match="no pong within 0.02 s.*\n.*in sleep"):
        with testing.connect(routes, "/sleep", timeout=0.02) as socket:
            socket.ping()


def test_a_send_that_nobody_reads():
    with pytest.raises(TimeoutError, match="a send was blocked for 0.05 s.*\n.*in sleep"):
        with testing.connect(routes, "/sleep", timeout=0.05) as socket:
            for _ in range(1000):
                socket.send(os.urandom(100_000))  # not to be compressed


def test_a_handler_that_does_not_end_fails_the_test():
    with pytest.raises(
        TimeoutError, match="has not ended within 0.05 s.*\n.*gevent.sleep"
    ) as caught:
        with testing.connect(routes, "/sleep", timeout=0.05):
            pass
    assert "sleep(60)" in str(caught.value)


def test_a_failed_test_shows_where_its_handler_still_waits():
    with pytest.raises(AssertionError) as caught:
        with testing.connect(routes, "/sleep", timeout=0.05):
            raise AssertionError("of the test")
    text = "\n".join([*caught.value.args, *getattr(caught.value, "__notes__", [])])
    assert "of the test\nthe session /sleep has not ended within 0.05 s" in text
    assert re.search(r"\n  handler: waits at .*gevent.sleep\(60\)", text)


def test_close_fails_if_the_handler_does_not_answer():
    socket = testing.connect(routes, "/sleep", timeout=0.05)
    with pytest.raises(TimeoutError, match="did not answer Close within 0.05 s.*\n.*in sleep"):
        socket.close()
    assert socket.close_code == 1006
    with pytest.raises(TimeoutError, match="has not ended"):
        socket.__exit__(None, None, None)


def test_messages_that_arrive_while_the_test_is_elsewhere_are_kept():
    with testing.connect(routes, "/echo") as socket:
        for i in range(100):
            socket.send(str(i))
        gevent.sleep(0.01)
        assert [socket.receive() for _ in range(100)] == [str(i) for i in range(100)]


def test_a_flood_waits_for_the_test():
    with testing.connect(routes, "/flood") as socket:
        gevent.sleep(0.01)
        assert sum(len(message) for message in socket) == 10_000_000


def test_more_than_is_taken_ahead_waits_for_the_test():
    many = Routes()

    @many.websocket("/")
    def sends(request, socket):
        for _ in range(30):
            socket.send(b"x" * 1_000_000)

    with testing.connect(many) as socket:
        gevent.sleep(0.05)
        assert socket.traffic.bytes_in < 18 << 20
        assert sum(len(message) for message in socket) == 30_000_000


def test_pings_are_answered_while_the_test_is_elsewhere():
    pinging = Routes()
    trips = []

    @pinging.websocket("/")
    def pings(request, socket):
        trips.append(socket.ping(timeout=limit()))
        socket.receive()

    with testing.connect(pinging) as socket:
        gevent.sleep(0.02)
        assert len(trips) == 1
        socket.send("end")


# -- clients that behave badly


def test_a_client_that_vanishes():
    ended.clear()
    with testing.connect(routes, "/echo") as socket:
        socket.send("hi")
        assert socket.receive() == "hi"
        socket.cut()
        assert ended == [1006]
        assert socket.close_code == 1006
        with pytest.raises(ConnectionClosed, match="cut by the test"):
            socket.receive()


def test_a_client_that_stops_reading_lags():
    rooms = Rooms(policy=policies.close(limit=3))
    chat = Routes()

    @chat.websocket("/")
    def member(request, socket):
        with rooms["room"].join(socket):
            for message in socket:
                rooms["room"].send(message)

    with testing.connect(chat) as ada, testing.connect(chat) as grace:
        ada.send("ready")
        assert (ada.receive(), grace.receive()) == ("ready", "ready")
        grace.stall()
        with pytest.raises(RuntimeError, match="stalled: call resume"):
            grace.receive()
        for i in range(40):
            ada.send(f"{i} " + "x" * 500)
            ada.receive()
        assert rooms.stats.closed == 1
        grace.resume()
        with pytest.raises(ConnectionClosed) as caught:
            while True:
                grace.receive()
    assert caught.value.code == 1013


def test_a_stalled_client_ends_like_any_other():
    with testing.connect(routes, "/echo") as socket:
        socket.stall()
        for _ in range(100):
            socket.send("x" * 1000)


# -- pairs


def test_a_handler_that_the_test_calls_itself():
    server, client = testing.pair()
    client.send("hello")
    client.start_closing()
    echo(None, server)
    server.close()
    assert client.receive() == "hello"
    with pytest.raises(ConnectionClosed):
        client.receive()
    assert server.close_code == 1000
    server._run.abort()


def test_a_pair_and_a_greenlet():
    with testing.pair() as (server, client):
        greenlet = gevent.spawn(echo, None, server)
        client.send("hello")
        assert client.receive() == "hello"
        client.close()
        greenlet.get(timeout=limit())


def test_a_pair_whose_other_end_nobody_reads():
    with testing.pair(timeout=0.02) as (_server, client):
        client.send("hello")
        with pytest.raises(TimeoutError, match="other end: nobody waits for it"):
            client.receive()


def test_both_ends_of_a_pair_have_limits():
    with testing.pair(timeout=0.02, config=Config(max_message_size=10)) as (server, client):
        with pytest.raises(TimeoutError, match="no message within 0.02 s"):
            server.receive()
        client.send("x" * 11)
        with pytest.raises(ConnectionClosed) as caught:
            server.receive()
    assert caught.value.code == 1009


def test_a_pair_is_closed_with_its_with():
    with testing.pair() as (server, client):
        assert isinstance(server, WebSocket) and isinstance(client, WebSocket)
        assert server.is_connected and client.is_connected
    assert not server.is_connected and not client.is_connected


def test_select_takes_the_socket_of_a_test():
    with testing.connect(routes, "/echo") as socket:
        queue = Queue()
        socket.send("hi")
        assert select(socket, queue, timeout=limit()) == (socket, "hi")
        queue.put("item")
        assert select(socket, queue, timeout=limit()) == (queue, "item")


def test_a_wait_of_another_greenlet_ends_with_it():
    with testing.connect(routes, "/echo") as socket:
        done = Event()

        def read():
            with gevent.Timeout(0.01, False):
                socket.receive()
            done.set()

        gevent.spawn(read)
        assert done.wait(limit())
        socket.send("still there")
        assert socket.receive() == "still there"


# -- tests that forget to close


@pytest.mark.greenws_leftovers
def test_what_no_test_has_closed_is_a_warning_when_the_process_ends():
    """As under unittest, without the plugin of pytest, an error would go unnoticed."""
    app = Routes()

    @app.websocket("/fail")
    def fail(request, socket):
        raise LookupError(socket.receive())

    closed = testing.connect(routes, "/echo")
    closed.close()
    idle = testing.connect(routes, "/echo")
    failed = testing.connect(app, "/fail")
    failed.send("no such room")
    with pytest.raises(ConnectionClosed):
        failed.receive()
    with pytest.warns(RuntimeWarning) as warned:
        warn_of_open_runs()
    idle.close()
    with pytest.raises(LookupError):
        failed.close()
    # The garbage collector may have warned as well.
    ours = [each for each in warned if "no test has closed" in str(each.message)]
    assert [(each.category, os.path.basename(each.filename)) for each in ours] == [
        (RuntimeWarning, "test_sockets.py"),
        (RuntimeWarning, "test_sockets.py"),
    ]
    assert "'no such room'" in str(ours[1].message)


@pytest.mark.parametrize("options", [[], ["-W", "error"]])
def test_unittest_shows_each_session_that_no_test_has_closed(options, tmp_path):
    (tmp_path / "test_it.py").write_text(FORGETS)
    command = [sys.executable, *options, "-m", "unittest", "test_it"]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=limit(30), check=False
    )
    for path in ("/a", "/b"):
        text = rf"test_it.py:17: .*no test has closed the session {path}: use 'with', or close()"
        assert len(re.findall(text, done.stderr)) == 1, done.stderr
    assert "RuntimeWarning: " in done.stderr
    assert "\nOK\n" in done.stderr


FORGETS = """
import unittest

from greenws import Routes, testing

routes = Routes()


@routes.websocket("/<path>")
def handle(request, socket, path):
    socket.receive()


class Tests(unittest.TestCase):
    def test_it(self):
        for path in ("/a", "/b"):
            testing.connect(routes, path)
"""


def test_a_name_of_other_libraries_is_explained():
    with pytest.raises(AttributeError, match=r"'WebSocket'.*'send_json'; use send\(json\.dumps"):
        with testing.connect(routes, "/other-library"):
            pass
    with testing.pair() as (_, client):
        with pytest.raises(AttributeError, match=r"'TestSocket'.*'recv'; use receive\(\)$"):
            client.recv()
        with pytest.raises(AttributeError, match=r"'TestSocket'.*'colour'$"):
            client.colour  # noqa: B018
