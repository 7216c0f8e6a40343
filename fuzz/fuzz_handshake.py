"""Fuzzes the first bytes of a client: the request head, the environ, the opening handshake.

The invariant: any bytes give a head, an error (RequestError, HandshakeError) or the need for more
bytes, and nothing else is raised. h11 accepts what we accept, with the same method, headers and
framing. Bytes in two pieces give the same as in one.
"""

from __future__ import annotations

import re

import h11
from engine import fuzz

from greenws.config import Config
from greenws.exceptions import HandshakeError, RequestError
from greenws.http.head import RequestHead, error_response, find_head, parse_head
from greenws.protocol.handshake import accept_response, parse_request

CONFIG = Config()
SEEDS = [
    b"GET /chat?a=b HTTP/1.1\r\nHost: example.com:80\r\nUpgrade: websocket\r\n"
    b"Connection: keep-alive, Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: a, b\r\n\r\n",
    b"POST http://x/ HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunKed\r\n\r\n",
    b"POST / HTTP/1.0\r\nContent-Length: 12\r\nCookie: a=b\r\nCookie: c=d\r\n\r\n",
    b"OPTIONS * HTTP/1.1\r\nHost:\r\nX_Y: \xe9\r\n\r\n",
]
PIECES = [b"\r", b"\n", b"\r\n", b" ", b"\t", b":", b"\0", b"Content-Length: 1\r\n", b"Host: y\r\n"]


def read(data: bytes, cut: int) -> RequestHead | RequestError | None:
    """The result for ``data`` in two pieces, cut at ``cut``."""
    try:
        size = find_head(data[:cut], 0, CONFIG) if cut else -1
        if size < 0:
            size = find_head(data, cut, CONFIG)
        return None if size < 0 else parse_head(data[:size], CONFIG)
    except RequestError as error:
        return error


def normalized(name: bytes, value: bytes) -> tuple[bytes, bytes]:
    """A header as h11 returns it."""
    name = name.lower()
    return name, value.lower() if name == b"transfer-encoding" else value


def check(data: bytes) -> None:
    """Fails unless the invariant holds for ``data``."""
    head = read(data, 0)
    other = read(data, len(data) // 2)
    # In pieces, another one of several errors may be found first.
    assert type(head) is type(other) or isinstance(other, RequestError)
    if isinstance(head, RequestError):
        assert error_response(head).startswith(b"HTTP/1.1 %d " % head.status)
    if not isinstance(head, RequestHead):
        return
    size = find_head(data, 0, CONFIG)
    judge = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
    line, rest = data[:size].split(b"\r\n", 1)
    # RFC 3986 has no raw UTF-8; here it is taken as if it were percent-encoded.
    line = re.sub(rb"[\x80-\xff]", lambda octet: b"%%%02X" % octet[0][0], line)
    judge.receive_data(line + b"\r\n" + rest)
    request = judge.next_event()  # raises where h11 refuses
    assert isinstance(request, h11.Request)
    assert request.method.decode() == head.method
    assert list(request.headers) == [normalized(*header) for header in head.headers]
    framing = dict(request.headers)
    assert head.chunked == (b"transfer-encoding" in framing)
    assert (head.content_length is None) == (b"content-length" not in framing)

    environ: dict[str, object] = {}
    head.add_to(environ)
    assert all(isinstance(value, str) and "\r" not in value for value in environ.values() if value)
    try:
        offer = parse_request(environ)
    except HandshakeError as error:
        assert 400 <= error.status < 600
    else:
        assert accept_response(offer).startswith(b"HTTP/1.1 101 ")


if __name__ == "__main__":
    fuzz(check, SEEDS)
