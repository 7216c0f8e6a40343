"""The server of one test connection: what it hands to the test, and not to a log."""

from __future__ import annotations

import pytest

from greenws import ConnectionClosed, Routes, testing


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
