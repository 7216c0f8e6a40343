"""Tokens, character by character."""

from __future__ import annotations

import re
import string

import pytest

from greenws.grammar import TOKEN

pytestmark = pytest.mark.no_io


def test_a_token_has_the_characters_of_the_rfc_and_no_others():
    allowed = set("!#$%&'*+-.^_`|~" + string.digits + string.ascii_letters)  # RFC 9110, 5.6.2
    for character in map(chr, range(512)):
        assert bool(re.fullmatch(TOKEN, character)) == (character in allowed), character


def test_a_token_is_not_empty():
    assert not re.fullmatch(TOKEN, "")
    assert re.fullmatch(TOKEN.encode(), b"Sec-WebSocket-Key")
