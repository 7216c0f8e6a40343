"""Masking, against the loop of RFC 6455, section 5.3."""

from __future__ import annotations

import os

import pytest

from greenws.protocol import masking
from greenws.protocol.masking import apply_mask

MASK = b"\x37\xfa\x21\x3d"


def naive(data: bytes, mask: bytes, offset: int = 0) -> bytes:
    return bytes(byte ^ mask[(offset + i) % 4] for i, byte in enumerate(data))


SOURCE = bytes((i * 167 + 13) & 0xFF for i in range(300))


def test_example_of_the_rfc():
    # Section 5.7: a single-frame masked text message, "Hello"
    assert apply_mask(b"Hello", MASK) == b"\x7f\x9f\x4d\x51\x58"


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_every_length_at_every_alignment(kind):
    for length in range(201):
        for start in range(8):
            data = SOURCE[start : start + length]
            window = kind(SOURCE)[start : start + length]
            masked = apply_mask(window, MASK)
            assert masked == naive(data, MASK), (length, start)
            assert type(masked) is bytes


@pytest.mark.parametrize(
    "mask", [b"\0\0\0\0", b"\xff\xff\xff\xff", b"\0\0\0\x01", b"\x80\0\0\0", b"\x01\x02\x03\x04"]
)
def test_every_kind_of_mask(mask):
    for length in (0, 1, 2, 3, 4, 5, 7, 8, 9, 64, 65):
        assert apply_mask(SOURCE[:length], mask) == naive(SOURCE[:length], mask)


def test_twice_is_the_identity():
    for length in range(201):
        assert apply_mask(apply_mask(SOURCE[:length], MASK), MASK) == SOURCE[:length]


@pytest.mark.parametrize("length", [65535, 65536, 65537, 1_000_003])
def test_large_payloads(length):
    data = os.urandom(length)
    masked = apply_mask(data, MASK)
    assert len(masked) == length
    for start in range(4):  # a stride of the mask sees one of its bytes only
        assert masked[start::4] == data[start::4].translate(
            bytes(byte ^ MASK[start] for byte in range(256))
        )


def test_leading_and_trailing_zeros_survive():
    for data in (b"\0" * 9, b"\0\0\0a", b"a\0\0\0\0", MASK, MASK * 3):
        assert apply_mask(data, MASK) == naive(data, MASK)


def test_the_input_is_not_changed():
    data = bytearray(b"Hello")
    apply_mask(data, MASK)
    assert data == b"Hello"


def test_a_rotated_key_is_the_mask_at_an_offset():
    data = bytearray(b"frame" + MASK + SOURCE)
    for offset in range(13):
        key = masking.turn_key(masking.read_key(data, 5), offset)
        turned = bytes(MASK[(offset + i) % 4] for i in range(4))
        assert masking.unmask(bytearray(4), 0, 4, key) == turned, offset


def test_masking_pieces_with_a_rotated_key_equals_masking_the_whole():
    data = bytearray(MASK + SOURCE)
    for first in range(20):
        for length in range(first, 40):
            key = masking.read_key(data, 0)
            pieces = masking.unmask(data, 4, first, key)
            key = masking.turn_key(key, first)
            pieces += masking.unmask(data, 4 + first, length - first, key)
            assert pieces == naive(SOURCE[:length], MASK), (first, length)


def test_copies():
    data = bytearray(SOURCE)
    assert masking.copy(data, 10, 20) == SOURCE[10:30]
    assert type(masking.copy(data, 0, 0)) is bytes
    assert masking.place(data, 5, b"abc") == 8
    assert data == SOURCE[:5] + b"abc" + SOURCE[8:]
