"""A server to be attacked."""

from __future__ import annotations

import io
import os
from typing import Any

import gevent

from greenws import Routes

from .limits import again_after_standstill, limit, wait_until
from .wire import CLOSE, TEXT, Peer, close_frame, frame

BODIES: list[bytes] = []


def body(environ: Any, start_response: Any) -> list[bytes]:
    """Reads the whole body, as most applications do, and remembers it."""
    data = environ["wsgi.input"].read()
    BODIES.append(environ["REQUEST_METHOD"].encode() + b" " + data)
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"read %d" % len(data)]


def make_routes() -> Routes:
    routes = Routes()

    @routes.websocket("/ws")
    def echo(request: Any, socket: Any) -> None:
        for message in socket:
            socket.send(message)

    routes.add(uri="/*", method=None, handler=body)
    return routes


class Target:
    """The server under attack, with its log; ``errors`` is what it wrote for its operator."""

    def __init__(self, server: Any, errors: io.StringIO, trusting: Any) -> None:
        self.server = server
        self.errors = errors
        self._trusting = trusting
        config = server.config
        timeouts = [config.handshake_timeout, config.keep_alive_timeout, config.body_timeout]
        timeouts += [config.ping_timeout, config.write_timeout, config.close_timeout]
        self._shortest_timeout = min(filter(None, timeouts))
        self.check_health()  # what a process opens once is open then
        wait_until(lambda: not server.clients)
        self.descriptors = len(os.listdir("/proc/self/fd"))
        BODIES.clear()

    def connect(self) -> Peer:
        peer = Peer.connect(self.server.address)
        if self._trusting is not None:
            peer.sock = self._trusting.wrap_socket(peer.sock, server_hostname="127.0.0.1")
        return peer

    def check_health(self) -> None:
        """A fresh client is served at once, over HTTP and over a WebSocket."""
        again_after_standstill(self._shortest_timeout / 2)(self._check_health)()

    def _check_health(self) -> None:
        with gevent.Timeout(limit(1)), self.connect() as peer:
            peer.send(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
            assert peer.read_response().body == b"read 0"
            assert peer.shake("/ws").status == 101
            peer.send(frame(TEXT, b"well?"))
            assert peer.read_frame() == (True, TEXT, b"well?")
            peer.send(close_frame())
            assert peer.read_frame()[1] == CLOSE

    def lines(self) -> list[str]:
        return self.errors.getvalue().splitlines()
