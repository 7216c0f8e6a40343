"""A TCP proxy that can cut its connections: before what a client sends reaches the server, or
before the answer comes back."""

from __future__ import annotations

import contextlib
from typing import Any

import gevent
from gevent import socket
from gevent.server import StreamServer

__all__ = ["CuttingProxy"]


class CuttingProxy:
    """``requests_to_cut``, ``answers_to_cut``: so many connections are cut when their client next
    sends something that holds ``marker``."""

    def __init__(self, port: int, marker: bytes) -> None:
        self.requests_to_cut = 0
        self.answers_to_cut = 0
        self.cuts = 0
        self.connections = 0
        self._target = ("127.0.0.1", port)
        self._marker = marker
        self._server = StreamServer(("127.0.0.1", 0), self._serve)
        self._server.start()
        self.port = self._server.server_port

    def _serve(self, client: Any, address: Any) -> None:
        self.connections += 1
        with contextlib.suppress(OSError), client, socket.create_connection(self._target) as server:
            back = gevent.spawn(self._hand_back, server, client)
            try:
                self._hand_on(client, server, back)
            finally:
                back.kill()

    def _hand_on(self, client: Any, server: Any, back: Any) -> None:
        while data := client.recv(65536):
            if self._marker in data and self.requests_to_cut:
                self.requests_to_cut -= 1
                self.cuts += 1
                return
            if self._marker in data and self.answers_to_cut:
                self.answers_to_cut -= 1
                self.cuts += 1
                back.kill()
                server.sendall(data)
                server.recv(65536)  # so the server has done it
                return
            server.sendall(data)

    def _hand_back(self, server: Any, client: Any) -> None:
        with contextlib.suppress(OSError):
            while data := server.recv(65536):
                client.sendall(data)
            client.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self._server.stop()

    def __enter__(self) -> CuttingProxy:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
