"""``testing.connect()`` under Django, with its runner, its clients and its transactions.

Flask's part is in ``test_opening.py``.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

from ..support.limits import limit
from ..support.paths import PROGRAMS

pytestmark = pytest.mark.no_io


@pytest.mark.parametrize("patched", ["", "patched"])
def test_django(patched):
    done = subprocess.run(
        [sys.executable, PROGRAMS / "django_tests.py", patched],
        capture_output=True,
        text=True,
        timeout=limit(30),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Ran 10 tests" in done.stderr
