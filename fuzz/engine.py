"""Shared by the fuzz targets: random inputs for the tests, and the start of atheris.

Each target has a ``check(data)``, which fails unless its invariant holds, and ``SEEDS`` to start
from. ``python fuzz/fuzz_frames.py -max_total_time=120`` runs one target, ``make fuzz SECONDS=120``
all of them.
"""

from __future__ import annotations

import gc
import random
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FunctionType

__all__ = ["fuzz", "mutations"]


def mutations(
    seeds: Sequence[bytes], number: int, count: int, pieces: Sequence[bytes] = ()
) -> list[bytes]:
    """``count`` mutations of ``seeds``; always the same for the same ``number``.

    ``pieces``: byte strings to insert, besides single bytes.
    """
    generator = random.Random(number)
    found = []
    for _ in range(count):
        data = bytearray(generator.choice(seeds))
        for _ in range(generator.randrange(1, 3)):
            at = generator.randrange(len(data) + 1)
            piece = generator.choice([*pieces, bytes([generator.randrange(256)])])
            data[at : at + generator.choice([0, 0, 1, 2, 8])] = piece
        found.append(bytes(data))
    return found


def fuzz(check: Callable[[bytes], None], seeds: Sequence[bytes]) -> None:
    """Runs atheris, with libFuzzer's options from the command line; does not return."""
    import atheris

    # atheris can instrument everything that is loaded, which takes minutes, or modules while they
    # are imported, which does not work with greenws's own finder.
    for function in gc.get_objects():
        if isinstance(function, FunctionType) and (function.__module__ or "").startswith("greenws"):
            atheris.instrument_func(function)
    with tempfile.TemporaryDirectory() as corpus:
        for number, seed in enumerate(seeds):
            Path(corpus, str(number)).write_bytes(seed)
        atheris.Setup([*sys.argv, "-max_len=4096", corpus], check)
        atheris.Fuzz()
