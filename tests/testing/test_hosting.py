"""The server of one test connection: what it hands to the test, and not to a log."""

from __future__ import annotations

import warnings

import gevent
import pytest
from gevent.event import Event

from greenws import Config, ConnectionClosed, Routes, testing


def test_a_framework_that_swallows_what_came_after_the_upgrade():
    def app(environ, start_response):
        environ["wsgi.websocket"].send("hi")
        start_response("500 Internal Server Error", [])
        return [b"sorry"]

    with pytest.raises(RuntimeError, match="answered '500 Internal Server Error' after it had"):
        with testing.connect(app) as socket:
            assert socket.receive() == "hi"


def test_the_error_that_a_framework_passes_to_start_response():
    def app(environ, start_response):
        environ["wsgi.websocket"].send("hi")
        try:
            raise LookupError("told")
        except LookupError:
            import sys

            start_response("500 Internal Server Error", [], sys.exc_info())
        return [b"sorry"]

    with pytest.raises(LookupError, match="told"), testing.connect(app) as socket:
        assert socket.receive() == "hi"


def test_nothing_is_logged_of_what_the_test_gets(caplog):
    routes = Routes()

    @routes.websocket("/")
    def fails(request, socket):
        raise LookupError("escaped")

    with pytest.raises(LookupError, match="escaped"), testing.connect(routes) as socket:
        with pytest.raises(ConnectionClosed):
            socket.receive()
    assert [record for record in caplog.records if record.levelname != "INFO"] == []


def test_each_connection_has_an_address_of_its_own():
    def app(environ, start_response):
        environ["wsgi.websocket"].send(environ["REMOTE_PORT"])

    ports = set()
    for _ in range(3):
        with testing.connect(app) as socket:
            ports.add(socket.receive())
    assert len(ports) == 3


def test_connections_that_are_open_together_have_one_server():
    def app(environ, start_response):
        socket = environ["wsgi.websocket"]
        for client in socket.handler.server.clients.values():
            client.ws.send(f"there are {len(socket.handler.server.clients)}")
        socket.receive()

    with testing.connect(app) as one:
        assert one.receive() == "there are 1"
        with testing.connect(app) as two:
            assert one.receive() == two.receive() == "there are 2"
        with testing.connect(app, config=Config(max_message_size=10)) as other:
            assert other.receive() == "there are 1"
    with testing.connect(app) as one:
        assert one.receive() == "there are 1"


def test_limits_of_a_server_count_all_its_connections():
    config = Config(max_connections=1)

    def app(environ, start_response):
        environ["wsgi.websocket"].receive()

    with testing.connect(app, config=config):
        with pytest.raises(testing.Refused) as caught:
            testing.connect(app, config=config)
    assert caught.value.status_code == 503


def greenlet_that_raises(function, timeout=5.0):
    """``function(socket)`` in a greenlet of the handler."""
    routes = Routes()

    @routes.websocket("/")
    def handler(request, socket):
        helper = gevent.spawn(function, socket)
        for message in socket:
            if message == "get":
                helper.get()
            socket.send(message)
        helper.join()

    return testing.connect(routes, "/", timeout=timeout)


def fails(socket):
    raise LookupError("in a greenlet")


def test_an_error_of_a_handlers_greenlet_is_a_warning_where_the_session_ends(hub_errors):
    with pytest.warns(RuntimeWarning, match="greenlet of the handler of /") as caught:
        with greenlet_that_raises(fails) as socket:
            socket.send("on")
            assert socket.receive() == "on"
    (warning,) = caught
    assert "LookupError('in a greenlet')" in str(warning.message)
    assert 'in fails: raise LookupError("in a greenlet")' in str(warning.message)
    assert "LookupError" in hub_errors.take()  # gevent's own report


def test_a_wait_that_times_out_names_the_error_of_a_handlers_greenlet(hub_errors):
    with pytest.warns(RuntimeWarning), greenlet_that_raises(fails, 0.05) as socket:
        with pytest.raises(TimeoutError, match="a greenlet of the handler: raised LookupError"):
            socket.receive()
    assert "LookupError" in hub_errors.take()


@pytest.mark.parametrize("count", [2, 7])
def test_a_wait_that_times_out_shows_where_the_handlers_greenlets_wait(count):
    routes = Routes()

    def below():
        release.wait()

    @routes.websocket("/")
    def app(request, socket):
        gevent.joinall([gevent.spawn(below) for _ in range(count)])

    release = Event()
    with testing.connect(routes, "/", timeout=0.05) as socket:
        with pytest.raises(TimeoutError) as caught:
            socket.receive()
        release.set()
    text = str(caught.value)
    assert "handler: waits at" in text and "in app: gevent.joinall" in text
    line = "a greenlet of the handler: waits at"
    assert text.count(line) == text.count("in below: release.wait()") == min(count, 5)
    assert ("2 more greenlets of the handler" in text) == (count == 7)


def test_an_error_of_a_greenlet_that_the_handler_lets_through_is_reported_once(hub_errors):
    with warnings.catch_warnings(record=True) as caught:
        with pytest.raises(LookupError, match="in a greenlet"):
            with greenlet_that_raises(fails) as socket:
                socket.send("get")
                with pytest.raises(ConnectionClosed):
                    socket.receive()
    assert caught == []
    assert "LookupError" in hub_errors.take()


@pytest.mark.parametrize("how", ["get", "joinall"])
def test_an_error_of_a_greenlet_that_the_handler_catches_is_no_warning(hub_errors, how):
    routes = Routes()

    @routes.websocket("/")
    def handler(request, socket):
        greenlet = gevent.spawn(fails, socket)
        try:
            greenlet.get() if how == "get" else gevent.joinall([greenlet], raise_error=True)
        except LookupError as error:
            socket.send(repr(error))

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with testing.connect(routes, "/") as socket:
            assert socket.receive() == "LookupError('in a greenlet')"
    assert "LookupError" in hub_errors.take()


def test_a_greenlet_that_sends_until_the_end_has_not_failed(hub_errors):
    def sends(socket):
        while True:
            socket.send("tick")
            gevent.sleep(0)

    with warnings.catch_warnings(record=True) as caught:
        with greenlet_that_raises(sends) as socket:
            assert socket.receive() == "tick"
    assert caught == []
    assert "ConnectionClosed" in hub_errors.take()
