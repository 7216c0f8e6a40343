"""Responses on the wire: their framing, and clients that do not read or are gone."""

from __future__ import annotations

import contextlib
import http.client
import os
import ssl
import struct
from array import array

import gevent
import pytest
from gevent import socket
from gevent.event import Event
from gevent.pywsgi import WSGIHandler

from greenws import Config, StaticFiles
from greenws.hub.polling import poller_of
from greenws.server.response import ResponseHandler

from ..support.limits import again_after_standstill, limit, wait_until
from ..support.wire import Peer

over_tls_too = pytest.mark.usefixtures("over_tls_too")


def ask(method: str = "GET", path: str = "/", version: str = "1.1", *headers: str) -> bytes:
    lines = [f"{method} {path} HTTP/{version}", "Host: a", *headers]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def answering(status, headers, body):
    """An application that returns ``body``, or what a call of it gives."""

    def app(environ, start_response):
        start_response(status, headers)
        return body() if callable(body) else body

    return app


def in_thread(function):
    """Calls what blocks its thread."""
    return gevent.get_hub().threadpool.apply(function)


def read_all(peer: Peer) -> bytes:
    while peer._fill():
        pass
    return peer.buffer


def split(answer: bytes) -> tuple[dict[str, str], bytes]:
    head, body = answer.split(b"\r\n\r\n", 1)
    lines = head.decode().split("\r\n")[1:]
    return {line.split(": ")[0].lower(): line.split(": ")[1] for line in lines}, body


EVIL = b"HTTP/1.1 200 EVIL\r\nContent-Length: 4\r\n\r\nevil"


@pytest.mark.parametrize(
    "body", [[EVIL], [EVIL[:9], EVIL[9:]], lambda: iter([EVIL]), lambda: (x for x in [EVIL])]
)
@pytest.mark.parametrize("headers", [[], [("Content-Length", str(len(EVIL)))]])
def test_an_answer_to_head_has_no_body(serve, body, headers):
    server = serve(answering("200 OK", headers, body))

    def ask_twice():
        connection = http.client.HTTPConnection(*server.address, timeout=limit())
        for _ in range(2):
            connection.request("HEAD", "/")
            response = connection.getresponse()
            yield response.status, response.reason, response.read()
            if headers or isinstance(body, list):
                assert response.getheader("Content-Length") == str(len(EVIL))
        connection.close()

    assert in_thread(lambda: list(ask_twice())) == [(200, "OK", b"")] * 2
    with Peer.connect(server.address) as peer:
        peer.send(ask("HEAD") + ask("HEAD", "/", "1.1", "Connection: close"))
        assert b"EVIL" not in read_all(peer)


@over_tls_too
def test_nothing_is_generated_for_head_when_its_client_is_gone(serve):
    """By an application that never waits, of which nothing is sent that could fail."""
    ended = Event()

    def rows():
        try:
            while True:
                yield b"row"
        finally:
            ended.set()

    with Peer.connect(serve(answering("200 OK", [], rows)).address) as peer:
        peer.send(ask("HEAD"))
        assert peer.sock.recv(1000).startswith(b"HTTP/1.1 200 ")
        assert not ended.is_set()
    assert ended.wait(limit())


def test_a_client_that_ends_its_stream_gets_the_answer_to_a_request_after_head(serve):
    """Half-closed clients still read."""

    def app(environ, start_response):
        start_response("200 OK", [])
        return iter([b"row"] * 3) if environ["REQUEST_METHOD"] == "HEAD" else [b"second"]

    with Peer.connect(serve(app).address) as peer:
        peer.send(ask("HEAD") + ask("GET", "/", "1.1", "Connection: close"))
        peer.sock.shutdown(socket.SHUT_WR)
        assert read_all(peer).endswith(b"second")


def test_an_empty_str_is_an_empty_body(serve):
    """As in pywsgi's own answers."""
    with Peer.connect(serve(answering("200 OK", [], lambda: ["", b"x", ""])).address) as peer:
        peer.send(ask("GET", "/", "1.1", "Connection: close"))
        assert read_all(peer).endswith(b"\r\n\r\nx")
    with Peer.connect(serve(answering("200 OK", [], lambda: [""])).address) as peer:
        peer.send(ask("GET", "/", "1.1", "Connection: close"))
        received = read_all(peer)
        assert received.startswith(b"HTTP/1.1 200 OK") and b"Content-Length: 0" in received


def test_the_write_callable_sends_no_body_to_head_either(serve):
    def app(environ, start_response):
        write = start_response("200 OK", [])
        write(EVIL)
        return [EVIL]

    with Peer.connect(serve(app).address) as peer:
        peer.send(ask("HEAD", "/", "1.1", "Connection: close"))
        assert b"EVIL" not in read_all(peer)


@pytest.mark.parametrize("status", ["204 No Content", "304 Not Modified", "103 Early Hints"])
def test_a_response_without_a_body_has_no_framing(serve, status):
    with Peer.connect(serve(answering(status, [], lambda: iter([b""]))).address) as peer:
        peer.send(ask("GET", "/", "1.1", "Connection: close"))
        headers, body = split(read_all(peer))
    assert body == b""
    assert "content-length" not in headers and "transfer-encoding" not in headers


@pytest.mark.parametrize("status", ["204 No Content", "304 Not Modified"])
def test_a_body_where_none_may_be_is_the_applications_error(serve, status, hub_errors):
    with Peer.connect(serve(answering(status, [], [EVIL])).address) as peer:
        peer.send(ask("GET", "/", "1.1", "Connection: close"))
        answer = read_all(peer)
    assert answer.startswith(b"HTTP/1.1 500 ") and b"EVIL" not in answer
    assert "must have no body" in hub_errors.take()


@pytest.mark.parametrize(
    ("status", "headers"),
    [
        *((status, []) for status in ("99 X", "1000 X", "-1 X", "20 X", "200OK", "200 \0", "")),
        *(
            ("200 OK", [header])
            for header in [
                *(("X:", "a"), ("X ", "a"), (" X", "a"), ("", "a"), ("X\xe9", "a"), ("X\0", "a")),
                *(("X", "a\0b"), ("X", "a\x7f"), ("X", "a\r\nB: c"), ("X\r\nB", "c"), ("X", 5)),
            ]
        ),
    ],
)
def test_what_would_not_be_http_is_the_applications_error(serve, status, headers, hub_errors):
    with Peer.connect(serve(answering(status, headers, [EVIL])).address) as peer:
        peer.send(ask())
        head, _, body = read_all(peer).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 500 ") and body == b"Internal Server Error"
    assert hub_errors.take()


class Text(str):
    pass


STATUSES = [
    *(
        "200 OK",
        "200",
        "204 No Content",
        "304 Not Modified",
        "404 N\xf6",
        "101 Switching Protocols",
    ),
    *("099 Low", "200 \x01", "", "two", "200 \u20ac", "200OK", b"200 OK", Text("200 OK")),
]
NAMES = ("", "a b", "a:", "\xe9", "\u20ac", "a\n", b"X", Text("X"), None)
VALUES = ("", "\x00", "a\r\n", "\x7f", "\x85", "\u20ac", b"1", Text("1"), 1)
HEADERS = [
    [],
    [("X", "1"), ("etag", '"\t\xa0\xe9"'), ("Date", "then"), ("DATE", "now"), ("vary", "*")],
    *([(name, value)] for name in ("Content-Length", "CONTENT-LENGTH") for value in ("5", "0", "")),
    [("Content-Length", "-1")],
    [("Content-Length", "\xb2")],
    [("Content-Length", "5"), ("content-length", "5")],
    *([("Connection", value)] for value in ("close", "Close", "keep-alive", "X")),
    [("Transfer-Encoding", "chunked"), ("X", "1")],
    *([(name, "1")] for name in NAMES),
    *([("X", value)] for value in VALUES),
    [("X", "1", "2")],
    [["X", "1"]],
    (("X", "1"),),
    None,
]


def start(version, status, headers, is_plain):
    """What start_response() does, with or without its short way."""
    handler = ResponseHandler.__new__(ResponseHandler)
    handler.request_version = version
    handler.close_connection = False
    handler.status = handler.code = None
    handler.headers_sent = False
    if not is_plain:
        handler._start_plain = lambda *_: False
    try:
        handler.start_response(status, headers)
    except Exception as error:
        return type(error), str(error), handler.status
    names = vars(handler).keys() - {"_start_plain"}
    return {name: getattr(handler, name) for name in names}


@pytest.mark.parametrize("version", ["HTTP/1.0", "HTTP/1.1"])
@pytest.mark.parametrize("status", STATUSES)
def test_the_short_way_of_a_response_does_the_same(version, status):
    for headers in HEADERS:
        expected = start(version, status, headers, False)
        assert start(version, status, headers, True) == expected, headers


def test_nearly_every_response_begins_in_the_short_way(monkeypatch):
    monkeypatch.setattr(WSGIHandler, "start_response", None)
    headers = [("Content-Type", "text/plain"), ("Content-Length", "5"), ("Set-Cookie", "a=b")]
    assert start("HTTP/1.1", "200 OK", headers, True)["code"] == 200
    assert start("HTTP/1.1", "418 Teapot", headers, True)["code"] == 418


def write_text(environ, start_response):
    start_response("200 OK", [])("text")
    return []


@pytest.mark.parametrize(
    "app",
    [
        *(answering("200 OK", [], body) for body in (["text"], [b"x", "text"], "text", b"bytes")),
        answering("200 OK", [], lambda: iter(["text"])),
        write_text,
    ],
)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_body_that_is_no_bytes_is_a_500_with_a_head(serve, app, method, hub_errors):
    with Peer.connect(serve(app).address) as peer:
        peer.send(ask(method))
        assert read_all(peer).startswith(b"HTTP/1.1 500 ")
    assert "bytes" in hub_errors.take()


@pytest.mark.parametrize("headers", [[], [("Content-Length", "12")]])
@pytest.mark.parametrize("kind", [list, iter])
def test_parts_are_counted_in_bytes(serve, kind, headers):
    parts = [memoryview(array("i", [1, 2, 3]))]
    server = serve(answering("200 OK", headers, lambda: kind(parts)))
    connection = http.client.HTTPConnection(*server.address, timeout=limit())

    def ask_twice():
        for _ in range(2):
            connection.request("GET", "/")
            yield connection.getresponse().read()
        connection.close()

    assert in_thread(lambda: list(ask_twice())) == [bytes(parts[0])] * 2


@pytest.mark.parametrize("coding", ["chunked", "identity"])
@pytest.mark.parametrize("length", [[], [("Content-Length", "3")]])
def test_the_framing_is_the_servers(serve, coding, length):
    """An application that hands on the headers of another server hands on none of its chunks."""
    headers = [("Transfer-Encoding", coding), *length]
    with Peer.connect(serve(answering("200 OK", headers, lambda: iter([b"abc"]))).address) as peer:
        peer.send(ask("GET", "/", "1.1", "Connection: close"))
        got, body = split(read_all(peer))
    assert got.get("transfer-encoding") == (None if length else "chunked")
    assert body == (b"abc" if length else b"3\r\nabc\r\n0\r\n\r\n")


@pytest.mark.parametrize(
    ("status", "headers"), [("102 Processing", []), ("200 OK", [("Connection", "Close")])]
)
def test_no_request_is_answered_after_it(serve, status, headers):
    """Whoever has got an interim response still waits for that to its first request."""
    with Peer.connect(serve(answering(status, headers, [])).address) as peer:
        peer.send(ask() * 2)
        assert read_all(peer).count(b"HTTP/1.1 ") == 1


def test_the_body_of_a_1xx_is_not_sent(serve):
    with Peer.connect(serve(answering("102 Processing", [], [EVIL])).address) as peer:
        peer.send(ask("GET", "/", "1.1", "Connection: close"))
        assert b"EVIL" not in read_all(peer)


@pytest.mark.parametrize("body", [[b"12345678"], [b"1234", b"5678"], lambda: iter([b"1"] * 8)])
def test_no_more_is_sent_than_content_length_says(serve, body, capsys):
    log = Log()
    server = serve(answering("200 OK", [("Content-Length", "5")], body), error_log=log)
    with Peer.connect(server.address) as peer:
        peer.send(ask() * 2)
        assert split(read_all(peer))[1] == (b"1" * 5 if callable(body) else b"12345")
    assert "the body of '/' is longer than its Content-Length" in log.text


@pytest.mark.parametrize("body", [[b"123"], lambda: iter([b"1", b"2", b"3"]), []])
def test_a_body_that_is_too_short_closes_the_connection(serve, body):
    log = Log()
    server = serve(answering("200 OK", [("Content-Length", "5")], body), error_log=log)
    with Peer.connect(server.address) as peer:
        peer.send(ask() * 2)
        assert split(read_all(peer))[1] == (b"123" if body else b"")
    assert "shorter than its Content-Length" in log.text


@pytest.mark.parametrize("value", ["x", "-1", "1, 1", "+5", "5 "])
def test_an_invalid_content_length_is_the_applications_error(serve, value, hub_errors):
    app = answering("200 OK", [("Content-Length", value)], [b"hello"])
    with Peer.connect(serve(app).address) as peer:
        peer.send(ask("GET", "/", "1.1", "Connection: close"))
        assert read_all(peer).startswith(b"HTTP/1.1 500 ")
    assert "invalid Content-Length" in hub_errors.take()


def test_a_repeated_content_length_is_the_applications_error(serve, hub_errors):
    app = answering("200 OK", [("Content-Length", "5"), ("content-length", "5")], [b"hello"])
    with Peer.connect(serve(app).address) as peer:
        peer.send(ask("GET", "/", "1.1", "Connection: close"))
        assert read_all(peer).startswith(b"HTTP/1.1 500 ")
    assert "invalid Content-Length" in hub_errors.take()


def test_to_http_1_0_the_end_of_the_connection_ends_a_body_of_unknown_length(serve):
    app = answering("200 OK", [], lambda: iter([b"a", b"b"]))
    with Peer.connect(serve(app).address) as peer:
        peer.send(ask("GET", "/", "1.0", "Connection: keep-alive"))
        headers, body = split(read_all(peer))
    assert (headers["connection"], body) == ("close", b"ab")


def test_http_1_0_is_kept_alive_where_the_length_is_known(serve):
    with Peer.connect(serve(answering("200 OK", [], [b"ab"])).address) as peer:
        for _ in range(2):
            peer.send(ask("GET", "/", "1.0", "Connection: keep-alive"))
            response = peer.read_response()
            assert (response.body, response.headers["connection"]) == (b"ab", "keep-alive")


def test_an_expectation_of_http_1_0_is_ignored(serve):
    def app(environ, start_response):
        start_response("200 OK", [])
        return [environ["wsgi.input"].read()]

    with Peer.connect(serve(app).address) as peer:
        peer.send(ask("POST", "/", "1.0", "Content-Length: 2", "Expect: 100-continue") + b"ab")
        assert split(read_all(peer))[1] == b"ab"


def test_a_client_that_waits_for_100_gets_it(serve):
    def app(environ, start_response):
        start_response("200 OK", [])
        return [environ["wsgi.input"].read()]

    with Peer.connect(serve(app).address) as peer:
        peer.send(ask("POST", "/", "1.1", "Content-Length: 2", "Expect: 100-continue"))
        assert peer.read(25) == b"HTTP/1.1 100 Continue\r\n\r\n"
        peer.send(b"ab")
        assert peer.read_response().body == b"ab"


def fill(sock):
    """How many bytes the kernel has taken."""
    taken = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            taken += sock.send(bytes(1 << 20))
    return taken


def test_a_client_that_takes_no_100_response_is_given_up(serve):
    """Its earlier answers fill the kernel's buffers."""
    raised = []

    def app(environ, start_response):
        # The kernel makes room once more, 40 ms later, when it moves what it has to the client.
        while fill(environ["wsgi.input"].socket._sock):
            gevent.sleep(0.1)
        try:
            environ["wsgi.input"].read()
        except OSError as error:
            raised.append(type(error))
            raise

    server = serve(app, config=Config(write_timeout=0.1))
    with Peer.connect(server.address) as peer:
        peer.send(ask("POST", "/", "1.1", "Content-Length: 2", "Expect: 100-continue"))
        wait_until(lambda: raised == [ConnectionResetError])
        wait_until(lambda: server.admission.open == 0)


# -- in one write


class Log:
    """An error log that a test reads."""

    def __init__(self):
        self.text = ""

    def write(self, text):
        self.text += text


@pytest.mark.parametrize(
    "body", [[b"hello"], [b"hel", b"lo"], (b"hel", b"", b"lo"), lambda: iter([b"hello"])]
)
def test_the_head_and_a_small_body_leave_in_one_write(serve, body, monkeypatch):
    writes = []

    def app(environ, start_response):
        handler = start_response.__self__
        send = handler._sendall
        handler._sendall = lambda data: (writes.append(bytes(data)), send(data))
        start_response("200 OK", [("Content-Length", "5")])
        return body() if callable(body) else body

    with Peer.connect(serve(app).address) as peer:
        peer.send(ask())
        assert peer.read_response().body == b"hello"
    assert len(writes) == 1


def test_every_connection_has_tcp_nodelay(serve):
    options = []

    def app(environ, start_response):
        sock = start_response.__self__.socket
        options.append(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        start_response("200 OK", [])
        return [b""]

    with Peer.connect(serve(app).address) as peer:
        peer.send(ask())
        peer.read_response()
    assert options == [1]


# -- clients that do not read


@over_tls_too
def test_a_large_response_arrives_whole(serve):
    data = os.urandom(3_000_000)
    server = serve(answering("200 OK", [], [data]))
    with Peer.connect(server.address) as peer:
        peer.send(ask() + ask())
        assert peer.read_response().body == data
        assert peer.read_response().body == data


@over_tls_too
@pytest.mark.parametrize("body", [[b"x" * 20_000_000], lambda: (b"x" * 50_000 for _ in range(400))])
def test_a_response_that_nobody_reads_is_given_up(serve, body):
    log = Log()
    app = answering("200 OK", [("Content-Length", "20000000")], body)
    server = serve(app, config=Config(write_timeout=0.2), error_log=log)
    with Peer.connect(server.address) as peer:
        peer.send(ask())
        wait_until(lambda: "abandoned a response" in log.text)
        assert "write_timeout" in log.text
        wait_until(lambda: server.admission.open == 0)
        with pytest.raises((ConnectionResetError, EOFError, ssl.SSLError)):
            peer.read(20_000_000)


@again_after_standstill(0.1)
def test_a_response_that_is_read_slowly_arrives_whole(serve):
    data = b"x" * 3_000_000
    server = serve(answering("200 OK", [], [data]), config=Config(write_timeout=0.5))
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 20_000)
        sock.connect(server.address)
        sock.sendall(ask())
        received = 0
        while received < len(data):
            received += len(sock.recv(100_000))
            gevent.sleep(0.02)


def test_a_reset_in_a_response_is_no_error(serve, hub_errors):
    log = Log()
    server = serve(answering("200 OK", [], [b"x" * 20_000_000]), error_log=log)
    peer = Peer.connect(server.address)
    peer.send(ask())
    peer.read(1000)
    peer.reset()
    wait_until(lambda: server.admission.open == 0)
    assert "Traceback" not in log.text


# -- clients that are gone


class Stream:
    """An application that generates events until its generator is ended."""

    def __init__(self, headers=()):
        self.headers = list(headers)
        self.send = Event()
        self.started = 0
        self.ended = 0

    def __call__(self, environ, start_response):
        start_response("200 OK", [("Content-Type", "text/event-stream"), *self.headers])
        return self.generate()

    def generate(self):
        self.started += 1
        try:
            yield b"data: hello\n\n"
            while True:
                self.send.wait()
                self.send.clear()
                yield b"data: again\n\n"
        finally:
            self.ended += 1


def begin(server, version="1.1") -> Peer:
    peer = Peer.connect(server.address)
    peer.send(ask("GET", "/", version))
    while b"hello\n\n" not in peer.buffer:
        assert peer._fill()
    peer.buffer = b""
    return peer


@over_tls_too
@pytest.mark.parametrize("leave", ["close", "reset"])
def test_a_generator_that_waits_learns_that_its_client_is_gone(serve, leave, hub_errors):
    stream = Stream()
    server = serve(stream)
    peers = [begin(server) for _ in range(20)]
    assert (stream.started, stream.ended) == (20, 0)
    for peer in peers:
        peer.close() if leave == "close" else peer.reset()
    wait_until(lambda: stream.ended == 20)
    wait_until(lambda: server.admission.open == 0)


@pytest.mark.parametrize("version", ["1.1", "1.0"])
def test_a_client_that_has_ended_only_its_own_half_goes_on_reading(serve, version):
    stream = Stream()
    server = serve(stream)
    with begin(server, version) as peer:
        peer.sock.shutdown(socket.SHUT_WR)
        gevent.sleep(0.3)  # several checks
        assert stream.ended == 0
        stream.send.set()
        while b"again\n\n" not in peer.buffer:
            assert peer._fill()
        # The zero that was sent early is the first digit of the size of this chunk.
        expected = b"0d\r\ndata: again\n\n\r\n" if version == "1.1" else b"data: again\n\n"
        assert peer.buffer.rstrip(b"\r\n") == expected.rstrip(b"\r\n")
        peer.reset()
    wait_until(lambda: stream.ended == 1)


def test_the_end_of_a_chunked_body_is_read_after_the_early_zero(serve):
    go_on = Event()

    def generate():
        yield b"hello"
        go_on.wait()

    server = serve(answering("200 OK", [], generate))
    connection = http.client.HTTPConnection(*server.address, timeout=limit())

    def begin():
        connection.request("GET", "/")
        connection.sock.shutdown(socket.SHUT_WR)
        return connection.getresponse()

    response = in_thread(begin)
    gevent.sleep(0.1)
    go_on.set()
    assert in_thread(response.read) == b"hello"
    connection.close()


def test_the_call_of_the_application_is_never_interrupted(serve):
    finished = []
    begun = Event()
    go_on = Event()

    def app(environ, start_response):
        start_response("200 OK", [])
        begun.set()
        go_on.wait()
        finished.append(True)
        return [b"hello"]

    server = serve(app)
    peer = Peer.connect(server.address)
    peer.send(ask())
    begun.wait()
    peer.reset()
    gevent.sleep(0.1)
    assert not finished
    go_on.set()
    wait_until(lambda: finished)
    wait_until(lambda: server.admission.open == 0)


def test_what_a_client_pipelines_after_a_stream_is_answered(serve):
    stream = Stream()
    server = serve(stream)
    with begin(server) as peer:
        peer.send(ask())
        gevent.sleep(0.05)  # it is read ahead
        stream.send.set()
        while b"again\n\n" not in peer.buffer:
            assert peer._fill()
        assert stream.ended == 0
        peer.reset()
    wait_until(lambda: stream.ended == stream.started)


def test_a_client_that_is_lost_is_found_by_the_next_write(serve):
    """Where the peer sends a reset, nothing is watched while the application is called."""

    def app(environ, start_response):
        sock = start_response.__self__.socket
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        start_response("200 OK", [])
        return [b"x" * 1000]

    with Peer.connect(serve(app).address) as peer:
        peer.send(ask("GET", "/", "1.1", "Connection: close"))
        assert peer.read_response().body == b"x" * 1000


def test_a_file_arrives_whole(serve, tmp_path):
    data = os.urandom(300_000)
    (tmp_path / "file.bin").write_bytes(data)
    server = serve(StaticFiles(tmp_path))
    with Peer.connect(server.address) as peer:
        for _ in range(2):
            peer.send(ask("GET", "/file.bin"))
            assert peer.read_response().body == data


@over_tls_too
@pytest.mark.parametrize("chunked", [False, True])
def test_a_generator_may_read_the_body_while_it_answers(serve, chunked):
    """Its input is not read ahead by the watch for the client's end."""

    def app(environ, start_response):
        start_response("200 OK", [])
        return generate(environ["wsgi.input"])

    def generate(body):
        while part := body.read(5):
            yield part

    with Peer.connect(serve(app).address) as peer:
        framing = "Transfer-Encoding: chunked" if chunked else "Content-Length: 15"
        peer.send(ask("POST", "/", "1.1", framing, "Connection: close"))
        for number in range(3):
            part = b"part%d" % number
            peer.send(b"5\r\n%b\r\n" % part if chunked else part)
            while b"5\r\n%b\r\n" % part not in peer.buffer:
                assert peer._fill()
        if chunked:
            peer.send(b"0\r\n\r\n")
        assert read_all(peer).endswith(b"0\r\n\r\n")


def test_no_zero_follows_the_answer_to_head(serve):
    go_on = Event()

    def generate():
        yield b"hello"
        go_on.wait()

    with Peer.connect(serve(answering("200 OK", [], generate)).address) as peer:
        peer.send(ask("HEAD"))
        peer.sock.shutdown(socket.SHUT_WR)
        gevent.sleep(0.1)
        go_on.set()
        assert read_all(peer).endswith(b"\r\n\r\n")


def test_a_response_that_is_interrupted_is_not_followed_by_an_error_page(serve, hub_errors):
    begun = Event()
    greenlets = []

    def app(environ, start_response):
        greenlets.append(gevent.getcurrent())
        start_response("200 OK", [])
        begun.set()
        return [b"x" * 20_000_000]

    server = serve(app)
    with Peer.connect(server.address) as peer:
        peer.send(ask())
        begun.wait()
        wait_until(lambda: poller_of(gevent.get_hub()).writers)
        greenlets[0].kill()
        answer = read_all(peer)
        assert answer.count(b"HTTP/1.1 ") == 1 and set(split(answer)[1]) == {ord("x")}
    wait_until(lambda: server.admission.open == 0)
    assert not poller_of(gevent.get_hub()).writers  # nothing of it is kept


def test_a_long_line_is_read_in_linear_time(serve):
    """Each receive once copied all of the line before it."""
    size = 3_000_000

    def app(environ, start_response):
        lines = list(environ["wsgi.input"])
        start_response("200 OK", [])
        return [str([len(line) for line in lines]).encode()]

    with Peer.connect(serve(app).address) as peer:
        peer.send(ask("POST", "/", "1.1", f"Content-Length: {size + 4}"))
        peer.send(b"x" * size + b"\nabc")
        assert peer.read_response().body == b"[%d, 3]" % (size + 1)
