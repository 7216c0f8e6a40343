"""Servers that hand over no socket: a clear error; pywsgi with our handler class, middleware."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from gevent.pywsgi import WSGIServer

from greenws import Config, Routes, UpgradeHandler, WebSocketHandler

from ..programs.echo_app import app as HANDLER
from ..support.limits import wait_until
from ..support.processes import PROGRAMS, Process
from ..support.wire import TEXT, Peer, close_frame, frame


def converse(peer: Peer, text: bytes) -> bytes:
    peer.send(frame(TEXT, text))
    fin, opcode, payload = peer.read_frame()
    assert (fin, opcode) == (True, TEXT)
    return payload


@pytest.fixture(scope="module", params=["waitress", "wsgiref"])
def other(request: pytest.FixtureRequest) -> Iterator[Process]:
    with Process(PROGRAMS / f"{request.param}_server.py") as process:
        process.wait_for_port()
        process.name = {"waitress": "waitress", "wsgiref": "WSGIServer"}[request.param]
        yield process


def test_an_upgrade_is_answered_with_501_and_advice(other):
    with Peer.connect(other.address) as peer:
        response = peer.shake()
    assert response.status == 501
    (line,) = response.body.decode().splitlines()
    assert other.name in line
    assert "does not hand over the socket" in line
    for server in ("greenws.WebSocketServer", "gunicorn", "flask run"):
        assert server in line
    other.wait_for("does not hand over the socket")
    assert "Traceback" not in other.output


def test_a_plain_request_is_answered_with_426(other):
    with Peer.connect(other.address) as peer:
        response = peer.shake(Upgrade=None, Connection=None)
    assert response.status == 426
    assert response.headers["sec-websocket-version"] == "13"
    assert b"Upgrade: websocket" in response.body


class TestPywsgi:
    def test_without_the_handler_class_the_501_names_it(self, serve, error_log):
        server = serve(HANDLER, cls=WSGIServer)
        with Peer.connect(server.address) as peer:
            response = peer.shake("/")
        assert response.status == 501
        (line,) = response.body.decode().splitlines()
        assert "handler_class=greenws.UpgradeHandler" in line
        assert "greenws.WebSocketServer" in line
        (record,) = error_log.take()
        assert record.getMessage().endswith(f"for '/' with 501 Not Implemented: {line}")
        assert record.exc_info is None

    def test_without_the_handler_class_plain_requests_are_426(self, serve):
        server = serve(HANDLER, cls=WSGIServer)
        with Peer.connect(server.address) as peer:
            response = peer.shake("/", Upgrade=None, Connection="close")
        assert response.status == 426

    def test_with_the_handler_class(self, serve):
        server = serve(HANDLER, cls=WSGIServer, handler_class=UpgradeHandler)
        with Peer.open(server.address) as peer, Peer.open(server.address) as other:
            assert converse(peer, b"hello") == b"hello"
            assert converse(other, b"hello") == b"hello"
            addresses = {client.sock.getsockname() for client in (peer, other)}
            assert set(server.clients) == addresses
            assert {client.address for client in server.clients.values()} == addresses
            for client in list(server.clients.values()):
                client.ws.send("to all")
            assert peer.read_frame() == other.read_frame() == (True, TEXT, b"to all")
            peer.send(close_frame())
            assert peer.read_close() == (1000, b"")
        wait_until(lambda: not server.clients)

    def test_its_config_is_that_of_the_handler(self, serve):
        handler = WebSocketHandler(HANDLER.handler_producer, max_message_size=10)
        server = serve(handler, cls=WSGIServer, handler_class=UpgradeHandler)
        with Peer.open(server.address) as peer:
            peer.send(frame(TEXT, b"eleven byte"))
            assert peer.read_frame()[2][:2] == b"\x03\xf1"

    def test_plain_http_as_ever(self, serve):
        def application(environ, start_response):
            body = environ["wsgi.input"].read()
            start_response("200 OK", [("Content-Length", str(len(body)))])
            return [body]

        server = serve(application, cls=WSGIServer, handler_class=UpgradeHandler)
        with Peer.connect(server.address) as peer:
            for body in (b"one", b"twelve"):
                head = f"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
                peer.send(head.encode() + body)
                response = peer.read_response()
                assert (response.status, response.body) == (200, body)


class Copying:
    """Middleware that hands on a copy of the environ."""

    def __init__(self, application: Any) -> None:
        self.application = application

    def __call__(self, environ, start_response):
        return self.application({**environ, "copied": True}, start_response)


class Counting:
    """Middleware that wraps ``start_response`` and iterates over the body itself."""

    def __init__(self, application: Any) -> None:
        self.application = application
        self.statuses: list[str] = []
        self.closed = 0

    def __call__(self, environ, start_response):
        def start(status, headers, exc_info=None):
            self.statuses.append(status)
            return start_response(status, [*headers, ("X-Counted", "yes")], exc_info)

        body = self.application(environ, start)
        try:
            yield from body
        finally:
            self.closed += 1


def application(environ, start_response):
    """Bare WSGI, as frameworks are underneath."""
    assert environ["copied"]
    if environ["PATH_INFO"] == "/echo":
        return HANDLER(environ, start_response)
    start_response("404 Not Found", [("Content-Type", "text/plain")])
    return [b"no ", b"such page"]


@pytest.mark.parametrize("order", ["copies, then counts", "counts, then copies"])
def test_middleware(serve, order):
    if order.startswith("copies"):
        counting = Counting(application)
        server = serve(Copying(counting))
    else:
        counting = Counting(Copying(application))
        server = serve(counting)
    with Peer.open(server.address, "/echo", frame(TEXT, b"early")) as peer:
        assert peer.read_frame() == (True, TEXT, b"early")
        assert converse(peer, b"hello") == b"hello"
        peer.send(close_frame())
        assert peer.read_close() == (1000, b"")
    wait_until(lambda: counting.closed)
    with Peer.connect(server.address) as peer:
        response = peer.shake("/nowhere", Connection="Upgrade, close")
        assert response.status == 404
        assert response.headers["x-counted"] == "yes"
    with Peer.connect(server.address) as peer:
        response = peer.shake("/echo", Upgrade=None, Connection="close")
        assert response.status == 426
        assert response.headers["x-counted"] == "yes"
    assert [status.split()[0] for status in counting.statuses] == ["101", "404", "426"]


def test_middleware_that_copies_the_environ_and_wraps_start_response(serve):
    """Two layers that do both, and a client that sends its Close right after its message."""
    statuses = []

    def middleware(wrapped):
        def call(environ, start_response):
            def wrapped_start(status, headers, exc_info=None):
                statuses.append(status)
                return start_response(status, [*headers, ("X-Through", "yes")], exc_info)

            yield from wrapped(dict(environ), wrapped_start)

        return call

    with Peer.open(serve(middleware(middleware(HANDLER))).address) as peer:
        peer.send(frame(TEXT, b"x") + close_frame())
        assert peer.read_frame() == (True, TEXT, b"x")
        assert peer.read_close() == (1000, b"")
    wait_until(lambda: statuses == ["101 Switching Protocols"] * 2)


def test_middleware_that_answers_itself(serve):
    """The upgrade is lazy: middleware may still refuse."""

    def guard(environ, start_response):
        if environ.get("HTTP_AUTHORIZATION") != "Bearer secret":
            start_response("401 Unauthorized", [("Content-Type", "text/plain")])
            return [b"Who are you?"]
        return HANDLER(environ, start_response)

    server = serve(guard)
    with Peer.connect(server.address) as peer:
        response = peer.shake("/")
        assert (response.status, response.headers.get("upgrade")) == (401, None)
    with Peer.open(server.address, Authorization="Bearer secret") as peer:
        assert converse(peer, b"hello") == b"hello"


def test_routes_under_a_prefix(serve):
    """Mounted by werkzeug's dispatcher: SCRIPT_NAME and PATH_INFO are those of the mount."""
    from werkzeug.middleware.dispatcher import DispatcherMiddleware
    from werkzeug.middleware.proxy_fix import ProxyFix

    routes = Routes()

    @routes.websocket("/echo")
    def echo(request, socket):
        socket.send(f"{request.script_root} {request.path} {request.remote_addr}")

    mounted = ProxyFix(DispatcherMiddleware(application, {"/live": routes}))
    server = serve(mounted, config=Config())
    with Peer.open(server.address, "/live/echo", X_Forwarded_For="192.0.2.7") as peer:
        assert peer.read_frame() == (True, TEXT, b"/live /echo 192.0.2.7")
