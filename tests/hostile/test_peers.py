"""Hostile peers: floods, silence, resets, and a Close that is not answered."""

from __future__ import annotations

import contextlib
import os
import resource
import struct
import time

import gevent
import pytest
from gevent import socket

import greenws

from ..support.limits import again_after_standstill, pace, stays, wait_until
from ..support.wire import BINARY, CLOSE, PING, PONG, TEXT, Peer, close_frame, frame, request

CODES: list[int | None] = []


@pytest.fixture
def routes():
    """What sessions do while they are attacked; each notes with what code it ended."""
    routes = greenws.Routes()
    CODES.clear()

    def noting(function):
        def session(request, socket):
            try:
                function(socket)
            finally:
                CODES.append(socket.close_code)

        return session

    def echo(socket):
        for message in socket:
            socket.send(message)

    def flood(socket):
        while True:
            socket.send(b"x" * 100_000)

    def count(socket):
        with contextlib.suppress(greenws.ConnectionClosed):
            for i, _ in enumerate(socket):
                socket.send(str(i))

    def deaf(socket):
        while socket.is_connected:
            gevent.sleep(0.02)

    def closing(socket):
        socket.close(1001)

    for name, function in {
        "/ws": echo,
        "/flood": flood,
        "/count": count,
        "/deaf": deaf,
        "/closing": closing,
    }.items():
        routes.websocket(name)(noting(function))

    def page(environ, start_response):
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"read 0"]

    routes.add(uri="/*", handler=page)
    return routes


def open_at(target, path="/ws"):
    CODES.clear()  # of the sessions before this one
    peer = target.connect()
    assert peer.shake(path).status == 101
    return peer


def ended():
    return wait_until(lambda: CODES)[0]


def memory():
    """Bytes that this process has in memory."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def trickle(peer, data):
    """Sends until the server has enough of it."""
    with contextlib.suppress(OSError):
        while True:
            peer.send(data)
            gevent.sleep(0)  # the server lives in this process too


def test_a_client_that_never_reads_is_dropped_and_its_outbox_is_bounded(attack, routes):
    with attack(routes=routes, write_timeout=0.2, write_high_water=200_000) as target:
        before = memory()
        with open_at(target, "/flood"):
            assert ended() == 1006
            assert memory() - before < 16_000_000


def test_the_answers_to_a_flood_of_pings_are_bounded(attack, routes):
    with attack(routes=routes, write_timeout=0.3) as target:
        before = memory()
        with open_at(target) as peer:
            flooding = gevent.spawn(trickle, peer, frame(PING, b"x" * 125) * 200)
            assert ended() == 1006  # it reads none of the answers
            flooding.kill()
            assert memory() - before < 16_000_000


def test_a_flood_of_pings_does_not_starve_the_others(attack, routes):
    with attack(routes=routes) as target, open_at(target) as peer:

        def drain():
            with contextlib.suppress(OSError):
                while peer.sock.recv(65536):
                    gevent.sleep(0)

        greenlets = [gevent.spawn(trickle, peer, frame(PING) * 200), gevent.spawn(drain)]
        for _ in range(3):
            target.check_health()
        gevent.killall(greenlets)


def test_a_flood_of_messages_ends_with_1008_where_it_is_limited(attack, routes):
    with attack(routes=routes, max_message_rate=50) as target:
        with open_at(target) as peer:
            began, came = time.monotonic(), 0
            peer.send(frame(TEXT, b"x") * 1000)
            while (got := peer.read_frame()) == (True, TEXT, b"x"):
                came += 1
            # Those of a second at once, and more only while the flood is being read.
            assert 50 <= came <= 50 + 50 * (time.monotonic() - began)
            assert got[:2] == (True, CLOSE)
        assert ended() == 1008


def test_an_endless_message_of_empty_fragments_ends_with_1008(attack, routes):
    with attack(routes=routes, max_fragments=1000) as target:
        with open_at(target) as peer:
            flooding = gevent.spawn(trickle, peer, frame(0, fin=False) * 500)
            flooding.kill()
        with open_at(target) as peer:
            peer.send(frame(TEXT, b"", fin=False) + frame(0, fin=False) * 2000)
            fin, opcode, payload = peer.read_frame()
            assert opcode == CLOSE and payload[:2] == struct.pack("!H", 1008)


@pytest.mark.parametrize("length", [(1 << 20) + 1, (1 << 63) - 1])
def test_nothing_is_allocated_for_a_length_that_is_only_announced(attack, routes, length):
    with attack(routes=routes) as target:
        before = memory()
        with open_at(target) as peer:
            peer.send(frame(BINARY, b"", length=length, length_bytes=8))
            fin, opcode, payload = peer.read_frame()
            assert opcode == CLOSE and payload[:2] == struct.pack("!H", 1009)
        assert memory() - before < 8_000_000


def test_unread_messages_are_bounded(attack, routes):
    with attack(routes=routes, ping_interval=0.05, max_message_size=100_000) as target:
        before = memory()
        with open_at(target, "/deaf") as peer:
            flooding = gevent.spawn(trickle, peer, frame(BINARY, b"x" * 90_000))
            stays(lambda: memory() - before < 16_000_000, 0.5)
            flooding.kill()
            peer.reset()
        ended()


@pytest.mark.parametrize("path", ["/closing", "/ws"])
@again_after_standstill(0.2)
def test_a_peer_that_ignores_close_is_dropped(attack, routes, path):
    with attack(routes=routes, close_timeout=0.2, ping_interval=None) as target:
        began = time.monotonic()
        with open_at(target, path) as peer:
            if path == "/ws":
                peer.send(b"\xff\xff")  # has the server close
            else:
                assert peer.read_frame()[1] == CLOSE
            with contextlib.suppress(OSError):
                while True:  # goes on sending
                    peer.send(frame(TEXT, b"deaf"))
                    gevent.sleep(0.01)
            assert time.monotonic() - began < pace(1)
        ended()


@again_after_standstill(0.2)
def test_a_peer_that_vanished_is_detected(attack, routes):
    """A half-open connection: nothing arrives, not even the end of the stream."""
    with attack(routes=routes, ping_interval=0.1, ping_timeout=0.1) as target:
        began = time.monotonic()
        with open_at(target):
            assert ended() == 1006
            assert time.monotonic() - began < pace(1)
        assert target.server.stats.pings_timed_out == 1


def test_a_peer_that_ended_only_its_own_half(attack, routes):
    with attack(routes=routes) as target:
        with open_at(target) as peer:
            peer.send(frame(TEXT, b"last"))
            peer.sock.shutdown(socket.SHUT_WR)
            assert ended() == 1006


@pytest.mark.parametrize("cut", [1, 3, 8, 20, 1000])
def test_a_reset_in_mid_frame(attack, routes, cut):
    with attack(routes=routes) as target:
        peer = open_at(target)
        peer.send(frame(BINARY, b"x" * 5000)[:cut])
        gevent.sleep(0.01)
        peer.reset()
        assert ended() == 1006


def test_resets_at_every_moment(attack, routes):
    with attack(routes=routes) as target:
        for i in range(40):
            peer = target.connect()
            peer.send(request("/ws") + frame(TEXT, b"x" * 50) * 3)
            for _ in range(i % 4):
                gevent.sleep(0)
            peer.reset()
        wait_until(lambda: target.server.stats.connections_open == 0)


def test_a_hundred_silent_peers_do_not_keep_their_descriptors(attack, routes):
    options = {"ping_interval": 0.1, "ping_timeout": 0.1}
    with attack(routes=routes, **options) as target:
        peers = [open_at(target) for _ in range(50)]
        target.check_health()
        wait_until(lambda: target.server.stats.connections_open == 0)
        assert len(os.listdir("/proc/self/fd")) >= 50
        for peer in peers:
            peer.close()


def test_unsolicited_pongs_and_pings_between_fragments_change_nothing(attack, routes):
    with attack(routes=routes) as target, open_at(target) as peer:
        peer.send(
            frame(TEXT, b"a", fin=False)
            + frame(PONG, b"unsolicited") * 100
            + frame(PING, b"p")
            + frame(0, b"b")
            + close_frame()
        )
        frames = [peer.read_frame() for _ in range(3)]
        assert frames[0] == (True, PONG, b"p")
        assert frames[1] == (True, TEXT, b"ab")
        assert frames[2][1] == CLOSE


def test_more_connections_than_allowed_are_turned_away_and_the_rest_served(attack, routes):
    with attack(routes=routes, max_connections=10) as target:
        peers = [open_at(target) for _ in range(10)]
        others = [Peer.connect(target.server.address) for _ in range(30)]
        for other in others:
            with contextlib.suppress(ConnectionResetError):
                while other._fill():
                    pass
            assert other.buffer == b"" or b" 503 " in other.buffer
            other.close()
        peers[0].send(frame(TEXT, b"still here"))
        assert peers[0].read_frame() == (True, TEXT, b"still here")
        for peer in peers:
            peer.close()
        wait_until(lambda: target.server.admission.open == 0)
