"""Who counts as gone: a slow reader does not, as long as its TCP acknowledges what was sent."""

from __future__ import annotations

import sys

import gevent
import pytest
from gevent import socket as gevent_socket
from gevent.event import Event

from greenws import Config, ConnectionClosed, Routes

from .support.limits import again_after_standstill, limit, wait_until
from .support.wire import BINARY, CLOSE, PING, PONG, Peer, close_frame, frame

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the kernel must tell")

KERNEL = 1 << 18  # bytes that the kernel takes from the server, and may double
WINDOW = 1 << 13  # of the client's receive buffer
CHUNK = 1 << 13  # bytes that a slow client reads at a time
PAUSE = 0.04  # seconds in between: 200 kB/s


class Session:
    """One session of a server: sends ``size`` bytes, and then what ``then(socket)`` does."""

    def __init__(self, serve, certificates, size, then, config):
        self.over = Event()
        self.outcome = None
        self.trusting = certificates[1]
        routes = Routes()

        @routes.websocket("/")
        def session(request, socket):
            try:
                socket.send(bytes(size))
                then(socket)
            except ConnectionClosed as error:
                self.outcome = error
            finally:
                self.over.set()

        self.server = serve(routes, config=config)
        self.server.socket.setsockopt(gevent_socket.SOL_SOCKET, gevent_socket.SO_SNDBUF, KERNEL)

    def connect(self):
        sock = gevent_socket.socket()
        sock.setsockopt(gevent_socket.SOL_SOCKET, gevent_socket.SO_RCVBUF, WINDOW)
        sock.connect(self.server.address)
        if self.server.ssl_args:
            sock = self.trusting.wrap_socket(sock, server_hostname="127.0.0.1")
        peer = SlowPeer(sock, limit())
        assert peer.shake().status == 101
        return peer


class SlowPeer(Peer):
    """Reads without a pause, but slowly; answers pings and Close when it gets to them."""

    def _fill(self):
        gevent.sleep(PAUSE)
        data = self.sock.recv(CHUNK)
        self.buffer += data
        return bool(data)

    def read_all(self):
        """The sizes of the messages, up to the Close of the server or the end of the stream."""
        sizes = []
        while True:
            try:
                fin, opcode, payload = self.read_frame()
            except EOFError:
                return sizes, False
            if opcode == PING:
                self.send(frame(PONG, payload))
            elif opcode == CLOSE:
                self.send(close_frame())
                return sizes, True
            else:
                assert (fin, opcode) == (True, BINARY)
                sizes.append(len(payload))


@pytest.fixture
def session(serve, certificates, over_tls_too):
    def start(size, then=lambda socket: None, **options):
        return Session(serve, certificates, size, then, Config(**options))

    return start


@again_after_standstill(0.1)
def test_a_slow_reader_is_not_dropped_by_write_timeout(session):
    """The kernel takes more of us only when much is free, which lasts longer than the timeout."""
    size = 3 * KERNEL
    served = session(size, write_timeout=0.4, write_high_water=1, close_timeout=0.4)
    with served.connect() as peer:
        assert peer.read_all() == ([size], True)
    served.over.wait(limit())
    assert served.outcome is None


@again_after_standstill(0.1)
def test_a_slow_reader_is_not_dropped_by_ping_timeout(session):
    size = KERNEL  # the kernel takes it all, and every ping waits after it
    served = session(
        size, lambda socket: socket.receive(), ping_interval=0.1, ping_timeout=0.4, close_timeout=2
    )
    with served.connect() as peer:
        sizes = []
        while not sizes:
            fin, opcode, payload = peer.read_frame()
            if opcode == PING:
                peer.send(frame(PONG, payload))
            else:
                sizes.append(len(payload))
        assert sizes == [size]
        peer.send(frame(BINARY, b"got it"))
        served.over.wait(limit())
        assert served.outcome is None
        assert peer.read_all() == ([], True)


@again_after_standstill(0.1)
def test_a_slow_reader_that_has_answered_a_ping_before_is_not_dropped(session):
    """What an answered ping has shown to be delivered says nothing of what was sent behind it."""

    def send_later(socket):
        wait_until(lambda: socket.latency is not None)
        socket.send(bytes(KERNEL))
        socket.receive()

    served = session(10, send_later, ping_interval=0.1, ping_timeout=0.4, close_timeout=2)
    with served.connect() as peer:
        sizes = []
        while len(sizes) < 2:
            fin, opcode, payload = peer.read_frame()
            if opcode == PING:
                peer.send(frame(PONG, payload))
            else:
                sizes.append(len(payload))
        assert sizes == [10, KERNEL]
        peer.send(frame(BINARY, b"got it"))
        served.over.wait(limit())
        assert served.outcome is None
        assert peer.read_all() == ([], True)


@again_after_standstill(0.1)
def test_a_late_answer_to_an_earlier_ping_proves_nothing_about_later_bytes(session):
    go_on = Event()

    def send_later(socket):
        go_on.wait(limit())
        socket.send(bytes(KERNEL))
        socket.receive()

    served = session(10, send_later, ping_interval=0.1, ping_timeout=0.4, close_timeout=2)
    with served.connect() as peer:
        assert len(peer.read_frame()[2]) == 10
        _, opcode, first = peer.read_frame()
        assert opcode == PING
        go_on.set()
        gevent.sleep(0.15)  # another ping is sent, after the message
        peer.send(frame(PONG, first))
        sizes = []
        while not sizes:
            _, opcode, payload = peer.read_frame()
            if opcode == PING:
                peer.send(frame(PONG, payload))
            else:
                sizes.append(len(payload))
        assert sizes == [KERNEL]
        peer.send(frame(BINARY, b"got it"))
        served.over.wait(limit())
        assert served.outcome is None
        assert peer.read_all() == ([], True)


@again_after_standstill(0.1)
def test_a_slow_reader_gets_what_was_sent_before_close(session):
    size = 3 * KERNEL
    served = session(size, write_timeout=0.4, write_high_water=None, close_timeout=0.4)
    with served.connect() as peer:
        assert peer.read_all() == ([size], True)


@again_after_standstill(0.1)
def test_a_reader_that_stops_is_dropped_by_write_timeout_and_the_reason_says_so(session):
    served = session(8 * KERNEL, write_timeout=0.4, write_high_water=1)
    with served.connect() as peer:
        peer._fill()
        served.over.wait(limit())
        assert "acknowledged nothing for 0.4 s (write_timeout)" in str(served.outcome)


@again_after_standstill(0.1)
def test_a_reader_that_stops_is_dropped_by_ping_timeout_and_the_reason_says_so(session):
    served = session(KERNEL, lambda socket: socket.receive(), ping_interval=0.1, ping_timeout=0.4)
    with served.connect() as peer:
        peer._fill()
        served.over.wait(limit())
        reason = "no data within 0.4 s after a ping, which the peer's TCP has not acknowledged"
        assert reason in str(served.outcome)


@again_after_standstill(0.1)
def test_an_acknowledged_ping_that_nobody_answers_counts_as_ever(session):
    """Bytes that are sent later are acknowledged too, and do not put off the end."""

    def go_on(socket):
        while True:
            socket.send(b"more")
            gevent.sleep(0.05)

    served = session(10, go_on, ping_interval=0.1, ping_timeout=0.4)
    with served.connect() as peer:
        reading = gevent.spawn(_drop_all, peer)
        served.over.wait(limit())
        reason = "no data within 0.4 s after a ping, which the peer's TCP has acknowledged"
        assert reason in str(served.outcome)
        reading.get(timeout=limit())


def _drop_all(peer):
    while peer.sock.recv(1 << 16):
        pass


@again_after_standstill(0.1)
def test_a_peer_that_has_read_all_and_ignores_close_is_dropped_in_time(session):
    served = session(10, lambda socket: socket.close(), close_timeout=0.3)
    with served.connect() as peer:
        assert peer.read_frame()[1] == BINARY
        assert peer.read_frame()[1] == CLOSE
        with gevent.Timeout(limit()):
            _drop_all(peer)
    wait_until(served.over.is_set)
