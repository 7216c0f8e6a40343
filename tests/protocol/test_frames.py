"""Frames: the parser against frames built by hand, the encoder against bytes written by hand.

Every vector is fed whole, byte by byte, and with trailing data.
"""

from __future__ import annotations

import os
import tracemalloc

import pytest

from greenws.config import Config
from greenws.exceptions import InvalidPayload, MessageTooBig, PolicyViolation, ProtocolError
from greenws.protocol.connection import Connection
from greenws.protocol.frames import (
    MAX_HEADER,
    FrameParser,
    Masks,
    encode_frame,
    encode_header,
    write_masked_frame,
)

from ..support.sansio import cut, lend, octets
from ..support.wire import BINARY, CLOSE, CONTINUATION, MASK, PING, PONG, TEXT, frame

SERVER = {"mask": MASK}  # how the peer of a server sends
CLIENT = {"mask": None}
ROLES = pytest.mark.parametrize("options", [SERVER, CLIENT], ids=["server", "client"])
BOUNDARIES = [0, 1, 2, 124, 125, 126, 127, 128, 255, 256, 65535, 65536, 65537]


def parser_for(options) -> FrameParser:
    return FrameParser(options["mask"] is not None)


def parse(parser: FrameParser, *chunks: bytes) -> list[tuple[bool, int, bytes]]:
    """Frames out of ``chunks``; what is lent is overwritten after each ``keep()``."""
    frames = []
    payload = None
    for chunk in chunks:
        buffer = lend(parser, chunk)
        while True:
            if payload is None:
                if not parser.next_header():
                    break
                payload = b""
                announced = parser.length
            complete = parser.has_payload()
            piece = parser.take()
            assert type(piece) is bytes
            payload += piece
            if not complete:
                break
            assert len(payload) == announced
            frames.append((parser.final, parser.opcode, payload))
            payload = None
        parser.keep()
        buffer[:] = b"\xee" * len(buffer)
    return frames


def payload_of(size: int) -> bytes:
    return bytes((i * 31 + size) & 0xFF for i in range(size))


VECTORS = [
    # RFC 6455, section 5.7, word by word
    (None, bytes.fromhex("810548656c6c6f"), [(True, TEXT, b"Hello")]),
    (MASK, bytes.fromhex("818537fa213d7f9f4d5158"), [(True, TEXT, b"Hello")]),
    (
        None,
        bytes.fromhex("010348656c80026c6f"),
        [(False, TEXT, b"Hel"), (True, CONTINUATION, b"lo")],
    ),
    (None, bytes.fromhex("890548656c6c6f"), [(True, PING, b"Hello")]),
    (MASK, bytes.fromhex("8a8537fa213d7f9f4d5158"), [(True, PONG, b"Hello")]),
    (None, bytes.fromhex("827e0100") + bytes(256), [(True, BINARY, bytes(256))]),
    (None, bytes.fromhex("827f0000000000010000") + bytes(65536), [(True, BINARY, bytes(65536))]),
]


@pytest.mark.parametrize(("mask", "data", "expected"), VECTORS)
def test_examples_of_the_rfc(mask, data, expected):
    assert parse(FrameParser(mask is not None), data) == expected
    assert parse(FrameParser(mask is not None), *octets(data[:400]), data[400:]) == expected
    assert parse(FrameParser(mask is not None), data + data) == expected * 2


@ROLES
@pytest.mark.parametrize("opcode", [CONTINUATION, TEXT, BINARY])
@pytest.mark.parametrize("fin", [True, False])
def test_data_frames_at_every_boundary_of_the_length(options, opcode, fin):
    for size in BOUNDARIES:
        payload = payload_of(size)
        data = frame(opcode, payload, fin=fin, **options)
        assert parse(parser_for(options), data) == [(fin, opcode, payload)], size


@ROLES
@pytest.mark.parametrize("opcode", [CLOSE, PING, PONG])
def test_control_frames_hold_up_to_125_bytes(options, opcode):
    for size in range(126):
        payload = payload_of(size)
        data = frame(opcode, payload, **options)
        assert parse(parser_for(options), data) == [(True, opcode, payload)], size


@ROLES
@pytest.mark.parametrize("size", [0, 1, 5, 125, 126, 300, 65535, 65536])
def test_frames_parse_byte_by_byte_and_with_data_after_them(options, size):
    payload = payload_of(size)
    data = frame(BINARY, payload, **options)
    behind = frame(TEXT, b"next", **options)
    step = octets(data[:400]) + ([data[400:-3], *octets(data[-3:])] if len(data) > 400 else [])
    assert parse(parser_for(options), *step) == [(True, BINARY, payload)]
    both = [(True, BINARY, payload), (True, TEXT, b"next")]
    assert parse(parser_for(options), data + behind) == both
    assert parse(parser_for(options), *step, *octets(behind)) == both
    for size_behind in range(len(behind)):  # the beginning of a frame is not a frame
        assert parse(parser_for(options), data + behind[:size_behind]) == both[:1]
        assert parse(parser_for(options), data + behind[:size_behind], behind[size_behind:]) == both


@ROLES
def test_every_cut_of_a_stream_gives_the_same_frames(options):
    data = (
        frame(TEXT, b"Hel", fin=False, **options)
        + frame(PING, b"", **options)
        + frame(CONTINUATION, payload_of(130), **options)
    )
    expected = [(False, TEXT, b"Hel"), (True, PING, b""), (True, CONTINUATION, payload_of(130))]
    for first in range(len(data) + 1):
        for second in range(first, len(data) + 1, 7):
            assert parse(parser_for(options), *cut(data, [first, second])) == expected


def test_each_frame_is_unmasked_with_its_own_mask():
    masks = [b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x01\x02\x03\x04", MASK]
    data = b"".join(frame(BINARY, b"abcdefg", mask=mask) for mask in masks)
    assert parse(FrameParser(True), data) == [(True, BINARY, b"abcdefg")] * 4
    assert parse(FrameParser(True), *octets(data)) == [(True, BINARY, b"abcdefg")] * 4


def test_a_piece_is_unmasked_wherever_the_one_before_it_ended():
    payload = payload_of(23)
    data = frame(BINARY, payload, mask=MASK)
    for first in range(6, len(data)):
        for second in range(first, len(data)):
            assert parse(FrameParser(True), *cut(data, [first, second])) == [
                (True, BINARY, payload)
            ]


# (what a server may not get, index of the byte with which that is certain, what to call it)
_FOREVER = b"\0" * 20
WRONG = [
    *((bytes([0x80 | rsv << 4 | TEXT, 0x85]), 0, f"rsv-{rsv}") for rsv in range(1, 8)),
    *((bytes([0x80 | rsv << 4 | PING, 0x80]), 0, f"rsv-{rsv}-ping") for rsv in (1, 2, 4)),
    *((bytes([0x80 | opcode, 0x80]), 0, f"opcode-{opcode}") for opcode in (3, 4, 5, 6, 7)),
    *((bytes([0x80 | opcode, 0x80]), 0, f"opcode-{opcode}") for opcode in (11, 12, 13, 14, 15)),
    *((bytes([opcode, 0x80]), 0, f"opcode-{opcode}-fragment") for opcode in (3, 7, 11, 15)),
    *((bytes([opcode, 0x80]), 0, f"fragmented-control-{opcode}") for opcode in (8, 9, 10)),
    *((bytes([0x80 | opcode, 0xFE]), 1, f"control-{opcode}-16-bit") for opcode in (8, 9, 10)),
    *((bytes([0x80 | opcode, 0xFF]), 1, f"control-{opcode}-64-bit") for opcode in (8, 9, 10)),
    (b"\x81\x05", 1, "unmasked"),
    (b"\x81\x00", 1, "unmasked-empty"),
    (b"\x89\x00", 1, "unmasked-ping"),
    (b"\x81\x7e", 1, "unmasked-16-bit"),
    (b"\x82\xfe\x00\x00", 3, "0-in-16-bits"),
    (b"\x82\xfe\x00\x7d", 3, "125-in-16-bits"),
    (b"\x82\xff\x80", 2, "most-significant-bit"),
    (b"\x82\xff\xff", 2, "all-bits"),
    (b"\x82\xff\0\0\0\0\0\0\0\0", 7, "0-in-64-bits"),
    (b"\x82\xff\0\0\0\0\0\0\0\x7e", 7, "126-in-64-bits"),
    (b"\x82\xff\0\0\0\0\0\0\xff\xff", 7, "65535-in-64-bits"),
]


@ROLES
@pytest.mark.parametrize(("data", "index"), [pytest.param(*w[:2], id=w[2]) for w in WRONG])
def test_an_invalid_frame_is_refused(options, data, index):
    data += _FOREVER
    if options is CLIENT:
        data = data[:1] + bytes([data[1] ^ 0x80]) + data[2:]
    with pytest.raises(ProtocolError) as caught:
        parse(parser_for(options), data)
    assert caught.value.close_code == 1002
    with pytest.raises(ProtocolError):
        parse(parser_for(options), *octets(data))
    # whatever came before is delivered first
    good = frame(TEXT, b"good", **options)
    parser = parser_for(options)
    lend(parser, good + data)
    assert parser.next_header() and parser.take() == b"good"
    with pytest.raises(ProtocolError):
        parser.next_header()


@ROLES
@pytest.mark.parametrize(("data", "index"), [pytest.param(*w[:2], id=w[2]) for w in WRONG])
def test_an_invalid_frame_is_refused_at_its_first_wrong_byte(options, data, index):
    if options is CLIENT:
        data = data[:1] + bytes([data[1] ^ 0x80]) + data[2:]
    assert parse(parser_for(options), data[:index]) == []
    with pytest.raises(ProtocolError):
        parse(parser_for(options), data[: index + 1])
    with pytest.raises(ProtocolError):
        parse(parser_for(options), *octets(data[: index + 1]))


def test_a_client_refuses_masked_frames():
    for data in (frame(TEXT, b"a"), frame(PING), frame(BINARY, bytes(200))):
        with pytest.raises(ProtocolError, match="server must not mask"):
            parse(FrameParser(False), data[:2])


def test_a_server_refuses_unmasked_frames():
    for data in (frame(TEXT, b"a", mask=None), frame(PING, mask=None)):
        with pytest.raises(ProtocolError, match="client must mask"):
            parse(FrameParser(True), data[:2])


@ROLES
def test_the_largest_length_is_taken(options):
    parser = parser_for(options)
    lend(parser, frame(BINARY, b"abc", length=(1 << 63) - 1, **options))
    assert parser.next_header()
    assert parser.length == (1 << 63) - 1
    assert parser.take() == b"abc"


@ROLES
def test_an_incomplete_header_is_no_header_and_no_error(options):
    for size in (0, 126, 65536):
        data = frame(BINARY, b"", length=size, **options)
        for end in range(len(data)):
            parser = parser_for(options)
            buffer = lend(parser, data[:end])
            assert not parser.next_header()
            parser.keep()
            buffer[:] = b"\xee" * len(buffer)
            lend(parser, data[end:])
            assert parser.next_header()
            assert parser.length == size


@ROLES
def test_header_fields_are_those_announced(options):
    parser = parser_for(options)
    lend(parser, frame(TEXT, b"abc", fin=False, **options))
    assert parser.next_header()
    assert (parser.final, parser.opcode, parser.length) == (False, TEXT, 3)
    assert parser.final is False
    assert parser.has_payload()
    assert parser.take() == b"abc"
    assert parser.take() == b""
    assert parser.has_payload()
    assert not parser.next_header()


@ROLES
def test_a_payload_is_handed_on_in_the_pieces_in_which_it_arrives(options):
    data = frame(BINARY, b"abcdef", **options)
    parser = parser_for(options)
    lend(parser, data[:-4])
    assert parser.next_header()
    assert not parser.has_payload()
    assert parser.take() == b"ab"
    assert parser.take() == b""
    lend(parser, data[-4:-1])
    assert not parser.has_payload()
    assert parser.take() == b"cde"
    lend(parser, data[-1:] + data)
    assert parser.has_payload()
    assert parser.take() == b"f"
    assert parser.next_header()


@ROLES
def test_kept_bytes_do_not_change_with_the_lenders_buffer(options):
    data = frame(TEXT, b"first", **options) + frame(TEXT, b"second", **options)
    for end in range(1, len(data) + 1):
        for taken in (False, True):
            parser = parser_for(options)
            buffer = lend(parser, data[:end])
            found = []
            if taken and parser.next_header():
                if parser.has_payload():
                    found.append(parser.take())
                else:
                    found.append(parser.take())
                    parser.keep()
                    buffer[:] = b"\xee" * len(buffer)
                    lend(parser, data[end:])
                    assert found[0] + parser.take() == b"first"
                    continue
            parser.keep()
            buffer[:] = b"\xee" * len(buffer)
            rest = bytearray(data[end:])
            parser.feed(rest, len(rest))
            while parser.next_header():
                found.append(parser.take())
            assert found == [b"first", b"second"], (end, taken)


@ROLES
def test_the_lenders_buffer_is_never_written_to(options):
    data = frame(TEXT, b"first", **options) + frame(TEXT, b"second", **options)
    for end in range(len(data) + 1):
        parser = parser_for(options)
        first, second = bytearray(data[:end]), bytearray(data[end:])
        parser.feed(first, len(first))
        parser.feed(second, len(second))
        while parser.next_header():
            parser.take()
        parser.keep()
        assert first == data[:end]
        assert second == data[end:]


@ROLES
def test_keep_may_be_called_at_any_time(options):
    parser = parser_for(options)
    parser.keep()
    data = frame(TEXT, b"abc", **options)
    for piece in octets(data)[:-1]:
        parser.feed(bytearray(piece), 1)
        parser.keep()
        parser.keep()
    parser.feed(bytearray(data[-1:]), 1)
    parser.keep()
    assert parser.next_header()
    parser.keep()
    assert parser.take() == b"abc"
    parser.keep()
    assert not parser.next_header()


def test_an_idle_parser_owns_no_memory():
    parser = FrameParser(True)
    lent = lend(parser, frame(BINARY, bytes(1000)))
    assert parser.next_header()
    parser.take()
    parser.keep()
    assert parser.data is not lent
    assert len(parser.data) == 0


def test_two_parsers_share_nothing():
    first, second = FrameParser(True), FrameParser(True)
    data = frame(TEXT, b"abc")
    lend(first, data[:3])
    first.keep()
    assert parse(second, data) == [(True, TEXT, b"abc")]
    assert parse(first, data[3:]) == [(True, TEXT, b"abc")]


@ROLES
def test_an_announced_length_allocates_nothing(options):
    head = frame(BINARY, b"x" * 10, length=1 << 40, **options)
    parser = parser_for(options)
    parser.feed(bytearray(head), len(head))
    tracemalloc.start()
    try:
        assert parser.next_header()
        assert not parser.has_payload()
        assert parser.take() == b"x" * 10
        parser.keep()
        parser.feed(bytearray(b"y" * 10), 10)
        parser.take()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 20_000


@ROLES
@pytest.mark.parametrize("sizes", [[1] * 300, [5, 300, 3, 0, 70_000, 1], [70_000], [3, 70_000]])
def test_a_gathered_payload_is_returned_in_one_piece(options, sizes):
    payload = payload_of(sum(sizes))
    parser = parser_for(options)
    data = frame(BINARY, payload, **options)
    head = len(data) - len(payload)
    lend(parser, data[:head])
    assert parser.next_header()
    for size in sizes[:-1]:
        parser.gather()
        parser.keep()
        buffer = lend(parser, data[head : head + size])
        assert not parser.has_payload()
        parser.gather()
        parser.keep()
        buffer[:] = b"\xee" * len(buffer)
        head += size
    lend(parser, data[head:] + frame(TEXT, b"next", **options))
    assert parser.has_payload()
    taken = parser.take()
    assert type(taken) is bytes and taken == payload
    assert parser.next_header()
    assert parser.take() == b"next"


def test_gathering_allocates_for_received_bytes_not_announced_ones():
    parser = FrameParser(False)
    data = bytearray(frame(BINARY, bytes(1000), mask=None, length=1 << 40))
    tracemalloc.start()
    try:
        for _ in range(100):
            parser.feed(data, len(data))
            if parser.remaining == 0:
                assert parser.next_header()
            parser.gather()
            parser.keep()
            data = bytearray(1000)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # Two generations while it grows, the newer one of four times what came.
    assert peak < 100_000 * 6


@ROLES
@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 65535, 65536])
def test_has_frame_sees_a_whole_frame_and_no_less(options, size):
    data = frame(BINARY, payload_of(size), **options)
    for end in {*range(min(len(data), 20)), len(data) - 1}:
        parser = parser_for(options)
        lend(parser, data[:end])
        assert not parser.has_frame(), end
    parser = parser_for(options)
    lend(parser, data)
    assert parser.has_frame()
    parser = parser_for(options)
    lend(parser, data + data[:1])
    assert parser.has_frame()


@ROLES
def test_has_frame_looks_past_the_current_frame(options):
    data = frame(BINARY, b"abcdef", **options)
    behind = frame(PING, b"p", **options)
    head = len(data) - 6
    for end in range(head, len(data) + len(behind)):
        parser = parser_for(options)
        lend(parser, (data + behind)[:end])
        assert parser.next_header()
        assert not parser.has_frame(), end
        parser.take()
        assert not parser.has_frame(), end
    parser = parser_for(options)
    lend(parser, data + behind)
    assert parser.next_header()
    assert parser.has_frame()
    parser.take()
    assert parser.has_frame()
    assert parser.next_header()
    assert not parser.has_frame()


@ROLES
def test_has_frame_does_not_read_beyond_the_input(options):
    data = frame(BINARY, bytes(300), **options)
    parser = parser_for(options)
    parser.feed(bytearray(data), 3)  # the rest of the length is in the buffer, but was not fed
    assert not parser.has_frame()
    assert not parser.next_header()
    data = frame(TEXT, b"abc", **options)
    parser = parser_for(options)
    parser.feed(bytearray(data), len(data) - 1)
    assert not parser.has_frame()
    assert parser.next_header()
    assert not parser.has_payload()
    assert parser.take() == b"ab"


@ROLES
@pytest.mark.parametrize("size", [126, 65536])
def test_has_frame_of_a_cut_header_does_not_read_past_the_buffer(options, size):
    head = frame(BINARY, b"", length=size, **options)
    for end in range(len(head) + 1):
        parser = parser_for(options)
        parser.feed(bytearray(head[:end]), end)
        assert not parser.has_frame(), end
        parser.keep()
        assert not parser.has_frame(), end


@ROLES
@pytest.mark.parametrize("length", [1 << 62, (1 << 63) - 5, (1 << 63) - 1, 1 << 63, (1 << 64) - 1])
def test_has_frame_of_an_absurd_length_is_false(options, length):
    good = frame(TEXT, b"a", **options)
    absurd = frame(BINARY, b"abc", length=length, **options)
    parser = parser_for(options)
    lend(parser, absurd)
    assert not parser.has_frame()
    if length < 1 << 63:
        assert parser.next_header()
        assert not parser.has_frame()
    for end in range(len(absurd) + 1):
        parser = parser_for(options)
        lend(parser, good + absurd[:end])
        assert parser.next_header()
        assert not parser.has_frame(), end
        parser.take()
        assert not parser.has_frame(), end
        parser.keep()
        assert not parser.has_frame(), end


@ROLES
def test_has_frame_does_not_look_at_a_length_that_was_not_fed(options):
    parser = parser_for(options)
    parser.feed(bytearray(frame(BINARY, b"", length=1 << 63, **options) + b"\xff" * 9), 2)
    assert not parser.has_frame()


@ROLES
def test_has_frame_of_an_empty_parser_is_false(options):
    assert not parser_for(options).has_frame()


# -- the encoder

HEADERS = [
    (TEXT, True, 0, b"", "8100"),
    (TEXT, True, 5, b"", "8105"),
    (TEXT, False, 3, b"", "0103"),
    (CONTINUATION, True, 2, b"", "8002"),
    (CONTINUATION, False, 2, b"", "0002"),
    (BINARY, True, 125, b"", "827d"),
    (BINARY, True, 126, b"", "827e007e"),
    (BINARY, True, 127, b"", "827e007f"),
    (BINARY, True, 256, b"", "827e0100"),
    (BINARY, True, 65535, b"", "827effff"),
    (BINARY, True, 65536, b"", "827f0000000000010000"),
    (BINARY, False, 1 << 32, b"", "027f0000000100000000"),
    (BINARY, True, (1 << 63) - 1, b"", "827f7fffffffffffffff"),
    (CLOSE, True, 2, b"", "8802"),
    (PING, True, 125, b"", "897d"),
    (PONG, True, 0, b"", "8a00"),
    (TEXT, True, 5, MASK, "818537fa213d"),
    (TEXT, True, 0, MASK, "818037fa213d"),
    (TEXT, False, 125, MASK, "01fd37fa213d"),
    (BINARY, True, 126, MASK, "82fe007e37fa213d"),
    (BINARY, True, 65535, MASK, "82feffff37fa213d"),
    (BINARY, True, 65536, MASK, "82ff000000000001000037fa213d"),
    (PONG, True, 4, b"\0\0\0\0", "8a8400000000"),
]


@pytest.mark.parametrize(("opcode", "final", "length", "mask", "expected"), HEADERS)
def test_encoded_headers(opcode, final, length, mask, expected):
    assert encode_header(opcode, final, length, mask).hex() == expected


def test_encoded_frames_of_the_rfc():
    assert encode_frame(TEXT, True, b"Hello") == bytes.fromhex("810548656c6c6f")
    assert encode_frame(TEXT, True, b"Hello", MASK) == bytes.fromhex("818537fa213d7f9f4d5158")
    assert encode_frame(TEXT, False, b"Hel") == bytes.fromhex("010348656c")
    assert encode_frame(CONTINUATION, True, b"lo") == bytes.fromhex("80026c6f")


@ROLES
def test_encoded_frames_at_every_boundary_of_the_length(options):
    mask = options["mask"] or b""
    for size in BOUNDARIES:
        payload = payload_of(size)
        expected = frame(BINARY, payload, **options)
        assert encode_frame(BINARY, True, payload, mask) == expected, size
        encoded = encode_frame(BINARY, True, memoryview(payload), mask)
        assert encoded == expected
        assert type(encoded) is bytes


def test_a_mask_of_zeros_is_a_mask():
    assert encode_frame(TEXT, True, b"Hi", b"\0\0\0\0") == b"\x81\x82\0\0\0\0Hi"


def test_subclasses_of_the_error_keep_their_codes_apart():
    # frames.py raises nothing but 1002
    for error in (InvalidPayload, MessageTooBig, PolicyViolation):
        assert error.close_code != ProtocolError.close_code


def test_a_masked_frame_is_written_in_place():
    masks = Masks()
    for size in (size for size in BOUNDARIES if size < 65536):
        payload = payload_of(size)
        for final in (True, False):
            buffer = bytearray(b"?" * (size + MAX_HEADER + 10))
            end = write_masked_frame(buffer, 5, BINARY, final, payload, masks)
            start = masks.position - 4
            mask = bytes(masks.pool[start : start + 4])
            assert buffer[5:end] == frame(BINARY, payload, fin=final, mask=mask)
            assert buffer[:5] == b"?" * 5 and set(buffer[end:]) == {ord("?")}
            assert end <= 5 + MAX_HEADER + size


def test_no_key_is_taken_twice():
    masks = Masks()
    keys = [masks.take() for _ in range(10_000)]
    assert len(set(keys)) > 9_990
    masks.drop()
    first = masks.take()
    assert masks.position == 4 and first not in keys[-20:]


def test_a_forked_child_takes_other_keys_than_its_parent():
    client = Connection(Config(), client=True)
    client.encode(TEXT, True, b"x")
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writing, client.encode(TEXT, True, b"x"))
        os._exit(0)
    os.waitpid(child, 0)
    theirs = os.read(reading, 100)
    os.close(reading)
    os.close(writing)
    assert theirs != client.encode(TEXT, True, b"x")
