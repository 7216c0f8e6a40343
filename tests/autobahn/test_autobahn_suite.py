"""The fuzzing client of the Autobahn testsuite itself: its quick cases. ``make autobahn`` runs all."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from autobahn import run
from conftest import require

FORM = "pure" if os.environ.get("GREENWS_PURE_PYTHON") == "1" else "compiled"


def test_the_fuzzing_client_finds_no_fault() -> None:
    command = [sys.executable, str(Path(run.__file__)), "--cases", "quick", FORM]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    require(done.returncode != run.UNAVAILABLE, done.stdout.strip())
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr


