"""HTTP/1.1 request heads (RFC 9112): bytes in, a parsed head or a refusal out. No socket.

llhttp parses, through httptools, in a tenth of the time of h11; it is Node's parser and refuses
bare CR and LF, folded lines, malformed names, control characters, and Content-Length that is
repeated or stands beside Transfer-Encoding. What it lets pass is refused here: request targets,
versions, Host and transfer codings. A server and a proxy in front of it that understand a head
differently are how requests are smuggled, so nothing is repaired and nothing dropped.
"""

from __future__ import annotations

import re
import sys
from http import HTTPStatus
from typing import Any
from urllib.parse import unquote_to_bytes

from httptools import (
    HttpParserError,
    HttpParserInvalidMethodError,
    HttpParserUpgrade,
    HttpRequestParser,
)

from ..config import Config
from ..exceptions import RequestError

__all__ = ["RequestHead", "find_head", "parse_chunk_size", "parse_head", "parse_trailer", "refuse"]

_END = b"\r\n\r\n"
_REQUEST_LINE = re.compile(rb"([!-~]+) ([!-~\x80-\xff]+) HTTP/([0-9])\.([0-9])\r\n")
_TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_TARGET = re.compile(rb"/[!\"$-~]*")  # origin-form; a fragment never leaves the client
_ABSOLUTE = re.compile(rb"https?://([^/?#]+)([/?][!\"$-~]*)?", re.IGNORECASE)
_HOST = re.compile(
    rb"(?:\[[0-9A-Fa-f:.]+\]|\[v[0-9A-Fa-f]+\.[-._~!$&'()*+,;=:0-9A-Za-z]+\]"
    rb"|(?:[-._~!$&'()*+,;=0-9A-Za-z]|%[0-9A-Fa-f]{2})*)(?::[0-9]{0,5})?"
)
_NOT_ASCII = re.compile(rb"[\x80-\xff]")
_TLS_HANDSHAKE = b"\x16\x03"  # the type of a record, and the first byte of its version

# What most clients send alike is one string for all connections, since sessions keep their environ.
# Only these: no table grows with what clients send.
_KEYS = {
    spelling.encode("ascii"): f"HTTP_{name.upper().replace('-', '_')}"
    for name in (
        *("Accept", "Accept-Encoding", "Accept-Language", "Authorization", "Cache-Control"),
        *("Connection", "Cookie", "Expect", "Host", "If-Modified-Since", "If-None-Match", "Origin"),
        *("Pragma", "Range", "Referer", "Sec-Fetch-Dest", "Sec-Fetch-Mode", "Sec-Fetch-Site"),
        *("Sec-WebSocket-Extensions", "Sec-WebSocket-Key", "Sec-WebSocket-Protocol"),
        *("Sec-WebSocket-Version", "Transfer-Encoding", "Upgrade", "User-Agent"),
        *("X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "X-Real-IP"),
    )
    for spelling in (name, name.lower())
}
_VALUES = {
    value.encode("ascii"): value
    for value in (
        *("Upgrade", "upgrade", "keep-alive, Upgrade", "keep-alive", "close"),
        *("websocket", "WebSocket", "13", "*/*", "no-cache", "max-age=0"),
        *("gzip, deflate, br, zstd", "gzip, deflate, br", "gzip, deflate", "identity"),
        *("en-US,en;q=0.9", "en-US,en;q=0.5", "en-US", "en"),
        *("permessage-deflate; client_max_window_bits", "permessage-deflate"),
    )
}
_LENGTH = re.compile(rb"[0-9]+")
_MAX_DIGITS = 18  # of a Content-Length: what fits into 64 bits
# What no continuation of an unfinished head can mend.
_SPOILT = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|(?<!\r)\n|\r(?!\n|\Z)")

_CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[\t -~]*)?\r\n")
_TRAILER = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+:[\t -~\x80-\xff]*\r\n")


class RequestHead:
    """A request's head: what stands in it, and what body follows.

    ``target`` is in origin-form (or ``*``). ``content_length`` is None where no length is given,
    and ``chunked`` says whether the body tells its own end. ``keep_alive``: whether the client
    leaves the connection open behind the response (RFC 9112, section 9.3). ``upgrade``: whether it
    asks for another protocol. ``size`` is that of the head itself, in bytes.
    """

    __slots__ = (
        "chunked",
        "content_length",
        "headers",
        "host",
        "keep_alive",
        "method",
        "size",
        "target",
        "upgrade",
        "version",
    )

    def __init__(self, method: str, target: str, version: str) -> None:
        self.method = method
        self.target = target
        self.version = version
        self.headers: list[tuple[bytes, bytes]] = []
        self.host: str | None = None
        self.content_length: int | None = None
        self.chunked = False
        self.size = 0
        self.upgrade = False
        self.keep_alive = version == "HTTP/1.1"

    def on_header(self, name: bytes, value: bytes) -> None:
        """Called by the parser."""
        self.headers.append((name, value))

    @property
    def line(self) -> str:
        """The request line, fit for a log that puts it in quotes."""
        return f"{self.method} {self.target} {self.version}".replace('"', "%22")

    def add_to(self, environ: dict[str, Any]) -> None:
        """Puts the request into ``environ`` as PEP 3333 says.

        A header that was repeated is joined with commas, cookies with semicolons. Names with an
        underscore stay out, since in an environ they cannot be told from those with a hyphen.
        """
        path, _, query = self.target.partition("?")
        environ["REQUEST_METHOD"] = self.method
        environ["SCRIPT_NAME"] = ""
        if "%" in path:
            path = unquote_to_bytes(path).decode("latin-1")
        environ["PATH_INFO"] = path
        environ["QUERY_STRING"] = query
        environ["SERVER_PROTOCOL"] = self.version
        for name, value in self.headers:
            key = _KEYS.get(name) or _environ_key(name)
            if not key:
                continue
            text = _VALUES.get(value) or value.decode("latin-1")
            if key not in environ:
                environ[key] = text
            elif key != "CONTENT_TYPE":
                environ[key] += ("; " if key == "HTTP_COOKIE" else ",") + text
        if self.host is not None:
            environ["HTTP_HOST"] = self.host


def _environ_key(name: bytes) -> str:
    """The key of a header in an environ; empty if it has none."""
    if b"_" in name:
        return ""
    key = name.decode("ascii").upper().replace("-", "_")
    return key if key in ("CONTENT_LENGTH", "CONTENT_TYPE") else f"HTTP_{key}"


def find_head(data: bytes | bytearray, start: int, config: Config) -> int:
    """The length of the head at the beginning of ``data``; -1 if it is not complete yet.

    ``data`` was looked at up to ``start`` before.

    Raises:
        RequestError: it is longer than ``config`` allows, or can no longer become a request.
    """
    end = data.find(_END, max(0, start - len(_END)))
    size = len(data) if end < 0 else end + len(_END)
    line = data.find(b"\r\n", 0, size)
    line_size = line if line >= 0 else size
    if config.max_request_line is not None and line_size > config.max_request_line:
        raise RequestError(
            f"The request line is longer than {config.max_request_line} bytes (max_request_line).",
            414,
        )
    if config.max_header_size is not None and size - line_size > config.max_header_size + 2:
        raise RequestError(
            f"The headers are longer than {config.max_header_size} bytes (max_header_size).", 431
        )
    if end < 0:
        if data.startswith(_TLS_HANDSHAKE):
            raise RequestError(
                "This is a TLS handshake, on a port without TLS: use http:// or ws://, or give the "
                "server a certificate."
            )
        if _SPOILT.search(data, max(0, start - 1)):
            raise RequestError("The request holds a control character or a bare CR or LF.")
        if line >= 0 and start <= line + 1:
            _parse_request_line(data)
    return -1 if end < 0 else size


def parse_head(data: bytes, config: Config) -> RequestHead:
    """Parses a whole head, as :func:`find_head` found it.

    Raises:
        RequestError: 400, or 413, 431, 501 or 505.
    """
    head, target = _parse_request_line(data)
    head.size = len(data)
    start = len(head.method) + 1
    if not data.startswith(target, start):  # it was percent-encoded
        data = data[:start] + target + data[data.index(b" HTTP/", start) :]
    try:
        HttpRequestParser(head).feed_data(data)
    except HttpParserUpgrade:
        head.upgrade = True
    except HttpParserInvalidMethodError:
        raise RequestError(f"No method {head.method!r} here.", 501) from None
    except HttpParserError as error:
        raise RequestError(f"The request is malformed: {error}.") from None
    if config.max_headers is not None and len(head.headers) > config.max_headers:
        raise RequestError(f"More than {config.max_headers} headers (max_headers).", 431)
    hosts = []
    codings = []
    options = []
    for i, (name, value) in enumerate(head.headers):
        if value[-1:] in (b" ", b"\t"):
            value = value.rstrip(b" \t")
            head.headers[i] = (name, value)
        size = len(name)  # telling most names apart at once
        if size == 4 and name.lower() == b"host":
            hosts.append(value)
        elif size == 10 and name.lower() == b"connection":
            options += _options(value)
        elif size == 14 and name.lower() == b"content-length":
            head.content_length = _parse_length(value)
        elif size == 17 and name.lower() == b"transfer-encoding":
            codings.append(value)
    if b"close" in options:
        head.keep_alive = False
    elif b"keep-alive" in options:
        head.keep_alive = True
    _check_host(head, target, hosts)
    if codings:
        _check_codings(head, codings)
    if head.content_length and head.method == "HEAD":
        raise RequestError("A HEAD request has no body.")
    return head


def _parse_request_line(data: bytes | bytearray) -> tuple[RequestHead, bytes]:
    """The head with its request line alone, and the target as it was sent, in ASCII."""
    match = _REQUEST_LINE.match(data)
    if match is None:
        raise RequestError("The request line is not 'METHOD target HTTP/1.1'.")
    method, target, major, minor = match.groups()
    if not _TOKEN.fullmatch(method):
        raise RequestError("The request's method is not a token.")
    if major != b"1" or minor not in (b"0", b"1"):
        raise RequestError("Only HTTP/1.1 and HTTP/1.0 are spoken here.", 505)
    name = sys.intern(method.decode("ascii"))
    if name == "CONNECT":
        raise RequestError("This is no proxy: CONNECT is not for it.", 501)
    if _NOT_ASCII.search(target):
        target = _percent_encode(target)
    head = RequestHead(name, target.decode("ascii"), "HTTP/1.1" if minor == b"1" else "HTTP/1.0")
    if not _TARGET.fullmatch(target) and not (target == b"*" and name == "OPTIONS"):
        absolute = _ABSOLUTE.fullmatch(target)
        if absolute is None:
            raise RequestError("The request target is neither a path nor a URL.")
        path = (absolute[2] or b"/").decode("ascii")
        head.target = path if path.startswith("/") else f"/{path}"
        if method == b"OPTIONS" and absolute[2] is None:
            head.target = "*"  # RFC 9112, 3.2.4
    return head, target


def _percent_encode(target: bytes) -> bytes:
    """A target in raw UTF-8, which RFC 3986 does not allow and some clients send, as a URI."""
    try:
        target.decode()
    except UnicodeDecodeError:
        raise RequestError("The request target is neither ASCII nor UTF-8.") from None
    return _NOT_ASCII.sub(lambda octet: b"%%%02X" % octet[0][0], target)


def _options(value: bytes) -> list[bytes]:
    return [option.strip(b" \t") for option in value.lower().split(b",")]


def _parse_length(value: bytes) -> int:
    if not _LENGTH.fullmatch(value):
        raise RequestError("Content-Length is not a number.")
    if len(value) > _MAX_DIGITS:
        raise RequestError("Content-Length is too large.", 413)
    return int(value)


def _check_host(head: RequestHead, target: bytes, hosts: list[bytes]) -> None:
    """RFC 9112, section 3.2: one valid Host, the same as the authority of the target."""
    if len(hosts) != 1:
        if hosts:
            raise RequestError("The Host header stands there more than once.")
        if head.version == "HTTP/1.1":
            raise RequestError("The Host header is missing.")
    elif not _HOST.fullmatch(hosts[0]):
        raise RequestError("The Host header is not a host and port.")
    if not target.startswith((b"/", b"*")):
        absolute = _ABSOLUTE.fullmatch(target)
        assert absolute is not None
        authority = absolute[1]
        if not _HOST.fullmatch(authority):
            raise RequestError("The request target's host is not a host and port.")
        if hosts and hosts[0].lower() != authority.lower():
            raise RequestError("The Host header and the request target name different hosts.")
        head.host = authority.decode("ascii")


def _check_codings(head: RequestHead, codings: list[bytes]) -> None:
    """RFC 9112, section 6.1: chunked, once, alone; and never beside a length."""
    if head.content_length is not None:
        raise RequestError("Transfer-Encoding and Content-Length contradict each other.")
    if head.version == "HTTP/1.0":
        raise RequestError("HTTP/1.0 has no Transfer-Encoding.")
    if len(codings) > 1:
        raise RequestError("The Transfer-Encoding header stands there more than once.")
    if codings[0].lower() != b"chunked":
        raise RequestError("The only Transfer-Encoding here is chunked.", 501)
    head.chunked = True


def parse_chunk_size(line: bytes) -> int:
    """The size in the line that opens a chunk (RFC 9112, section 7.1).

    Raises:
        RequestError: it is no such line, or not a whole one.
    """
    match = _CHUNK_SIZE.fullmatch(line)
    if match is None:
        raise RequestError("The size of a chunk is malformed.")
    return int(match[1], 16)


def parse_trailer(line: bytes) -> bool:
    """Whether ``line`` is a trailer field; False for the empty line behind the last.

    Raises:
        RequestError: it is neither.
    """
    if line == b"\r\n":
        return False
    if not _TRAILER.fullmatch(line):
        raise RequestError("A trailer behind the chunks is malformed.")
    return True


def refuse(error: RequestError) -> bytes:
    """The one answer to a request that cannot be read."""
    body = f"{error}\n".encode("latin-1", "replace")
    return (
        f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}\r\n"
        "Content-Type: text/plain\r\n"
        f"Content-Length: {len(body)}\r\n"
        "Connection: close\r\n\r\n"
    ).encode("ascii") + body
