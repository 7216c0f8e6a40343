"""The Autobahn testsuite itself, with its quick cases; ``make autobahn`` runs all of them."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from greenws.protocol import connection

from ..support.limits import limit
from ..support.processes import environ_without_coverage
from ..support.require import require
from . import run

FORM = "pure" if str(connection.__file__).endswith(".py") else "compiled"


@pytest.mark.parametrize(("role", "cases"), [("server", "quick"), ("client", "brief")])
def test_the_testsuite_finds_no_fault(role: str, cases: str) -> None:
    command = [sys.executable, run.__file__, "--role", role, "--cases", cases, FORM]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=limit(600),
        env=environ_without_coverage(),  # test_autobahn.py reaches the same lines, in less time
    )
    require(done.returncode != run.UNAVAILABLE, f"The Autobahn testsuite ({done.stdout.strip()})")
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.no_io
@pytest.mark.parametrize(
    ("behavior", "close", "passes"),
    [
        ("OK", "OK", True),
        ("INFORMATIONAL", "INFORMATIONAL", True),
        ("NON-STRICT", "OK", False),
        ("FAILED", "OK", False),
        ("OK", "UNCLEAN", False),
    ],
)
def test_one_case_that_is_not_ok_is_printed_and_fails_the_run(
    behavior: str, close: str, passes: bool, capsys: Any
) -> None:
    good = {"behavior": "OK", "behaviorClose": "OK"}
    results = {"1.1.1": good, "10.1.1": {"behavior": behavior, "behaviorClose": close}}
    assert run.report("compiled", results, 1.0) is passes
    printed = capsys.readouterr().out
    assert ("10.1.1" in printed) is ((behavior, close) != ("OK", "OK"))
    assert "1.1.1 is" not in printed.replace("10.1.1 is", "")


@pytest.mark.no_io
def test_a_named_python_that_is_missing_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHON27", "/nowhere/python2.7")
    with pytest.raises(run.Unavailable, match="/nowhere/python2.7"):
        run.find_python27()
