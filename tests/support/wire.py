"""The wire, by hand: frames built and read without a line of greenws, and a raw client.

What the tests compare with must not share a mistake with what they test.
"""

from __future__ import annotations

import struct
from typing import Any

import gevent
from gevent import socket

from .limits import limit

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10

MASK = b"\x37\xfa\x21\x3d"


def frame(
    opcode: int,
    payload: bytes = b"",
    *,
    fin: bool = True,
    rsv: int = 0,
    mask: bytes | None = MASK,
    length: int | None = None,
    length_bytes: int | None = None,
) -> bytes:
    """A frame, right or wrong; ``mask=None`` leaves it unmasked, as a server sends it.

    ``length`` announces another length than the payload's, ``length_bytes`` (0, 2 or 8) forces the
    size of the extended length.
    """
    size = len(payload) if length is None else length
    if length_bytes is None:
        length_bytes = 0 if size < 126 else 2 if size < 65536 else 8
    head = bytes([(fin << 7) | (rsv << 4) | opcode])
    flag = 0x80 if mask is not None else 0
    if length_bytes == 0:
        head += bytes([flag | size])
    elif length_bytes == 2:
        head += bytes([flag | 126]) + struct.pack("!H", size)
    else:
        head += bytes([flag | 127]) + struct.pack("!Q", size)
    if mask is None:
        return head + payload
    key = (mask * (len(payload) // 4 + 1))[: len(payload)]
    masked = int.from_bytes(payload, "big") ^ int.from_bytes(key, "big")
    return head + mask + masked.to_bytes(len(payload), "big")


def close_frame(code: int | None = 1000, reason: bytes = b"", **options: Any) -> bytes:
    body = b"" if code is None else struct.pack("!H", code) + reason
    return frame(CLOSE, body, **options)


HANDSHAKE_HEADERS = {
    "Host": "example.com",
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    "Sec-WebSocket-Version": "13",
}


def request(path: str = "/", *, method: str = "GET", version: str = "1.1", **headers: Any) -> bytes:
    """An opening handshake; ``headers`` (``_`` for ``-``) override, and None removes."""
    fields: dict[str, str | None] = dict(HANDSHAKE_HEADERS)
    names = {name.lower(): name for name in fields}
    for key, value in headers.items():
        name = key.replace("_", "-")
        fields[names.get(name.lower(), name)] = value
    lines = [f"{method} {path} HTTP/{version}"]
    lines += [f"{name}: {value}" for name, value in fields.items() if value is not None]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


class Response:
    def __init__(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body


class Peer:
    """A raw client on a gevent socket; whatever it waits for has a limit in time."""

    def __init__(self, sock: Any, timeout: float | None = None) -> None:
        self.sock = sock
        self.sock.settimeout(limit() if timeout is None else timeout)
        self.buffer = b""

    @classmethod
    def connect(cls, address: Any, timeout: float | None = None) -> Peer:
        return cls(socket.create_connection(address), timeout)

    @classmethod
    def open(cls, address: Any, path: str = "/", early: bytes = b"", **headers: Any) -> Peer:
        """Connects and shakes hands; ``early`` is sent after the request, in the same segment."""
        peer = cls.connect(address)
        response = peer.shake(path, early, **headers)
        assert response.status == 101, (response.status, response.body)
        return peer

    def shake(self, path: str = "/", early: bytes = b"", **headers: Any) -> Response:
        self.send(request(path, **headers) + early)
        return self.read_response()

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def _fill(self) -> bool:
        data = self.sock.recv(65536)
        self.buffer += data
        return bool(data)

    def read(self, size: int) -> bytes:
        while len(self.buffer) < size:
            if not self._fill():
                raise EOFError(f"the stream ended at {len(self.buffer)} of {size} bytes")
        data, self.buffer = self.buffer[:size], self.buffer[size:]
        return data

    def read_response(self) -> Response:
        while b"\r\n\r\n" not in self.buffer:
            if not self._fill():
                raise EOFError(f"the stream ended in the head: {self.buffer!r}")
        head, self.buffer = self.buffer.split(b"\r\n\r\n", 1)
        lines = head.decode("latin-1").split("\r\n")
        headers = {}
        for line in lines[1:]:
            name, value = line.split(":", 1)
            headers[name.lower()] = value.strip()
        body = self.read(int(headers.get("content-length", "0")))
        return Response(int(lines[0].split()[1]), headers, body)

    def read_frame(self) -> tuple[bool, int, bytes]:
        """(fin, opcode, payload) of an unmasked frame without reserved bits."""
        first, second = self.read(2)
        assert not first & 0x70, "reserved bits"
        assert not second & 0x80, "a server must not mask"
        size = second
        if second == 126:
            (size,) = struct.unpack("!H", self.read(2))
            assert size > 125
        elif second == 127:
            (size,) = struct.unpack("!Q", self.read(8))
            assert size > 65535
        return bool(first & 0x80), first & 15, self.read(size)

    def read_close(self, *, answer: bool = False) -> tuple[int | None, bytes]:
        """(code, reason) of the next Close, which the end of the stream must follow; after an
        answer, if the server is to get one, so that it need not wait for ``close_timeout``."""
        fin, opcode, payload = self.read_frame()
        assert (fin, opcode) == (True, CLOSE), (fin, opcode, payload)
        if answer:
            self.send(frame(CLOSE, payload))
        assert self.at_end()
        return (struct.unpack("!H", payload[:2])[0] if payload else None), payload[2:]

    def at_end(self) -> bool:
        """Waits for the end of the stream; False if bytes come instead."""
        return not self.buffer and not self._fill()

    def is_silent(self, seconds: float = 0.05) -> bool:
        """Whether nothing comes for so long."""
        with gevent.Timeout(seconds, False):
            return bool(not self.buffer and not self._fill() and False)
        return True

    def close(self) -> None:
        self.sock.close()

    def reset(self) -> None:
        """Closes with an RST."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
