"""Nothing in a session's life needs the garbage collector: reference counts free all of it."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from types import FunctionType
from typing import Any

import flask
import pytest

from greenws import Routes, WebSocketHandler, WebSocketSessionHandler

from .support.limits import wait_until
from .support.wire import TEXT, Peer, close_frame, frame

SESSIONS = 20


class Echo(WebSocketSessionHandler):
    def handle_session(self, request: Any, socket: Any) -> None:
        assert request.path and socket.request is request
        for message in socket:
            socket.send(message)


def short_form() -> Any:
    routes = Routes()

    @routes.websocket("/")
    def echo(request: Any, socket: Any) -> None:
        for message in socket:
            socket.send(message)

    return routes


def in_middleware() -> Any:
    handler = WebSocketHandler(lambda request, protocols: Echo())
    return lambda environ, start_response: handler(dict(environ), start_response)


def in_flask() -> Any:
    app = flask.Flask(__name__)
    app.add_url_rule("/", view_func=lambda: WebSocketHandler(lambda request, protocols: Echo()))
    return app


APPLICATIONS = {
    "short": short_form,
    "handler": lambda: WebSocketHandler(lambda request, protocols: Echo()),
    "middleware": in_middleware,
    "flask": in_flask,
}


@contextmanager
def uncollected() -> Iterator[list[Any]]:
    """Collects what is there, and then nothing: the list is what only the collector would free."""
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        yield gc.garbage
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


def converse(address: Any) -> None:
    with Peer.connect(address) as peer:
        assert peer.shake("/").status == 101
        peer.send(frame(TEXT, b"hello"))
        peer.read_frame()  # the message, or a Close
        peer.send(close_frame())
        while not peer.at_end():
            peer.read_frame()


def is_of_werkzeug(thing: Any) -> bool:
    """Whether a function is the one that werkzeug's matcher makes for each request: it refers to
    itself."""
    return not isinstance(thing, FunctionType) or "routing" in thing.__code__.co_filename


@pytest.mark.parametrize("name", APPLICATIONS)
def test_sessions_leave_nothing_for_the_collector(serve, name):
    server = serve(APPLICATIONS[name]())
    converse(server.address)  # whatever is made once
    wait_until(lambda: server.admission.open == 0)
    with uncollected() as garbage:
        for _ in range(SESSIONS):
            converse(server.address)
        wait_until(lambda: server.admission.open == 0)
        gc.collect()
        kinds = Counter(type(thing).__name__ for thing in garbage)
        if name == "flask":
            assert all(is_of_werkzeug(thing) for thing in garbage)
            for kind in ("cell", "set", "tuple", "function"):
                kinds.pop(kind, None)
        assert kinds == {}
