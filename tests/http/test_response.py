"""Responses: which are read, in whatever pieces they come, and which are refused."""

from __future__ import annotations

import pytest

from greenws.config import Config
from greenws.exceptions import HandshakeError
from greenws.http.response import MAX_BODY, ResponseReader

from ..support.sansio import octets

pytestmark = pytest.mark.no_io


def read(*pieces: bytes, eof: bool = False, **options) -> ResponseReader:
    reader = ResponseReader(Config(), **options)
    for piece in pieces:
        reader.feed(piece)
    if eof:
        reader.feed_eof()
    return reader


def both(data: bytes, **options) -> ResponseReader:
    whole, pieces = read(data, **options), read(*octets(data), **options)
    for name in ("status", "version", "headers", "body", "is_complete"):
        assert getattr(whole, name) == getattr(pieces, name)
    return whole


def test_a_response_with_a_length():
    reader = both(b"HTTP/1.1 404 Not Found\r\nContent-Length: 5\r\nX-A:  b \r\n\r\nhello")
    assert (reader.status, reader.version, reader.body) == (404, "1.1", b"hello")
    assert reader.headers == [("Content-Length", "5"), ("X-A", "b")]
    assert reader.is_complete


def test_a_chunked_response():
    reader = both(
        b"HTTP/1.1 500 No\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n"
    )
    assert (reader.body, reader.is_complete) == (b"hello", True)


def test_a_response_that_ends_with_the_stream():
    data = b"HTTP/1.0 500 No\r\n\r\nhel"
    assert not both(data).is_complete
    reader = both(data, eof=True)
    assert (reader.version, reader.body, reader.is_complete) == ("1.0", b"hel", True)


def test_a_response_without_a_body():
    assert both(b"HTTP/1.1 204 No Content\r\n\r\n").is_complete
    assert both(b"HTTP/1.1 400 Bad\r\nContent-Length: 0\r\n\r\n").is_complete


def test_what_follows_101_is_left_alone():
    head = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n"
    reader = read(head + b"\x81\x00")
    assert (reader.status, reader.rest, reader.is_complete) == (101, b"\x81\x00", True)
    assert read(*octets(head)).rest == b""


def test_a_tunnel_has_no_body():
    reader = read(b"HTTP/1.1 200 Ok\r\nContent-Length: 3\r\n\r\nabc", is_tunnel=True)
    assert (reader.rest, reader.body, reader.is_complete) == (b"abc", b"", True)
    reader = read(b"HTTP/1.1 407 No\r\nContent-Length: 3\r\n\r\nabc", is_tunnel=True)
    assert (reader.rest, reader.body, reader.is_complete) == (b"", b"abc", True)


def test_interim_responses_are_skipped():
    reader = both(
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Hints\r\nLink: a\r\n\r\n"
        b"HTTP/1.1 403 No\r\nContent-Length: 1\r\n\r\nx"
    )
    assert (reader.status, reader.headers) == (403, [("Content-Length", "1")])
    assert reader.body == b"x"


def test_only_the_beginning_of_a_body_is_kept():
    reader = read(b"HTTP/1.1 500 No\r\n\r\n", *[b"x" * 60_000] * 3)
    assert (len(reader.body), reader.is_complete) == (MAX_BODY, True)


def test_a_malformed_body_ends_it():
    reader = read(b"HTTP/1.1 500 No\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhex")
    assert (reader.status, reader.is_complete) == (500, True)


@pytest.mark.parametrize(
    "data",
    [
        b"\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"HTTP/2.0 101\r\n\r\n",
        b"HTTP/1.1 1010 Ok\r\n\r\n",
        b"HTTP/1.1 99 Ok\r\n\r\n",
        b"HTTP/1.1 abc\r\n\r\n",
        b"HTTP/1.1 101 O\0k\r\n\r\n",
        b"HTTP/1.1 101 Ok\r\nA: \x7f\r\n\r\n",
        b"HTTP/1.1 101 Ok\r\nA: b\n\r\n\r\n",
        b"HTTP/1.1 101 Ok\r\nA: b\r\n c\r\n\r\n",
        b"HTTP/1.1 101 Ok\r\nA: \x01\r\n\r\n",
        b"HTTP/1.1 101 Ok\r\nA b\r\n\r\n",
        b"HTTP/1.1 101 Ok\r\n: b\r\n\r\n",
    ],
)
def test_what_is_no_response_is_refused_in_whatever_pieces(data):
    for pieces in ([data], octets(data)):
        with pytest.raises(HandshakeError) as caught:
            read(*pieces)
        assert (caught.value.status, caught.value.reason) == (0, "malformed")


def test_limits_of_the_head():
    reader = ResponseReader(Config(max_header_size=100, max_headers=None))
    reader.feed(b"HTTP/1.1 101 Ok\r\n" + b"A: b\r\n" * 13)
    with pytest.raises(HandshakeError, match="100 bytes"):
        reader.feed(b"A: b\r\n")
    reader = ResponseReader(Config(max_header_size=None, max_headers=2))
    with pytest.raises(HandshakeError, match="more than 2 headers"):
        reader.feed(b"HTTP/1.1 101 Ok\r\n" + b"A: b\r\n" * 3 + b"\r\n")


def test_the_end_of_the_stream_in_the_head_is_an_error():
    with pytest.raises(HandshakeError, match="middle"):
        read(b"HTTP/1.1 101", eof=True)
    with pytest.raises(HandshakeError, match="middle"):
        read(b"HTTP/1.1 100 Continue\r\n\r\n", eof=True)
    with pytest.raises(ConnectionResetError):
        read(eof=True)


def test_a_101_with_a_transfer_encoding_is_refused():
    head = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    ResponseReader(Config()).feed(head + b"\r\n")
    with pytest.raises(HandshakeError, match="1xx response has Transfer-Encoding"):
        ResponseReader(Config()).feed(head + b"Transfer-Encoding: chunked\r\n\r\n")
    with pytest.raises(HandshakeError, match="1xx response has Transfer-Encoding"):
        ResponseReader(Config()).feed(b"HTTP/1.1 103 Hints\r\nTransfer-Encoding: x\r\n\r\n")


@pytest.mark.parametrize(
    "body",
    [
        b"Content-Length: 3\r\n\r\nabc",
        b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX: y\r\n\r\n",
    ],
)
def test_what_follows_a_response_and_trailers_are_no_part_of_it(body):
    first = b"HTTP/1.1 503 Busy\r\nA: b\r\n" + body
    data = first + b"HTTP/1.1 200 OK\r\nEvil: 1\r\nContent-Length: 4\r\n\r\nevil"
    for cut in range(len(data)):
        reader = ResponseReader(Config())
        reader.feed(data[:cut])
        reader.feed(data[cut:])
        assert (reader.status, reader.body, reader.is_complete) == (503, b"abc", True)
        assert [name for name, _ in reader.headers][0] == "A"
        assert {"Evil", "X"}.isdisjoint(name for name, _ in reader.headers)
