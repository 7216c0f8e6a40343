"""Scarce memory, greenlets killed anywhere, and thousands of handshakes at once."""

from __future__ import annotations

import resource

import gevent
from gevent import socket as gevent_socket
from gevent.event import Event

from greenws import Routes

from ..support.limits import limit
from ..support.processes import PROGRAMS, Process
from ..support.wire import CONTINUATION, TEXT, Peer, close_frame, frame, request

HANDSHAKES = 4000
PART = frame(CONTINUATION, b"x" * (1 << 20), fin=False)


def test_a_server_without_memory_fails_sessions_and_serves_on():
    with Process(PROGRAMS / "scarce_server.py").wait_for_port() as server:
        failed = Event()

        def upload():
            with Peer.open(server.address, "/echo") as peer:
                peer.sock.settimeout(limit(20))
                try:
                    peer.send(frame(TEXT, fin=False))
                    for _ in range(20):  # 20 MB each, 600 MB in all, where 200 are there
                        peer.send(PART)
                    peer.read(1)  # nothing, but for a Close
                except (OSError, EOFError):
                    pass
                failed.set()

        uploads = [gevent.spawn(upload) for _ in range(30)]
        assert failed.wait(limit(30))
        gevent.killall(uploads)
        with Peer.open(server.address, "/echo") as peer:
            peer.send(frame(TEXT, b"still here"))
            assert peer.read_frame() == (True, TEXT, b"still here")
        assert server.popen.poll() is None


def test_a_session_may_be_killed_at_every_switch(serve):
    routes = Routes()

    @routes.websocket("/")
    def session(request, socket):
        for message in socket:
            socket.send(message * 1000)
            gevent.sleep(0)
            socket.send(message, compress=True)

    server = serve(routes)
    for switches in range(40):
        peer = Peer.connect(server.address)
        peer.send(request() + frame(TEXT, b"message" * 100) * 3 + close_frame())
        for _ in range(switches):
            gevent.sleep(0)
        gevent.killall(list(server.admission.greenlets), timeout=limit())
        peer.close()
    assert not server.admission.open and not server.admission.busy
    assert server.stats.connections_open == 0
    with Peer.open(server.address) as peer:
        peer.send(frame(TEXT, b"x"))
        assert peer.read_frame() == (True, TEXT, b"x" * 1000)


def test_thousands_of_handshakes_at_once():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, HANDSHAKES + 500), hard))
    try:
        with Process(PROGRAMS / "scarce_server.py").wait_for_port() as server:
            peers = []
            for _ in range(HANDSHAKES):
                sock = gevent_socket.create_connection(server.address)
                sock.settimeout(limit(30))
                peers.append(Peer(sock, limit(30)))
            for peer in peers:
                peer.send(request("/echo") + frame(TEXT, b"x"))
            for peer in peers:
                assert peer.read_response().status == 101
                assert peer.read_frame() == (True, TEXT, b"x")
                peer.close()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
