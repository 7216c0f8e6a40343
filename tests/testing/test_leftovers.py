"""What a test leaves behind. ``tests/integrations/test_pytest.py`` has it in pytest."""

from __future__ import annotations

import functools

import flask
import flask_socketio
import gevent
import pytest

import greenws
from greenws import Routes, testing
from greenws.testing import leftovers as leftovers_module
from greenws.testing.leftovers import Leftovers, Opener

routes = Routes()


@pytest.fixture(autouse=True)
def a_short_grace(monkeypatch):
    monkeypatch.setattr(leftovers_module, "_GRACE", 0.1)


@routes.websocket("/echo")
def echo(request, socket):
    for message in socket:
        socket.send(message)


@routes.websocket("/spawns")
def spawns(request, socket):
    def pump(seconds):
        gevent.spawn(gevent.sleep, seconds)
        gevent.sleep(seconds)

    gevent.spawn(functools.partial(pump, float(socket.receive())))
    socket.receive()


@routes.websocket("/fails")
def fails(request, socket):
    raise LookupError(socket.receive())


def test_nothing():
    leftovers = Leftovers()
    with testing.connect(routes, "/echo") as socket:
        assert leftovers.now() == [socket._run]
    assert leftovers.now() == []
    assert leftovers.end() == ""


def test_a_session_is_named_and_ended():
    leftovers = Leftovers()
    socket = testing.connect(routes, "/echo")
    text = leftovers.end()
    assert text.startswith("the session /echo, opened at ") and "test_leftovers.py:" in text
    assert "in echo: for message in socket:" in text
    assert not socket.is_connected and socket._run.greenlet.dead
    assert leftovers.end() == ""


def test_a_pair_is_ended_and_not_reported():
    leftovers = Leftovers()
    server, client = testing.pair()
    assert leftovers.end() == ""
    assert not server.is_connected and not client.is_connected


def test_a_connection_that_is_lost_leaves_nothing_behind():
    leftovers = Leftovers()
    testing.connect(routes, "/echo").cut()
    assert leftovers.end() == ""
    assert leftovers.now() == []


def test_an_unseen_error_is_reported_after_a_loss():
    leftovers = Leftovers()
    socket = testing.connect(routes, "/fails")
    socket.send("why")
    gevent.sleep(0.01)
    socket.cut()
    text = leftovers.end()
    assert (
        text.startswith("the session /fails, opened at ")
        and "has ended, having raised LookupError('why')" in text
    )


def test_greenlets_that_a_handler_started_and_those_that_these_started():
    leftovers = Leftovers()
    with testing.connect(routes, "/spawns") as socket:
        socket.send("100")
        gevent.sleep(0.01)
        socket.send("end")
    text = leftovers.end()
    assert text.count("a greenlet: ") == 2 and "in pump: gevent.sleep(seconds)" in text
    assert leftovers.now() == []


def test_greenlets_of_a_socketio_server_do_not_count():
    leftovers = Leftovers()
    app = flask.Flask("app")
    server = flask_socketio.SocketIO(app, async_mode="gevent", ping_interval=0.2)
    server.on_event("say", flask_socketio.send)
    try:
        with testing.connect(app, "/socket.io/?EIO=4&transport=websocket") as socket:
            for message in ("40", '42["say", "hello"]'):
                socket.send(message)
            assert next(text for text in socket if text.startswith("42")) == '42["message","hello"]'
        assert leftovers.end() == ""
    finally:
        server.server.eio.shutdown()


def test_greenlets_of_the_test_are_its_own():
    leftovers = Leftovers()
    greenlet = gevent.spawn(gevent.sleep, 100)
    gevent.sleep(0)
    assert leftovers.now() == []
    greenlet.kill()


def test_what_is_about_to_end_has_time_to():
    leftovers = Leftovers()
    with testing.connect(routes, "/spawns") as socket:
        socket.send("0.02")
        socket.send("end")
    assert leftovers.now() != []
    assert leftovers.end() == ""


def test_what_is_excused():
    leftovers = Leftovers()
    socket = testing.connect(routes, "/echo")
    leftovers.excuse(leftovers.now())
    assert leftovers.end() == ""
    assert socket.is_connected
    socket.close()


def test_earlier_leftovers_are_reported_where_nothing_is_known():
    with testing.connect(routes, "/echo") as socket:
        assert Leftovers().now() == []
        assert Leftovers(knows_all=False).now() == [socket._run]


def test_a_connection_of_a_real_server(serve):
    server = serve(routes)
    leftovers = Leftovers()
    client = greenws.connect(f"ws://127.0.0.1:{server.server_port}/echo")
    assert client in leftovers.now()
    assert "an open connection: <WebSocket" in leftovers.end()
    assert not client.is_connected


def test_a_clock():
    leftovers = Leftovers()
    clock = testing.clock()
    clock.__enter__()
    assert leftovers.end() == "a clock that stops time (use it in a 'with')"
    clock.__exit__()


def test_the_fixture_ends_all_and_raises_what_escaped_the_last():
    opener = Opener()
    opener(routes, "/fails").send("first")
    opener(routes, "/echo")
    opener(routes, "/fails").send("last")
    with pytest.raises(LookupError, match="last"):
        opener.end()
    opener.end()
