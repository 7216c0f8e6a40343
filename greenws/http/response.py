"""HTTP/1.1 responses (RFC 9112), for the client. Bytes in; a status, headers and the beginning of a
body out. No socket.

The parser is llhttp, through httptools, as for requests. The head is complete before it is parsed,
so that what follows a 101 is never taken for HTTP.
"""

from __future__ import annotations

import re

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

from ..config import Config
from ..exceptions import HandshakeError

__all__ = ["MAX_BODY", "ResponseReader"]

MAX_BODY = 1 << 16
"""Bytes of a body to keep; the rest is dropped."""

_END = b"\r\n\r\n"
_BEGIN = b"HTTP/1."
_STATUS_LINE = re.compile(rb"HTTP/1\.[01] [1-9][0-9][0-9](?: [\t -~\x80-\xff]*)?\r\n")
_CONTROL = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_TLS_RECORDS = (b"\x15\x03", b"\x16\x03")  # an alert, a handshake
_MAX_INTERIM = 16  # 1xx responses that may precede the final one
_SHOWN = 60  # bytes


class ResponseReader:
    """Reads one response, final or 101 (Switching Protocols); other 1xx responses are skipped.

    ``config`` limits its head. ``is_tunnel``: the request was CONNECT, so a 2xx response has no
    body (RFC 9110, section 9.3.6).
    """

    def __init__(self, config: Config, is_tunnel: bool = False) -> None:
        self.status = 0
        """0 until the head is complete."""
        self.version = ""
        self.headers: list[tuple[str, str]] = []
        self.body = b""
        self.rest = b""
        """The bytes after the head of a 101, or of an open tunnel."""
        self.is_complete = False
        """The response is complete, or ``MAX_BODY`` bytes of its body have been received."""
        self._config = config
        self._is_tunnel = is_tunnel
        self._head = b""
        self._interim = 0
        self._has_headers = False
        self._parser: HttpResponseParser | None = None

    def feed(self, data: bytes) -> None:
        """Takes bytes that have arrived.

        Raises:
            HandshakeError: the head is not an HTTP response, or exceeds a limit.
        """
        while data and not self.is_complete:
            if self._parser is None:
                data = self._feed_head(data)
            else:
                data = self._feed_body(self._parser, data)

    def feed_eof(self) -> None:
        """Takes the end of the stream.

        Raises:
            HandshakeError: in the middle of the head.
            ConnectionResetError: before a response began.
        """
        if self._parser is not None:
            self.is_complete = True
        elif self._head or self._interim:
            raise _malformed("The server closed the connection in the middle of its response.")
        else:
            raise ConnectionResetError("the server closed the connection without a response")

    def _feed_head(self, data: bytes) -> bytes:
        """Returns what follows the head."""
        start = max(0, len(self._head) - len(_END))
        head = self._head + data
        if not head.startswith(_BEGIN) and not _BEGIN.startswith(head):
            if head.startswith(_TLS_RECORDS):
                raise _malformed("The server speaks TLS on this port: use wss://.")
            raise _malformed(f"The server does not speak HTTP; it sent {head[:_SHOWN]!r}.")
        end = head.find(_END, start)
        size = len(head) if end < 0 else end + len(_END)
        limit = self._config.max_header_size
        if limit is not None and size > limit:
            raise _malformed(f"The head of the response exceeds {limit} bytes (max_header_size).")
        if end < 0:
            self._head = head
            return b""
        self._head = b""
        parser = self._parse(head[:size])
        rest = head[size:]
        is_interim = 100 <= self.status < 200
        if is_interim and any(name.lower() == "transfer-encoding" for name, _ in self.headers):
            raise _malformed("A 1xx response has Transfer-Encoding.")  # RFC 9112, section 6.1
        if is_interim and self.status != 101:
            self._interim += 1
            if self._interim > _MAX_INTERIM:
                raise _malformed(f"The server sent more than {_MAX_INTERIM} 1xx responses.")
            self.is_complete = False
            return rest
        self._parser = parser
        if self.status == 101 or self._is_tunnel and 200 <= self.status < 300:
            self.is_complete = True
            self.rest = rest
        return rest

    def _parse(self, head: bytes) -> HttpResponseParser:
        if not _STATUS_LINE.match(head) or _CONTROL.search(head):  # llhttp accepts some of these
            raise _malformed("Invalid status line, or control character, in the response.")
        self.headers = []
        self._has_headers = False
        parser = HttpResponseParser(self)
        try:
            parser.feed_data(head)
        except HttpParserUpgrade:
            pass
        except HttpParserError as error:
            if not self._has_headers:  # a 101 without Upgrade raises too, but after its headers
                raise _malformed(f"The response is malformed: {error}.") from None
        most = self._config.max_headers
        if most is not None and len(self.headers) > most:
            raise _malformed(f"The response has more than {most} headers (max_headers).")
        self.status = parser.get_status_code()
        self.version = parser.get_http_version()
        return parser

    def _feed_body(self, parser: HttpResponseParser, data: bytes) -> bytes:
        try:
            parser.feed_data(data)
        except (HttpParserError, HttpParserUpgrade):  # the part of the body so far is enough
            self.is_complete = True
        return b""

    # -- called by the parser

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._has_headers:  # otherwise it is a trailer, or of the next response
            self.headers.append((name.decode("ascii"), value.strip(b" \t").decode("latin-1")))

    def on_headers_complete(self) -> None:
        self._has_headers = True

    def on_body(self, data: bytes) -> None:
        if self.is_complete:  # it belongs to the next response
            return
        self.body += data[: MAX_BODY - len(self.body)]
        if len(self.body) == MAX_BODY:
            self.is_complete = True

    def on_message_complete(self) -> None:
        self.is_complete = True


def _malformed(message: str) -> HandshakeError:
    return HandshakeError(message, 0)
