"""The fuzz targets, for a moment: the same inputs every time, without atheris."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

from .support.paths import ROOT

sys.path.insert(0, str(ROOT / "fuzz"))

import engine
import fuzz_client_handshake
import fuzz_deflate
import fuzz_frames
import fuzz_handshake

from greenws.http.head import RequestHead
from greenws.http.response import ResponseReader

pytestmark = pytest.mark.no_io


def is_head(data: bytes) -> bool:
    return isinstance(fuzz_handshake.read(data, 0), RequestHead)


def has_message(data: bytes) -> bool:
    events, _ = fuzz_frames.read(data[1:], bool(data[0] & 1), bool(data[0] & 2), 7)
    return any(event[0] in (0, 1, 2) for event in events)


def is_response(data: bytes) -> bool:
    reader = fuzz_client_handshake.read(data, 0)
    return isinstance(reader, ResponseReader) and reader.status > 0


def is_sound(data: bytes) -> bool:
    """Whether a header makes sense, or a payload inflates."""
    if data[0] % 3 == fuzz_deflate.HEADER:
        return "malformed" not in outcome(fuzz_deflate.parse_extensions, data[1:].decode("latin-1"))
    return isinstance(fuzz_deflate.inflate(data[1:], 5, False), bytes)


def outcome(function: Callable[..., Any], *arguments: Any) -> str:
    try:
        return str(function(*arguments))
    except fuzz_deflate.HandshakeError as error:
        return str(error)


TARGETS = pytest.mark.parametrize(
    ("target", "is_good"),
    [
        (fuzz_handshake, is_head),
        (fuzz_client_handshake, is_response),
        (fuzz_frames, has_message),
        (fuzz_deflate, is_sound),
    ],
)


@TARGETS
def test_the_invariant_holds(target: ModuleType, is_good: Callable[[bytes], bool]) -> None:
    target.check(b"")
    for seed in target.SEEDS:
        target.check(seed)
    inputs = engine.mutations(target.SEEDS, 1, 2000, getattr(target, "PIECES", ()))
    for data in inputs:
        target.check(data)
    # A fuzzer that only ever sees refusals, or none, shows nothing.
    assert 100 < sum(is_good(data) for data in inputs if data) < 1950


def test_the_seeds_of_the_handshake_are_taken() -> None:
    assert all(is_head(seed) for seed in fuzz_handshake.SEEDS)


@pytest.mark.parametrize(
    ("target", "name", "broken"),
    [
        (fuzz_handshake, "find_head", lambda *_: 1 / 0),
        (fuzz_client_handshake, "check_response", lambda *_: ("other", None)),
        (fuzz_frames, "read", lambda data, client, compressed, size: ([(8, size)], b"")),
        (fuzz_deflate, "inflate", lambda data, size, takeover: bytes(size)),
    ],
)
def test_a_fault_is_noticed(
    target: ModuleType, name: str, broken: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(target, name, broken)
    with pytest.raises((AssertionError, ZeroDivisionError)):
        for data in target.SEEDS:
            target.check(data)
