"""The log of refused handshakes."""

from __future__ import annotations

import io
import time

import pytest
from flask import Flask, abort, redirect
from gevent.event import Event
from werkzeug.exceptions import Forbidden, NotFound

from greenws import Config, HandshakeError, Routes, WebSocketHandler
from greenws.refusals import log_answer, log_refusal

from .support.limits import wait_until
from .support.wire import Peer, request

SELF = {"REMOTE_ADDR": "127.0.0.1", "PATH_INFO": "/x", "QUERY_STRING": "token=secret"}


def lines(caplog):
    found = [(r.levelname, r.getMessage()) for r in caplog.records if r.name == "greenws.handshake"]
    caplog.clear()
    return found


def make_routes():
    routes = Routes()

    @routes.websocket("/chat", protocols=["chat"])
    def chat(request, socket):
        pass

    @routes.websocket("/open")
    def opened(request, socket):
        pass

    def deny(request, protocols):
        raise Forbidden

    routes.add(uri="/denied", handler=WebSocketHandler(deny))
    return routes


def make_flask():
    app = Flask("app")

    @app.get("/chat")
    def chat():
        def produce(request, protocols):
            return None

        return WebSocketHandler(produce)

    app.add_url_rule(
        "/open", "open", view_func=lambda: WebSocketHandler(lambda request, protocols: None)
    )
    app.add_url_rule("/page", "page", view_func=lambda: "a page")
    app.add_url_rule("/login", "login", view_func=lambda: redirect("/elsewhere"))
    app.add_url_rule("/denied", "denied", view_func=lambda: abort(401))
    app.add_url_rule("/missing", "missing", view_func=lambda: abort(404))
    app.add_url_rule("/post", "post", view_func=lambda: "", methods=["POST"])
    app.add_url_rule("/error", "error", view_func=lambda: abort(500))
    return app


@pytest.mark.parametrize("make", [make_routes, make_flask])
@pytest.mark.parametrize(
    ("path", "headers", "level", "parts"),
    [
        (
            "/open?token=secret",
            {"Origin": "http://localhost:3000"},
            "WARNING",
            [
                "127.0.0.1 for '/open' (Origin: 'http://localhost:3000') with 403",
                "allowed_origins=",
            ],
        ),
        ("/chat", {"Sec_WebSocket_Protocol": "a, b"}, "WARNING", ["400", "offers 2"]),
        ("/chat", {}, "WARNING", ["offers none"]),
        ("/nowhere", {}, "WARNING", ["404 Not Found", "no route of the application"]),
        ("/denied", {}, "INFO", ["the application refuses this client"]),
        ("/open", {"Sec_WebSocket_Version": "8"}, "WARNING", ["426", "must be 13"]),
        ("/open", {"Sec_WebSocket_Key": "x"}, "WARNING", ["Sec-WebSocket-Key"]),
    ],
)
def test_why_a_handshake_is_refused_is_logged_once(
    serve, caplog, make, path, headers, level, parts
):
    caplog.set_level("INFO", "greenws.handshake")
    with Peer.connect(serve(make()).address) as peer:
        assert peer.shake(path, **headers).status >= 400
    ((found, text),) = lines(caplog)
    assert found == level
    assert [part for part in parts if part not in text] == []
    assert "secret" not in text


@pytest.mark.parametrize(
    ("path", "part"),
    [
        ("/page", "200 OK: the application did not accept it: return a greenws.WebSocketHandler"),
        ("/login", "302 Found: the application redirects it"),
        ("/missing", "404 Not Found: no route of the application has this path, or the view found"),
        ("/post", "405 Method Not Allowed: the route of this path does not accept the method GET"),
        ("/error", None),
    ],
)
def test_what_a_view_answers_instead_is_logged(serve, caplog, path, part):
    with Peer.connect(serve(make_flask()).address) as peer:
        assert peer.shake(path).status != 101
    found = [text for _, text in lines(caplog)]
    assert (part is None) == (found == [])
    assert part is None or part in found[0]


def test_a_plain_request_to_an_endpoint_says_what_a_proxy_must_forward(serve, caplog):
    with Peer.connect(serve(make_routes()).address) as peer:
        assert peer.shake("/open", Upgrade=None, Connection=None).status == 426
    assert "A proxy must forward both" in lines(caplog)[0][1]


def test_an_accepted_handshake_and_plain_http_log_nothing(serve, caplog):
    with Peer.connect(serve(make_flask()).address) as peer:
        peer.send(b"GET /page HTTP/1.1\r\nHost: x\r\n\r\n")
        assert peer.read_response().status == 200
    with Peer.open(serve(make_routes()).address, "/open") as peer:
        peer.read_close(answer=True)
    assert lines(caplog) == []


@pytest.mark.parametrize("kind", ["application", "producer"])
def test_a_client_that_leaves_before_its_response_is_logged_as_a_refusal(serve, caplog, kind):
    begun, go_on = Event(), Event()

    def app(environ, start_response):
        start_response("404 Not Found", [])
        begun.set()
        go_on.wait()
        return (b"no" * 1000 for _ in range(10_000))

    def produce(request, protocols):
        begun.set()
        go_on.wait()
        raise NotFound

    routes = Routes()
    routes.add(uri="/", handler=WebSocketHandler(produce))
    errors = io.StringIO()
    server = serve(app if kind == "application" else routes, error_log=errors)
    with Peer.connect(server.address) as peer:
        peer.send(request("/"))
        begun.wait()
        peer.reset()
    go_on.set()
    wait_until(lambda: server.admission.open == 0)
    ((level, text),) = lines(caplog)
    assert (level, "with 404 Not Found" in text) == ("WARNING", True)
    assert (errors.getvalue(), server.stats.refused) == ("", {"application": 1})


def test_the_origin_check_of_wsgi_websocket_is_logged(serve, caplog):
    def app(environ, start_response):
        environ["wsgi.websocket"].receive()
        return []

    server = serve(app, config=Config(allowed_origins="https://example.com"))
    with Peer.connect(server.address) as peer:
        assert peer.shake(Origin="http://evil.org").status == 403
    ((_, text),) = lines(caplog)
    assert "['https://example.com', 'http://evil.org']" in text


@pytest.mark.parametrize("make", [make_routes, make_flask])
def test_a_refused_host_is_logged_once_and_counted(serve, caplog, make):
    errors = io.StringIO()
    config = Config(allowed_hosts="localhost")
    server = serve(make(), config=config, error_log=errors)
    with Peer.connect(server.address) as peer:
        assert peer.shake("/open", Host="evil.com").status == 421
    ((level, text),) = lines(caplog)
    assert level == "WARNING" and "421" in text and "allowed_hosts=['evil.com']" in text
    assert server.stats.refused == {"host": 1}
    assert errors.getvalue() == ""

    with Peer.connect(server.address) as peer:  # of plain HTTP the server's error log tells
        peer.send(b"GET /page HTTP/1.1\r\nHost: evil.com\r\n\r\n")
        assert peer.read_response().status == 421
    assert lines(caplog) == []
    assert server.stats.refused == {"host": 1}
    assert "421" in errors.getvalue()


def test_ten_lines_at_once_then_one_in_six_seconds(caplog, monkeypatch):
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    for _ in range(15):
        log_refusal(SELF, HandshakeError("No."))
    assert len(lines(caplog)) == 10
    now += 6
    log_answer(SELF, "404 NOT FOUND")
    log_answer(SELF, "404 NOT FOUND")
    ((_, text),) = lines(caplog)
    assert text.endswith("(and 5 more since the last such line)")


def test_what_a_client_chooses_cannot_forge_a_line(caplog):
    environ = {**SELF, "PATH_INFO": "/x\nERROR " + "y" * 5000, "HTTP_ORIGIN": "a\r\nb" + "z" * 5000}
    log_refusal(environ, HandshakeError("No." * 5000))
    ((_, text),) = lines(caplog)
    assert "\n" not in text and "\r" not in text and len(text) < 4000


def test_a_server_that_stops_refuses_at_info(caplog):
    caplog.set_level("INFO", "greenws.handshake")
    log_refusal(SELF, HandshakeError("The server is stopping.", 503, reason="stopping"))
    assert lines(caplog)[0][0] == "INFO"
