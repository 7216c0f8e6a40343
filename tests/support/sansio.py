"""What the tests of the layers without I/O share: a lender of bytes, UTF-8 by the book."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from typing import Any

from greenws.protocol.connection import Protocol

from .wire import CLOSE

NOTHING = -1


def lend(protocol: Any, chunk: bytes) -> bytearray:
    """Feeds ``chunk`` out of a larger buffer, which is returned to be overwritten."""
    buffer = bytearray(chunk + b"\x81\x85junk")
    protocol.feed(buffer, len(chunk))
    return buffer


def pull(protocol: Protocol) -> Iterator[tuple[int, Any, Any]]:
    """(opcode, data, final) until nothing is left; (CLOSE, code, reason) is the last of all."""
    while True:
        event = protocol.next_event()
        if event == NOTHING:
            return
        if event == CLOSE:
            yield CLOSE, protocol.close_code, protocol.close_reason
            return
        yield event, protocol.data, protocol.final


def drive(protocol: Protocol, *chunks: bytes) -> list[tuple[int, Any, Any]]:
    """All events of ``chunks``, each lent in a buffer that is overwritten as soon as it may be."""
    events: list[tuple[int, Any, Any]] = []
    for chunk in chunks:
        buffer = lend(protocol, chunk)
        first = True
        for event in pull(protocol):
            if first:
                protocol.keep()
                buffer[:] = b"\xee" * len(buffer)
                first = False
            events.append(event)
            if event[0] == CLOSE:
                return events
        buffer[:] = b"\xee" * len(buffer)
    return events


def octets(data: bytes) -> list[bytes]:
    """``data`` byte by byte."""
    return [data[i : i + 1] for i in range(len(data))]


def cut(data: bytes, positions: Iterable[int]) -> list[bytes]:
    """``data`` cut at ``positions``; the same twice gives an empty piece."""
    edges = [0, *sorted(positions), len(data)]
    return [data[a:b] for a, b in zip(edges, edges[1:], strict=False)]


def read_frame(data: bytes) -> tuple[bool, int, bytes, bytes | None, bytes]:
    """(fin, opcode, payload, mask, rest) of the frame at the head of ``data``, strictly."""
    first, second = data[0], data[1]
    assert not first & 0x70, "reserved bits"
    size, at = second & 0x7F, 2
    if size == 126:
        (size,) = struct.unpack_from("!H", data, 2)
        assert size > 125, "not the shortest length"
        at = 4
    elif size == 127:
        (size,) = struct.unpack_from("!Q", data, 2)
        assert 65535 < size < 1 << 63, "not the shortest length"
        at = 10
    mask = None
    if second & 0x80:
        mask = data[at : at + 4]
        at += 4
    payload = data[at : at + size]
    assert len(payload) == size, "the frame is cut"
    if mask is not None:
        payload = bytes(byte ^ mask[i % 4] for i, byte in enumerate(payload))
    return bool(first & 0x80), first & 0x0F, payload, mask, data[at + size :]


def read_frames(data: bytes) -> list[tuple[bool, int, bytes]]:
    """(fin, opcode, payload) of all frames in ``data``, which must end with one."""
    frames = []
    while data:
        fin, opcode, payload, _, data = read_frame(data)
        frames.append((fin, opcode, payload))
    return frames


# The Unicode Standard, table 3-7: first bytes, and the ranges of those that follow.
_TAIL = (0x80, 0xBF)
_SEQUENCES = [
    ((0x00, 0x7F), []),
    ((0xC2, 0xDF), [_TAIL]),
    ((0xE0, 0xE0), [(0xA0, 0xBF), _TAIL]),
    ((0xE1, 0xEC), [_TAIL, _TAIL]),
    ((0xED, 0xED), [(0x80, 0x9F), _TAIL]),
    ((0xEE, 0xEF), [_TAIL, _TAIL]),
    ((0xF0, 0xF0), [(0x90, 0xBF), _TAIL, _TAIL]),
    ((0xF1, 0xF3), [_TAIL, _TAIL, _TAIL]),
    ((0xF4, 0xF4), [(0x80, 0x8F), _TAIL, _TAIL]),
]


def first_bad(data: bytes) -> int | None:
    """Index of the first byte with which ``data`` cannot be UTF-8 any more; its length if it ends
    inside a code point, None if it is UTF-8."""
    expected: list[tuple[int, int]] = []
    for index, byte in enumerate(data):
        if expected:
            low, high = expected[0]
            if not low <= byte <= high:
                return index
            expected = expected[1:]
            continue
        for (low, high), tail in _SEQUENCES:
            if low <= byte <= high:
                expected = tail
                break
        else:
            return index
    return len(data) if expected else None


VALID_UTF8 = [
    b"",
    b"Hello-\xc2\xb5@\xc3\x9f\xc3\xb6\xc3\xa4\xc3\xbc\xc3\xa0\xc3\xa1-UTF-8!!",
    bytes.fromhex("cebae1bdb9cf83cebcceb5"),  # Autobahn 6.3: "kosme" in Greek
    b"\x00",
    b"\x7f",
    b"\xc2\x80",
    b"\xdf\xbf",
    b"\xe0\xa0\x80",
    b"\xed\x9f\xbf",  # U+D7FF, the last before the surrogates
    b"\xee\x80\x80",  # U+E000, the first behind them
    b"\xef\xbf\xbd",
    b"\xef\xbf\xbe",  # U+FFFE and U+FFFF are not characters, and are UTF-8
    b"\xef\xbf\xbf",
    b"\xef\xbb\xbfbom",  # a byte order mark is a character like any other
    b"\xf0\x90\x80\x80",
    b"\xf0\x9f\x98\x80 \xf0\x9f\x98\x81",
    b"\xf4\x8f\xbf\xbf",  # U+10FFFF
    b"a\xc3\xa9\xe2\x82\xac\xf0\x9d\x84\x9ez",
]

INVALID_UTF8 = [
    b"\x80",  # continuation bytes of nothing
    b"\xbf",
    b"a\x80",
    b"\xc3\xa9\xa9",
    b"\x80\xbf\x80\xbf",
    b"\xc0\xaf",  # overlong
    b"\xc1\xbf",
    b"\xe0\x80\xaf",
    b"\xe0\x9f\xbf",
    b"\xf0\x80\x80\xaf",
    b"\xf0\x8f\xbf\xbf",
    b"\xed\xa0\x80",  # surrogates
    b"\xed\xad\xbf",
    b"\xed\xaf\xbf",
    b"\xed\xb0\x80",
    b"\xed\xbf\xbf",
    b"\xed\xa0\x80\xed\xb0\x80",
    b"a\xed\xa0\x80b",
    b"\xf4\x90\x80\x80",  # beyond U+10FFFF
    b"\xf5\x80\x80\x80",
    b"\xf7\xbf\xbf\xbf",
    b"\xf8\x88\x80\x80\x80",  # five and six bytes
    b"\xfc\x84\x80\x80\x80\x80",
    b"\xfe",
    b"\xff",
    b"\xce\xba\xe1\xbd\xb9\xcf\x83\xce\xbc\xce\xb5\xf4\x90\x80\x80edited",  # Autobahn 6.4
    b"\xc3(",  # a tail that is none
    b"\xe2\x28\xa1",
    b"\xe2\x82\x28",
    b"\xf0\x28\x8c\xbc",
    b"\xf0\x90\x28\xbc",
    b"\xf0\x90\x8c\x28",
    b"\xe2\x82\xe2\x82\xac",  # a code point inside another
    b"\xc3",  # cut at the end
    b"\xe2\x82",
    b"\xe2",
    b"\xf0\x9f\x98",
    b"\xf0\x9f",
    b"\xf0",
    b"ok\xed",
    b"ok\xed\x9f",
]


def environ_of(request: bytes) -> dict[str, Any]:
    """The WSGI environ of a request's head; a header that comes twice is joined by a comma."""
    head = request.split(b"\r\n\r\n", 1)[0].decode("latin-1").split("\r\n")
    method, target, version = head[0].split(" ")
    path, _, query = target.partition("?")
    environ: dict[str, Any] = {
        "REQUEST_METHOD": method,
        "PATH_INFO": path,
        "QUERY_STRING": query,
        "SERVER_PROTOCOL": version,
    }
    for line in head[1:]:
        name, value = line.split(":", 1)
        key = name.strip().upper().replace("-", "_")
        if key not in ("CONTENT_LENGTH", "CONTENT_TYPE"):
            key = "HTTP_" + key
        value = value.strip()
        environ[key] = f"{environ[key]},{value}" if key in environ else value
    return environ
