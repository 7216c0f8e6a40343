"""The error for a response that refuses. Reading it is tested in ``test_opening.py``."""

from __future__ import annotations

import pytest

from greenws.client.exchange import explain, whole_text
from greenws.config import Config
from greenws.exceptions import HandshakeError
from greenws.http.response import ResponseReader

pytestmark = pytest.mark.no_io


def explained(response: bytes) -> HandshakeError:
    reader = ResponseReader(Config())
    reader.feed(response)
    return explain(HandshakeError("?"), reader, "wss://h")


def test_a_line_of_text_is_part_of_the_message():
    error = explained(b"HTTP/1.1 403 No\r\nContent-Length: 9\r\n\r\nnot \r\nyou")
    assert str(error) == "wss://h responded with status 403: not you"


def test_a_page_is_not():
    page = b"<!doctype html><p>No"
    head = b"HTTP/1.1 403 No\r\nContent-Length: %d\r\n" % len(page)
    assert str(explained(head + b"\r\n" + page)) == "wss://h responded with status 403"
    page = b"No, <b>not</b> you  "
    error = explained(head + b"Content-Type: text/html\r\n\r\n" + page)
    assert str(error) == "wss://h responded with status 403"
    assert (error.status, error.body) == (403, page)


def test_compressed_bytes_are_not():
    head = b"HTTP/1.1 403 No\r\nContent-Length: 4\r\nContent-Encoding: gzip\r\n\r\n"
    error = explained(head + b"\x1f\x8b\x08\x00")
    assert str(error) == "wss://h responded with status 403"
    assert error.body == b"\x1f\x8b\x08\x00"


def test_nothing_in_the_message_controls_a_terminal():
    error = explained(b"HTTP/1.1 403 No\r\nContent-Length: 12\r\n\r\n\x1b]0;no\x07\xc2\x9b.\n")
    assert str(error) == "wss://h responded with status 403: ?]0;no??."


def test_a_long_text_is_cut():
    error = explained(b"HTTP/1.1 500 No\r\nContent-Length: 1000\r\n\r\n" + b"\xff" * 1000)
    assert len(str(error)) < 250
    assert len(error.body) == 1000
    assert len(whole_text(error)) > 1000
    assert whole_text(HandshakeError("no response")) == "no response"
    page = b"HTTP/1.1 500 No\r\nContent-Length: 3\r\n\r\n<p>"
    assert whole_text(explained(page)) == "wss://h responded with status 500"
