"""The 517 cases of the Autobahn testsuite (its fuzzing client, an echo server), written again.

Each is listed by its number there, and passes only with what is OK there, never with what is
NON-STRICT: the first invalid byte fails, what came before an error in the same segment is
answered, and answers come in the order of what they answer. Where the original repeats a message
a thousand times, fewer have to do (sections 9.3 to 9.8, 12, 13).
"""

from __future__ import annotations

import functools
import json
import random
import struct
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import gevent
import gevent.socket
import pytest

import greenws
from greenws import Config, Routes

from .support.limits import limit
from .support.wire import (
    BINARY,
    CLOSE,
    CONTINUATION,
    MASK,
    PING,
    PONG,
    TEXT,
    Peer,
    close_frame,
    frame,
)

NORMAL, PROTOCOL_ERROR, INVALID_PAYLOAD = 1000, 1002, 1007


# -- the other end


def echo(request: Any, socket: greenws.WebSocket) -> None:
    for message in socket:
        socket.send(message)


@pytest.fixture(scope="module")
def address() -> Iterator[dict[str, Any]]:
    """The addresses of echo servers, by how they compress."""
    servers = {}
    limits = Config(max_message_size=16 << 20, max_fragments=None, write_high_water=32 << 20)
    for name, options in {
        "default": {},
        "takeover": {
            "deflate_takeover": True,
            "deflate_peer_takeover": True,
            "deflate_threshold": 0,
        },
    }.items():
        routes = Routes()
        routes.websocket("/")(echo)
        config = limits.replace(**options)
        server = greenws.WebSocketServer(("127.0.0.1", 0), routes, log=None, config=config)
        server.start()
        servers[name] = server
    yield {name: ("127.0.0.1", server.server_port) for name, server in servers.items()}
    for server in servers.values():
        server.stop(timeout=2)


@pytest.fixture(autouse=True)
def hub_errors(address) -> None:
    """In place of conftest's, which counts what is open: these servers stay for the module."""


def quick_frame(opcode: int, payload: bytes, fin: bool = True, rsv: int = 0) -> bytes:
    """:func:`wire.frame` for large payloads."""
    head = frame(opcode, b"", fin=fin, rsv=rsv, length=len(payload), mask=MASK)
    if len(payload) > 125:
        size = 2 if len(payload) < 65536 else 8
        head = frame(opcode, b"", fin=fin, rsv=rsv, length=len(payload), length_bytes=size)
    key = (MASK * (len(payload) // 4 + 1))[: len(payload)]
    number = int.from_bytes(payload, "little") ^ int.from_bytes(key, "little")
    return head + number.to_bytes(len(payload), "little")


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65535, 65536, 70001])
def test_the_quick_frame_is_the_frame(size):
    payload = random.Random(size).randbytes(size)
    assert quick_frame(TEXT, payload, False, 4) == frame(TEXT, payload, fin=False, rsv=4)


class Fuzzer:
    """Sends given bytes, segment by segment, and reads the answers."""

    def __init__(self, address: Any, **headers: Any) -> None:
        self.peer = Peer.connect(address, limit(20))
        self.response = self.peer.shake(**headers)
        assert self.response.status == 101
        self.sock = self.peer.sock
        self.sock.setsockopt(gevent.socket.IPPROTO_TCP, gevent.socket.TCP_NODELAY, 1)
        self.buffer = bytearray(self.peer.buffer)

    def __enter__(self) -> Fuzzer:
        return self

    def __exit__(self, *exc: object) -> None:
        self.peer.close()

    def send(self, data: bytes) -> None:
        try:
            self.sock.sendall(data)
        except (BrokenPipeError, ConnectionResetError):  # it was failed before the last octet
            return
        gevent.sleep(0)

    def read(self, size: int) -> bytes:
        while len(self.buffer) < size:
            data = self.sock.recv(1 << 18)
            if not data:
                raise EOFError(f"the stream ended at {bytes(self.buffer)!r}")
            self.buffer += data
        data = bytes(self.buffer[:size])
        del self.buffer[:size]
        return data

    def read_frame(self) -> tuple[int, bytes]:
        """(first byte, payload)"""
        first, size = self.read(2)
        assert size < 128, "a server must not mask"
        if size > 125:
            size = int.from_bytes(self.read(2 if size == 126 else 8), "big")
        return first, self.read(size)

    def read_whole(self) -> tuple[int, bytes]:
        """(opcode, payload) of a frame that is neither compressed nor a fragment."""
        first, payload = self.read_frame()
        assert first & 0xF0 == 0x80
        return first & 15, payload

    def is_silent(self) -> bool:
        """Whether nothing comes while the server has had time to answer."""
        if not self.buffer:
            with gevent.Timeout(0.02, False):
                self.buffer += self.sock.recv(65536)
                return False
        return not self.buffer

    def finish(self) -> int | None:
        """Reads the Close, and the end of the stream after it; returns its code."""
        opcode, payload = self.read_whole()
        assert opcode == CLOSE, (opcode, payload[:100])
        while data := self.sock.recv(65536):
            self.buffer += data
        assert not self.buffer, "something after the Close"
        return struct.unpack("!H", payload[:2])[0] if payload else None


class _Silence:
    """A step: nothing must come."""


SILENCE = _Silence()


class Expect(NamedTuple):
    """A step: these must come now."""

    frames: list[tuple[int, bytes]]


class Case(NamedTuple):
    """``steps``: segments to send, and what to wait for. ``expected``: what must come in all.
    ``codes``: with which the server must close; None if we close, with 1000."""

    number: str
    steps: list[Any]
    expected: list[tuple[int, bytes]]
    codes: set[int | None] | None = None


def play(case: Case, address: Any) -> None:
    expected = list(case.expected)
    with Fuzzer(address) as fuzzer:
        for step in case.steps:
            if step is SILENCE:
                assert fuzzer.is_silent()
            elif isinstance(step, Expect):
                for wanted in step.frames:
                    assert fuzzer.read_whole() == wanted == expected.pop(0)
            else:
                fuzzer.send(step)
        for wanted in expected:
            opcode, payload = fuzzer.read_whole()
            assert opcode == wanted[0]
            assert payload == wanted[1]
        if case.codes is None:
            fuzzer.send(close_frame(NORMAL))
            assert fuzzer.finish() == NORMAL
        else:
            assert fuzzer.finish() in case.codes


def chop(data: bytes, size: int = 1) -> list[bytes]:
    return [data[i : i + size] for i in range(0, len(data), size)]


# -- sections 1 to 7

CASES: list[Case] = []


def case(
    number: str,
    steps: list[Any],
    expected: list[tuple[int, bytes]] | None = None,
    codes: set[int | None] | None = None,
) -> None:
    CASES.append(Case(number, steps, expected or [], codes))


# 1: framing. Payloads of the lengths at which the header changes; the last in chops of 997.
for section, opcode, octet in (("1.1", TEXT, b"*"), ("1.2", BINARY, b"\xfe")):
    for index, size in enumerate([0, 125, 126, 127, 128, 65535, 65536, 65536], 1):
        payload = octet * size
        data = quick_frame(opcode, payload)
        steps = chop(data, 997) if index == 8 else [data]
        case(f"{section}.{index}", steps, [(opcode, payload)])

# 2: pings and pongs
_BINARY_PING = b"\x00\xff\xfe\xfd\xfc\xfb\x00\xff"
_TEN = [b"payload-%d" % i for i in range(10)]
case("2.1", [frame(PING)], [(PONG, b"")])
case("2.2", [frame(PING, b"Hello, world!")], [(PONG, b"Hello, world!")])
case("2.3", [frame(PING, _BINARY_PING)], [(PONG, _BINARY_PING)])
case("2.4", [frame(PING, b"\xfe" * 125)], [(PONG, b"\xfe" * 125)])
case("2.5", [frame(PING, b"\xfe" * 126)], codes={PROTOCOL_ERROR})
case("2.6", chop(frame(PING, b"\xfe" * 125)), [(PONG, b"\xfe" * 125)])
case("2.7", [frame(PONG), SILENCE])
case("2.8", [frame(PONG, b"unsolicited pong payload"), SILENCE])
case("2.9", [frame(PONG, b"unsolicited"), frame(PING, b"ping payload")], [(PONG, b"ping payload")])
case("2.10", [b"".join(frame(PING, p) for p in _TEN)], [(PONG, p) for p in _TEN])
case("2.11", chop(b"".join(frame(PING, p) for p in _TEN)), [(PONG, p) for p in _TEN])

# 3: reserved bits. What came before, in the same segment, is answered.
_HELLO = frame(TEXT, b"Hello, world!")
_ECHO = [(TEXT, b"Hello, world!")]
_PING = frame(PING)


def wrong_text(rsv: int) -> bytes:
    return frame(TEXT, b"Hello, world!", rsv=rsv)


case("3.1", [wrong_text(1)], codes={PROTOCOL_ERROR})
case("3.2", [_HELLO + wrong_text(2) + _PING], _ECHO, {PROTOCOL_ERROR})
case("3.3", [_HELLO, wrong_text(3), _PING], _ECHO, {PROTOCOL_ERROR})
case("3.4", chop(_HELLO + wrong_text(4) + _PING), _ECHO, {PROTOCOL_ERROR})
case("3.5", [frame(BINARY, b"\x00\xff\xfe\xfd", rsv=5)], codes={PROTOCOL_ERROR})
case("3.6", [frame(PING, b"Hello, world!", rsv=6)], codes={PROTOCOL_ERROR})
case("3.7", [close_frame(NORMAL, rsv=7)], codes={PROTOCOL_ERROR})

# 4: reserved opcodes, without and with a payload
for section, first in (("4.1", 3), ("4.2", 11)):
    case(f"{section}.1", [frame(first)], codes={PROTOCOL_ERROR})
    case(f"{section}.2", [frame(first + 1, b"reserved")], codes={PROTOCOL_ERROR})
    case(f"{section}.3", [_HELLO + frame(first + 2) + _PING], _ECHO, {PROTOCOL_ERROR})
    case(f"{section}.4", [_HELLO, frame(first + 3, b"x"), _PING], _ECHO, {PROTOCOL_ERROR})
    case(f"{section}.5", chop(_HELLO + frame(first + 4, b"x") + _PING), _ECHO, {PROTOCOL_ERROR})

# 5: fragmentation
_PARTS = [b"fragment%d" % i for i in range(1, 6)]


def fragments(*parts: bytes, opcode: int = TEXT, between: bytes = b"") -> list[bytes]:
    """The frames of a message; ``between``: what follows each but the last."""
    last = len(parts) - 1
    return [
        frame(CONTINUATION if i else opcode, part, fin=i == last) + (b"" if i == last else between)
        for i, part in enumerate(parts)
    ]


_TWO = fragments(*_PARTS[:2])
_TWO_ECHO = [(TEXT, b"fragment1fragment2")]
_PINGED = fragments(*_PARTS[:2], between=frame(PING, b"ping payload"))
_PINGED_ECHO = [(PONG, b"ping payload"), *_TWO_ECHO]
case("5.1", fragments(*_PARTS[:2], opcode=PING), codes={PROTOCOL_ERROR})
case("5.2", fragments(*_PARTS[:2], opcode=PONG), codes={PROTOCOL_ERROR})
case("5.3", [b"".join(_TWO)], _TWO_ECHO)
case("5.4", _TWO, _TWO_ECHO)
case("5.5", chop(b"".join(_TWO)), _TWO_ECHO)
case("5.6", [b"".join(_PINGED)], _PINGED_ECHO)
case("5.7", _PINGED, _PINGED_ECHO)
case("5.8", chop(b"".join(_PINGED)), _PINGED_ECHO)
for first, fin in ((9, True), (12, False)):
    orphan = frame(CONTINUATION, b"non-continuation payload", fin=fin)
    case(f"5.{first}", [orphan + _HELLO], codes={PROTOCOL_ERROR})
    case(f"5.{first + 1}", [orphan, _HELLO], codes={PROTOCOL_ERROR})
    case(f"5.{first + 2}", chop(orphan + _HELLO), codes={PROTOCOL_ERROR})
_ORPHAN = frame(CONTINUATION, b"fragment3", fin=False)
case(
    "5.15",
    [b"".join(_TWO) + _ORPHAN + frame(TEXT, b"fragment4")],
    _TWO_ECHO,
    {PROTOCOL_ERROR},
)
case("5.16", [(_ORPHAN + b"".join(_TWO)) * 2], codes={PROTOCOL_ERROR})
case(
    "5.17",
    [(frame(CONTINUATION, b"fragment1") + b"".join(_TWO)) * 2],
    codes={PROTOCOL_ERROR},
)
case(
    "5.18",
    [frame(TEXT, b"fragment1", fin=False) + frame(TEXT, b"fragment2")],
    codes={PROTOCOL_ERROR},
)
_FIVE = fragments(*_PARTS)
_PONGS = [(PONG, b"pongme 1!"), (PONG, b"pongme 2!")]
_FIVE_STEPS = [
    *_FIVE[:2],
    frame(PING, b"pongme 1!"),
    Expect(_PONGS[:1]),  # at once, and not behind the message
    SILENCE,
    *_FIVE[2:4],
    frame(PING, b"pongme 2!"),
    _FIVE[4],
]
_FIVE_ECHO = [*_PONGS, (TEXT, b"".join(_PARTS))]
case("5.19", _FIVE_STEPS, _FIVE_ECHO)
case(
    "5.20",
    [piece for step in _FIVE_STEPS for piece in (chop(step) if type(step) is bytes else [step])],
    _FIVE_ECHO,
)

# 6: UTF-8
_MIXED = "Hello-\u00b5@\u00df\u00f6\u00e4\u00fc\u00e0\u00e1-UTF-8!!".encode()
_KOSME = bytes.fromhex("cebae1bdb9cf83cebcceb5")
_BAD = _KOSME + bytes.fromhex("eda080") + b"edited"
case("6.1.1", [frame(TEXT)], [(TEXT, b"")])
case("6.1.2", fragments(b"", b"", b""), [(TEXT, b"")])
case("6.1.3", fragments(b"", b"middle frame payload", b""), [(TEXT, b"middle frame payload")])
case("6.2.1", [frame(TEXT, _MIXED)], [(TEXT, _MIXED)])
case("6.2.2", fragments(_MIXED[:12], _MIXED[12:]), [(TEXT, _MIXED)])
case("6.2.3", fragments(*chop(_MIXED)), [(TEXT, _MIXED)])
case("6.2.4", fragments(*chop(_KOSME)), [(TEXT, _KOSME)])
case("6.3.1", [frame(TEXT, _BAD)], codes={INVALID_PAYLOAD})
case("6.3.2", fragments(*chop(_BAD)), codes={INVALID_PAYLOAD})

# 6.4: what is wrong fails when it comes, not with the end of the message. In .1 and .2 it comes
# in frames, in .3 and .4 in pieces of one; .2 and .4 end on the first wrong byte.
for index, parts in enumerate(
    [
        (_KOSME, b"\xf4\x90\x80\x80"),
        (_KOSME + b"\xf4", b"\x90"),
    ],
    1,
):
    head, bad = parts
    frames = [frame(TEXT, head, fin=False), SILENCE, frame(CONTINUATION, bad, fin=False)]
    case(f"6.4.{index}", frames, codes={INVALID_PAYLOAD})
    whole = frame(TEXT, head + bad, length=len(head + bad + b"edited"))
    at = 6 + len(head)
    case(f"6.4.{index + 2}", [whole[:at], SILENCE, whole[at:]], codes={INVALID_PAYLOAD})

_LONELY = [
    bytes(octet for start in range(low, high) for octet in (start, 0x20))
    for low, high in ((0xC0, 0xDF), (0xE0, 0xEF), (0xF0, 0xF7), (0xF8, 0xFB), (0xFC, 0xFD))
]
_CUT = [
    bytes.fromhex(text)
    for text in "c0 e080 f08080 f8808080 fc80808080 df efbf f7bfbf fbbfbfbf fdbfbfbfbf".split()
]
_NO_CHARACTERS = ["efbfbe", "efbfbf"] + [
    f"{lead:02x}{second:02x}bf{last:02x}"
    for lead in range(0xF0, 0xF5)
    for second in (0x8F, 0x9F, 0xAF, 0xBF)
    for last in (0xBE, 0xBF)
    if (lead, second) != (0xF0, 0x8F) and (lead < 0xF4 or second == 0x8F)
]
# Section: (valid, payloads); the stress test of Markus Kuhn.
_UTF8: dict[int, tuple[Any, list[bytes]]] = {
    5: (True, [f"hello{c}world".encode() for c in "$\u00a2\u20ac\U00024b62"] + [_KOSME]),
    6: (None, [_KOSME[: i + 1] for i in range(len(_KOSME))]),
    7: (True, [bytes.fromhex(text) for text in ("00", "c280", "e0a080", "f0908080")]),
    8: (False, [bytes.fromhex(text) for text in ("f888808080", "fc8480808080")]),
    9: (True, [bytes.fromhex(text) for text in ("7f", "dfbf", "efbfbf", "f48fbfbf")]),
    10: (False, [bytes.fromhex(text) for text in ("f7bfbfbf", "fbbfbfbfbf", "fdbfbfbfbfbf")]),
    11: (
        None,
        [bytes.fromhex(text) for text in ("ed9fbf", "ee8080", "efbfbd", "f48fbfbf", "f4908080")],
    ),
    12: (
        False,
        [b"\x80", b"\xbf"]
        + [(b"\x80\xbf" * 3)[:size] for size in range(2, 7)]
        + [bytes(range(0x80, 0xBF))],
    ),
    13: (False, _LONELY),
    14: (False, _CUT),
    15: (False, [b"".join(_CUT)]),
    16: (False, [b"\xfe", b"\xff", b"\xfe\xfe\xff\xff"]),
    17: (
        False,
        [bytes.fromhex(t) for t in "c0af e080af f08080af f8808080af fc80808080af".split()],
    ),
    18: (
        False,
        [bytes.fromhex(t) for t in "c1bf e09fbf f08fbfbf f887bfbfbf fc83bfbfbfbf".split()],
    ),
    19: (
        False,
        [bytes.fromhex(t) for t in "c080 e08080 f0808080 f880808080 fc8080808080".split()],
    ),
    20: (
        False,
        [bytes.fromhex(t) for t in "eda080 edadbf edae80 edafbf edb080 edbe80 edbfbf".split()],
    ),
    21: (
        False,
        [
            bytes.fromhex(high + low)
            for high in ("eda080", "edadbf", "edae80", "edafbf")
            for low in ("edb080", "edbfbf")
        ],
    ),
    22: (True, [bytes.fromhex(text) for text in _NO_CHARACTERS]),
    23: (True, [bytes.fromhex(f"efbf{last:02x}") for last in range(0xB9, 0xC0)]),
}
_WHOLE_PREFIXES = {2, 5, 7, 9, 11}  # of the Greek word in 6.6: between two letters
for section, (verdict, payloads) in _UTF8.items():
    for index, payload in enumerate(payloads, 1):
        valid = verdict
        if section == 6:
            valid = index in _WHOLE_PREFIXES
        elif section == 11:
            valid = index < 5
        number = f"6.{section}.{index}"
        if valid:
            case(number, [frame(TEXT, payload)], [(TEXT, payload)])
        else:
            case(number, [frame(TEXT, payload)], codes={INVALID_PAYLOAD})

# 7: closing
_CLOSE = close_frame(NORMAL)
_LONG = b"BAsd7&jh23" * (1 << 18)
_LONG = _LONG[: 1 << 18]
case("7.1.1", [_HELLO + _CLOSE], _ECHO, {NORMAL})
case("7.1.2", [_CLOSE + _CLOSE], codes={NORMAL})
case("7.1.3", [_CLOSE + _PING], codes={NORMAL})
case("7.1.4", [_CLOSE + _HELLO], codes={NORMAL})
case("7.1.5", [_TWO[0] + _CLOSE + _TWO[1]], codes={NORMAL})
case(
    "7.1.6",
    [quick_frame(TEXT, _LONG) + _HELLO + _CLOSE + _PING],
    [(TEXT, _LONG), *_ECHO],
    {NORMAL},
)
case("7.3.1", [close_frame(None)], codes={None})
case("7.3.2", [frame(CLOSE, b"a")], codes={PROTOCOL_ERROR})
case("7.3.3", [_CLOSE], codes={NORMAL})
case("7.3.4", [close_frame(NORMAL, b"Hello World!")], codes={NORMAL})
case("7.3.5", [close_frame(NORMAL, b"*" * 123)], codes={NORMAL})
case("7.3.6", [close_frame(NORMAL, b"*" * 124)], codes={PROTOCOL_ERROR})
case("7.5.1", [close_frame(NORMAL, _BAD)], codes={INVALID_PAYLOAD})
_VALID_CODES = [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 3000, 3999, 4000, 4999]
for index, code in enumerate(_VALID_CODES, 1):
    case(f"7.7.{index}", [close_frame(code)], codes={code})
for index, code in enumerate([0, 999, 1004, 1005, 1006, 1016, 1100, 2000, 2999], 1):
    case(f"7.9.{index}", [close_frame(code)], codes={PROTOCOL_ERROR})
for index, code in enumerate([5000, 65535], 1):  # section 7.4 leaves them undefined
    case(f"7.13.{index}", [close_frame(code)], codes={PROTOCOL_ERROR})


@pytest.mark.parametrize("case", CASES, ids=[c.number for c in CASES])
def test_protocol(case, address):
    play(case, address["default"])


# -- sections 9 and 10: large messages; in frames; in segments of a frame; many, one by one

MIB = 1 << 20
LARGE_SIZES = [1 << 16, 1 << 18, MIB, 4 * MIB, 8 * MIB, 16 * MIB]


@pytest.mark.parametrize("opcode", [TEXT, BINARY], ids=["9.1", "9.2"])
@pytest.mark.parametrize("index", range(1, 7))
def test_large_messages(opcode, index, address):
    size = LARGE_SIZES[index - 1]
    payload = (b"BAsd7&jh23" * (size // 10 + 1))[:size]
    play(Case("", [quick_frame(opcode, payload)], [(opcode, payload)]), address["default"])


FRAGMENT_SIZES = [64 << 2 * i for i in range(9)]
FRAGMENT_SIZES[7:] = [1 << 20, 4 << 20]


@pytest.mark.parametrize("opcode", [TEXT, BINARY], ids=["9.3", "9.4"])
@pytest.mark.parametrize(
    "size", FRAGMENT_SIZES, ids=lambda size: str(FRAGMENT_SIZES.index(size) + 1)
)
def test_messages_in_many_fragments(opcode, size, address):
    payload = b"*" * (4 * MIB if size > 1024 else MIB)
    parts = chop(payload, size)
    frames = [
        quick_frame(CONTINUATION if i else opcode, part, fin=i == len(parts) - 1)
        for i, part in enumerate(parts)
    ]
    play(Case("", [b"".join(frames)], [(opcode, payload)]), address["default"])


@pytest.mark.parametrize("opcode", [TEXT, BINARY], ids=["9.5", "9.6"])
@pytest.mark.parametrize("index", range(1, 7))
def test_messages_in_many_segments(opcode, index, address):
    size = 32 << index
    payload = (b"BAsd7&jh23" * MIB)[: min(MIB, size * 512)]
    play(
        Case("", chop(quick_frame(opcode, payload), size), [(opcode, payload)]), address["default"]
    )


@pytest.mark.parametrize("opcode", [TEXT, BINARY], ids=["9.7", "9.8"])
@pytest.mark.parametrize("index", range(1, 7))
def test_many_round_trips(opcode, index, address):
    payload = (b"*" if opcode == TEXT else b"\xfe") * [0, 16, 64, 256, 1024, 4096][index - 1]
    steps = [quick_frame(opcode, payload), Expect([(opcode, payload)])] * 50
    play(Case("", steps, [(opcode, payload)] * 50), address["default"])


def test_a_message_fragmented_by_the_fuzzer_10_1_1(address):
    payload = b"*" * 65536
    play(Case("", fragments(*chop(payload, 1300)), [(TEXT, payload)]), address["default"])


# -- sections 12 and 13: permessage-deflate

# (length, of the message; and of its frames, 0 for one)
SIZES = [(16 << 2 * i, 0) for i in range(5)] + [(8192 << i, 0) for i in range(5)]
SIZES += [(8192 << i, 256) for i in range(5)]
SIZES += [(131072, size) for size in (1024, 4096, 32768)]


@functools.cache
def samples() -> dict[str, tuple[int, bytes]]:
    """The same kinds of data as in the original: JSON, a bitmap, prose, HTML, a PDF."""
    source = random.Random(12)
    pool = ["".join(source.choices("aeiounrstlmd", k=source.randrange(2, 10))) for _ in range(900)]

    def words(count: int) -> list[str]:
        return source.choices(pool, k=count)

    rows = [
        {"id": i, "name": name, "value": source.random(), "tags": words(3)}
        for i, name in enumerate(words(700))
    ]
    bitmap = bytearray(
        (x * x // 300 + y + source.randrange(12)) & 255 for y in range(256) for x in range(512)
    )
    pages = [b"stream\n" + source.randbytes(3000) + b"\nendstream\nendobj\n" for _ in range(60)]
    table = [
        f'<tr class="row"><td>{a}</td><td>{b}</td></tr>\n'
        for a, b in zip(words(3500), words(3500), strict=True)
    ]
    return {
        "1": (TEXT, json.dumps(rows).encode()),
        "2": (BINARY, bytes(bitmap)),
        "3": (BINARY, " ".join(words(25000)).encode()),
        "4": (TEXT, "".join(table).encode()),
        "5": (BINARY, b"".join(pages)),
    }


SAMPLES = ("1", "2", "3", "4", "5")
_OFFER = "permessage-deflate; client_no_context_takeover; client_max_window_bits"
_FORGET = "; server_no_context_takeover"
# The offers of 13.x, and what of them a server that allows everything answers.
OFFERS = {
    "1": (_OFFER, ""),
    "2": (_OFFER + _FORGET, _FORGET),
    "3": (f"{_OFFER}; server_max_window_bits=8", "; server_max_window_bits=8"),
    "4": (f"{_OFFER}; server_max_window_bits=15", "; server_max_window_bits=15"),
    "5": (f"{_OFFER}{_FORGET}; server_max_window_bits=8", f"{_FORGET}; server_max_window_bits=8"),
    "6": (f"{_OFFER}{_FORGET}; server_max_window_bits=15", f"{_FORGET}; server_max_window_bits=15"),
    "7": (
        f"{_OFFER}{_FORGET}; server_max_window_bits=8, {_OFFER}{_FORGET}, {_OFFER}",
        f"{_FORGET}; server_max_window_bits=8",
    ),
}


class Codec:
    """permessage-deflate as the fuzzing client does it, after the answer of the server."""

    def __init__(self, answer: str) -> None:
        name, *parameters = answer.split("; ")
        assert name == "permessage-deflate"
        values = dict(parameter.partition("=")[::2] for parameter in parameters)
        self.bits = int(values.get("server_max_window_bits", 15))
        self.client_forgets = "client_no_context_takeover" in values
        self.server_forgets = "server_no_context_takeover" in values
        self.compressor: Any = None
        self.inflater: Any = None

    def compress(self, payload: bytes) -> bytes:
        if self.compressor is None or self.client_forgets:
            self.compressor = zlib.compressobj(wbits=-15)
        return (self.compressor.compress(payload) + self.compressor.flush(zlib.Z_SYNC_FLUSH))[:-4]

    def inflate(self, payload: bytes) -> bytes:
        if self.inflater is None or self.server_forgets:
            self.inflater = zlib.decompressobj(-self.bits)
        return self.inflater.decompress(payload + b"\x00\x00\xff\xff")


def exchange(
    fuzzer: Fuzzer, opcode: int, sample: bytes, size: int, pieces: int, least: int
) -> None:
    codec = Codec(fuzzer.response.headers["sec-websocket-extensions"])
    twice = sample * 2
    at = 0
    for _ in range(max(2, min(20, (1 << 16) // size))):
        payload, at = twice[at : at + size], (at + size) % len(sample)
        parts = chop(codec.compress(payload), pieces or 1 << 20)
        for i, part in enumerate(parts):
            fin = i == len(parts) - 1
            data = quick_frame(CONTINUATION if i else opcode, part, fin, 0 if i else 4)
            fuzzer.sock.sendall(data)
        first, answer = fuzzer.read_frame()
        assert first & 0xBF == 0x80 | opcode
        assert bool(first & 0x40) == (size >= least)
        assert (codec.inflate(answer) if first & 0x40 else answer) == payload
    fuzzer.send(close_frame(NORMAL))
    assert fuzzer.finish() == NORMAL


@pytest.mark.parametrize("index", range(18), ids=lambda index: str(index + 1))
@pytest.mark.parametrize("kind", SAMPLES)
def test_compression_by_default_12(kind, index, address):
    size, pieces = SIZES[index]
    with Fuzzer(address["default"], Sec_WebSocket_Extensions=_OFFER) as fuzzer:
        opcode, sample = samples()[kind]
        exchange(fuzzer, opcode, sample, size, pieces, least=1024)


@pytest.mark.parametrize("index", range(18), ids=lambda index: str(index + 1))
@pytest.mark.parametrize("kind", OFFERS)
def test_compression_as_negotiated_13(kind, index, address):
    size, pieces = SIZES[index]
    offer, answer = OFFERS[kind]
    with Fuzzer(address["takeover"], Sec_WebSocket_Extensions=offer) as fuzzer:
        chosen = set(fuzzer.response.headers["sec-websocket-extensions"].split("; "))
        assert chosen == set(f"permessage-deflate; client_no_context_takeover{answer}".split("; "))
        exchange(fuzzer, *samples()["1"], size, pieces, least=0)


def test_there_are_517():
    assert len({c.number for c in CASES}) == len(CASES)
    large, fragmented, chopped, round_trips = 12, 2 * len(FRAGMENT_SIZES), 12, 12
    compressed = len(SIZES) * (len(SAMPLES) + len(OFFERS))
    assert len(CASES) + large + fragmented + chopped + round_trips + 1 + compressed == 517
