"""Upper limits of the tests in time: one function gives them all, and it knows the load."""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import sys
import warnings

import gevent
import pytest

from .support.limits import again_after_standstill, limit, pace, wait_until
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
    wait_until(lambda: pace(1.0) >= 3.0)
    assert limit(2.0) > pace(2.0) >= 4.0


def test_a_limit_outlasts_a_machine_that_stops_for_three_seconds():
    assert limit(0.0) >= 3.0
    assert limit(0.1) > 3.1


stand_still = ctypes.PyDLL(None).usleep  # microseconds in which no thread of Python runs


@pytest.mark.parametrize(("stands", "tries"), [(True, 3), (False, 1)])
def test_a_test_is_repeated_only_if_its_process_was_stopped(stands, tries):
    seen = []

    @again_after_standstill(1000.0 if not stands else 0.02, tries=3)
    def fails(number):
        seen.append(number)
        stand_still(60_000)
        raise AssertionError(f"try {len(seen)}")

    with warnings.catch_warnings(record=True) as told:
        with pytest.raises(AssertionError, match=f"try {tries}"):
            fails(7)
    assert seen == [7] * tries
    assert ["standstill: AssertionError" in str(each.message) for each in told] == [True] * (
        tries - 1
    )


def test_a_test_that_passes_the_second_time_passes():
    seen = []

    @again_after_standstill(0.02)
    def passes_later():
        seen.append(1)
        if len(seen) == 1:
            stand_still(60_000)
            raise gevent.Timeout(1)

    with pytest.warns(UserWarning, match="standstill"):
        passes_later()
    assert len(seen) == 2


@pytest.mark.parametrize("path", sorted(TESTS.rglob("*.py")), ids=lambda path: path.name)
def test_no_test_has_an_upper_limit_of_its_own(path):
    if path.parent.name == "programs":  # which run without the tests
        return
    lines = path.read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if OWN_LIMIT.search(line)] == []
