"""Plain HTTP over real connections: an ordinary application behaves as under pywsgi."""

from __future__ import annotations

import io
import re
import time

import flask
import gevent
import pytest
from gevent import pywsgi
from gevent import socket as gevent_socket

from greenws import Config
from greenws.exceptions import RequestError
from greenws.http.stream import HttpStream

from ..support.limits import again_after_standstill, limit, wait_until
from ..support.wire import Peer

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


def post(path: bytes, body: bytes, *headers: bytes) -> bytes:
    lines = [b"POST " + path + b" HTTP/1.1", b"Host: x", *headers]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def chunked(path: bytes, body: bytes, *headers: bytes) -> bytes:
    return post(path, body, b"Transfer-Encoding: chunked", *headers)


def make_app() -> flask.Flask:
    app = flask.Flask("plain")

    @app.route("/", methods=["GET", "POST", "PUT", "DELETE"])
    def index():
        return "index"

    @app.post("/echo")
    def echo():
        return flask.request.get_data()

    @app.post("/lines")
    def lines():
        return "|".join(line.decode() for line in flask.request.stream)

    @app.post("/form")
    def form():
        return flask.jsonify(flask.request.form, sorted(flask.request.files))

    @app.post("/unread")
    def unread():
        return "did not look"

    @app.get("/environ")
    def environ():
        kept = {
            key: str(value)
            for key, value in flask.request.environ.items()
            if key.isupper() and key not in ("REMOTE_PORT", "SERVER_PORT")
        }
        return flask.jsonify(kept)

    @app.get("/stream")
    def stream():
        return (f"{i}\n" for i in range(3))

    @app.get("/none")
    def none():
        return "", 204

    @app.get("/close")
    def close():
        return "bye", {"Connection": "close"}

    @app.get("/error")
    def error():
        raise LookupError("in the view")

    return app


MULTIPART = (
    b"--b\r\nContent-Disposition: form-data; name=a\r\n\r\n1\r\n"
    b"--b\r\nContent-Disposition: form-data; name=f; filename=f\r\n\r\n" + b"x" * 70_000 + b"\r\n"
    b"--b--\r\n"
)
CONVERSATIONS = {
    "get": GET,
    "head": b"HEAD / HTTP/1.1\r\nHost: x\r\n\r\n" + GET,
    "pipelined": GET * 3 + b"GET /close HTTP/1.1\r\nHost: x\r\n\r\n" + GET,
    "an environ": b"GET /environ?a=b%20c HTTP/1.1\r\nHost: x:80\r\nX-A: 1\r\nx-a: 2\r\n"
    b"Cookie: a=1\r\nCookie: b=2\r\nContent-Type: t/p\r\nX_U: u\r\nAccept:  */* \r\n\r\n",
    "an encoded path": b"GET /%C3%A9%20 HTTP/1.1\r\nHost: x\r\n\r\n",
    "http 1.0": b"GET / HTTP/1.0\r\n\r\n" + GET,
    "http 1.0 kept alive": b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n" + GET,
    "close": b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n" + GET,
    "a body": post(b"/echo", b"body", b"Content-Length: 4") + GET,
    "a body of lines": post(b"/lines", b"a\nbc\nd", b"Content-Length: 6") + GET,
    "a large body": post(b"/echo", b"b" * 200_000, b"Content-Length: 200000") + GET,
    "an empty body": post(b"/echo", b"", b"Content-Length: 0") + GET,
    "no body": post(b"/echo", b"") + GET,
    "a body that nobody reads": post(b"/unread", b"c" * 40_000, b"Content-Length: 40000") + GET,
    "chunks": chunked(b"/echo", b"4\r\nWiki\r\n5;x=y\r\npedia\r\n0\r\n\r\n") + GET,
    "chunks of lines": chunked(b"/lines", b"2\r\na\n\r\n4\r\nbc\nd\r\n0\r\n\r\n") + GET,
    "large chunks": chunked(b"/echo", b"11170\r\n" + b"d" * 70_000 + b"\r\n0\r\n\r\n") + GET,
    "chunks with trailers": chunked(b"/echo", b"1\r\nx\r\n0\r\nX-Sum: 1\r\n\r\n") + GET,
    "chunks that nobody reads": chunked(b"/unread", b"1\r\nx\r\n" * 50 + b"0\r\n\r\n") + GET,
    "a form": post(
        b"/form",
        b"a=1&b=2",
        b"Content-Type: application/x-www-form-urlencoded",
        b"Content-Length: 7",
    )
    + GET,
    "a file": post(
        b"/form",
        MULTIPART,
        b"Content-Type: multipart/form-data; boundary=b",
        b"Content-Length: %d" % len(MULTIPART),
    )
    + GET,
    "a generator": b"GET /stream HTTP/1.1\r\nHost: x\r\n\r\n" + GET,
    "nothing": b"GET /none HTTP/1.1\r\nHost: x\r\n\r\n" + GET,
    "an error": b"GET /error HTTP/1.1\r\nHost: x\r\n\r\n" + GET,
    "not found": b"GET /nowhere HTTP/1.1\r\nHost: x\r\n\r\n" + GET,
    "not allowed": b"DELETE /echo HTTP/1.1\r\nHost: x\r\n\r\n" + GET,
    "another upgrade": b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n"
    + GET,
}


def without_date(answers: bytes) -> bytes:
    return re.sub(rb"Date: [^\r]+\r\n|Connection: close\r\n", b"", answers)


def converse(server, data: bytes) -> bytes:
    """Everything that comes back, without the date. That the connection will be closed is said by
    greenws alone (RFC 9112, 9.6)."""
    with Peer.connect(server.address) as peer:
        peer.sock.sendall(data)
        peer.sock.shutdown(gevent_socket.SHUT_WR)
        while peer._fill():
            pass
        return without_date(peer.buffer)


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_an_application_behaves_as_under_pywsgi(serve, name):
    app = make_app()
    log, their_log = io.StringIO(), io.StringIO()
    ours = serve(app, log=log)
    theirs = serve(app, cls=pywsgi.WSGIServer, log=their_log)
    expected = converse(theirs, CONVERSATIONS[name])
    assert b"HTTP/1.1 " in expected
    assert converse(ours, CONVERSATIONS[name]) == expected

    def lines(text: str) -> list[str]:  # without times, and the length of the response
        return [re.sub(r"\[.*?\]|\S+ \S+$", "", line) for line in text.splitlines()]

    wait_until(lambda: lines(log.getvalue()) == lines(their_log.getvalue()))


@pytest.mark.parametrize("size", [1, 2, 7])
@pytest.mark.parametrize("name", ["pipelined", "chunks with trailers", "a form", "a body of lines"])
def test_it_does_not_matter_how_the_bytes_arrive(serve, name, size):
    data = CONVERSATIONS[name]
    server = serve(make_app())
    expected = converse(server, data)
    with Peer.connect(server.address) as peer:
        peer.sock.setsockopt(gevent_socket.IPPROTO_TCP, gevent_socket.TCP_NODELAY, 1)
        for i in range(0, len(data), size):
            peer.sock.sendall(data[i : i + size])
            gevent.sleep(0)
        peer.sock.shutdown(gevent_socket.SHUT_WR)
        while peer._fill():
            pass
        assert without_date(peer.buffer) == expected


def test_continue_is_sent_when_the_application_reads(serve):
    expect = post(b"/echo", b"", b"Content-Length: 4", b"Expect: 100-continue")
    with Peer.connect(serve(make_app()).address) as peer:
        peer.send(expect)
        assert peer.read(25) == b"HTTP/1.1 100 Continue\r\n\r\n"
        peer.send(b"body" + GET)
        assert peer.read_response().body == b"body"
        assert peer.read_response().body == b"index"


def test_a_client_that_was_not_sent_continue_is_not_waited_for(serve):
    expect = post(b"/unread", b"", b"Content-Length: 4", b"Expect: 100-continue")
    with Peer.connect(serve(make_app()).address) as peer:
        # Whether the client still sends its body is unknown, so this must not be read as a request.
        peer.send(expect + GET)
        response = peer.read_response()
        assert response.body == b"did not look"
        assert response.headers["connection"] == "close"
        assert peer.at_end()


def test_a_body_of_a_request_with_connection_upgrade_is_read_once(serve):
    data = post(b"/echo", b"body", b"Content-Length: 4", b"Connection: Upgrade", b"Upgrade: h2c")
    with Peer.connect(serve(make_app()).address) as peer:
        peer.send(data + GET)
        assert peer.read_response().body == b"body"
        assert peer.read_response().body == b"index"


def test_an_empty_line_before_a_request_is_passed_over(serve):
    with Peer.connect(serve(make_app()).address) as peer:
        peer.send(b"\r\n" + GET + b"\r\n" + GET)
        assert peer.read_response().body == b"index"
        assert peer.read_response().body == b"index"


# -- the reader by itself


@pytest.fixture
def streams():
    pairs = []

    def make(**options):
        ours, theirs = gevent_socket.socketpair()
        pairs.extend((ours, theirs))
        return HttpStream(ours, Config(**options)), theirs

    yield make
    for sock in pairs:
        sock.close()


def test_what_is_read_ahead_stays_in_the_stream(streams):
    stream, peer = streams()
    peer.sendall(GET + b"line\nrest")
    assert stream.read_head().target == "/"
    assert stream.peek() == b"line\nrest"
    assert stream.readline() == b"line\n"
    assert stream.read(2) == b"re"
    assert stream.take() == b"st"
    peer.close()
    assert stream.read() == stream.readline() == b""
    assert stream.read_head() is None


def test_lines_have_a_limit(streams):
    stream, peer = streams()
    peer.sendall(b"abcdef\n")
    assert [stream.readline(4), stream.readline(4)] == [b"abcd", b"ef\n"]


def test_a_connection_that_ends_within_a_head_brings_no_request(streams):
    stream, peer = streams()
    peer.sendall(GET[:-2])
    peer.close()
    assert stream.read_head() is None


@again_after_standstill(0.02)
def test_deadlines_of_a_later_request(streams):
    stream, peer = streams(handshake_timeout=0.05)
    assert not stream.wait_for_request(time.monotonic() + 0.02)
    peer.sendall(GET[:10])
    assert stream.wait_for_request(time.monotonic() + 60)
    with pytest.raises(RequestError, match="handshake_timeout") as caught:
        stream.read_head()
    assert caught.value.status == 408


def test_a_stalled_body_times_out(streams):
    stream, peer = streams(
        body_timeout=0.03, min_body_rate=None
    )  # else a late read fails with min_body_rate
    peer.sendall(b"12")
    with pytest.raises(OSError, match="body_timeout"):
        stream.read(3)


# -- unread bodies, and slow ones


def unread(environ, start_response):
    start_response("200 OK", [("Content-Length", "2")])
    return [b"ok"]


@pytest.mark.parametrize("body", [b"x" * 65_000, b""])
def test_a_short_unread_body_is_dropped(serve, body):
    with Peer.connect(serve(unread).address) as peer:
        for _ in range(2):
            peer.send(post(b"/", body, b"Content-Length: %d" % len(body)))
            assert peer.read_response().body == b"ok"


@pytest.mark.parametrize(
    "data",
    [
        post(b"/", b"x" * 1000, b"Content-Length: 10000000"),
        chunked(b"/", b"11170\r\n" + b"x" * 70_000 + b"\r\n" + b"1\r\nx\r\n"),
    ],
)
def test_a_long_unread_body_ends_the_connection(serve, data):
    server = serve(unread)
    with Peer.connect(server.address) as peer:
        peer.send(data)
        assert peer.read_response().body == b"ok"
        assert peer.at_end()
    wait_until(lambda: server.admission.open == 0)


def test_the_rest_of_an_answered_body_is_not_waited_for_long(serve, monkeypatch):
    monkeypatch.setattr("greenws.http.stream._DISCARD_TIMEOUT", 0.1)
    server = serve(unread)
    with Peer.connect(server.address) as peer:
        peer.send(post(b"/", b"x", b"Content-Length: 10"))
        assert peer.read_response().body == b"ok"
        with gevent.Timeout(limit(2)):
            while True:  # a byte now and then does not help
                try:
                    peer.send(b"x")
                except OSError:
                    break
                if not peer.is_silent(0.03):
                    break
    wait_until(lambda: server.admission.open == 0)


def test_the_rest_of_an_answered_body_is_not_read_for_long_either(serve, monkeypatch):
    # It is all there, so nothing is waited for; but a hub that is busy reads it slowly.
    monkeypatch.setattr("greenws.http.stream._DISCARD_TIMEOUT", 0.0)
    server = serve(unread)
    with Peer.connect(server.address) as peer:
        peer.send(chunked(b"/", b"1\r\nx\r\n" * 10_000 + b"0\r\n\r\n") + GET)
        assert peer.read_response().body == b"ok"
        assert peer.at_end()
    wait_until(lambda: server.admission.open == 0)


@again_after_standstill(0.03)
def test_a_body_must_keep_a_minimal_rate(streams):
    stream, peer = streams(body_timeout=0.1, min_body_rate=1000)
    stream.begin_body()

    def trickle():
        while True:
            peer.sendall(b"x")
            gevent.sleep(0.02)

    sender = gevent.spawn(trickle)
    try:
        with pytest.raises(OSError, match="min_body_rate"), gevent.Timeout(limit(2)):
            stream.read(1000)
    finally:
        sender.kill()


@again_after_standstill(0.02)
def test_only_the_time_that_was_waited_counts_for_the_rate(streams):
    stream, peer = streams(body_timeout=0.1, min_body_rate=1000)
    stream.begin_body()
    for _ in range(3):
        peer.sendall(b"x")
        gevent.sleep(0.06)  # the application is busy
        assert stream.read(1) == b"x"
