"""Files that an application hands to the server: sent without a copy where that is possible."""

import functools
import gzip
import io
import os

import flask
import pytest
from gevent import socket

from greenws import Config, StaticFiles
from greenws.server import files, response
from greenws.server.files import FileWrapper, find_file

from ..support.limits import wait_until
from ..support.wire import Peer

LARGE = 5_000_000
over_tls_too = pytest.mark.usefixtures("over_tls_too")


@functools.cache
def content(size: int) -> bytes:
    return os.urandom(size)


@pytest.fixture
def sent(monkeypatch):
    """The bytes that each call of sendfile() has sent, or the error that it has raised."""
    calls = []
    sendfile = os.sendfile

    def record(*args):
        try:
            calls.append(sendfile(*args))
        except OSError as error:
            calls.append(error)
            raise
        return calls[-1]

    monkeypatch.setattr(os, "sendfile", record)
    return calls


def bytes_of(calls):
    return sum(size for size in calls if isinstance(size, int))


def ask(path="/file", method="GET", *headers):
    lines = [f"{method} {path} HTTP/1.1", "Host: a", *headers]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def handing_over(make, length, wrap=lambda result: result):
    """An application that hands over the file that ``make()`` opens."""

    def app(environ, start_response):
        start_response("200 OK", [("Content-Length", str(length))])
        return wrap(environ["wsgi.file_wrapper"](make(), 4096))

    return app


def open_files():
    return [os.readlink(f"/proc/self/fd/{name}") for name in _descriptors()]


def _descriptors():
    return [name for name in os.listdir("/proc/self/fd") if os.path.islink(f"/proc/self/fd/{name}")]


@over_tls_too
@pytest.mark.parametrize("size", [0, 1, 100_000, LARGE])
def test_a_file_arrives_byte_for_byte_and_the_connection_goes_on(serve, tmp_path, sent, size):
    (tmp_path / "file").write_bytes(content(size))
    server = serve(StaticFiles(tmp_path))
    with Peer.connect(server.address) as peer:
        for _ in range(2):
            peer.send(ask())
            answer = peer.read_response()
            assert (answer.status, answer.body == content(size)) == (200, True)
    if server.ssl_args or size <= 1:
        assert sent == []
    else:
        assert bytes_of(sent) > size  # of two; what the kernel did not take at once was read


@over_tls_too
@pytest.mark.parametrize("first, last", [(0, 0), (70_000, 90_000), (1, LARGE - 1)])
@pytest.mark.parametrize("application", ["StaticFiles", "Flask"])
def test_a_range_arrives_byte_for_byte(serve, tmp_path, sent, application, first, last):
    (tmp_path / "file").write_bytes(content(LARGE))
    app = StaticFiles(tmp_path) if application == "StaticFiles" else flask_app(tmp_path)
    server = serve(app)
    with Peer.connect(server.address) as peer:
        for _ in range(2):
            peer.send(ask("/file", "GET", f"Range: bytes={first}-{last}"))
            answer = peer.read_response()
            assert answer.status == 206
            assert answer.headers["content-range"] == f"bytes {first}-{last}/{LARGE}"
            assert answer.body == content(LARGE)[first : last + 1]
    assert bool(sent) is (last > 1_000_000 and not server.ssl_args)


def flask_app(folder):
    app = flask.Flask(__name__)
    app.add_url_rule("/file", view_func=lambda: flask.send_from_directory(folder, "file"))
    return app


@pytest.mark.parametrize("size", [1, LARGE])
def test_head_gets_no_body(serve, tmp_path, sent, size):
    (tmp_path / "file").write_bytes(content(size))
    apps = [
        StaticFiles(tmp_path),
        handing_over(lambda: open(tmp_path / "file", "rb"), size),
    ]
    for app in apps:
        with Peer.connect(serve(app).address) as peer:
            peer.send(ask("/file", "HEAD") + ask("/file", "HEAD", "Connection: close"))
            received = b""
            while data := peer.sock.recv(65536):
                received += data
        heads = received.split(b"\r\n\r\n")
        assert len(heads) == 3 and heads[2] == b""
        assert all(b"Content-Length: %d" % size in head for head in heads[:2])
    assert sent == []


@over_tls_too
def test_a_file_is_closed_when_its_client_is_gone(serve, tmp_path):
    path = tmp_path / "file"
    with open(path, "wb") as file:
        file.truncate(1 << 30)  # no kernel takes so much
    server = serve(StaticFiles(tmp_path))
    peer = Peer.connect(server.address)
    peer.send(ask())
    assert peer.read(1000)
    assert str(path) in open_files()
    peer.reset()
    wait_until(lambda: server.admission.open == 0)
    assert str(path) not in open_files()


def test_a_client_that_does_not_read_is_given_up_and_stops_nobody(serve, tmp_path):
    path = tmp_path / "file"
    with open(path, "wb") as file:
        file.truncate(1 << 30)  # no kernel takes so much
    server = serve(StaticFiles(tmp_path), config=Config(write_timeout=0.3))
    slow = Peer.connect(server.address)
    slow.send(ask())
    wait_until(lambda: str(path) in open_files())
    with Peer.connect(server.address) as other:
        other.send(ask("/nothing"))
        assert other.read_response().status == 404
    wait_until(lambda: server.admission.open == 0)
    assert str(path) not in open_files()
    slow.close()


def test_a_client_that_reads_slowly_gets_all(serve, tmp_path, sent):
    (tmp_path / "file").write_bytes(content(LARGE))
    server = serve(StaticFiles(tmp_path))
    server.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 18)
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
    client.connect(server.address)
    received = bytearray()
    with Peer(client) as peer:
        peer.send(ask("/file", "GET", "Connection: close"))
        wait_until(lambda: any(isinstance(call, BlockingIOError) for call in sent))
        while data := peer.sock.recv(1 << 16):
            received += data
    assert received.partition(b"\r\n\r\n")[2] == content(LARGE)
    assert 0 < bytes_of(sent) < LARGE  # and the rest by the transport that waits


def test_other_connections_have_their_turns_while_a_file_is_sent(serve, tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(content(LARGE))
    turns = []
    monkeypatch.setattr(response, "end_turn_if_due", lambda **options: turns.append(True))
    with Peer.connect(serve(StaticFiles(tmp_path)).address) as peer:
        peer.send(ask())
        assert peer.read_response().body == content(LARGE)
    assert len(turns) >= LARGE >> 18


@pytest.mark.parametrize("size", [30_000, LARGE])
@pytest.mark.parametrize("change", [-20_000, 20_000])
def test_a_file_that_changes_its_size_keeps_the_promise(serve, tmp_path, size, change):
    """It is cut off, or the connection ends, so that nothing is taken for the rest of it."""
    path = tmp_path / "file"
    path.write_bytes(content(LARGE)[: size + change])
    server = serve(handing_over(lambda: open(path, "rb"), size))
    with Peer.connect(server.address) as peer:
        peer.send(ask())
        if change > 0:
            assert peer.read_response().body == content(LARGE)[:size]
            peer.send(ask())
            assert peer.read_response().body == content(LARGE)[:size]
        else:
            received = b""
            while data := peer.sock.recv(1 << 16):
                received += data
            assert received.partition(b"\r\n\r\n")[2] == content(LARGE)[: size + change]


@pytest.mark.parametrize("size", [30_000, LARGE])
def test_a_file_is_sent_from_its_position(serve, tmp_path, sent, size):
    (tmp_path / "file").write_bytes(content(LARGE)[:size])

    def make():
        file = open(tmp_path / "file", "rb")
        file.read(10_000)
        return file

    with Peer.connect(serve(handing_over(make, size - 10_000)).address) as peer:
        peer.send(ask())
        assert peer.read_response().body == content(LARGE)[10_000:size]
    assert bool(sent) is (size == LARGE)


def test_what_a_middleware_changes_is_sent_as_changed(serve, tmp_path, sent):
    (tmp_path / "file").write_bytes(bytes(LARGE))
    app = handing_over(
        lambda: open(tmp_path / "file", "rb"),
        LARGE,
        lambda result: (part.replace(b"\0", b"1") for part in result),
    )
    with Peer.connect(serve(app).address) as peer:
        peer.send(ask())
        assert peer.read_response().body == b"1" * LARGE
    assert sent == []


@pytest.mark.parametrize("kind", ["gzip", "memory", "text"])
def test_what_is_not_simply_a_file_is_read(serve, tmp_path, sent, kind):
    path = tmp_path / "file"
    with gzip.open(path, "wb") as file:
        file.write(bytes(LARGE))
    make = {
        "gzip": lambda: gzip.open(path, "rb"),
        "memory": lambda: io.BytesIO(bytes(LARGE)),
        "text": lambda: _Encoded(bytes(LARGE)),
    }[kind]
    with Peer.connect(serve(handing_over(make, LARGE)).address) as peer:
        peer.send(ask())
        assert peer.read_response().body == bytes(LARGE)
    assert sent == []


class _Encoded(io.BytesIO):
    def fileno(self):
        return 0


def test_a_file_that_sendfile_does_not_take_is_read(serve, tmp_path, monkeypatch):
    def sendfile(*args):
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(os, "sendfile", sendfile)
    (tmp_path / "file").write_bytes(content(LARGE))
    with Peer.connect(serve(StaticFiles(tmp_path)).address) as peer:
        peer.send(ask())
        assert peer.read_response().body == content(LARGE)


def test_a_disk_error_is_logged_and_ends_the_connection(serve, tmp_path, monkeypatch, hub_errors):
    def sendfile(*args):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "sendfile", sendfile)
    (tmp_path / "file").write_bytes(content(LARGE))
    with Peer.connect(serve(StaticFiles(tmp_path)).address) as peer:
        peer.send(ask())
        received = b""
        while data := peer.sock.recv(1 << 16):
            received += data
    assert received.endswith(b"\r\n\r\n") and received.count(b"HTTP/1.1") == 1
    assert "Input/output error" in hub_errors.take()


def test_without_werkzeugs_name_a_range_is_iterated_over(serve, tmp_path, sent, monkeypatch):
    monkeypatch.setattr(files, "_Range", None)
    (tmp_path / "file").write_bytes(content(LARGE))
    with Peer.connect(serve(StaticFiles(tmp_path)).address) as peer:
        peer.send(ask("/file", "GET", f"Range: bytes=100000-{LARGE}"))
        assert peer.read_response().body == content(LARGE)[100_000:]
    assert sent == []


def test_a_wrapper_is_seekable_as_its_file_is():
    assert FileWrapper(io.BytesIO(b"ab")).seekable()
    assert not FileWrapper(iter(())).seekable()
    wrapper = FileWrapper(io.BytesIO(b"abcd"))
    wrapper.seek(2)
    assert (wrapper.tell(), list(wrapper), find_file(wrapper)) == (2, [b"cd"], None)
    wrapper.close()
    assert wrapper.filelike.closed
    FileWrapper(iter(())).close()


def test_blocks_of_a_pipe_have_the_size_that_was_asked_for():
    """Its next bytes may be long in coming."""
    reader, writer = os.pipe()
    with open(reader, "rb") as file, open(writer, "wb", buffering=0) as other:
        wrapper = FileWrapper(file, 4)
        other.write(b"abcdef")
        assert next(wrapper) == b"abcd"
    assert FileWrapper(io.BytesIO(), 4).block_size > 4


def test_a_file_without_a_length_is_sent_in_chunks(serve, tmp_path, sent):
    (tmp_path / "file").write_bytes(content(100_000))

    def app(environ, start_response):
        start_response("200 OK", [])
        return environ["wsgi.file_wrapper"](open(tmp_path / "file", "rb"))

    block = 1 << 16
    parts = [content(100_000)[start : start + block] for start in range(0, 100_000, block)]
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in [*parts, b""])
    with Peer.connect(serve(app).address) as peer:
        peer.send(ask())
        answer = peer.read_response()
        assert answer.headers["transfer-encoding"] == "chunked"
        assert peer.read(len(chunks)) == chunks
    assert sent == []
