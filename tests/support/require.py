"""What a test needs from the machine."""

from __future__ import annotations

import os
import shutil

import pytest


def require(condition: object, what: str) -> None:
    """Skips a test on a machine that lacks something; in CI, where nothing may lack, fails it."""
    if condition:
        return
    if os.environ.get("GREENWS_REQUIRE_ALL") == "1":
        pytest.fail(f"{what} is missing, and GREENWS_REQUIRE_ALL is set")
    pytest.skip(f"{what} is not installed")


def require_program(*names: str) -> None:
    """:func:`require` for programs on the PATH."""
    for name in names:
        require(shutil.which(name), name)
