"""Servers that hand over no socket are told so; pywsgi with our handler class, and middleware."""

from __future__ import annotations

import http.client
from collections.abc import Iterator
from typing import Any

import pytest
from conftest import wait_until
from gevent.pywsgi import WSGIServer
from processes import Process
from wire import TEXT, Peer, close_frame, frame

from greenws import Config, Routes, UpgradeHandler, WebSocketHandler, WebSocketSessionHandler


class Echo(WebSocketSessionHandler):
    def handle_session(self, request: Any, socket: Any) -> None:
        for message in socket:
            socket.send(message)


HANDLER = WebSocketHandler(lambda request, protocols: Echo())


def converse(peer: Peer, text: bytes) -> bytes:
    peer.send(frame(TEXT, text))
    fin, opcode, payload = peer.read_frame()
    assert (fin, opcode) == (True, TEXT)
    return payload


@pytest.fixture(scope="module", params=["waitress", "wsgiref"])
def process(request: pytest.FixtureRequest) -> Iterator[Process]:
    with Process("-m", "no_socket", request.param) as process:
        process.name = request.param
        yield process.wait_for_port()


def test_an_upgrade_without_a_socket_is_501(process):
    with Peer.connect(process.address) as peer:
        response = peer.shake("/echo")
    assert response.status == 501
    (line,) = response.body.decode().splitlines()
    software = {"waitress": "waitress", "wsgiref": "WSGIServer/"}[process.name]
    assert software in line
    assert "hands over no socket" in line
    for server in ("greenws.WebSocketServer", "gunicorn", "flask run"):
        assert server in line
    process.wait_for("ERROR greenws.session: No WebSocket here: .* hands over no socket")


def test_plain_http_without_a_socket(process):
    for path, status in [("/echo", 426), ("/hello", 200)]:
        connection = http.client.HTTPConnection(*process.address, timeout=10)
        connection.request("GET", path)
        response = connection.getresponse()
        body = response.read()
        connection.close()
        assert response.status == status
        assert (b"Upgrade: websocket" in body) is (status == 426)


def test_an_upgrade_of_a_plain_view_is_plain_http(process):
    with Peer.connect(process.address) as peer:
        assert peer.shake("/hello").status == 200


class TestPywsgi:
    def test_without_the_handler_class_it_is_told_to_take_it(self, serve, error_log):
        server = serve(HANDLER, cls=WSGIServer)
        with Peer.connect(server.address) as peer:
            response = peer.shake("/")
        assert response.status == 501
        (line,) = response.body.decode().splitlines()
        assert "handler_class=greenws.UpgradeHandler" in line
        assert "greenws.WebSocketServer" in line
        (record,) = error_log.take()
        assert record.getMessage() == line
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
        handler = WebSocketHandler(lambda request, protocols: Echo(), max_message_size=10)
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


def test_middleware_that_answers_itself(serve):
    """The upgrade is lazy: whoever stands before the application may still say no."""

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
