"""``UpgradeHandler``: which requests it upgrades, and what it does after them."""

from __future__ import annotations

import contextlib
import gc
import math
import os
import sys
import tracemalloc

import gevent
import pytest
from gevent.event import Event

from greenws import (
    Config,
    Routes,
    UpgradeHandler,
    WebSocketHandler,
    WebSocketServer,
    WebSocketSessionHandler,
)
from greenws.hub.polling import poller_of
from greenws.hub.sockets import _Input
from greenws.rate_limit import RateLimit
from greenws.server import handler as handler_module

from ..support.limits import limit, wait_until
from ..support.require import require
from ..support.wire import CLOSE, TEXT, Peer, close_frame, frame, request

GET = b"GET /page HTTP/1.1\r\nHost: a\r\n\r\n"


def page(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [environ.get("HTTP_UPGRADE", "page").encode()]


def late(environ, start_response):
    """Uses gevent-websocket's face."""
    socket = environ["wsgi.websocket"]
    socket.send(socket.receive())
    return []


@pytest.mark.parametrize("stray", [b"\r\n", b""])
def test_requests_follow_each_other_on_one_connection(serve, stray):
    with Peer.connect(serve(page).address) as peer:
        for _ in range(3):
            peer.send(GET + stray)
            assert peer.read_response().body == b"page"


@pytest.mark.parametrize("how", ["timeout", "close", "peer"])
@pytest.mark.parametrize("is_direct", [True, False])
def test_an_ended_connection_is_watched_no_more(serve, is_direct, how):
    routes = Routes()
    routes.add(uri="*", handler=page)
    config = Config(keep_alive_timeout=0.02 if how == "timeout" else limit(), ping_interval=None)
    server = serve(routes if is_direct else page, config=config)

    def watched():
        gc.collect()
        return sum(type(each) is _Input for each in gc.get_objects())

    before = watched()
    with Peer.connect(server.address) as peer:
        peer.send(GET)
        assert peer.read_response().status == 200
        wait_until(lambda: watched() == before + 1 or how == "timeout")
        if how == "close":
            peer.send(b"GET /page HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            assert peer.read_response().status == 200
        if how != "peer":
            assert peer.at_end()
    wait_until(lambda: watched() == before)


def test_a_greenlet_that_reads_a_body_ends_with_the_connection(serve, hub_errors):
    """Its view has answered already, as one does that gives up a slow upload."""
    readers = []

    def view(environ, start_response):
        def read():
            with pytest.raises(OSError, match="closed or taken by another greenlet"):
                environ["wsgi.input"].read()

        readers.append(gevent.spawn(read))
        gevent.sleep(0)
        return page(environ, start_response)

    with Peer.connect(serve(view).address) as peer:
        peer.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n123")
        assert peer.read_response().status == 200
    (reader,) = readers
    reader.get(timeout=limit())
    assert "already used by another greenlet" in hub_errors.take()


def test_a_body_is_read_while_the_response_waits_for_the_client(serve):
    parts = []
    is_sending = Event()

    def view(environ, start_response):
        def read():
            for _ in range(2):
                parts.append(environ["wsgi.input"].read(3))

        reader = gevent.spawn(read)
        gevent.sleep(0)
        start_response("200 OK", [("Content-Length", "8000000")])
        for _ in range(8):
            yield b"x" * 1_000_000
            is_sending.set()
        reader.join()

    with Peer.connect(serve(view).address) as peer:
        peer.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\n\r\n123")
        wait_until(lambda: poller_of(gevent.get_hub()).writers)
        response = gevent.spawn(peer.read_response)
        is_sending.wait()
        peer.send(b"456")
        assert len(response.get(timeout=limit()).body) == 8_000_000
    assert parts == [b"123", b"456"]


def test_another_upgrade_is_an_ordinary_request(serve):
    with Peer.connect(serve(page).address) as peer:
        peer.send(request(Upgrade="h2c"))
        response = peer.read_response()
        assert (response.status, response.body) == (200, b"h2c")
        peer.send(GET)
        assert peer.read_response().body == b"page"


@pytest.mark.parametrize(
    ("changes", "status"),
    [({"Sec_WebSocket_Version": "8"}, 426), ({"Sec_WebSocket_Key": "short"}, 400), ({}, 200)],
)
def test_nothing_after_a_refused_handshake_is_a_request(serve, changes, status):
    asked = []

    def app(environ, start_response):
        asked.append(environ["PATH_INFO"])
        return page(environ, start_response)

    server = serve(app)
    with Peer.connect(server.address) as peer:
        peer.send(request("/socket", **changes) + GET)
        response = peer.read_response()
        assert response.status == status
        assert "close" in response.headers["connection"]
        assert peer.at_end()
    assert "/page" not in asked
    wait_until(lambda: server.admission.open == 0)
    assert sum(server.stats.refused.values()) == 1


def test_a_client_that_vanishes_from_the_answer_to_its_handshake_is_no_error(serve, caplog):
    """A browser may reset the connection as soon as it has the status of a long error page."""

    def app(environ, start_response):
        start_response("404 NOT FOUND", [])
        while True:
            yield b"x" * 65536

    server = serve(app)
    with Peer.connect(server.address) as peer:
        peer.send(request("/socket"))
        assert peer._fill()
        peer.reset()
    wait_until(lambda: server.stats.refused.total())
    wait_until(lambda: server.admission.open == 0)
    assert server.stats.refused == {"application": 1}
    (refusal,) = [each for each in caplog.messages if "refused the handshake" in each]
    assert "404 Not Found" in refusal


@pytest.mark.parametrize("holder", [lambda body: body, lambda body: body.rfile])
def test_a_program_that_takes_the_raw_socket_has_the_connection(serve, holder):
    def app(environ, start_response):
        holder(environ["wsgi.input"]).raw._sock.sendall(b"of its own")
        return []

    with Peer.connect(serve(app).address) as peer:
        peer.send(request())
        assert peer.read(10) == b"of its own"
        assert peer.at_end()


def test_a_hook_may_keep_a_request_from_being_upgraded(serve):
    server = serve(page, pre_start_hook=lambda handler: True)
    with Peer.connect(server.address) as peer:
        response = peer.shake()
        assert (response.status, response.body) == (200, b"websocket")


def test_an_error_after_a_session_has_ended_is_logged_and_not_sent(serve, error_log):
    def app(environ, start_response):
        from greenws import WebSocketHandler, WebSocketSessionHandler

        class Session(WebSocketSessionHandler):
            def handle_session(self, request, socket):
                socket.send(socket.receive())

        WebSocketHandler(lambda request, protocols: Session())(environ, start_response)
        raise RuntimeError("after the session")

    server = serve(app)
    with Peer.open(server.address) as peer:
        peer.send(frame(TEXT, b"hello"))
        assert peer.read_frame() == (True, TEXT, b"hello")
        assert peer.read_frame()[1] == CLOSE
        peer.send(close_frame())
        assert peer.at_end()
    wait_until(lambda: server.admission.open == 0)
    (record,) = error_log.take()
    assert str(record.exc_info[1]) == "after the session"


def failing(environ, start_response):
    if environ["PATH_INFO"] == "/error":
        raise RuntimeError("of the application")
    return page(environ, start_response)


@pytest.mark.parametrize("kind", ["full", "closed", "none"])
def test_requests_are_served_where_logs_cannot_be_written(serve, monkeypatch, kind):
    require(kind != "full" or os.path.exists("/dev/full"), "/dev/full")
    log = open("/dev/full" if kind == "full" else os.devnull, "w", buffering=1)
    if kind == "closed":
        log.close()
    with monkeypatch.context() as patch:
        stream = None if kind == "none" else log
        patch.setattr(sys, "stderr", stream)  # what pywsgi logs to
        patch.setattr(gevent.get_hub(), "exception_stream", stream)
        server = serve(failing, log="default", error_log="default")
        with Peer.connect(server.address) as peer:
            for _ in range(3):
                peer.send(GET)
                assert peer.read_response().body == b"page"
            peer.send(b"GET /error HTTP/1.1\r\nHost: a\r\n\r\n")
            assert peer.read_response().status == 500
        with Peer.connect(server.address) as peer:
            peer.send(b"GE(T / HTTP/1.1\r\n\r\n")
            assert peer.read_response().status == 400
    with contextlib.suppress(OSError):  # what it could not write
        log.close()


def test_an_access_log_that_cannot_be_written_is_reported_once(serve, monkeypatch):
    lines = []

    class Errors:
        write = staticmethod(lines.append)

    monkeypatch.setattr(handler_module, "_unwritable", RateLimit(1 / 60, burst=1))
    with open(os.devnull, "w") as log:
        log.close()
        server = serve(page, log=log, error_log=Errors)
        with Peer.connect(server.address) as peer:
            for _ in range(2):
                peer.send(GET)
                assert peer.read_response().body == b"page"
    (line,) = lines
    assert "cannot write the access log: I/O operation on closed file" in line


def test_a_subclass_may_go_past_it_to_pywsgi_for_plain_requests(serve):
    """As Ajenti's does, which was written for gevent-websocket's handler."""

    class Handler(UpgradeHandler):
        def run_application(self):
            if self.environ.get("HTTP_UPGRADE") == "websocket":
                super().run_application()
            else:
                super(UpgradeHandler, self).run_application()

    def app(environ, start_response):
        return (late if "wsgi.websocket" in environ else page)(environ, start_response)

    server = serve(app, handler_class=Handler)
    with Peer.connect(server.address) as peer:
        for _ in range(2):
            peer.send(GET)
            assert peer.read_response().body == b"page"
    with Peer.open(server.address) as peer:
        peer.send(frame(TEXT, b"hello"))
        assert peer.read_frame() == (True, TEXT, b"hello")
        assert peer.read_close(answer=True) == (1000, b"")


def test_a_subclass_sees_the_headers_as_pywsgi_has_them(serve):
    seen = []

    class Handler(UpgradeHandler):
        def run_application(self):
            seen.append((self.headers["x-one"], self.headers.get_all("x-two"), self.is_upgraded))
            super().run_application()
            seen.append(self.is_upgraded)

    class Server(WebSocketServer):
        handler_class = Handler

    with Peer.open(serve(late, cls=Server).address, X_One="1", X_Two="2") as peer:
        peer.send(frame(TEXT, b"hello"))
        assert peer.read_frame() == (True, TEXT, b"hello")
        assert peer.read_frame()[1] == CLOSE
        peer.send(close_frame())
        assert peer.at_end()
    wait_until(lambda: len(seen) == 2)
    assert seen == [("1", ["2"], False), True]


@pytest.mark.parametrize("around", [False, True], ids=["wsgi.websocket", "a handler"])
def test_what_a_client_offered_is_not_kept_while_its_session_lives(serve, around):
    """32 kB of extensions become two megabytes of objects."""

    class Session(WebSocketSessionHandler):
        def handle_session(self, request, socket):
            socket.receive()

    handler = WebSocketHandler(lambda request, protocols: Session())

    def app(environ, start_response):
        if around:
            return handler(environ, start_response)
        environ["wsgi.websocket"].receive()
        return []

    server = serve(app)
    extensions = ", ".join(f"x{i}; a={i}" for i in range(1500))
    protocols = ", ".join(f"p{i}" for i in range(800))
    with Peer.open(server.address):  # what the first session needs stays
        pass
    wait_until(lambda: server.admission.open == 0)
    least = math.inf  # of two: now and then something else of the process allocates
    for _ in range(2):
        gc.collect()
        tracemalloc.start()
        with Peer.open(
            server.address, Sec_WebSocket_Extensions=extensions, Sec_WebSocket_Protocol=protocols
        ):
            wait_until(lambda: server.clients)
            gc.collect()
            kept, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        wait_until(lambda: server.admission.open == 0)
        assert most > 500_000  # so it was parsed
        least = min(least, kept)
    assert least < 150_000  # the environ has the headers themselves
