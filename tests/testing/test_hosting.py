"""The server of one test connection: what it hands to the test, and not to a log."""

from __future__ import annotations

import pytest

from greenws import Config, ConnectionClosed, Routes, testing


def test_a_framework_that_swallows_what_came_after_the_upgrade():
    def app(environ, start_response):
        environ["wsgi.websocket"].send("hi")
        start_response("500 Internal Server Error", [])
        return [b"sorry"]

    with pytest.raises(RuntimeError, match="answered '500 Internal Server Error' after it had"):
        with testing.connect(app) as socket:
            assert socket.receive() == "hi"


def test_the_error_of_a_framework_that_tells_start_response():
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
