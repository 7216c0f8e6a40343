"""Each step of a request is taken once, whichever way the request goes."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import flask
import pytest
from werkzeug.exceptions import Unauthorized

from greenws import Routes, StaticFiles, WebSocketHandler, WebSocketSessionHandler, session, upgrade
from greenws.http import stream
from greenws.protocol import handshake
from greenws.server import handler, opening
from greenws.server import server as server_module

from ..support.limits import wait_until
from ..support.wire import CLOSE, TEXT, Peer, close_frame, frame, request

PLAIN = b"GET %s HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"

# The steps, and where the modules that take them look the function up.
STEPS = {
    "parse_head": [opening, stream],
    "make_environ": [opening, handler],
    "parse_request": [upgrade],
    "parse_offer": [opening, handler, handshake],
    "end_session": [session, handler, server_module],
}


class Echo(WebSocketSessionHandler):
    def handle_session(self, request: Any, socket: Any) -> None:
        for message in socket:
            socket.send(message)


def produce(request: Any, protocols: list[str]) -> WebSocketSessionHandler:
    if request.path == "/secret":
        raise Unauthorized
    return Echo()


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """Counts each step, by name."""
    counts: Counter[str] = Counter()

    def counted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            counts[name] += 1
            return function(*args, **options)

        return call

    def found(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            result = function(*args)
            counts[name] += result is not None
            return result

        return call

    for name, modules in STEPS.items():
        function = counted(name, getattr(modules[0], name))
        for module in modules:
            monkeypatch.setattr(module, name, function)
    monkeypatch.setattr(Routes, "match", counted("match", Routes.match))
    # The short ways: each finds the same as the step that it replaces, or leaves all to that step.
    for owner, short, name in (
        (Routes, "match_literal", "match"),
        (opening, "offer_in", "parse_offer"),
    ):
        monkeypatch.setattr(owner, short, found(name, getattr(owner, short)))
    yield counts


@pytest.fixture
def routes(tmp_path: Any) -> Routes:
    (tmp_path / "page.txt").write_text("page")
    routes = Routes()
    routes.add(uri="/socket", handler=WebSocketHandler(produce))
    routes.add(uri="/secret", handler=WebSocketHandler(produce))
    routes.add(uri="/files/*", handler=StaticFiles(tmp_path))
    return routes


def middleware(application: Any) -> Any:
    def around(environ: dict[str, Any], start_response: Any) -> Any:
        return application(environ, start_response)

    return around


def flask_app() -> flask.Flask:
    app = flask.Flask(__name__)
    app.add_url_rule("/socket", view_func=lambda: WebSocketHandler(produce), endpoint="socket")
    app.add_url_rule("/page", view_func=lambda: "page", endpoint="page")
    return app


def converse(peer: Peer) -> None:
    peer.send(frame(TEXT, b"hello"))
    assert peer.read_frame() == (True, TEXT, b"hello")
    peer.send(close_frame())
    assert peer.read_frame()[1] == CLOSE


@pytest.mark.parametrize(
    "data, status, expected",
    [
        (PLAIN % b"/files/page.txt", 200, {"match": 1}),
        (PLAIN % b"/nowhere", 404, {"match": 1}),
        (PLAIN % b"/socket", 426, {"match": 1, "parse_request": 1}),
        (request("/socket", Sec_WebSocket_Version="7"), 426, {"parse_offer": 1}),
        (request("/socket", Sec_WebSocket_Key=None), 400, {"parse_offer": 1}),
        (request("/socket", Origin="http://b"), 403, {"parse_offer": 1, "match": 1}),
        (request("/nowhere"), 404, {"parse_offer": 1, "match": 1}),
        (request("/secret"), 401, {"parse_offer": 1, "match": 1}),
        (request("/files/page.txt"), 200, {"parse_offer": 1, "match": 1}),
        (request("/socket"), 101, {"parse_offer": 1, "match": 1, "end_session": 1}),
    ],
)
@pytest.mark.parametrize("around", [lambda app: app, middleware], ids=["direct", "middleware"])
def test_each_step_of_a_request_is_taken_once(serve, steps, routes, around, data, status, expected):
    server = serve(around(routes))
    with Peer.connect(server.address) as peer:
        peer.send(data)
        assert peer.read_response().status == status
        if status == 101:
            converse(peer)
        assert peer.at_end()
    wait_until(lambda: server.admission.open == 0)
    assert steps == {"parse_head": 1, "make_environ": 1, **expected}


@pytest.mark.parametrize("headers", [{}, {"Origin": "http://a", "Host": "a"}])
def test_no_environ_is_made_for_a_session_that_reads_none(serve, steps, headers):
    routes = Routes()
    routes.add(uri="/socket", handler=WebSocketHandler(lambda request, protocols: Echo()))
    server = serve(routes)
    with Peer.connect(server.address) as peer:
        peer.send(request("/socket", **headers))
        assert peer.read_response().status == 101
        converse(peer)
        assert peer.at_end()
    wait_until(lambda: server.admission.open == 0)
    assert steps == {"parse_head": 1, "parse_offer": 1, "match": 1, "end_session": 1}


def test_each_step_of_a_session_inside_flask_is_taken_once(serve, steps):
    server = serve(flask_app())
    with Peer.connect(server.address) as peer:
        peer.send(b"GET /page HTTP/1.1\r\nHost: a\r\n\r\n")
        assert peer.read_response().body == b"page"
        assert steps == {"parse_head": 1, "make_environ": 1}
        assert peer.shake("/socket").status == 101
        converse(peer)
    wait_until(lambda: server.admission.open == 0)
    assert steps == {"parse_head": 2, "make_environ": 2, "parse_offer": 1, "end_session": 1}


def test_a_session_with_gevent_websockets_face_is_ended_once(serve, steps):
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        socket = environ["wsgi.websocket"]
        with contextlib.suppress(TypeError):
            socket.send(socket.receive())
        return []

    server = serve(app)
    with Peer.open(server.address) as peer:
        peer.send(frame(TEXT, b"hello"))
        assert peer.read_frame() == (True, TEXT, b"hello")
        peer.send(close_frame())
        assert peer.read_frame()[1] == CLOSE
    wait_until(lambda: server.admission.open == 0)
    assert steps == {"parse_head": 1, "make_environ": 1, "parse_offer": 1, "end_session": 1}
