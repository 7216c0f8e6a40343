"""Middleware around a ``WebSocketHandler``: what it changes counts, what it checks holds."""

from __future__ import annotations

import warnings
from typing import Any
from wsgiref.validate import validator

import flask
import pytest
from gevent.pywsgi import WSGIServer

from greenws import (
    Routes,
    UpgradeHandler,
    WebSocketHandler,
    WebSocketServer,
    WebSocketSessionHandler,
)

from ..support.limits import wait_until
from ..support.wire import TEXT, Peer, close_frame, frame


class Echo(WebSocketSessionHandler):
    def handle_session(self, request: Any, socket: Any) -> None:
        for message in socket:
            if message == "fail":
                raise LookupError("of the session")
            socket.send(message)


def produce(request: Any, protocols: list[str]) -> WebSocketSessionHandler:
    return Echo()


def converse(peer: Peer, text: bytes) -> bytes:
    peer.send(frame(TEXT, text))
    fin, opcode, payload = peer.read_frame()
    assert (fin, opcode) == (True, TEXT)
    return payload


HOSTS: dict[str, dict[str, Any]] = {
    "WebSocketServer": {"cls": WebSocketServer},
    "pywsgi": {"cls": WSGIServer, "handler_class": UpgradeHandler},
}


@pytest.fixture(params=HOSTS)
def host(request: pytest.FixtureRequest, serve: Any) -> Any:
    return lambda app, **options: serve(app, **HOSTS[request.param], **options)


class TestTheValidator:
    """``wsgiref.validate`` has nothing to say: neither an AssertionError nor a warning."""

    @pytest.fixture
    def routes(self) -> Routes:
        routes = Routes()
        routes.add(uri="/", handler=WebSocketHandler(produce))
        return routes

    @pytest.fixture
    def app(self) -> flask.Flask:
        app = flask.Flask(__name__)
        app.get("/")(lambda: WebSocketHandler(produce))
        return app

    @pytest.mark.parametrize("name", ["routes", "app"])
    def test_of_a_session_and_of_a_refusal(self, host, request, name, capsys):
        application = validator(request.getfixturevalue(name))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            address = ("127.0.0.1", host(application).server_port)
            with Peer.open(address) as peer:
                assert converse(peer, b"hello") == b"hello"
                peer.send(close_frame(1000))
                peer.read_close()
            with Peer.connect(address) as peer:
                assert peer.shake(Upgrade=None, Connection=None).status == 426
            with Peer.connect(address) as peer:
                assert peer.shake(Origin="https://elsewhere.example").status == 403
        assert capsys.readouterr().err == ""

    def test_of_a_session_that_fails(self, host, routes, error_log, capsys):
        address = ("127.0.0.1", host(validator(routes)).server_port)
        with Peer.open(address) as peer:
            peer.send(frame(TEXT, b"fail"))
            assert peer.read_frame() == (True, 8, b"\x03\xf3")
            peer.send(close_frame(1011))
            assert peer.at_end()
        (record,) = wait_until(error_log.take)
        assert isinstance(record.exc_info[1], LookupError)
        assert capsys.readouterr().err == ""


class TestWhatMiddlewareChanges:
    """One request, one truth: what the application sees is what greenws goes by."""

    @pytest.fixture(params=["a handler", "wsgi.websocket"])
    def told(self, request) -> Any:
        """An application that sends its client what it knows about it."""

        def describe(socket: Any) -> str:
            return f"{socket.subprotocol} {socket.remote_address}"

        class Told(WebSocketSessionHandler):
            def __init__(self, protocols: list[str]) -> None:
                self.socket_protocol = protocols[0] if protocols else None

            def handle_session(self, request: Any, socket: Any) -> None:
                socket.send(describe(socket))
                socket.receive()

        def by_socket(environ: Any, start_response: Any) -> list[bytes]:
            socket = environ["wsgi.websocket"]
            socket.send(describe(socket.accept()))
            socket.receive()
            return []

        def app_protocol(path: str) -> str:
            return "chat"

        if request.param == "wsgi.websocket":
            by_socket.app_protocol = app_protocol  # type: ignore[attr-defined]
            return by_socket
        return WebSocketHandler(lambda request, protocols: Told(protocols))

    @staticmethod
    def changing(app: Any, **changes: str | None) -> Any:
        """``app`` behind middleware that changes the environ; None deletes."""

        def middleware(environ: Any, start_response: Any) -> Any:
            for name, value in changes.items():
                if value is None:
                    environ.pop(name, None)
                else:
                    environ[name] = value
            return app(environ, start_response)

        middleware.app_protocol = getattr(app, "app_protocol", None)  # type: ignore[attr-defined]
        if middleware.app_protocol is None:  # type: ignore[attr-defined]
            del middleware.app_protocol  # type: ignore[attr-defined]
        return middleware

    @staticmethod
    def shake(server: Any, **headers: Any) -> tuple[Any, str]:
        with Peer.connect(("127.0.0.1", server.server_port)) as peer:
            response = peer.shake(**headers)
            text = peer.read_frame()[2].decode() if response.status == 101 else ""
        return response, text

    @pytest.mark.parametrize("token", ["s3cret", "c2VjcmV0Cg==", "a/b, c d", "x, x"])
    def test_a_token_that_is_taken_out_of_the_subprotocols(self, host, told, token):
        app = self.changing(told, HTTP_SEC_WEBSOCKET_PROTOCOL="chat")
        response, text = self.shake(host(app), Sec_WebSocket_Protocol=f"chat, {token}")
        assert response.headers["sec-websocket-protocol"] == "chat"
        assert text.startswith("chat ")

    def test_subprotocols_that_are_removed(self, host, told):
        app = self.changing(told, HTTP_SEC_WEBSOCKET_PROTOCOL=None)
        response, text = self.shake(host(app), Sec_WebSocket_Protocol="chat")
        assert "sec-websocket-protocol" not in response.headers
        assert text.startswith("None ")

    @pytest.mark.parametrize("offer", ["permessage-deflate", "permessage-deflate; ="])
    def test_extensions_that_are_hidden(self, host, told, offer):
        app = self.changing(told, HTTP_SEC_WEBSOCKET_EXTENSIONS=None)
        response, _ = self.shake(host(app), Sec_WebSocket_Extensions=offer)
        assert response.status == 101
        assert "sec-websocket-extensions" not in response.headers

    def test_an_address_that_is_put_right(self, host, told):
        app = self.changing(told, REMOTE_ADDR="192.0.2.7")
        assert self.shake(host(app))[1].endswith("('192.0.2.7', 0)")
        app = self.changing(told, REMOTE_ADDR="192.0.2.7", REMOTE_PORT="4711")
        assert self.shake(host(app))[1].endswith("('192.0.2.7', 4711)")
        app = self.changing(told, REMOTE_ADDR=None)
        assert "('127.0.0.1', " in self.shake(host(app))[1]

    def test_an_origin_that_is_put_right(self, host):
        handler = WebSocketHandler(lambda request, protocols: Echo())
        app = self.changing(handler, HTTP_ORIGIN="http://example.com")
        with Peer.connect(("127.0.0.1", host(app).server_port)) as peer:
            assert peer.shake(Origin="https://elsewhere.example").status == 101

    @pytest.mark.parametrize("name", ["Sec_WebSocket_Protocol", "Sec_WebSocket_Extensions"])
    def test_what_is_malformed_and_left_so_is_refused(self, host, told, name):
        def middleware(environ: Any, start_response: Any) -> Any:
            return told(environ, start_response)

        response, _ = self.shake(host(middleware), **{name: "a; ="})
        assert response.status == 400

    @pytest.mark.parametrize("name", ["Sec_WebSocket_Protocol", "Sec_WebSocket_Extensions"])
    def test_a_framework_around_wsgi_websocket_refuses_it_too(self, host, name, caplog):
        app = flask.Flask(__name__)

        @app.get("/")
        def view() -> str:
            flask.request.environ["wsgi.websocket"].send("hello")
            return ""

        caplog.set_level("ERROR")
        response, _ = self.shake(host(app), **{name: "a; ="})
        assert response.status == 400
        assert caplog.records == []
