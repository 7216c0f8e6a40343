"""Fragments and messages: their order, their limits, and UTF-8 as it arrives."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greenws.config import Config
from greenws.exceptions import InvalidPayload, MessageTooBig, PolicyViolation, ProtocolError
from greenws.protocol.messages import FragmentAssembler, Utf8Decoder

from ..support.examples import examples
from ..support.sansio import INVALID_UTF8, VALID_UTF8, cut, first_bad, octets
from ..support.wire import BINARY, CONTINUATION, TEXT


def assembler(**options) -> FragmentAssembler:
    return FragmentAssembler(Config(**options))


def fragment(target: FragmentAssembler, opcode: int, final: bool, *pieces: bytes) -> str | bytes:
    """Takes one frame in ``pieces``."""
    target.begin(opcode, final, sum(map(len, pieces)))
    for piece in pieces[:-1]:
        target.add(piece)
    return target.end(pieces[-1])


def message(target: FragmentAssembler, opcode: int, frames: list[list[bytes]]) -> list[str | bytes]:
    """Takes a message of ``frames``, each in pieces."""
    return [
        fragment(target, CONTINUATION if i else opcode, i == len(frames) - 1, *pieces)
        for i, pieces in enumerate(frames)
    ]


# -- the vectors themselves


def test_the_vectors_are_valid_or_invalid_as_listed():
    for data in VALID_UTF8:
        assert first_bad(data) is None
        data.decode()
    for data in INVALID_UTF8:
        assert first_bad(data) is not None
        with pytest.raises(UnicodeDecodeError):
            data.decode()


# -- UTF-8, incrementally


@pytest.mark.parametrize("data", VALID_UTF8)
def test_valid_utf8_decodes_at_every_cut(data):
    expected = data.decode()
    for first in range(len(data) + 1):
        for second in range(first, len(data) + 1):
            decoder = Utf8Decoder()
            pieces = cut(data, [first, second])
            texts = [decoder.decode(piece, False) for piece in pieces]
            texts.append(decoder.decode(b"", True))
            assert "".join(texts) == expected
            done = 0  # each piece gives what it completes, and no less
            for piece, text in zip(pieces, texts, strict=False):
                before = data[:done].decode(errors="ignore")
                done += len(piece)
                assert before + text == data[:done].decode(errors="ignore")


@pytest.mark.parametrize("data", INVALID_UTF8)
def test_invalid_utf8_fails_on_its_first_bad_byte(data):
    bad = first_bad(data)
    decoder = Utf8Decoder()
    for index, piece in enumerate(octets(data)):
        if index == bad:
            with pytest.raises(InvalidPayload) as caught:
                decoder.decode(piece, False)
            assert caught.value.close_code == 1007
            return
        decoder.decode(piece, False)
    with pytest.raises(InvalidPayload):
        decoder.decode(b"", True)


@pytest.mark.parametrize("data", INVALID_UTF8)
def test_invalid_utf8_fails_however_it_is_cut(data):
    bad = first_bad(data)
    for start in range(len(data) + 1):
        decoder = Utf8Decoder()
        with pytest.raises(InvalidPayload):
            decoder.decode(data[:start], False)
            assert start <= bad
            decoder.decode(data[start:], True)
    for end in range(bad, len(data)):  # in one piece with the bad byte at any place in it
        with pytest.raises(InvalidPayload):
            Utf8Decoder().decode(data[: end + 1], False)


@examples(300)
@given(
    st.lists(
        st.one_of(
            st.sampled_from([c.encode() for c in "aé€𝄞\u07ff\u0800\ud7ff\ue000\uffff\U0010ffff"]),
            st.sampled_from([b"\xed\xa0", b"\xf4\x90", b"\xe0\x80", b"\xf0\x8f", b"\xc0"]),
            st.binary(max_size=2),
        ),
        max_size=8,
    ).map(b"".join)
)
def test_any_bytes_fail_where_the_unicode_standard_says(data):
    bad = first_bad(data)
    decoder = Utf8Decoder()
    text = ""
    for index, piece in enumerate(octets(data)):
        if index == bad:
            with pytest.raises(InvalidPayload):
                decoder.decode(piece, False)
            return
        text += decoder.decode(piece, False)
    if bad is None:
        assert text + decoder.decode(b"", True) == data.decode()
    else:
        with pytest.raises(InvalidPayload):
            decoder.decode(b"", True)


def test_every_pair_of_bytes_is_judged_as_the_unicode_standard_does():
    for first in range(0x80, 0x100):
        for second in range(0x100):
            data = bytes((first, second))
            decoder = Utf8Decoder()
            try:
                decoder.decode(data[:1], False)
                decoder.decode(data[1:], False)
                failed = False
            except InvalidPayload:
                failed = True
            bad = first_bad(data)
            assert failed == (bad is not None and bad < 2), data.hex()


# -- text


@pytest.mark.parametrize("data", VALID_UTF8)
def test_text_in_one_frame_in_any_pieces(data):
    for first in range(len(data) + 1):
        pieces = cut(data, [first])
        assert message(assembler(), TEXT, [pieces]) == [data.decode()]
    assert message(assembler(), TEXT, [octets(data) or [b""]]) == [data.decode()]


@pytest.mark.parametrize("data", VALID_UTF8)
def test_text_at_every_split_into_frames(data):
    for first in range(len(data) + 1):
        for second in range(first, len(data) + 1):
            frames = cut(data, [first, second])
            expected, done, before = [], 0, ""
            for part in frames:
                done += len(part)
                so_far = data[:done].decode(errors="ignore")
                expected.append(so_far[len(before) :])
                before = so_far
            assert message(assembler(), TEXT, [[part] for part in frames]) == expected
            in_pieces = [[*octets(part), b""] for part in frames]
            assert message(assembler(), TEXT, in_pieces) == expected


def test_a_fragment_keeps_the_tail_that_is_cut_for_the_next():
    euro = "€".encode()
    target = assembler()
    assert fragment(target, TEXT, False, b"1 " + euro[:2]) == "1 "
    assert fragment(target, CONTINUATION, False, euro[2:] + b", 2 " + euro[:1]) == "€, 2 "
    assert fragment(target, CONTINUATION, True, euro[1:]) == "€"


def test_a_fragment_of_nothing_but_the_head_of_a_code_point_is_empty_text():
    target = assembler()
    assert fragment(target, TEXT, False, b"\xf0") == ""
    assert fragment(target, CONTINUATION, False, b"\x9f\x98") == ""
    assert fragment(target, CONTINUATION, False, b"") == ""
    assert fragment(target, CONTINUATION, True, b"\x80") == "😀"


@pytest.mark.parametrize("data", INVALID_UTF8)
def test_invalid_text_in_one_frame(data):
    with pytest.raises(InvalidPayload) as caught:
        message(assembler(), TEXT, [[data]])
    assert caught.value.close_code == 1007


@pytest.mark.parametrize("data", INVALID_UTF8)
def test_invalid_text_at_every_split_into_frames_fails_with_its_first_bad_byte(data):
    bad = first_bad(data)
    for first in range(len(data) + 1):
        target = assembler()
        if first <= bad:
            fragment(target, TEXT, False, data[:first])
            with pytest.raises(InvalidPayload):
                fragment(target, CONTINUATION, True, data[first:])
        else:
            with pytest.raises(InvalidPayload):
                fragment(target, TEXT, False, data[:first])


@pytest.mark.parametrize("data", INVALID_UTF8)
def test_invalid_text_fails_while_the_rest_of_its_frame_has_not_arrived(data):
    bad = first_bad(data)
    target = assembler()
    target.begin(TEXT, True, 10_000)
    target.add(b"so far, so good")
    for index, piece in enumerate(octets(data)):
        if index == bad:
            with pytest.raises(InvalidPayload):
                target.add(piece)
            return
        target.add(piece)
    with pytest.raises(InvalidPayload):
        target.end(b"")


def test_a_cut_code_point_does_not_leak_into_the_next_message():
    target = assembler()
    message(target, TEXT, [[b"\xe2"], [b"\x82\xac"]])
    with pytest.raises(InvalidPayload):
        message(target, TEXT, [[b"\x82\xac"]])
    target = assembler()
    message(target, TEXT, [[b"\xe2", b"\x82\xac"]])
    assert message(target, BINARY, [[b"\xe2"], [b"\x82"]]) == [b"\xe2", b"\x82"]
    assert message(target, TEXT, [[b"a"]]) == ["a"]


# -- binary


def test_binary_is_untouched():
    data = bytes(range(256)) * 3
    target = assembler()
    assert message(target, BINARY, [[data]]) == [data]
    assert message(target, BINARY, [[data[:9], data[9:]]]) == [data]
    assert message(target, BINARY, [octets(data)]) == [data]
    assert message(target, BINARY, [[data[:5]], [b""], [data[5:]]]) == [data[:5], b"", data[5:]]
    for invalid in INVALID_UTF8:
        assert message(target, BINARY, [[invalid], [invalid]]) == [invalid, invalid]


@pytest.mark.parametrize("pieces", [[b"ab"], [b"a", b"b"], [b"", b"ab"], [b"ab", b""]])
def test_fragments_are_str_for_text_and_bytes_for_binary(pieces):
    target = assembler()
    text = fragment(target, TEXT, False, *pieces)
    more = fragment(target, CONTINUATION, True, *pieces)
    assert (type(text), type(more)) == (str, str)
    binary = fragment(target, BINARY, False, *pieces)
    more = fragment(target, CONTINUATION, True, *pieces)
    assert (type(binary), type(more)) == (bytes, bytes)
    assert binary == more == b"ab"


def test_a_fragment_holds_nothing_of_the_one_before_it():
    target = assembler()
    assert message(target, BINARY, [[b"a", b"b"], [b"c", b"d"]]) == [b"ab", b"cd"]
    assert message(target, TEXT, [[b"a", b"b"], [b"c", b"d"]]) == ["ab", "cd"]
    assert message(target, TEXT, [[b"e", b"f"]]) == ["ef"]


# -- order


def test_a_continuation_of_nothing_is_refused():
    with pytest.raises(ProtocolError, match="continues nothing") as caught:
        assembler().begin(CONTINUATION, True, 0)
    assert caught.value.close_code == 1002
    target = assembler()
    message(target, TEXT, [[b"a"], [b"b"]])
    with pytest.raises(ProtocolError, match="continues nothing"):
        target.begin(CONTINUATION, False, 0)


@pytest.mark.parametrize("opened", [TEXT, BINARY])
@pytest.mark.parametrize("opcode", [TEXT, BINARY])
@pytest.mark.parametrize("final", [True, False])
def test_a_message_inside_another_is_refused(opened, opcode, final):
    target = assembler()
    fragment(target, opened, False, b"a")
    with pytest.raises(ProtocolError, match="inside a fragmented one") as caught:
        target.begin(opcode, final, 0)
    assert caught.value.close_code == 1002
    target = assembler()
    fragment(target, opened, False, b"a")
    fragment(target, CONTINUATION, False, b"b")
    with pytest.raises(ProtocolError):
        target.begin(opcode, final, 0)


# -- limits


@pytest.mark.parametrize("opcode", [TEXT, BINARY])
def test_a_message_may_be_as_large_as_the_limit(opcode):
    target = assembler(max_message_size=10)
    for _ in range(2):  # the count begins anew with each message
        assert len(message(target, opcode, [[b"a" * 10]])[0]) == 10
        assert sum(map(len, message(target, opcode, [[b"a" * 4], [b""], [b"b" * 6]]))) == 10


@pytest.mark.parametrize("opcode", [TEXT, BINARY])
@pytest.mark.parametrize("size", [11, 1 << 20, 1 << 40, (1 << 63) - 1])
def test_an_announced_size_above_the_limit_is_refused_before_any_payload(opcode, size):
    with pytest.raises(MessageTooBig, match="max_message_size \\(10 bytes\\)") as caught:
        assembler(max_message_size=10).begin(opcode, True, size)
    assert caught.value.close_code == 1009


def test_the_size_of_a_message_is_that_of_all_its_fragments():
    target = assembler(max_message_size=10)
    fragment(target, BINARY, False, b"a" * 4)
    fragment(target, CONTINUATION, False, b"a" * 3, b"a" * 3)
    fragment(target, CONTINUATION, False, b"")
    with pytest.raises(MessageTooBig):
        target.begin(CONTINUATION, True, 1)


@pytest.mark.parametrize("before", [1, 10])
def test_no_announced_size_overflows_into_a_small_one(before):
    # Where the sum is one of 64 bits, it would wrap.
    for size in ((1 << 63) - 1, (1 << 63) - before, (1 << 63) - before - 1):
        target = assembler(max_message_size=10)
        fragment(target, BINARY, False, b"a" * before)
        with pytest.raises(MessageTooBig):
            target.begin(CONTINUATION, True, size)


def test_the_size_of_text_is_in_bytes():
    target = assembler(max_message_size=10)
    assert message(target, TEXT, [["€€€".encode()]]) == ["€€€"]
    with pytest.raises(MessageTooBig):
        message(target, TEXT, [["€€€€".encode()]])


def test_fragments_may_be_as_many_as_the_limit():
    target = assembler(max_fragments=3)
    for _ in range(2):
        assert message(target, TEXT, [[b"a"], [b"b"], [b"c"]]) == ["a", "b", "c"]
        assert message(target, TEXT, [[b"a"]]) == ["a"]


@pytest.mark.parametrize("payload", [b"", b"a"])
def test_a_fragment_more_is_refused_even_if_all_are_empty(payload):
    target = assembler(max_fragments=3)
    fragment(target, TEXT, False, payload)
    fragment(target, CONTINUATION, False, payload)
    fragment(target, CONTINUATION, False, payload)
    with pytest.raises(PolicyViolation, match="max_fragments \\(3\\)") as caught:
        target.begin(CONTINUATION, True, len(payload))
    assert caught.value.close_code == 1008


def test_default_limits_hold():
    with pytest.raises(MessageTooBig):
        assembler().begin(BINARY, True, (1 << 20) + 1)
    assembler().begin(BINARY, True, 1 << 20)
    target = assembler()
    fragment(target, BINARY, False, b"")
    for _ in range(4095):
        fragment(target, CONTINUATION, False, b"")
    with pytest.raises(PolicyViolation):
        target.begin(CONTINUATION, False, 0)


def test_none_switches_the_limits_off():
    target = assembler(max_message_size=None, max_fragments=None)
    target.begin(BINARY, True, (1 << 63) - 1)
    target = assembler(max_message_size=None, max_fragments=None)
    fragment(target, BINARY, False, b"a")
    target.begin(CONTINUATION, True, (1 << 63) - 1)
    target = assembler(max_message_size=None, max_fragments=None)
    fragment(target, BINARY, False, b"")
    for _ in range(5000):
        fragment(target, CONTINUATION, False, b"")
    assert fragment(target, CONTINUATION, True, b"end") == b"end"


def test_the_largest_limit_there_is_limits_nothing():
    assembler = FragmentAssembler(Config(max_message_size=(1 << 63) - 1))
    assembler.begin(BINARY, True, 10, True)
