"""Entries of a log as they are stored in Redis, and entries that are not ours."""

from __future__ import annotations

import pytest

from greenws.rooms.redis.entries import LogEntry, parse


def fields(**changed: bytes) -> dict[bytes, bytes]:
    good = {"o": b"ab12cd34ef56", "n": b"7", "k": b"text", "d": b"hello", "m": b""}
    return {key.encode(): value for key, value in {**good, **changed}.items()}


def test_text_and_bytes_stay_what_they_were():
    entry = parse("r", b"5-1", fields())
    assert entry == LogEntry("5-1", "ab12cd34ef56", 7, "hello")
    assert entry.kind == "text"
    binary = parse("r", b"5-1", fields(k=b"bytes", d=b"\xff"))
    assert binary is not None
    assert (binary.data, binary.kind) == (b"\xff", "bytes")


@pytest.mark.parametrize("kind", [b"join", b"leave"])
def test_presence_of_an_earlier_version_is_ignored_in_silence(kind, caplog):
    assert parse("r", b"5-1", fields(k=kind, d=b"{}", m=b"ann")) is None
    assert caplog.text == ""


@pytest.mark.parametrize(
    "changed",
    [
        {"k": b"virus"},
        {"k": b"\xff"},
        {"n": b"x"},
        {"o": b"\xff"},
        {"d": b"\xff"},
    ],
)
def test_what_another_program_wrote_is_logged_in_short_and_ignored(changed, caplog):
    assert parse("r", b"5-1", fields(**changed)) is None
    assert "malformed entry in the log of room 'r'" in caplog.text


def test_an_entry_that_lacks_a_field_is_ignored(caplog):
    assert parse("r", b"5-1", {b"x%d" % number: b"y" for number in range(1000)}) is None
    assert len(caplog.text) < 1000
