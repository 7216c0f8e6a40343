"""Entries of a log as they stand in Redis, and what is no entry of ours."""

from __future__ import annotations

import pytest

from greenws.rooms.redis.entries import LogEntry, parse


def fields(**changed: bytes) -> dict[bytes, bytes]:
    good = {"o": b"ab12cd34ef56", "n": b"7", "k": b"text", "d": b"hello", "m": b""}
    return {key.encode(): value for key, value in {**good, **changed}.items()}


def test_text_and_bytes_stay_what_they_were():
    entry = parse("r", b"5-1", fields())
    assert entry == LogEntry("5-1", "ab12cd34ef56", 7, "text", "hello")
    assert entry.is_message
    binary = parse("r", b"5-1", fields(k=b"bytes", d=b"\xff"))
    assert binary is not None and binary.data == b"\xff" and binary.is_message


def test_a_join_is_no_message():
    entry = parse("r", b"5-1", fields(k=b"join", d=b'{"name": "Ann"}', m=b"ann"))
    assert entry is not None
    assert (entry.is_message, entry.member, entry.data) == (False, "ann", '{"name": "Ann"}')


@pytest.mark.parametrize(
    "changed",
    [
        {"k": b"virus"},
        {"k": b"\xff"},
        {"n": b"x"},
        {"o": b"\xff"},
        {"d": b"\xff"},
        {"k": b"join", "d": b"[]"},
        {"k": b"leave", "d": b"[" * 100_000},
    ],
)
def test_what_another_program_wrote_is_logged_in_short_and_ignored(changed, caplog):
    assert parse("r", b"5-1", fields(**changed)) is None
    assert "malformed entry in the log of room 'r'" in caplog.text


def test_an_entry_that_lacks_a_field_is_ignored(caplog):
    assert parse("r", b"5-1", {b"x%d" % number: b"y" for number in range(1000)}) is None
    assert len(caplog.text) < 1000
