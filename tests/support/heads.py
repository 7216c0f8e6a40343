"""Heads of requests: one to vary, and all that are refused, each with its status."""

from __future__ import annotations


def head(
    line: bytes = b"GET / HTTP/1.1", *headers: bytes, host: bytes | None = b"Host: x"
) -> bytes:
    lines = [line, *([host] if host is not None else []), *headers]
    return b"\r\n".join(lines) + b"\r\n\r\n"


REFUSED = {
    # smuggling
    "two lengths": (400, head(b"POST / HTTP/1.1", b"Content-Length: 1", b"Content-Length: 2")),
    "one length twice": (400, head(b"POST / HTTP/1.1", b"Content-Length: 1", b"Content-Length: 1")),
    "lengths in a list": (400, head(b"POST / HTTP/1.1", b"Content-Length: 1, 1")),
    "a signed length": (400, head(b"POST / HTTP/1.1", b"Content-Length: +1")),
    "a negative length": (400, head(b"POST / HTTP/1.1", b"Content-Length: -1")),
    "an empty length": (400, head(b"POST / HTTP/1.1", b"Content-Length:")),
    "a length in hexadecimal": (400, head(b"POST / HTTP/1.1", b"Content-Length: 0x1")),
    "a length with an underscore": (400, head(b"POST / HTTP/1.1", b"Content-Length: 1_0")),
    "a length of other digits": (400, head(b"POST / HTTP/1.1", b"Content-Length: \xb2")),
    "an enormous length": (413, head(b"POST / HTTP/1.1", b"Content-Length: " + b"0" * 19)),
    "a length and chunks": (
        400,
        head(b"POST / HTTP/1.1", b"Content-Length: 1", b"Transfer-Encoding: chunked"),
    ),
    "chunks and a length": (
        400,
        head(b"POST / HTTP/1.1", b"Transfer-Encoding: chunked", b"Content-Length: 1"),
    ),
    "chunked twice": (
        400,
        head(b"POST / HTTP/1.1", b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"),
    ),
    "an unknown coding": (400, head(b"POST / HTTP/1.1", b"Transfer-Encoding: xchunked")),
    "identity": (400, head(b"POST / HTTP/1.1", b"Transfer-Encoding: identity")),
    "no coding": (400, head(b"POST / HTTP/1.1", b"Transfer-Encoding:")),
    "two codings": (501, head(b"POST / HTTP/1.1", b"Transfer-Encoding: gzip, chunked")),
    "chunked not last": (400, head(b"POST / HTTP/1.1", b"Transfer-Encoding: chunked, gzip")),
    "a coding after a tab": (
        400,
        head(b"POST / HTTP/1.1", b"Transfer-Encoding: \x0bchunked"),
    ),
    "chunks in HTTP/1.0": (400, head(b"POST / HTTP/1.0", b"Transfer-Encoding: chunked")),
    "a body of HEAD": (400, head(b"HEAD / HTTP/1.1", b"Content-Length: 1")),
    # names and values
    "a space before the colon": (400, head(b"GET / HTTP/1.1", b"Content-Length : 1")),
    "a space before the name": (400, b"GET / HTTP/1.1\r\n Host: x\r\n\r\n"),
    "a folded line": (400, head(b"GET / HTTP/1.1", b"X: a\r\n b")),
    "no name": (400, head(b"GET / HTTP/1.1", b": a")),
    "no colon": (400, head(b"GET / HTTP/1.1", b"Broken", b"X: a")),
    "a name that is no token": (400, head(b"GET / HTTP/1.1", b"X(): a")),
    "a name beyond ASCII": (400, head(b"GET / HTTP/1.1", b"X\xe9: a")),
    "a bare CR": (400, head(b"GET / HTTP/1.1", b"X: a\rY: b")),
    "a bare LF": (400, head(b"GET / HTTP/1.1", b"X: a\nY: b")),
    "a NUL": (400, head(b"GET / HTTP/1.1", b"X: a\x00")),
    "an escape": (400, head(b"GET / HTTP/1.1", b"X: \x1b[2J")),
    "a DEL": (400, head(b"GET / HTTP/1.1", b"X: \x7f")),
    # request lines
    "HTTP/0.9": (400, b"GET /\r\n\r\n"),
    "HTTP/2.0": (505, head(b"GET / HTTP/2.0")),
    "HTTP/1.2": (505, head(b"GET / HTTP/1.2")),
    "a version without a dot": (400, head(b"GET / HTTP/11")),
    "a version with another name": (400, head(b"GET / ICE/1.0")),
    "a version in lower case": (400, head(b"GET / http/1.1")),
    "two spaces": (400, head(b"GET  / HTTP/1.1")),
    "a tab": (400, head(b"GET\t/ HTTP/1.1")),
    "a trailing space": (400, head(b"GET / HTTP/1.1 ")),
    "a space within the target": (400, head(b"GET /a b HTTP/1.1")),
    "a control character in the target": (400, head(b"GET /\x1b HTTP/1.1")),
    "a target beyond ASCII and UTF-8": (400, head(b"GET /\xc3 HTTP/1.1")),
    "a surrogate in the target": (400, head(b"GET /\xed\xa0\x80 HTTP/1.1")),
    "a method beyond ASCII": (400, head(b"G\xc3\xa9T / HTTP/1.1")),
    "a host beyond ASCII": (400, head(b"GET http://\xc3\xa9/ HTTP/1.1")),
    "TLS": (400, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"),
    "a fragment": (400, head(b"GET /a#b HTTP/1.1")),
    "a relative target": (400, head(b"GET a HTTP/1.1")),
    "an asterisk with GET": (400, head(b"GET * HTTP/1.1")),
    "an authority": (400, head(b"GET x:80 HTTP/1.1")),
    "another scheme": (400, head(b"GET ftp://x/ HTTP/1.1")),
    "a URL without a host": (400, head(b"GET http:///a HTTP/1.1")),
    "a URL with a user": (400, head(b"GET http://u@x/ HTTP/1.1")),
    "CONNECT": (501, head(b"CONNECT x:80 HTTP/1.1")),
    "a method that nobody knows": (501, head(b"FROB / HTTP/1.1")),
    "a method in lower case": (501, head(b"get / HTTP/1.1")),
    "a method that is no token": (400, head(b"G@T / HTTP/1.1")),
    # Host
    "no host": (400, head(host=None)),
    "two hosts": (400, head(b"GET / HTTP/1.1", b"Host: x")),
    "a host with a path": (400, head(host=b"Host: x/y")),
    "a host with a user": (400, head(host=b"Host: u@x")),
    "a host with a space": (400, head(host=b"Host: x y")),
    "a list of hosts": (400, head(host=b"Host: x y, z")),
    "a host with a wrong port": (400, head(host=b"Host: x:http")),
    "another host than the URL's": (400, head(b"GET http://y/ HTTP/1.1")),
    # limits
    "a long request line": (414, head(b"GET /" + b"a" * 8192 + b" HTTP/1.1")),
    "a long request line without an end": (414, b"G" * 8193),
    "large headers": (431, head(b"GET / HTTP/1.1", b"X: " + b"a" * 32768)),
    "headers without an end": (431, b"GET / HTTP/1.1\r\nX: " + b"a" * 32768),
    "many headers": (431, head(b"GET / HTTP/1.1", *[b"X: a"] * 100)),
}
