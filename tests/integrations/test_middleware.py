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
