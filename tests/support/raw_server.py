"""A server by hand: what it sends to a client, right or wrong, is written in the test."""

from __future__ import annotations

import base64
import contextlib
import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import gevent
from gevent import socket
from gevent.server import StreamServer

from .limits import limit
from .wire import Peer

GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


class Connection(Peer):
    """The server's end of a connection. ``head`` is the request's, as it was read."""

    head: list[str] = []

    def read_request(self) -> dict[str, str]:
        """The headers of the request, with names in lower case."""
        while b"\r\n\r\n" not in self.buffer:
            if not self._fill():
                raise EOFError(f"the stream ended in the head: {self.buffer!r}")
        head, self.buffer = self.buffer.split(b"\r\n\r\n", 1)
        self.head = head.decode("latin-1").split("\r\n")
        pairs = (line.split(": ", 1) for line in self.head[1:])
        return {name.lower(): value for name, value in pairs}

    def accept(self, *lines: str, early: bytes = b"") -> dict[str, str]:
        """Reads the handshake and accepts it, with additional headers."""
        headers = self.read_request()
        self.send(accepted(headers["sec-websocket-key"], *lines) + early)
        return headers

    def refuse(self, status: str, *lines: str, body: str = "") -> dict[str, str]:
        headers = self.read_request()
        head = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *lines]
        self.send(("\r\n".join(head) + "\r\n\r\n" + body).encode())
        return headers

    def hold(self) -> None:
        """Reads on until the client ends its stream."""
        while self._fill():
            self.buffer = b""

    def read_client_frame(self) -> tuple[bool, int, bytes]:
        """(fin, opcode, payload) of a masked frame."""
        first, second = self.read(2)
        assert not first & 0x70, "reserved bits"
        assert second & 0x80, "a client must mask"
        size = second & 0x7F
        if size == 126:
            size = int.from_bytes(self.read(2), "big")
        elif size == 127:
            size = int.from_bytes(self.read(8), "big")
        mask = self.read(4)
        payload = self.read(size)
        return (
            bool(first & 0x80),
            first & 15,
            bytes(byte ^ mask[i % 4] for i, byte in enumerate(payload)),
        )


def accepted(key: str, *lines: str) -> bytes:
    digest = base64.b64encode(hashlib.sha1(key.encode() + GUID).digest()).decode()
    head = [
        "HTTP/1.1 101 Switching Protocols",
        "Upgrade: websocket",
        "Connection: Upgrade",
        f"Sec-WebSocket-Accept: {digest}",
        *lines,
    ]
    return ("\r\n".join(head) + "\r\n\r\n").encode("latin-1")


class RawServer:
    """Calls ``handle(connection)`` for each connection, in a greenlet of its own."""

    def __init__(
        self, handle: Callable[[Connection], object], family: Any = socket.AF_INET, **options: Any
    ) -> None:
        self.handle = handle
        self.connections = 0
        self.errors: list[Exception] = []
        address = ("127.0.0.1", 0) if family == socket.AF_INET else ("::1", 0)
        self.server = StreamServer(address, self._serve, **options)
        self.server.start()
        self.port: int = self.server.server_port
        self.url = f"{'wss' if options else 'ws'}://127.0.0.1:{self.port}"

    def _serve(self, sock: Any, address: Any) -> None:
        self.connections += 1
        connection = Connection(sock)
        try:
            self.handle(connection)
        except (OSError, EOFError):  # the client is gone, as it may be
            pass
        except Exception as error:
            self.errors.append(error)
        finally:
            connection.close()

    def stop(self) -> None:
        self.server.stop(timeout=limit(1))
        assert self.errors == []


@contextlib.contextmanager
def raw_server(handle: Callable[[Connection], object], **options: Any) -> Iterator[RawServer]:
    server = RawServer(handle, **options)
    try:
        yield server
    finally:
        server.stop()
        gevent.sleep(0)
