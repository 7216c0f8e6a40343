"""permessage-deflate (RFC 7692): negotiation, compression, and bounded inflation.

The judge is zlib itself, and the octets that the RFC prints.
"""

from __future__ import annotations

import sys
import tracemalloc
import zlib

import gevent
import pytest
from hypothesis import given
from hypothesis import strategies as st

import greenws
from greenws import Config, WebSocketHandler
from greenws.exceptions import HandshakeError
from greenws.protocol.connection import Connection
from greenws.protocol.deflate import (
    Deflate,
    Parameters,
    accept_answer,
    accept_offer,
    make_offer,
    parse_extensions,
)

from ..support.examples import examples
from ..support.sansio import cut, drive, octets, read_frame
from ..support.wire import BINARY, CLOSE, CONTINUATION, PING, TEXT, Peer, frame

TAIL = b"\x00\x00\xff\xff"
BOTH = Parameters(True, True)  # what is agreed by default
TAKEOVER = Parameters()


def deflated(payload: bytes, bits: int = 15, level: int = 6) -> bytes:
    compressor = zlib.compressobj(level, zlib.DEFLATED, -bits)
    data = compressor.compress(payload) + compressor.flush(zlib.Z_SYNC_FLUSH)
    assert data.endswith(TAIL)
    return data[:-4]


def inflated(payload: bytes, bits: int = 15) -> bytes:
    return zlib.decompressobj(-bits).decompress(payload + TAIL)


def protocol(parameters: Parameters = BOTH, client: bool = False, **options) -> Connection:
    config = Config(**options)
    return Connection(config, client, Deflate(parameters, config, client))


def sent(end: Connection, payload: bytes, opcode: int = BINARY, final=True, compress=None) -> bytes:
    """The frame that ``end`` sends."""
    number, payload = end.compress(end.begin_message(opcode, final), final, payload, compress)
    return end.encode(number, final, payload)


def close_code(end: Connection, *chunks: bytes) -> int:
    *_, last = drive(end, *chunks)
    assert last[0] == CLOSE
    return last[1]


# -- the header


@pytest.mark.parametrize(
    ("header", "extensions"),
    [
        ("", []),
        (" , ,", []),
        ("a", [("a", [])]),
        ("a, b", [("a", []), ("b", [])]),
        (",a , ,\tb,", [("a", []), ("b", [])]),
        ("a;x", [("a", [("x", None)])]),
        ("a; x=1 ;y=z, b;x", [("a", [("x", "1"), ("y", "z")]), ("b", [("x", None)])]),
        ('a; x="10"', [("a", [("x", "10")])]),
        (r'a; x="\1\0"', [("a", [("x", "10")])]),
        ("a; x = 1", [("a", [("x", "1")])]),
        ("a; x; x", [("a", [("x", None), ("x", None)])]),
    ],
)
def test_the_header_is_a_list_of_names_with_parameters(header, extensions):
    assert parse_extensions(header) == extensions


@pytest.mark.parametrize(
    "header",
    [
        ";",
        "a;",
        "a;;x",
        "a; x=",
        "a; =1",
        "a b",
        "a/b",
        "a; x=1 2",
        'a; x="',
        'a; x="1',
        'a; x=""',
        'a; x="1 2"',
        r'a; x="\"',
        'a; x="1"2',
        'a, "b"',
        "a; x, ;",
        "a; x\x00",
        "a, \u00e9",
    ],
)
def test_a_malformed_header_is_refused(header):
    with pytest.raises(HandshakeError, match="Sec-WebSocket-Extensions") as caught:
        parse_extensions(header)
    assert caught.value.status == 400


@pytest.mark.parametrize(
    "header", ["a," * 16000, "a;x=" * 8000, ";" * 32000, 'a;x="' + "\\" * 32000]
)
def test_a_long_header_takes_no_longer_than_its_length(header):
    try:
        parse_extensions(header)
    except HandshakeError as error:
        assert len(str(error)) < 400


# -- a server's choice

NONE = "permessage-deflate; server_no_context_takeover; client_no_context_takeover"


@pytest.mark.parametrize(
    ("offers", "answer"),
    [
        ("permessage-deflate", NONE),
        ("permessage-deflate; client_max_window_bits", NONE),  # browsers
        ("permessage-deflate; client_max_window_bits=15", NONE),
        ("permessage-deflate; server_no_context_takeover; client_no_context_takeover", NONE),
        ("permessage-deflate; client_max_window_bits=10", f"{NONE}; client_max_window_bits=10"),
        ("permessage-deflate; client_max_window_bits=8", f"{NONE}; client_max_window_bits=8"),
        ('permessage-deflate; client_max_window_bits="8"', f"{NONE}; client_max_window_bits=8"),
        ("permessage-deflate; server_max_window_bits=8", f"{NONE}; server_max_window_bits=8"),
        # What was offered is answered, even if it limits nothing (section 7.1.2.1).
        ("permessage-deflate; server_max_window_bits=15", f"{NONE}; server_max_window_bits=15"),
        ("x-webkit-deflate-frame, bbf-usp-protocol; a=b, permessage-deflate", NONE),
        # Wrong, and so declined; the next is taken (section 7.1).
        ("permessage-deflate; server_max_window_bits=7, permessage-deflate", NONE),
        ("permessage-deflate; x, permessage-deflate; server_max_window_bits", None),
        ("permessage-deflate; server_no_context_takeover=1", None),
        ("permessage-deflate; client_no_context_takeover=true", None),
        ("permessage-deflate; server_max_window_bits=16", None),
        ("permessage-deflate; server_max_window_bits=08", None),
        ("permessage-deflate; server_max_window_bits=+9", None),
        ("permessage-deflate; server_max_window_bits=1e1", None),
        ("permessage-deflate; client_max_window_bits=7", None),
        ("permessage-deflate; client_max_window_bits; client_max_window_bits", None),
        ("permessage-deflate; client_max_window_bits=9; client_max_window_bits=9", None),
        ("permessage-deflate; server_no_context_takeover; server_no_context_takeover", None),
        ("permessage-deflate; Server_no_context_takeover", None),
        ("permessage-bzip2", None),
        ("", None),
    ],
)
def test_a_server_takes_the_first_good_offer(offers, answer):
    chosen = accept_offer(parse_extensions(offers), Config())
    assert (None if chosen is None else str(chosen)) == answer


@pytest.mark.parametrize(
    ("options", "offer", "answer"),
    [
        ({"deflate": False}, "permessage-deflate", None),
        (
            {"deflate_takeover": True},
            "permessage-deflate",
            "permessage-deflate; client_no_context_takeover",
        ),
        (
            {"deflate_peer_takeover": True},
            "permessage-deflate",
            "permessage-deflate; server_no_context_takeover",
        ),
        (
            {"deflate_takeover": True, "deflate_peer_takeover": True},
            "permessage-deflate",
            "permessage-deflate",
        ),
        (
            {"deflate_takeover": True, "deflate_peer_takeover": True},
            "permessage-deflate; client_no_context_takeover; server_no_context_takeover",
            NONE,
        ),
        ({"deflate_window_bits": 9}, "permessage-deflate", f"{NONE}; server_max_window_bits=9"),
        (
            {"deflate_window_bits": 12},
            "permessage-deflate; server_max_window_bits=10",
            f"{NONE}; server_max_window_bits=10",
        ),
        (
            {"deflate_window_bits": 12},
            "permessage-deflate; server_max_window_bits=14",
            f"{NONE}; server_max_window_bits=12",
        ),
        (
            {"deflate_peer_window_bits": 10},
            "permessage-deflate; client_max_window_bits",
            f"{NONE}; client_max_window_bits=10",
        ),
        (
            {"deflate_peer_window_bits": 10},
            "permessage-deflate; client_max_window_bits=9",
            f"{NONE}; client_max_window_bits=9",
        ),
        # A client that does not say so cannot limit its window.
        ({"deflate_peer_window_bits": 10}, "permessage-deflate", None),
    ],
)
def test_a_server_keeps_to_its_options(options, offer, answer):
    chosen = accept_offer(parse_extensions(offer), Config(**options))
    assert (None if chosen is None else str(chosen)) == answer


# -- a client's offer


@pytest.mark.parametrize(
    ("options", "offer"),
    [
        ({}, f"{NONE}; client_max_window_bits"),
        ({"deflate": False}, None),
        ({"deflate_window_bits": 10}, f"{NONE}; client_max_window_bits=10"),
        (
            {
                "deflate_takeover": True,
                "deflate_peer_takeover": True,
                "deflate_peer_window_bits": 9,
            },
            "permessage-deflate; server_max_window_bits=9; client_max_window_bits",
        ),
    ],
)
def test_a_clients_offer_follows_its_options(options, offer):
    assert make_offer(Config(**options)) == offer


@pytest.mark.parametrize(
    ("options", "answer", "agreed"),
    [
        ({}, "", None),
        ({"deflate": False}, "", None),
        ({}, "permessage-deflate; server_no_context_takeover", Parameters(True, True)),
        (
            {"deflate_takeover": True},
            "permessage-deflate; server_no_context_takeover; client_max_window_bits=9",
            Parameters(True, False, None, 9),
        ),
        (
            {"deflate_takeover": True, "deflate_peer_takeover": True},
            "permessage-deflate; server_max_window_bits=15; client_no_context_takeover",
            Parameters(False, True, 15),
        ),
        (
            {"deflate_window_bits": 10},
            "permessage-deflate; server_no_context_takeover",
            Parameters(True, True, None, 10),
        ),
    ],
)
def test_a_client_accepts_an_answer_that_fits_its_offer(options, answer, agreed):
    assert accept_answer(parse_extensions(answer), Config(**options)) == agreed


@pytest.mark.parametrize(
    ("options", "answer", "match"),
    [
        ({"deflate": False}, "permessage-deflate", "not offered"),
        ({}, "permessage-bzip2", "not offered"),
        ({}, f"{NONE}, {NONE}", "not offered"),
        (
            {},
            "permessage-deflate",
            r"server_no_context_takeover is missing; Config\(deflate_peer_takeover=True\) does not",
        ),
        ({}, f"{NONE}; client_max_window_bits", "client_max_window_bits must be 8 to 15"),
        ({}, f"{NONE}; server_max_window_bits=7", "server_max_window_bits must be 8 to 15"),
        ({}, f"{NONE}; server_no_context_takeover", "duplicate parameter"),
        ({}, f"{NONE}; x=1", "unknown parameter x"),
        (
            {"deflate_peer_window_bits": 9},
            NONE,
            r"server_max_window_bits must be 9 or less \(deflate_peer_window_bits\)",
        ),
        (
            {"deflate_window_bits": 9},
            f"{NONE}; client_max_window_bits=10",
            "client_max_window_bits must be 9 or less",
        ),
    ],
)
def test_a_client_refuses_parameters_it_did_not_offer(options, answer, match):
    with pytest.raises(HandshakeError, match=match):
        accept_answer(parse_extensions(answer), Config(**options))


def test_our_client_and_our_server_agree():
    for options in ({}, {"deflate_takeover": True}, {"deflate_window_bits": 8}):
        config = Config(**options)
        chosen = accept_offer(parse_extensions(make_offer(config)), Config())
        agreed = accept_answer(parse_extensions(str(chosen)), config)
        assert agreed == chosen._replace(client_no_context_takeover=True)


# -- what the RFC prints (section 7.2.3)

HELLO = bytes.fromhex("f248cdc9c90700")


@pytest.mark.parametrize("parameters", [BOTH, TAKEOVER])
@pytest.mark.parametrize(
    "payload",
    [
        "f248cdc9c90700",  # one block
        "000500faff48656c6c6f00",  # a block that is not compressed
        "f348cdc9c9070000",  # a block marked as the last
        "f248050000 00ffffcac9c90700",  # two blocks
    ],
)
def test_the_examples_of_the_rfc(payload, parameters):
    data = frame(TEXT, bytes.fromhex(payload), rsv=4)
    for chunks in ([data], octets(data)):
        assert drive(protocol(parameters), *chunks) == [(TEXT, "Hello", True)]


def test_the_example_of_a_fragmented_message():
    data = frame(TEXT, HELLO[:3], rsv=4, fin=False) + frame(CONTINUATION, HELLO[3:])
    events = drive(protocol(), data)
    assert [(opcode, final) for opcode, _, final in events] == [(TEXT, False), (CONTINUATION, True)]
    assert "".join(text for _, text, _ in events) == "Hello"


def test_the_example_of_context_takeover():
    again = bytes.fromhex("f200110000")
    events = drive(protocol(TAKEOVER), frame(TEXT, HELLO, rsv=4), frame(TEXT, again, rsv=4))
    assert events == [(TEXT, "Hello", True)] * 2
    # Without it there is nothing that the second could refer to.
    assert close_code(protocol(), frame(TEXT, HELLO, rsv=4), frame(TEXT, again, rsv=4)) == 1007


@pytest.mark.parametrize("parameters", [BOTH, TAKEOVER])
@pytest.mark.parametrize("empty", [b"\x00", b"\x02\x00", b"\x03\x00\x00"])
def test_an_empty_message_is_empty(empty, parameters):
    end = protocol(parameters)
    for _ in range(3):
        assert drive(end, frame(BINARY, empty, rsv=4)) == [(BINARY, b"", True)]
    assert drive(end, frame(TEXT, HELLO, rsv=4)) == [(TEXT, "Hello", True)]


def test_blocks_marked_final_may_come_before_others():
    compressor = zlib.compressobj(wbits=-15)
    whole = compressor.compress(b"one ") + compressor.flush(zlib.Z_FINISH)
    data = frame(BINARY, whole * 3 + deflated(b"two"), rsv=4)
    for chunks in ([data], octets(data)):
        assert drive(protocol(), *chunks) == [(BINARY, b"one one one two", True)]


# -- which frames may have RSV1 set


@pytest.mark.parametrize(
    "data",
    [
        frame(PING, b"", rsv=4),
        frame(CLOSE, b"", rsv=4),
        frame(TEXT, HELLO, rsv=4, fin=False) + frame(CONTINUATION, b"\x00", rsv=4),
        frame(TEXT, b"a", fin=False) + frame(CONTINUATION, b"\x00", rsv=4),
        frame(TEXT, HELLO, rsv=6),
        frame(TEXT, HELLO, rsv=5),
        frame(TEXT, HELLO, rsv=2),
        frame(TEXT, HELLO, rsv=1),
    ],
)
def test_rsv1_belongs_to_the_first_frame_of_a_message(data):
    assert close_code(protocol(), data) == 1002


def test_a_reserved_bit_fails_with_its_byte():
    assert close_code(protocol(), b"\xc9") == 1002
    assert drive(protocol(), b"\xc1") == []
    assert close_code(Connection(Config()), b"\xc1") == 1002


def test_compressed_and_plain_messages_may_be_mixed_with_pings_between():
    end = protocol()
    data = (
        frame(TEXT, b"plain")
        + frame(TEXT, HELLO[:2], rsv=4, fin=False)
        + frame(PING, b"1")
        + frame(CONTINUATION, HELLO[2:4], fin=False)
        + frame(PING, b"2")
        + frame(CONTINUATION, HELLO[4:])
        + frame(BINARY, HELLO)
    )
    events = drive(end, data)
    assert events[0] == (TEXT, "plain", True)
    assert "".join(text for _, text, _ in events[1:4]) == "Hello"
    assert events[4] == (BINARY, HELLO, True)
    assert end.replies == [frame(10, b"1", mask=None), frame(10, b"2", mask=None)]


# -- damage


@pytest.mark.parametrize("parameters", [BOTH, TAKEOVER])
@pytest.mark.parametrize(
    ("payload", "code"),
    [
        (b"\x07", 1007),  # a block of a type that there is not
        (b"\xff" * 10, 1007),
        (HELLO[:-1], 1007),  # cut short
        (HELLO[:3], 1007),
        (b"", 1007),  # no block at all
        (deflated(bytes(range(256)) * 9)[:-20], 1007),
        (b"\x00\x05\x00\xfa\xffHel", 1007),
        (b"\x00\x05\x00\xfa\xfeHello\x00", 1007),
        (HELLO + b"\x00\x00\xff\xff", 1007),  # the tail was not taken off
        (HELLO + b"garbage", 1007),
        (bytes.fromhex("f348cdc9c90700"), 1007),  # nothing after the final block
        (bytes.fromhex("f348cdc9c90700") + b"garbage", 1007),
        (b"\x03\x00" * 256 + b"\x00", None),
        (b"\x03\x00" * 257 + b"\x00", 1008),
    ],
)
def test_invalid_deflate_is_refused(payload, code, parameters):
    for data in (
        frame(BINARY, payload, rsv=4),
        frame(BINARY, payload, rsv=4, fin=False) + frame(CONTINUATION),
    ):
        if code is None:
            *_, last = drive(protocol(parameters), frame(BINARY, payload, rsv=4))
            assert last == (BINARY, b"", True)
        elif payload or data[0] & 128:
            assert close_code(protocol(parameters), data) == code


@pytest.mark.parametrize("parameters", [BOTH, TAKEOVER])
def test_text_that_is_not_utf8_fails_as_soon_as_it_is_inflated(parameters):
    compressor = zlib.compressobj(wbits=-15)
    parts = [b"good", b"b\xffd"]
    first, second = (
        compressor.compress(part) + compressor.flush(zlib.Z_SYNC_FLUSH) for part in parts
    )
    end = protocol(parameters)
    assert drive(end, frame(TEXT, first, rsv=4, fin=False)) == [(TEXT, "good", False)]
    # The frame announces more than has come, or need come.
    assert close_code(end, frame(CONTINUATION, second, fin=False, length=100)) == 1007


def test_a_code_point_may_be_cut_by_compressed_fragments():
    compressor = zlib.compressobj(wbits=-15)
    first = compressor.compress(b"\xe2\x82") + compressor.flush(zlib.Z_SYNC_FLUSH)
    second = (compressor.compress(b"\xac") + compressor.flush(zlib.Z_SYNC_FLUSH))[:-4]
    good = frame(TEXT, first, rsv=4, fin=False) + frame(CONTINUATION, second)
    assert drive(protocol(), good) == [(TEXT, "", False), (CONTINUATION, "\u20ac", True)]
    assert close_code(protocol(), frame(TEXT, deflated(b"\xe2\x82"), rsv=4)) == 1007


@examples(60)
@given(
    st.binary(max_size=300),
    st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(1, 255)), max_size=3),
    st.booleans(),
)
def test_damage_ends_in_a_message_or_in_a_close(payload, damage, takeover):
    data = bytearray(deflated(payload))
    for position, bits in damage:
        data[position % len(data)] ^= bits
    end = protocol(Parameters(False, not takeover), max_message_size=4096)
    opcode, result, extra = drive(end, frame(BINARY, bytes(data), rsv=4))[-1]
    if opcode == CLOSE:
        assert result in (1007, 1008, 1009)
    else:
        assert (opcode, extra) == (BINARY, True)
        # Whatever we take, zlib takes as well; it stops at a last block.
        assert result.startswith(inflated(bytes(data)))
    if not damage:
        assert result == payload


# -- round trips


@examples(60)
@given(
    st.lists(st.binary(max_size=2000), min_size=1, max_size=4),
    st.lists(st.integers(0, 3000), max_size=5),
    st.integers(8, 15),
    st.booleans(),
    st.booleans(),
)
def test_what_one_end_compresses_the_other_inflates(payloads, cuts, bits, takeover, client):
    parameters = Parameters(not takeover, not takeover, bits, bits)
    ours = protocol(parameters, client, deflate_threshold=0)
    theirs = protocol(parameters, not client)
    inflater = zlib.decompressobj(-bits)
    for payload in payloads:
        data = sent(ours, payload)
        _, _, body, _, rest = read_frame(bytes([data[0] & ~0x40]) + data[1:])
        assert data[0] & 0x40 and rest == b""
        assert not body.endswith(TAIL)
        if not takeover:
            inflater = zlib.decompressobj(-bits)
        assert inflater.decompress(body + TAIL) == payload
        positions = [position % (len(data) + 1) for position in cuts]
        assert drive(theirs, *cut(data, positions)) == [(BINARY, payload, True)]


@examples(60)
@given(
    st.lists(st.binary(max_size=500), min_size=1, max_size=6),
    st.booleans(),
    st.integers(0, 5),
)
def test_fragments_are_delivered_one_by_one(parts, takeover, at):
    parameters = Parameters(not takeover, not takeover)
    ours, theirs = protocol(parameters), protocol(parameters, client=True)
    for _ in range(2):
        for number, part in enumerate(parts):
            final = number == len(parts) - 1
            data = sent(ours, part, BINARY, final, compress=True)
            assert bool(data[0] & 0x40) == (number == 0)
            if number == at:
                data = frame(PING, b"", mask=None) + data
            opcode = BINARY if number == 0 else CONTINUATION
            # Each is flushed: it is there when its frame is.
            assert drive(theirs, data) == [(opcode, part, final)]


@pytest.mark.parametrize("takeover", [False, True])
def test_an_empty_last_fragment_is_an_empty_block(takeover):
    parameters = Parameters(not takeover, not takeover)
    ours = protocol(parameters)
    for _ in range(2):
        sent(ours, b"x" * 50, final=False, compress=True)
        assert read_frame(sent(ours, b""))[2] == b"\x00"


def test_8_window_bits_need_no_more_than_256_bytes():
    # A match every 300 bytes: out of reach of 8 bits, within that of 9.
    chunk = bytes(range(256)) + bytes(44)
    ours = protocol(Parameters(True, True, 8, 8), deflate_level=9)
    body = read_frame(bytes([0x82]) + sent(ours, chunk * 20)[1:])[2]
    # Fed byte by byte, so that the inflater has its window alone to look back into.
    inflater = zlib.decompressobj(-8)
    assert b"".join(inflater.decompress(bytes([byte])) for byte in body) == chunk * 20


# -- when a message is compressed


def test_the_threshold_decides_unless_the_sender_does():
    end = protocol(deflate_threshold=100)
    assert not sent(end, bytes(99))[0] & 0x40
    assert sent(end, bytes(100))[0] & 0x40
    assert not sent(end, bytes(100), compress=False)[0] & 0x40
    assert sent(end, b"", compress=True)[0] & 0x40
    assert not sent(protocol(), bytes(1023))[0] & 0x40
    assert sent(protocol(), bytes(1024))[0] & 0x40


def test_the_first_fragment_decides_for_the_whole_message():
    end = protocol(deflate_threshold=100)
    assert not sent(end, bytes(99), final=False)[0] & 0x40
    assert sent(end, bytes(200), final=False) == frame(0, bytes(200), fin=False, mask=None)
    assert sent(end, bytes(200), compress=True) == frame(0, bytes(200), mask=None)
    assert sent(end, bytes(100), final=False)[0] & 0x40
    last = read_frame(sent(end, b"small", compress=False))[2]
    assert last != b"small"


def test_takeover_makes_the_second_of_two_messages_small():
    payload = bytes(range(256)) * 4
    remembers, forgets = protocol(TAKEOVER), protocol(BOTH)
    first, second = (len(sent(remembers, payload)) for _ in range(2))
    assert second < first / 10
    assert sent(forgets, payload) == sent(forgets, payload)


def test_connections_share_compressors_but_no_compression_history():
    secret = bytes(range(255, -1, -1)) * 8
    expected = sent(protocol(), secret)
    one, other = protocol(), protocol()
    sent(one, bytes(range(256)) * 8)
    assert sent(other, secret) == expected
    # A message in fragments keeps its compressor for itself until its end.
    part = sent(one, secret[:1024], final=False, compress=True)
    assert sent(other, secret) == expected
    rest = sent(one, secret[1024:])
    events = drive(protocol(client=True), part + rest)
    assert b"".join(data for _, data, _ in events) == secret


# -- bounds

LIMIT = 1 << 16


def bomb(size: int) -> bytes:
    """Zeros, a thousandfold compressed."""
    return deflated(bytes(size), level=9)


def test_max_message_size_limits_the_inflated_message():
    for size, taken in ((LIMIT, True), (LIMIT + 1, False)):
        data = frame(BINARY, bomb(size), rsv=4)
        for chunks in ([data], octets(data)):
            end = protocol(max_message_size=LIMIT)
            *_, (opcode, result, _) = drive(end, *chunks)
            assert (opcode == BINARY) == taken
            assert result == (bytes(LIMIT) if taken else 1009)


def test_an_incompressible_message_may_have_max_message_size():
    payload = zlib.compress(bytes(range(256)) * 999, 9) * 40
    payload = payload[:LIMIT]
    for level in (0, 1):
        compressor = zlib.compressobj(level, zlib.DEFLATED, -9, 1)
        parts = [payload[i : i + 100] for i in range(0, LIMIT, 100)]
        bodies = [compressor.compress(part) + compressor.flush(zlib.Z_SYNC_FLUSH) for part in parts]
        bodies[-1] = bodies[-1][:-4]
        frames = [
            frame(0 if i else BINARY, body, rsv=0 if i else 4, fin=i == len(bodies) - 1)
            for i, body in enumerate(bodies)
        ]
        events = drive(protocol(max_message_size=LIMIT), b"".join(frames))
        assert b"".join(data for _, data, _ in events) == payload
        assert drive(protocol(max_message_size=LIMIT), frame(BINARY, deflated(payload), rsv=4))


def test_an_absurd_length_is_refused_when_it_is_announced():
    head = frame(BINARY, b"", rsv=4, length=LIMIT * 2)[:-1]
    assert close_code(protocol(max_message_size=LIMIT), head + b"\x00") == 1009


@pytest.mark.parametrize("limit", [1, 10, 100])
def test_a_small_limit_allows_for_the_overhead_of_deflate(limit):
    end = protocol(max_message_size=limit)
    payload = bytes(range(limit))
    assert drive(end, frame(BINARY, deflated(payload), rsv=4)) == [(BINARY, payload, True)]


def test_the_limit_holds_across_fragments():
    whole = bomb(LIMIT * 3)
    half = len(whole) // 2
    end = protocol(max_message_size=LIMIT)
    data = frame(BINARY, whole[:half], rsv=4, fin=False) + frame(CONTINUATION, whole[half:])
    assert close_code(end, data) == 1009
    # A fragment at a time, each within the limit.
    compressor = zlib.compressobj(9, zlib.DEFLATED, -15)
    end = protocol(max_message_size=LIMIT)
    for number in range(9):
        body = compressor.compress(bytes(LIMIT // 8)) + compressor.flush(zlib.Z_SYNC_FLUSH)
        opcode, rsv = (CONTINUATION, 0) if number else (BINARY, 4)
        *_, last = drive(end, frame(opcode, body, rsv=rsv, fin=False))
        assert (last[0] == CLOSE) == (number == 8)
    assert last[1] == 1009


@pytest.mark.parametrize(("text", "code"), [(b"a\xff", 1007), (b"a" * 21 + b"\xff", 1009)])
def test_of_invalid_and_oversized_text_the_first_error_is_reported_at_any_cut(text, code):
    data = frame(TEXT, deflated(text + bytes(LIMIT)), rsv=4)
    for chunks in ([data], octets(data)):
        assert close_code(protocol(max_message_size=20), *chunks) == code


@pytest.mark.parametrize("parameters", [BOTH, TAKEOVER])
@pytest.mark.parametrize("opcode", [TEXT, BINARY])
def test_the_memory_that_a_bomb_takes_is_bounded_by_the_limit(opcode, parameters):
    data = frame(opcode, bomb(100 << 20), rsv=4)  # 100 KB that are 100 MiB
    chunks = [data[i : i + 65536] for i in range(0, len(data), 65536)]
    end = protocol(parameters, max_message_size=1 << 20)
    tracemalloc.start()
    assert close_code(end, *chunks) == 1009
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # The output, what zlib had it in, and the input.
    assert peak < 4 << 20


def test_without_a_limit_everything_is_inflated():
    end = protocol(max_message_size=None)
    (event,) = drive(end, frame(BINARY, bomb(8 << 20), rsv=4))
    assert event == (BINARY, bytes(8 << 20), True)


def test_an_idle_connection_takes_hardly_any_memory():
    ours = protocol()
    theirs = protocol(client=True)
    sent(ours, bytes(5000))  # the pool has its compressor
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    states = [Deflate(BOTH, Config()) for _ in range(100)]
    after = tracemalloc.get_traced_memory()[0]
    drive(theirs, sent(ours, bytes(5000)))
    used = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert (after - before) / len(states) < 400 > sys.getsizeof(states[0])
    assert used - after < 8192


@pytest.mark.parametrize("opcode", [TEXT, BINARY])
def test_a_partial_message_is_freed_with_its_connection(opcode):
    end = protocol(TAKEOVER, max_message_size=1 << 22)
    data = frame(opcode, deflated(b"abc" * 400_000), rsv=4)
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    assert drive(end, data[:-2]) == []
    sent(end, bytes(1000), final=False)
    assert tracemalloc.get_traced_memory()[0] - before > 1_000_000
    end.feed_eof("lost")
    assert end.next_event() == CLOSE
    after = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert after - before < 8192


# -- over a socket


@pytest.fixture
def dial(serve):
    """``dial(handler, offer, **options)`` gives the raw client of a session, and the answer."""
    peers = []

    def start(handle, offer="permessage-deflate", **options):
        class Handler(greenws.WebSocketSessionHandler):
            def handle_session(self, request, socket):
                handle(socket)

        server = serve(WebSocketHandler(lambda request, protocols: Handler(), **options))
        peer = Peer.connect(server.address)
        peers.append(peer)
        response = peer.shake(Sec_WebSocket_Extensions=offer)
        return peer, response

    yield start
    for peer in peers:
        peer.close()


def read_compressed(peer: Peer) -> tuple[bool, int, bytes]:
    """(RSV1, opcode, payload) of a short frame."""
    first, size = peer.read(2)
    if size == 126:
        size = int.from_bytes(peer.read(2), "big")
    return bool(first & 0x40), first & 15, peer.read(size)


def echo(socket):
    for message in socket:
        socket.send(message)


def test_a_server_answers_the_offer_and_echoes_compressed(dial):
    peer, response = dial(echo)
    assert response.status == 101
    assert response.headers["sec-websocket-extensions"] == NONE
    text = "greenws " * 500
    peer.send(frame(TEXT, deflated(text.encode()), rsv=4))
    compressed, opcode, payload = read_compressed(peer)
    assert (compressed, opcode) == (True, TEXT)
    assert inflated(payload) == text.encode()
    assert len(payload) < 100
    peer.send(frame(TEXT, deflated(b"short"), rsv=4))
    assert read_compressed(peer) == (False, TEXT, b"short")


def test_a_client_that_offers_nothing_gets_nothing(dial):
    peer, response = dial(echo, offer=None)
    assert "sec-websocket-extensions" not in response.headers
    peer.send(frame(TEXT, b"a" * 5000))
    assert peer.read_frame() == (True, TEXT, b"a" * 5000)
    peer.send(frame(TEXT, HELLO, rsv=4))
    assert peer.read_close()[0] == 1002


def test_a_handler_may_switch_it_off(dial):
    _, response = dial(echo, deflate=False)
    assert (response.status, "sec-websocket-extensions" in response.headers) == (101, False)


def test_of_thousands_of_extensions_only_the_form_is_checked():
    """In detail they would take 35 ms."""
    many = ", ".join(f"x{number}; a={number}" for number in range(1500))
    assert parse_extensions(many)[-1] == ("x31", [("a", "31")])
    assert len(parse_extensions(many)) == 32
    for wrong in ("x=", "x;", '"', "x y"):
        with pytest.raises(HandshakeError, match=f"malformed at '{wrong}, y'"):
            parse_extensions(f"{many}, {wrong}, y")


def test_a_malformed_offer_is_a_bad_request(dial):
    _, response = dial(echo, offer="permessage-deflate; x=")
    assert response.status == 400
    assert b"Sec-WebSocket-Extensions is malformed" in response.body


def test_a_send_may_opt_out_and_fragments_are_compressed(dial):
    def handle(socket):
        socket.send("s" * 2000, compress=False)
        socket.send(b"t", compress=True)
        socket.send_string_message("u" * 1100, final=False)
        socket.send_ping(b"between")
        socket.send_string_message("v", final=True)
        socket.send_binary_message(b"w" * 3000, final=False, compress=False)
        socket.send_binary_message(b"x" * 3000)
        socket.receive()

    peer, _ = dial(handle)
    assert read_compressed(peer) == (False, TEXT, b"s" * 2000)
    compressed, opcode, payload = read_compressed(peer)
    assert (compressed, opcode, inflated(payload)) == (True, BINARY, b"t")
    compressed, opcode, first = read_compressed(peer)
    assert (compressed, opcode) == (True, TEXT)
    assert zlib.decompressobj(-15).decompress(first) == b"u" * 1100
    assert read_compressed(peer) == (False, PING, b"between")
    compressed, opcode, second = read_compressed(peer)
    assert (compressed, opcode) == (False, CONTINUATION)
    assert inflated(first + second) == b"u" * 1100 + b"v"
    assert read_compressed(peer) == (False, BINARY, b"w" * 3000)
    assert read_compressed(peer) == (False, CONTINUATION, b"x" * 3000)


def test_a_bomb_closes_with_1009_and_the_server_goes_on(dial):
    seen = []
    peer, _ = dial(lambda socket: seen.append(list(socket)) or echo(socket))
    peer.send(frame(BINARY, bomb(50 << 20), rsv=4))
    code, reason = peer.read_close()
    assert (code, b"max_message_size" in reason) == (1009, True)


def test_takeover_over_many_messages_from_several_greenlets(dial):
    count = 20

    def handle(socket):
        def run(number):
            for index in range(count):
                socket.send(f"{number} {index} " + "greenws " * 200)
                gevent.sleep(0)

        gevent.joinall([gevent.spawn(run, number) for number in range(4)], raise_error=True)
        socket.receive()

    peer, response = dial(handle, deflate_takeover=True)
    assert "server_no_context" not in response.headers["sec-websocket-extensions"]
    inflater = zlib.decompressobj(-15)
    seen: dict[str, list[int]] = {}
    for _ in range(4 * count):
        compressed, _, payload = read_compressed(peer)
        assert compressed
        number, index, _ = inflater.decompress(payload + TAIL).decode().split(" ", 2)
        seen.setdefault(number, []).append(int(index))
    assert seen == {str(number): list(range(count)) for number in range(4)}
