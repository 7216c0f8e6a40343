"""WSGI servers that hand over no socket, and middleware in between on ours."""

from __future__ import annotations

import pytest
from conftest import wait_until
from processes import PROGRAMS, Process
from programs.echo_app import app
from wire import TEXT, Peer, close_frame, frame


@pytest.fixture(scope="module", params=["waitress", "wsgiref"])
def other(request):
    with Process(PROGRAMS / f"{request.param}_server.py") as process:
        process.wait_for_port()
        process.name = {"waitress": "waitress", "wsgiref": "WSGIServer"}[request.param]
        yield process


def test_an_upgrade_is_answered_with_501_and_advice(other):
    with Peer.connect(other.address) as peer:
        response = peer.shake()
    assert response.status == 501
    (line,) = response.body.decode().splitlines()
    assert other.name in line and "hands over no socket" in line
    assert "greenws.WebSocketServer" in line and "gunicorn" in line
    other.wait_for("hands over no socket")
    assert "Traceback" not in other.output


def test_a_plain_request_is_answered_with_426(other):
    with Peer.connect(other.address) as peer:
        response = peer.shake(Upgrade=None, Connection=None)
    assert response.status == 426
    assert response.headers["sec-websocket-version"] == "13"


def test_middleware_that_copies_the_environ_and_wraps_start_response(serve):
    statuses = []

    def middleware(wrapped):
        def call(environ, start_response):
            def wrapped_start(status, headers, exc_info=None):
                statuses.append(status)
                return start_response(status, [*headers, ("X-Through", "yes")], exc_info)

            yield from wrapped(dict(environ), wrapped_start)

        return call

    with Peer.open(serve(middleware(middleware(app))).address) as peer:
        peer.send(frame(TEXT, b"x") + close_frame())
        assert peer.read_frame() == (True, TEXT, b"x")
        assert peer.read_close() == (1000, b"")
    wait_until(lambda: statuses == ["101 Switching Protocols"] * 2)
