"""Fuzzes the input after the handshake: frames, fragments, control frames, text.

The invariant: any bytes give events, and nothing is raised. Bytes in pieces give the same events as
at once, but for a compressed message that is too large and malformed: zlib may see either first. No
message is larger than ``max_message_size``, and text is UTF-8. The replies are complete frames. A
Close is the last of them, and there is one only if the connection is closed.
"""

from __future__ import annotations

from typing import Any

from engine import fuzz

from greenws.config import Config
from greenws.protocol.connection import CLOSED, Connection
from greenws.protocol.deflate import Deflate, Parameters

CONFIG = Config(max_message_size=512, max_fragments=8, deflate_threshold=0)
NOTHING, CLOSE, PING, PONG = -1, 8, 9, 10
_MASK = b"\1\2\3\4"

# The first byte of an input: whether a client reads it, and whether messages may be compressed.
SEEDS = [
    b"\0\x81\x85" + _MASK + b"Igol.",
    b"\0\x01\x81" + _MASK + b"\xc3" + b"\x89\x80" + _MASK + b"\x80\x81" + _MASK + b"\xaa",
    b"\0\x88\x82" + _MASK + b"\x02\xea",
    b"\0\x82\xfe\0\x7e" + _MASK + bytes(126) + b"\x8a\x80" + _MASK,
    b"\1\x81\x05Hello\x02\x7f" + bytes(7) + b"\xff" + bytes(255),
    b"\2\xc1\x87" + _MASK + b"\xf3\x4a\xce\xcd\xc8\x05\x03",
    b"\3\x41\x03\xf2\x48\xcd\x80\x04\xc9\xc9\x07\0",
    # One byte larger than is allowed, and malformed behind that byte.
    bytes.fromhex(
        "ff41400a0a170a0a0323a50103032303030303030303030303070100000000000700000000000000034603030303"
        "030303030303030303030303030303030303030323"
    ),
]


def read(data: bytes, client: bool, compressed: bool, size: int) -> tuple[list[Any], bytes]:
    """(events, replies) for ``data`` in pieces of ``size``."""
    deflate = Deflate(Parameters(client, client), CONFIG, client) if compressed else None
    connection = Connection(CONFIG, client, deflate)
    events: list[Any] = []
    for start in range(0, len(data), size):
        buffer = bytearray(data[start : start + size])
        connection.feed(buffer, len(buffer))
        while True:
            event = connection.next_event()
            if event == NOTHING:
                break
            if event == CLOSE:
                assert connection.state == CLOSED
                events.append((CLOSE, connection.close_code))
                return events, b"".join(connection.replies)
            if event != PING:
                events.append((event, connection.data, connection.final))
        buffer[:] = bytes(len(buffer))  # nothing may look into it any more
    return events, b"".join(connection.replies)


def check(data: bytes) -> None:
    """Fails unless the invariant holds for ``data``."""
    client, compressed = bool(data[:1]) and bool(data[0] & 1), bool(data[:1]) and bool(data[0] & 2)
    data = data[1:]
    events, replies = read(data, client, compressed, max(1, len(data)))
    for size in (1, 7):
        in_pieces = read(data, client, compressed, size)[0]
        if compressed and {(CLOSE, 1007), (CLOSE, 1009)} == {*in_pieces[-1:], *events[-1:]}:
            assert in_pieces[:-1] == events[:-1]
        else:
            assert in_pieces == events
    total = 0
    for event in events:
        if event[0] in (CLOSE, PONG):
            continue
        opcode, payload, final = event
        total = len(payload) + (total if opcode == 0 else 0)
        assert total <= 512
        assert isinstance(payload, str | bytes)
    closed = bool(events) and events[-1][0] == CLOSE
    if client:
        return  # its replies have random masks
    last = 0
    while replies:
        last, length = replies[0] & 15, replies[1]
        assert replies[0] & 0xF0 == 0x80 and length < 126 and last in (CLOSE, PONG)
        replies = replies[2 + length :]
        assert last != CLOSE or not replies
    assert (last == CLOSE) == closed


if __name__ == "__main__":
    fuzz(check, SEEDS)
