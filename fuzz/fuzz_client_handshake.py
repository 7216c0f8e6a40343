"""Fuzzes what a server answers to a client: the response, its check, the redirect.

The invariant: any bytes give an accepted handshake, a HandshakeError, a response that refuses, or
the need for more bytes; nothing else is raised. h11 accepts the responses that we accept, with the
same status, headers and, of those that end, the same body. Bytes in two pieces give the same as in
one. A handshake is accepted only with the accept value of the key, and with what was offered.
"""

from __future__ import annotations

import h11
from engine import fuzz

from greenws.client.url import parse_url, redirect
from greenws.config import Config
from greenws.exceptions import HandshakeError
from greenws.http.response import ResponseReader
from greenws.protocol.handshake import check_response

CONFIG = Config()
KEY = "dGhlIHNhbXBsZSBub25jZQ=="
ACCEPT = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
TARGET = parse_url("wss://user:password@example.com/a/b")
HEAD = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: keep-alive, Upgrade\r\n"
    b"Sec-WebSocket-Accept: " + ACCEPT.encode() + b"\r\n"
)
SEEDS = [
    HEAD + b"\r\n\x81\x05hello",
    HEAD + b"Sec-WebSocket-Protocol: chat\r\n\r\n",
    HEAD + b"Sec-WebSocket-Extensions: permessage-deflate; server_no_context_takeover; "
    b"client_no_context_takeover\r\n\r\n",
    b"HTTP/1.1 302 Found\r\nLocation: https://example.org/?c#d\r\nContent-Length: 3\r\n\r\nabc",
    b"HTTP/1.1 503 Busy\r\nRetry-After: 3\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"3\r\nabc\r\n0\r\n\r\n",
    b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + HEAD + b"\r\n",
    b"HTTP/1.0 500 No\r\n\r\nabc",
]
PIECES = [
    b"\r",
    b"\n",
    b"\r\n",
    b" ",
    b":",
    b"\0",
    b"Content-Length: 1\r\n",
    b"HTTP/1.1 200\r\n\r\n",
]


def read(data: bytes, cut: int) -> ResponseReader | HandshakeError:
    """The result for ``data`` in two pieces."""
    reader = ResponseReader(CONFIG)
    try:
        reader.feed(data[:cut])
        reader.feed(data[cut:])
    except HandshakeError as error:
        return error
    return reader


def check(data: bytes) -> None:
    """Fails unless the invariant holds for ``data``."""
    reader = read(data, len(data))
    other = read(data, len(data) // 2)
    if isinstance(reader, HandshakeError) or isinstance(other, HandshakeError):
        # In one piece, what follows a complete response is never looked at.
        assert isinstance(reader, HandshakeError) == isinstance(other, HandshakeError)
        return
    assert (reader.status, reader.headers, reader.body) == (other.status, other.headers, other.body)
    assert reader.is_complete == other.is_complete
    assert reader.rest.startswith(other.rest)  # once it is complete, nothing more is taken
    if not reader.status or 100 <= reader.status < 200 and reader.status != 101:
        return
    judge(data, reader)
    headers: dict[str, str] = {}
    for name, value in reader.headers:
        key = name.lower()
        headers[key] = f"{headers[key]}, {value}" if key in headers else value
    try:
        subprotocol, agreed = check_response(reader.status, headers, KEY, ["chat"], CONFIG)
    except HandshakeError:
        pass
    else:
        assert reader.status == 101
        assert headers["sec-websocket-accept"] == ACCEPT
        assert subprotocol in (None, "chat")
        assert agreed is None or agreed.server_no_context_takeover
    if "location" in headers:
        try:
            found = redirect(TARGET, headers["location"])
        except HandshakeError as error:
            assert error.reason == "redirect"
        else:
            assert found.secure and found.credentials != TARGET.credentials
            assert "\r" not in found.target and "\n" not in found.target + found.host


def judge(data: bytes, reader: ResponseReader) -> None:
    """Compares with h11."""
    theirs = h11.Connection(h11.CLIENT, max_incomplete_event_size=1 << 20)
    request = [("Host", "x"), ("Upgrade", "websocket"), ("Connection", "Upgrade")]
    theirs.send(h11.Request(method="GET", target="/", headers=request))
    theirs.send(h11.EndOfMessage())
    theirs.receive_data(data)
    status, body, found = 0, b"", []
    try:
        while True:
            event = theirs.next_event()
            if isinstance(event, (h11.Response, h11.InformationalResponse)):
                status = event.status_code
                found = list(event.headers)
            elif isinstance(event, h11.Data):
                body += bytes(event.data)
            else:
                break
    except h11.RemoteProtocolError:  # of the body, which we take as it comes
        pass
    names = {name.lower() for name, _ in reader.headers}
    if status != reader.status and status < 200:  # a framing of the body that h11 does not know
        assert names & {"transfer-encoding", "content-length"} and reader.status != 101
        return
    assert status == reader.status
    ours = [(name.lower().encode(), value.encode("latin-1")) for name, value in reader.headers]
    assert [name for name, _ in found] == [name for name, _ in ours]
    if reader.is_complete and reader.status != 101:
        assert body.startswith(reader.body) or reader.body.startswith(body)


if __name__ == "__main__":
    fuzz(check, SEEDS)
