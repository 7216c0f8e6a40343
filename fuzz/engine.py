"""What the targets beside this file share: inputs without atheris, and atheris itself.

Each target has a ``check(data)`` that fails unless its invariant holds, and ``SEEDS`` to begin
with. Run one as ``python fuzz/fuzz_frames.py -max_total_time=120``, all as
``make fuzz SECONDS=120``.
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
    """``count`` inputs made of ``seeds``; the same for the same ``number``.

    ``pieces``: what to put into them, besides single bytes.
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
    """Hands the process to atheris, with libFuzzer's options from the command line."""
    import atheris

    # atheris could do it to all that is loaded, which takes minutes, or while it is imported, but
    # not past a finder of greenws's own.
    for function in gc.get_objects():
        if isinstance(function, FunctionType) and (function.__module__ or "").startswith("greenws"):
            atheris.instrument_func(function)
    with tempfile.TemporaryDirectory() as corpus:
        for number, seed in enumerate(seeds):
            Path(corpus, str(number)).write_bytes(seed)
        atheris.Setup([*sys.argv, "-max_len=4096", corpus], check)
        atheris.Fuzz()
