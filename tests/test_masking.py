"""Masking, against the loop of RFC 6455, section 5.3."""

from __future__ import annotations

import os

import pytest
from sansio import hub_errors as hub_errors

from greenws.masking import apply_mask, rotate_mask

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


def test_rotate_mask_is_the_mask_at_an_offset():
    for offset in range(13):
        rotated = rotate_mask(MASK, offset)
        assert rotated == bytes(MASK[(offset + i) % 4] for i in range(4)), offset
    assert rotate_mask(MASK, (1 << 40) + 3) == MASK[3:] + MASK[:3]


def test_pieces_with_a_rotated_mask_are_the_whole():
    for first in range(20):
        for length in range(first, 40):
            mask = rotate_mask(MASK, first)
            pieces = apply_mask(SOURCE[:first], MASK) + apply_mask(SOURCE[first:length], mask)
            assert pieces == naive(SOURCE[:length], MASK), (first, length)
