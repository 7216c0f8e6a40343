"""Servers that attack a client, or are broken: what it does within its limits."""

from __future__ import annotations

import zlib

import gevent
import pytest
from gevent.event import Event

import greenws
from greenws import Config, ConnectionClosed

from ..support.limits import limit
from ..support.raw_server import accepted, raw_server
from ..support.wire import BINARY, CLOSE, CONTINUATION, MASK, PING, PONG, TEXT, close_frame, frame


def server_frame(opcode, payload=b"", **options):
    return frame(opcode, payload, mask=None, **options)


EMPTY = server_frame(CONTINUATION, fin=False)


def connect(server, **options):
    return greenws.connect(
        server.url,
        proxy=None,
        open_timeout=limit(),
        config=Config(close_timeout=limit(), **options),
    )


def closed(connection):
    """The code of the client's Close."""
    while True:
        _, opcode, payload = connection.read_client_frame()
        if opcode == CLOSE:
            return int.from_bytes(payload[:2], "big")


@pytest.mark.parametrize(
    ("data", "code", "match"),
    [
        (frame(TEXT, b"hi", mask=MASK), 1002, "must not mask"),
        (server_frame(TEXT, b"", length=1 << 20 | 1), 1009, "max_message_size"),
        (server_frame(BINARY, b"", length=(1 << 63) - 1), 1009, "max_message_size"),
        (server_frame(TEXT, b"\xff"), 1007, "UTF-8"),
        (server_frame(TEXT, b"a", rsv=4), 1002, "reserved bits"),
        (server_frame(3), 1002, "reserved"),
        (server_frame(CONTINUATION, b"a"), 1002, "continu"),
        (server_frame(PING, b"x" * 126), 1002, "125"),
        (
            server_frame(TEXT, fin=False) + server_frame(CONTINUATION, fin=False) * 4096,
            1008,
            "frag",
        ),
        (close_frame(1006, mask=None), 1002, "1006"),
        (close_frame(999, mask=None), 1002, "999"),
    ],
)
def test_a_violation_is_answered_with_its_code(data, code, match):
    seen = []

    def serve(connection):
        connection.accept("Sec-WebSocket-Extensions: ", early=data)
        seen.append(closed(connection))

    with raw_server(serve) as server:
        with connect(server) as socket, pytest.raises(ConnectionClosed, match=match) as caught:
            socket.receive(limit())
        assert caught.value.code == code
    assert seen == [code]


def test_a_bomb_is_not_inflated():
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    bomb = packer.compress(bytes(1 << 24)) + packer.flush(zlib.Z_SYNC_FLUSH)
    seen = []

    def serve(connection):
        connection.accept(
            "Sec-WebSocket-Extensions: permessage-deflate; server_no_context_takeover",
            early=server_frame(BINARY, bomb[:-4], rsv=4),
        )
        seen.append(closed(connection))

    with raw_server(serve) as server, connect(server) as socket:
        with pytest.raises(ConnectionClosed) as caught:
            socket.receive(limit())
        assert caught.value.code == 1009
    assert seen == [1009]


def test_a_flood_of_messages_fills_no_memory():
    """A client that does not read stops the server, not its own memory."""
    payload = server_frame(BINARY, bytes(100_000))
    sent = 0

    def serve(connection):
        nonlocal sent
        connection.accept()
        connection.sock.settimeout(None)
        while True:
            connection.send(payload)
            sent += len(payload)

    with raw_server(serve) as server:
        socket = connect(server)
        before = -1
        with gevent.Timeout(limit()):
            while before != sent:
                before = sent
                gevent.sleep(0.05)
        assert sent < 1 << 26
        for _ in range(10):
            assert len(socket.receive(limit())) == 100_000
        socket._abandon(1001)


def test_a_flood_of_pings_is_answered_and_lets_others_run():
    def serve(connection):
        connection.accept()
        for _ in range(100):
            connection.send(server_frame(PING, b"?") * 100)
        connection.send(server_frame(TEXT, b"done"))
        for _ in range(10_000):
            assert connection.read_client_frame() == (True, PONG, b"?")
        assert closed(connection) == 1000
        connection.send(close_frame(mask=None))

    with raw_server(serve) as server, connect(server) as socket:
        assert socket.receive(limit(20)) == "done"


def test_tcp_that_is_half_closed_is_a_lost_connection():
    def serve(connection):
        connection.accept(early=server_frame(TEXT, b"last"))
        connection.sock.shutdown(1)
        connection.hold()

    with raw_server(serve) as server, connect(server) as socket:
        assert socket.receive(limit()) == "last"
        with pytest.raises(ConnectionClosed) as caught:
            socket.receive(limit())
        assert caught.value.code == 1006
        with pytest.raises(ConnectionClosed):
            socket.send("x")


@pytest.mark.parametrize("piece", [b"\x81", b"\x81\x05hel", b"\x81\x7e\x00"])
def test_a_stream_that_ends_in_a_frame_is_a_lost_connection(piece):
    def serve(connection):
        connection.accept(early=piece)

    with raw_server(serve) as server, connect(server) as socket:
        with pytest.raises(ConnectionClosed) as caught:
            socket.receive(limit())
        assert caught.value.code == 1006


def test_a_server_that_never_answers_a_close_is_left():
    def serve(connection):
        connection.accept()
        connection.hold()

    with raw_server(serve) as server:
        socket = greenws.connect(server.url, proxy=None, config=Config(close_timeout=0.05))
        with gevent.Timeout(limit()):
            socket.close()
        assert socket.close_code == 1006 and "close_timeout" in socket.close_reason


def test_a_server_that_reads_nothing_does_not_hold_a_sender_for_ever():
    is_over = Event()

    def serve(connection):
        connection.accept()
        is_over.wait()

    with raw_server(serve) as server:
        config = Config(write_timeout=0.1, write_high_water=1 << 16, ping_interval=None)
        socket = greenws.connect(server.url, proxy=None, config=config)
        with gevent.Timeout(limit()), pytest.raises(ConnectionClosed, match="write_timeout"):
            while True:
                socket.send(bytes(1 << 20))
        socket.close()
        is_over.set()


def test_what_a_server_sends_after_its_close_is_ignored():
    def serve(connection):
        connection.accept(early=close_frame(mask=None) + server_frame(TEXT, b"late") * 1000)
        connection.hold()

    with raw_server(serve) as server, connect(server) as socket:
        assert list(socket) == []
        assert socket.close_code == 1000


@pytest.mark.parametrize("position", [0, 9, 40, 90])
def test_a_response_that_stops_anywhere_is_a_timeout(position):
    def serve(connection):
        key = connection.read_request()["sec-websocket-key"]
        connection.send(accepted(key)[:position])
        connection.hold()

    with raw_server(serve) as server, pytest.raises(TimeoutError, match="open_timeout"):
        greenws.connect(server.url, proxy=None, open_timeout=0.05)


def test_a_response_that_trickles_is_a_timeout():
    def serve(connection):
        connection.read_request()
        connection.send(b"HTTP/1.1 101 Ok\r\n")
        while True:
            connection.send(b"X: y\r\n")
            gevent.sleep(0.005)

    with raw_server(serve) as server, pytest.raises(TimeoutError, match="open_timeout"):
        greenws.connect(server.url, proxy=None, open_timeout=0.1)
