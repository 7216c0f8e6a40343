"""One client never stops the others: whatever it sends, a turn ends with a poll of the kernel.

First in steps, which do not depend on the machine; then a server in another process, which echoes
to one client while another one floods it, and which can be stopped all the while.
"""

from __future__ import annotations

import contextlib
import signal
import socket as native
import ssl
import subprocess
import sys
import time
import zlib

import gevent
import gevent.socket
import pytest

from greenws import Routes, WebSocketServer
from greenws.config import Config
from greenws.exceptions import ConnectionClosed
from greenws.form import PURE
from greenws.keepalive import Heartbeat, Pulse

from ..support.limits import again_after_standstill, limit, pace, wait_until
from ..support.paths import PROGRAMS
from ..support.polls import MOST, MOST_AT_FIRST, MOST_READ, Polls
from ..support.processes import Process
from ..support.wire import BINARY, CONTINUATION, PING, PONG, TEXT, Peer, close_frame, frame

STEPS = 300


@pytest.fixture
def polls():
    with Polls() as polls:
        yield polls


# --- in steps


def read_messages(socket, polls):
    for _ in socket:
        polls.step()


def read_fragments(socket, polls):
    while socket.read_string_message().data is not None:
        polls.step()


def poll_messages(socket, polls):
    for _ in range(STEPS):
        socket.receive(timeout=0)
        polls.step()


@pytest.mark.parametrize(
    ("handle", "data"),
    [
        (read_messages, frame(TEXT, b"{}") * STEPS),
        (
            read_fragments,
            frame(TEXT, b"", fin=False)
            + frame(CONTINUATION, b"", fin=False) * (STEPS - 2)
            + frame(CONTINUATION, b""),
        ),
        (poll_messages, frame(BINARY, b"{}") * STEPS),
    ],
    ids=["messages", "fragments", "polls"],
)
def test_messages_that_came_in_one_receive(pair, polls, handle, data):
    socket, peer = pair()
    peer.send(data)
    reader = gevent.spawn(handle, socket, polls)
    gevent.sleep(0)
    peer.send(close_frame())
    peer.close()
    reader.join(limit())
    assert polls.total == STEPS
    assert polls.most <= MOST


def test_messages_that_came_in_one_receive_are_whole_although_others_receive(pair, polls):
    """The receive buffer is shared: what is left in it must survive the end of a turn."""
    sent = [b"%d" % number for number in range(STEPS)]
    received = {}

    def read(socket, peer):
        for message in socket:
            polls.step()
            received.setdefault(peer, []).append(message)

    readers = []
    for _ in range(3):
        socket, peer = pair()
        peer.send(b"".join(frame(BINARY, data) for data in sent) + close_frame())
        readers.append(gevent.spawn(read, socket, peer))
    gevent.joinall(readers, limit())
    assert list(received.values()) == [sent] * 3
    assert polls.most <= MOST


@pytest.mark.parametrize(
    "send",
    [
        lambda socket: socket.send(b"x"),
        lambda socket: socket.send_string_message("x", final=False),
        lambda socket: socket.send_pong(b"x"),
    ],
    ids=["messages", "fragments", "pongs"],
)
def test_a_handler_that_sends_in_a_loop(pair, polls, send):
    socket, _ = pair()

    def handle():
        for _ in range(STEPS):
            send(socket)
            polls.step()

    gevent.spawn(handle).join(limit())
    assert polls.total == STEPS
    assert polls.most <= MOST


def receive_until_closed(socket):
    with pytest.raises(ConnectionClosed):
        socket.receive()


def ping_and_close(socket):
    with pytest.raises(ConnectionClosed):
        socket.ping()


def close_beside_a_reader(socket):
    reader = gevent.spawn(receive_until_closed, socket)
    gevent.sleep(0)
    socket.close()
    reader.get(timeout=limit())


@pytest.mark.parametrize("call", [receive_until_closed, ping_and_close, close_beside_a_reader])
def test_many_control_frames_are_not_one_step(pair, polls, call):
    socket, peer = pair(max_message_size=1)
    count = 100_000
    greenlet = gevent.spawn(call, socket)
    writer = gevent.spawn(peer.send, frame(PING) * count + close_frame())

    def drain():
        with contextlib.suppress(OSError):  # the socket is closed with pongs unread
            while peer.sock.recv(1 << 16):
                pass
        peer.close()

    gevent.spawn(drain)
    greenlet.get(timeout=limit(20))
    writer.join()
    # The compiled form takes so many in a few turns.
    assert polls.count > (10 if PURE else 1)


def test_messages_that_inflate_are_no_small_steps(serve, polls):
    """Behind thousands of tiny messages, which make the readings of the clock rare."""

    def handle(request, socket):
        for message in socket:
            if len(message) > 1:
                polls.step()

    routes = Routes()
    routes.websocket("/")(handle)
    deflater = zlib.compressobj(9, zlib.DEFLATED, -15)
    data = deflater.compress(bytes(1 << 19)) + deflater.flush(zlib.Z_SYNC_FLUSH)
    large = frame(BINARY, data[:-4], rsv=4)
    extensions = "permessage-deflate"
    with Peer.open(serve(routes).address, Sec_WebSocket_Extensions=extensions) as peer:
        peer.send((frame(BINARY, b"x") * 2000 + large * 40) + close_frame())
        assert peer.read_close() == (1000, b"")
    assert polls.total == 40
    assert polls.most <= MOST_READ


def test_slow_requests_after_quick_ones(serve, polls):
    data = http("/") * 300 + http("/page") * 60 + http("/end", Connection="close")
    with Peer.connect(serve(application(polls)).address) as peer:
        gevent.spawn(peer.send, data).join(limit())
        while peer.sock.recv(1 << 16):
            pass
    assert polls.total == 60
    assert polls.most <= MOST_READ


def test_many_tls_handshakes_at_once(serve, certificates, polls, monkeypatch):
    served, trusting = certificates
    hello = ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        trusting.wrap_bio(ssl.MemoryBIO(), hello, server_hostname="127.0.0.1").do_handshake()
    data = hello.read()
    # OpenSSL calls it in each handshake.
    monkeypatch.setattr(served, "sni_callback", lambda *_: polls.step())
    server = serve(Routes(), ssl_context=served)
    peers = [gevent.socket.create_connection(server.address) for _ in range(60)]
    wait_until(lambda: server.admission.open == 60)
    for peer in peers:
        peer.sendall(data)
    wait_until(lambda: polls.total == 60)
    assert polls.most <= MOST_AT_FIRST
    for peer in peers:
        peer.close()


def test_many_connections_at_once(serve, polls):
    class Server(WebSocketServer):
        def do_read(self):
            polls.step()
            return super().do_read()

    server = serve(Routes(), cls=Server)
    peers = [native.create_connection(server.address) for _ in range(60)]
    wait_until(lambda: server.admission.open == 60)
    assert polls.most <= 21
    for peer in peers:
        peer.close()


@pytest.mark.parametrize("opcode", [BINARY, PING])
def test_input_that_nobody_reads_is_taken_in_pieces(pair, monkeypatch, opcode):
    monkeypatch.setattr("greenws.websocket.SECONDS", 0.0)
    socket, peer = pair()
    sent = [b"%05d" % number for number in range(3000)]
    peer.send(b"".join(frame(opcode, data) for data in sent))
    times = 0
    while socket._poll_unread():
        times += 1
    assert times >= 3000 // 64 - 1
    if opcode == BINARY:
        assert [socket.receive(timeout=0) for _ in sent] == sent
    else:
        assert [peer.read_frame() for _ in sent] == [(True, PONG, data) for data in sent]


def http(path, body=b"", method="GET", **headers):
    head = f"{method} {path} HTTP/1.1\r\nHost: x\r\n"
    head += "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    return head.encode() + b"\r\n" + body


def application(polls):
    """What each path costs, in steps."""

    def app(environ, start_response):
        path = environ["PATH_INFO"]
        parts = [b"x"]
        if path == "/page":
            polls.step()
        elif path == "/read":
            while environ["wsgi.input"].read(1):
                polls.step()
        elif path == "/lines":
            for _ in environ["wsgi.input"]:
                polls.step()
        elif path in ("/generated", "/empty", "/longer"):
            parts = generate(b"" if path == "/empty" else b"row")
        headers = [("Content-Length", "3")] if path == "/longer" else []
        write = start_response("200 OK", [("Content-Type", "text/plain"), *headers])
        if path == "/written":
            for _ in range(STEPS):
                polls.step()
                write(b"row")
        return parts

    def generate(part):
        for _ in range(STEPS):
            polls.step()
            yield part

    return app


@pytest.mark.parametrize(
    "data",
    [
        http("/page") * STEPS,
        http("/read", b"x" * STEPS, "POST", Content_Length=STEPS),
        http("/read", b"1\r\nx\r\n" * STEPS + b"0\r\n\r\n", "POST", Transfer_Encoding="chunked"),
        http("/lines", b"\n" * STEPS, "POST", Content_Length=STEPS),
        http("/generated"),
        http("/generated", method="HEAD"),
        http("/longer"),
        http("/empty"),
        http("/written"),
    ],
    ids=[
        *("pipelined", "by length", "in chunks", "lines", "generated", "generated for HEAD"),
        *("longer than promised", "empty parts", "written"),
    ],
)
@pytest.mark.usefixtures("over_tls_too")
def test_http(serve, polls, data):
    server = serve(application(polls))
    with Peer.connect(server.address) as peer:
        gevent.spawn(peer.send, data + http("/end", Connection="close")).join(limit())
        while peer.sock.recv(1 << 16):
            pass
    assert polls.total == STEPS
    assert polls.most <= MOST


def test_heartbeats_that_are_due_at_once(pair, polls):
    class SlowPulse(Pulse):
        def beat(self, now):
            polls.step()
            return float("inf")

    heartbeat = Heartbeat(gevent.get_hub().loop)
    socket, _ = pair()
    config = Config(ping_interval=0.05)
    pulses = [SlowPulse(socket, config, heartbeat) for _ in range(STEPS)]
    wait_until(lambda: polls.total >= STEPS)
    assert polls.most <= MOST
    for pulse in pulses:
        pulse.stop()


# --- from other processes

FLOODS = [
    "messages", "pings", "fragments", "large", "pipelined", "chunks", "lines", "rows",
    "generated", "download",
]  # fmt: skip


@pytest.fixture
def server():
    with Process(PROGRAMS / "flooded_server.py", "1") as process:  # a second of grace
        yield process.wait_for_port()


@pytest.fixture
def patient_server():
    with Process(PROGRAMS / "flooded_server.py", "60") as process:
        yield process.wait_for_port()


def flood(server, name):
    return subprocess.Popen(
        [sys.executable, str(PROGRAMS / "flood.py"), name, str(server.port)],
        stdout=subprocess.PIPE,
    )


def end(process):
    process.kill()
    process.communicate()


@pytest.mark.parametrize("name", FLOODS)
@again_after_standstill(0.3)
def test_another_client_is_served_and_the_server_stops(server, name):
    with Peer.open(server.address, "/echo") as peer:
        flooder = flood(server, name)
        assert flooder.stdout.read(1) == b"x"  # it has begun
        try:
            waits = []
            for _ in range(50):
                began = time.monotonic()
                peer.send(frame(TEXT, b"hello"))
                assert peer.read_frame() == (True, TEXT, b"hello")
                waits.append(time.monotonic() - began)
            assert max(waits) < pace(0.5), sorted(waits)[-5:]
            server.popen.send_signal(signal.SIGTERM)
            server.wait_for("SIGTERM: stopping")
            assert server.popen.wait(limit(4)) == 0  # a second of grace, two for a body to end
        finally:
            end(flooder)


def test_a_second_signal_ends_the_server_in_a_flood(patient_server):
    server = patient_server
    flooder = flood(server, "messages")
    try:
        assert flooder.stdout.read(1) == b"x"
        server.popen.send_signal(signal.SIGTERM)
        server.wait_for("SIGTERM: stopping")
        server.popen.send_signal(signal.SIGTERM)
        assert server.popen.wait(limit(0.5)) in (0, -signal.SIGTERM)
    finally:
        end(flooder)
