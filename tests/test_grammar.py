"""Tokens, character by character."""

from __future__ import annotations

import re
import string

import pytest

from greenws.grammar import TOKEN, changing_all_but

pytestmark = pytest.mark.no_io


def test_a_token_has_the_characters_of_the_rfc_and_no_others():
    allowed = set("!#$%&'*+-.^_`|~" + string.digits + string.ascii_letters)  # RFC 9110, 5.6.2
    for character in map(chr, range(512)):
        assert bool(re.fullmatch(TOKEN, character)) == (character in allowed), character


def test_a_token_is_not_empty():
    assert not re.fullmatch(TOKEN, "")
    assert re.fullmatch(TOKEN.encode(), b"Sec-WebSocket-Key")


def test_a_table_changes_all_bytes_but_the_allowed_ones():
    every = bytes(range(256))
    table = changing_all_but(b"az09")
    kept = bytes(byte for byte in every if every.translate(table)[byte] == byte)
    assert kept == b"09az"
