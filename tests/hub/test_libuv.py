"""gevent's other event loop."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

from ..support.limits import limit
from ..support.paths import ROOT
from ..support.processes import environ_without_coverage
from ..support.require import require


def test_turns_end_and_a_batch_goes_on_after_a_poll():
    require(importlib.util.find_spec("_cffi_backend"), "cffi, which gevent needs for libuv,")
    tests = [
        "tests/hub/test_turns.py",
        "tests/server/test_fairness.py::test_messages_that_came_in_one_receive_are_whole_although_"
        "others_receive",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests],
        cwd=ROOT,
        env=environ_without_coverage() | {"GEVENT_LOOP": "libuv"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=limit(60),
    )
    assert done.returncode == 0, done.stdout
