"""Upper limits of the tests in time: one function gives them all, and it knows the load."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from .support.limits import limit, wait_until
from .support.paths import TESTS

pytestmark = pytest.mark.no_io

# An upper limit that is a number: of what has passed, of a wait for a greenlet, process or message.
OWN_LIMIT = re.compile(
    r"(monotonic\(\)|now\(\)) - \w+ <=? ?[\d.]"
    r"|deadline = time\.monotonic\(\) \+ \d"
    r"|\.(wait|join)\((timeout=)?\d"
    r"|\.(get|recv)\(timeout=[1-9]"
    r"|joinall\(.*timeout=\d"
    r"|HTTPConnection\(.*timeout=\d"
)


@pytest.fixture
def busy():
    """Two loops for each processor."""
    count = 2 * len(os.sched_getaffinity(0))
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    yield
    for loop in loops:
        loop.kill()
        loop.wait()


def test_limits_grow_with_what_else_runs(busy):
    wait_until(lambda: limit(1.0) >= 3.0)
    assert limit(2.0) >= 4.0


@pytest.mark.parametrize("path", sorted(TESTS.rglob("*.py")), ids=lambda path: path.name)
def test_no_test_has_an_upper_limit_of_its_own(path):
    if path.parent.name == "programs":  # which run without the tests
        return
    lines = path.read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if OWN_LIMIT.search(line)] == []
