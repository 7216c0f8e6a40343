"""The fuzz targets, for a moment: the same inputs every time, without atheris."""

from __future__ import annotations

import sys

from conftest import ROOT
from sansio import hub_errors as hub_errors

sys.path.insert(0, str(ROOT / "fuzz"))

import fuzz_handshake  # noqa: E402

from greenws.http import RequestHead  # noqa: E402


def test_the_seeds_of_the_handshake_are_taken():
    # A fuzzer that only ever sees refusals shows nothing.
    for seed in fuzz_handshake.SEEDS:
        assert isinstance(fuzz_handshake.read(seed, 0), RequestHead)
        fuzz_handshake.check(seed)


def test_the_handshake_withstands_mutations():
    inputs = fuzz_handshake.mutations(seed=1, count=3000)
    taken = 0
    for data in inputs:
        fuzz_handshake.check(data)
        taken += isinstance(fuzz_handshake.read(data, 0), RequestHead)
    assert 200 < taken < 2800
