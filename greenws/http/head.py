"""HTTP/1.1 request heads (RFC 9112): bytes in, a parsed head or an error out. No socket.

The parser is llhttp, Node's, through httptools; it takes a tenth of the time of h11. It rejects
bare CR and LF, folded lines, malformed names, control characters, and a Content-Length that is
duplicate or combined with Transfer-Encoding. The checks here reject what it accepts: invalid
targets, versions, Hosts and transfer codings. Nothing is repaired or ignored, because requests are
smuggled where a server and its proxy understand the same head differently.
"""

from __future__ import annotations

import re
import string
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
from ..grammar import TOKEN, changing_all_but

__all__ = [
    "RequestHead",
    "error_response",
    "find_head",
    "parse_chunk_size",
    "parse_head",
    "parse_trailer",
]

_END = b"\r\n\r\n"
# The request line of nearly all requests; all other valid ones match _REQUEST_LINE.
_PLAIN_LINE = re.compile(
    rb"(GET|HEAD|POST|PUT|DELETE|OPTIONS|PATCH) (/[!\"$-~]*) (HTTP/1\.[01])\r\n"
)
_REQUEST_LINE = re.compile(rb"([!-~]+) ([!-~\x80-\xff]+) HTTP/([0-9])\.([0-9])\r\n")
_TOKEN = re.compile(TOKEN.encode())
_TARGET = re.compile(rb"/[!\"$-~]*")  # origin-form; clients do not send a fragment
_ABSOLUTE = re.compile(rb"https?://([^/?#]+)([/?][!\"$-~]*)?", re.IGNORECASE)
_HOST = re.compile(
    rb"(?:\[[0-9A-Fa-f:.]+\]|\[v[0-9A-Fa-f]+\.[-._~!$&'()*+,;=:0-9A-Za-z]+\]"
    rb"|[-._~!$&'()*+,;=0-9A-Za-z]*(?:%[0-9A-Fa-f]{2}[-._~!$&'()*+,;=0-9A-Za-z]*)*)(?::[0-9]{0,5})?"
)
# These leave nearly all targets and hosts as they are; any other goes to the patterns.
_PLAIN_TARGET = changing_all_but(bytes(b for b in range(0x21, 0x7F) if b != ord("#")))
_PLAIN_HOST = changing_all_but(b"-." + string.digits.encode() + string.ascii_letters.encode())
_NOT_ASCII = re.compile(rb"[\x80-\xff]")
_TLS_HANDSHAKE = b"\x16\x03"  # the type of a record, and the first byte of its version
# haproxy's PROXY protocol, versions 1 and 2. Version 2 begins with two empty lines, of which one is
# skipped, or both if they arrive one by one.
_PROXY_HEADERS = (b"PROXY TCP", b"PROXY UNKNOWN", b"\r\n\0\r\nQUIT\n", b"\0\r\nQUIT\n")

# Strings that most clients send are shared by all connections, since sessions keep their environ.
# The table is fixed: it must not grow with what clients send.
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
_MAX_DIGITS = 18  # of a Content-Length; fits into 64 bits
# Bytes that make a head invalid, whatever follows.
_INVALID = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|(?<!\r)\n|\r(?!\n|\Z)")

_CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[\t -~]*)?\r\n")
_TRAILER = re.compile(TOKEN.encode() + rb":[\t -~\x80-\xff]*\r\n")


class RequestHead:
    """The head of a request: its request line and headers, and how its body is framed.

    ``target`` is in origin-form, or ``*``. ``content_length`` is None without that header, and
    ``chunked`` is True with ``Transfer-Encoding: chunked``. ``keep_alive``: whether the client
    keeps the connection open after the response (RFC 9112, section 9.3). ``upgrade``: whether the
    client asks for another protocol. ``size``: bytes of the head.
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
        """The request line, escaped for a log that puts it in double quotes."""
        return f"{self.method} {self.target} {self.version}".replace('"', "%22")

    def add_to(self, environ: dict[str, Any]) -> None:
        """Adds the request to ``environ``, as in PEP 3333.

        Values of a repeated header are joined with commas, cookies with semicolons. Headers with an
        underscore in their name are left out: their keys would be those of headers with a hyphen.
        """
        into = environ if type(environ) is dict else dict(environ)
        path, query = self.target, ""
        if "?" in path:
            path, _, query = path.partition("?")
        if "%" in path:
            path = unquote_to_bytes(path).decode("latin-1")
        into["REQUEST_METHOD"] = self.method
        into["SCRIPT_NAME"] = ""
        into["PATH_INFO"] = path
        into["QUERY_STRING"] = query
        into["SERVER_PROTOCOL"] = self.version
        for name, value in self.headers:
            key = _KEYS.get(name) or _environ_key(name)
            if not key:
                continue
            text = _VALUES.get(value) or value.decode("latin-1")
            if key in into:  # the header is repeated, or the server's own environ has it
                if key == "CONTENT_TYPE":
                    continue
                text = into[key] + ("; " if key == "HTTP_COOKIE" else ",") + text
            into[key] = text
        if self.host is not None:
            into["HTTP_HOST"] = self.host
        if into is not environ:
            environ.update(into)


def _environ_key(name: bytes) -> str:
    """The key of a header in an environ; empty if the header is left out."""
    if b"_" in name:
        return ""
    key = name.decode("ascii").upper().replace("-", "_")
    return key if key in ("CONTENT_LENGTH", "CONTENT_TYPE") else f"HTTP_{key}"


def find_head(data: bytes | bytearray, start: int, config: Config) -> int:
    """The length of the head at the start of ``data``; -1 if it is incomplete.

    ``start``: how many bytes of ``data`` an earlier call has examined.

    Raises:
        RequestError: the head is longer than ``config`` allows, or cannot become valid.
    """
    end = data.find(_END, max(0, start - len(_END)))
    size = len(data) if end < 0 else end + len(_END)
    line_limit, headers_limit = config.max_request_line, config.max_header_size
    if (
        end >= 0
        and (line_limit is None or size <= line_limit)
        and (headers_limit is None or size <= headers_limit)
    ):
        return size  # nearly always; where the line ends does not matter then
    line = data.find(b"\r\n", 0, size)
    line_size = line if line >= 0 else size
    if line_limit is not None and line_size > line_limit:
        raise RequestError(
            f"Request line longer than {line_limit} bytes (max_request_line).",
            414,
        )
    if headers_limit is not None and size - line_size > headers_limit + 2:
        raise RequestError(f"Headers longer than {headers_limit} bytes (max_header_size).", 431)
    if end < 0:
        _refuse_other_protocols(data)
        if _INVALID.search(data, max(0, start - 1)):
            raise RequestError("Control character, or bare CR or LF, in the request head.")
        if line >= 0 and start <= line + 1:
            _parse_request_line(data)
    return -1 if end < 0 else size


def _refuse_other_protocols(data: bytes | bytearray) -> None:
    """
    Raises:
        RequestError: ``data`` begins like another protocol than HTTP.
    """
    if data.startswith(_TLS_HANDSHAKE):
        raise RequestError(
            "This is a TLS handshake, on a port without TLS: use http:// or ws://, or give the "
            "server a certificate."
        )
    if data.startswith(_PROXY_HEADERS):
        raise RequestError(
            "This is a PROXY header, such as haproxy's send-proxy sends: switch it off, and set "
            "trusted_proxies; or use gunicorn with its proxy_protocol."
        )


def parse_head(data: bytes, config: Config) -> RequestHead:
    """Parses a complete head, as found by :func:`find_head`.

    Raises:
        RequestError: with status 400, 413, 431, 501 or 505.
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
        raise RequestError(f"Unsupported method {head.method!r}.", 501) from None
    except HttpParserError as error:
        raise RequestError(f"Malformed request: {error}.") from None
    if config.max_headers is not None and len(head.headers) > config.max_headers:
        raise RequestError(f"More than {config.max_headers} headers (max_headers).", 431)
    hosts = []
    codings = []
    options = []
    for i, (name, value) in enumerate(head.headers):
        if value and value[-1] in b" \t":
            value = value.rstrip(b" \t")
            head.headers[i] = (name, value)
        size = len(name)  # comparing sizes is faster than comparing strings
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
        raise RequestError("A HEAD request must not have a body.")
    return head


def _parse_request_line(data: bytes | bytearray) -> tuple[RequestHead, bytes]:
    """A head with only its request line, and the target as sent, percent-encoded if need be."""
    if data[:5] == b"GET /":  # nearly always; the patterns take three times as long
        end = data.find(b" HTTP/1.1\r\n", 5)
        if end > 0:
            target = bytes(data[4:end])
            if target.translate(_PLAIN_TARGET) == target:
                return RequestHead("GET", target.decode("ascii"), "HTTP/1.1"), target
    match = _PLAIN_LINE.match(data)
    if match is not None:
        method, target, version = match.groups()
        return RequestHead(
            sys.intern(method.decode("ascii")),
            target.decode("ascii"),
            "HTTP/1.1" if version == b"HTTP/1.1" else "HTTP/1.0",
        ), target
    match = _REQUEST_LINE.match(data)
    if match is None:
        _refuse_other_protocols(data)
        raise RequestError("Malformed request line; expected 'METHOD target HTTP/1.1'.")
    method, target, major, minor = match.groups()
    if not _TOKEN.fullmatch(method):
        raise RequestError("The request method is not a token.")
    if major != b"1" or minor not in (b"0", b"1"):
        raise RequestError("Unsupported HTTP version; use HTTP/1.1 or HTTP/1.0.", 505)
    name = sys.intern(method.decode("ascii"))
    if name == "CONNECT":
        raise RequestError("CONNECT is not supported: this server is not a proxy.", 501)
    if _NOT_ASCII.search(target):
        target = _percent_encode(target)
    head = RequestHead(name, target.decode("ascii"), "HTTP/1.1" if minor == b"1" else "HTTP/1.0")
    if not _TARGET.fullmatch(target) and not (target == b"*" and name == "OPTIONS"):
        absolute = _ABSOLUTE.fullmatch(target)
        if absolute is None:
            raise RequestError("The request target must be a path or a URL.")
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
    if value == b"Upgrade" or value == b"keep-alive":  # what most clients send
        return [value.lower()]
    return [option.strip(b" \t") for option in value.lower().split(b",")]


def _parse_length(value: bytes) -> int:
    if not _LENGTH.fullmatch(value):  # unreachable: llhttp rejects it. int() would accept "+1".
        raise RequestError("Content-Length is not a number.")
    if len(value) > _MAX_DIGITS:
        raise RequestError("Content-Length is too large.", 413)
    return int(value)


def _check_host(head: RequestHead, target: bytes, hosts: list[bytes]) -> None:
    """RFC 9112, section 3.2: exactly one valid Host, equal to that of a target that is a URL."""
    if len(hosts) != 1:
        if hosts:
            raise RequestError("Duplicate Host header.")
        if head.version == "HTTP/1.1":
            raise RequestError("Missing Host header.")
    elif not _is_host(hosts[0]):
        raise RequestError("Invalid Host header; expected a host, or a host and port.")
    if not target.startswith((b"/", b"*")):
        absolute = _ABSOLUTE.fullmatch(target)
        assert absolute is not None
        authority = absolute[1]
        if not _HOST.fullmatch(authority):
            raise RequestError("Invalid host in the request target.")
        if hosts and hosts[0].lower() != authority.lower():
            raise RequestError("The Host header and the request target have different hosts.")
        head.host = authority.decode("ascii")


def _is_host(value: bytes) -> bool:
    name, _, port = value.partition(b":")
    if name.translate(_PLAIN_HOST) == name and (not port or port.isdigit()):
        return len(port) <= 5
    return _HOST.fullmatch(value) is not None


def _check_codings(head: RequestHead, codings: list[bytes]) -> None:
    """RFC 9112, section 6.1: only ``chunked``, and never with a Content-Length."""
    # Unreachable: llhttp rejects both together. Kept, because a release that did not would allow
    # request smuggling.
    if head.content_length is not None:
        raise RequestError("Both Transfer-Encoding and Content-Length.")
    if head.version == "HTTP/1.0":
        raise RequestError("Transfer-Encoding is not allowed in HTTP/1.0.")
    if len(codings) > 1:
        raise RequestError("Duplicate Transfer-Encoding header.")
    if codings[0].lower() != b"chunked":
        raise RequestError("Unsupported Transfer-Encoding; only chunked is supported.", 501)
    head.chunked = True


def parse_chunk_size(line: bytes) -> int:
    """Parses the first line of a chunk, which has its size (RFC 9112, section 7.1).

    Raises:
        RequestError: the line is malformed or incomplete.
    """
    match = _CHUNK_SIZE.fullmatch(line)
    if match is None:
        raise RequestError("Malformed chunk size.")
    return int(match[1], 16)


def parse_trailer(line: bytes) -> bool:
    """Whether ``line`` is a trailer field; False for the empty line after the last one.

    Raises:
        RequestError: the line is malformed.
    """
    if line == b"\r\n":
        return False
    if not _TRAILER.fullmatch(line):
        raise RequestError("Malformed trailer.")
    return True


def error_response(error: RequestError) -> bytes:
    """The response to a request that was rejected. The connection is closed after it."""
    body = f"{error}\n".encode("latin-1", "replace")
    return (
        f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}\r\n"
        "Content-Type: text/plain\r\n"
        f"Content-Length: {len(body)}\r\n"
        "Connection: close\r\n\r\n"
    ).encode("ascii") + body
