"""Closing the sessions of a server that stops over some seconds (``shutdown_drain``)."""

from __future__ import annotations

import time

import gevent

from greenws import Config, Routes

from ..support.limits import again_after_standstill, limit, pace
from ..support.wire import CLOSE, Peer, close_frame


def finishing(peer):
    """Reads the Close, and answers it."""
    assert peer.read_frame() == (True, CLOSE, b"\x03\xe9")
    peer.send(close_frame(1001))
    assert peer.at_end()
    peer.close()


def echo():
    routes = Routes()

    @routes.websocket("/echo")
    def session(request, socket):
        for message in socket:
            socket.send(message)

    return routes


@again_after_standstill(0.1)
def test_closes_are_spread_over_shutdown_drain_in_random_order(serve):
    server = serve(echo(), config=Config(shutdown_drain=0.5))
    peers = [Peer.open(server.address, "/echo") for _ in range(40)]
    closed = []

    def close(number):
        finishing(peers[number])
        closed.append((number, time.monotonic()))

    began = time.monotonic()
    closing = [gevent.spawn(close, number) for number in range(40)]
    stopping = gevent.spawn(server.stop)
    gevent.joinall([stopping, *closing], timeout=limit(), raise_error=True)
    first, last = closed[0][1] - began, closed[-1][1] - began
    assert last > 0.45
    assert last - first > 0.3
    assert [number for number, _ in closed] != list(range(40))
    assert server.stats.closes == {1001: 40}


@again_after_standstill(0.05)
def test_a_drain_ends_with_the_grace(serve):
    server = serve(echo(), config=Config(shutdown_drain=60))
    peers = [Peer.open(server.address, "/echo") for _ in range(5)]
    closing = [gevent.spawn(finishing, peer) for peer in peers]
    began = time.monotonic()
    server.stop(grace=0.4)  # a quarter of it for the answers
    assert time.monotonic() - began < pace(2)
    gevent.joinall(closing, timeout=limit(), raise_error=True)
    assert server.stats.closes == {1001: 5}
