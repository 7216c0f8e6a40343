"""Fuzzes permessage-deflate: offers, compressed payloads from peers, and our own compression.

The invariant: any header gives extensions or a HandshakeError, and a client accepts our response.
Any payload inflates to at most ``room + 1`` bytes or raises a ProtocolError, whole or in pieces;
zlib accepts what we accept. zlib inflates what we compress to the original.
"""

from __future__ import annotations

import zlib

from engine import fuzz

from greenws.config import Config
from greenws.exceptions import HandshakeError, ProtocolError
from greenws.protocol.deflate import (
    Deflate,
    Parameters,
    accept_answer,
    accept_offer,
    make_offer,
    parse_extensions,
)

ROOM = 1000
TAIL = b"\x00\x00\xff\xff"
CONFIG = Config()
OPEN = Config(deflate_takeover=True, deflate_peer_takeover=True, deflate_threshold=0)

# The first byte of an input is its kind.
HEADER, PAYLOAD, MESSAGE = range(3)
SEEDS = [
    b"\0permessage-deflate; client_max_window_bits",
    b'\0x; a="b\\c", permessage-deflate;server_max_window_bits=8;client_no_context_takeover',
    b"\1\xf2\x48\xcd\xc9\xc9\x07\0",
    b"\1\0\5\0\xfa\xffHello\0",
    b"\1\xf3\x48\xcd\xc9\xc9\x07\0\0",
    b"\1\xf2\x48\5\0\0\0\xff\xff\xca\xc9\xc9\x07\0",
    b"\1" + zlib.compress(bytes(20000), 9)[2:-4] + b"\0",  # the raw stream, without zlib's header
    b"\2Hello Hello Hello",
]


def check_header(data: bytes) -> None:
    try:
        offers = parse_extensions(data.decode("latin-1"))
    except HandshakeError as error:
        assert error.status == 400
        return
    for config in (CONFIG, OPEN):
        answer = accept_offer(offers, config)
        if answer is not None:
            assert any(name == "permessage-deflate" for name, _ in offers)
            (chosen,) = parse_extensions(str(answer))
            assert accept_answer([chosen], OPEN) is not None
        mine = accept_offer(parse_extensions(make_offer(config) or ""), config)
        assert accept_answer(parse_extensions(str(mine)), config) == mine


def inflate(data: bytes, size: int, takeover: bool) -> bytes | type[ProtocolError]:
    end = Deflate(Parameters(False, not takeover), CONFIG)
    output = b""
    try:
        for start in range(0, len(data) or 1, size):
            room = ROOM - len(output)
            piece = end.inflate(data[start : start + size], start + size >= len(data), room)
            assert len(piece) <= room + 1
            output += piece
            if len(output) > ROOM:
                break
    except ProtocolError as error:
        return type(error)
    return output[: ROOM + 1]


def check_payload(data: bytes) -> None:
    for takeover in (False, True):
        output = inflate(data, len(data) or 1, takeover)
        assert inflate(data, 1, takeover) == output
        assert inflate(data, 5, takeover) == output
        if isinstance(output, bytes):
            judge = zlib.decompressobj(-15)  # stops at a final block
            assert output.startswith(judge.decompress(data + TAIL, ROOM + 1))


def check_message(data: bytes) -> None:
    for parameters in (Parameters(True, True), Parameters(), Parameters(False, False, 8, 8)):
        end = Deflate(parameters, OPEN)
        judge = zlib.decompressobj(-(parameters.server_max_window_bits or 15))
        for _ in range(2):
            half = len(data) // 2
            sent = (end.compress(data[:half], True, False, True) or b"") + (
                end.compress(data[half:], False, True, None) or b""
            )
            if parameters.server_no_context_takeover:
                judge = zlib.decompressobj(-15)
            assert judge.decompress(sent + TAIL) == data


def check(data: bytes) -> None:
    """Fails unless the invariant holds for ``data``."""
    kind = data[0] % 3 if data else HEADER
    if kind == HEADER:
        check_header(data[1:])
    elif kind == PAYLOAD:
        check_payload(data[1:])
    else:
        check_message(data[1:])


if __name__ == "__main__":
    fuzz(check, SEEDS)
