"""How long a test waits at most for something that happens at once when all is well."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import gevent


def wait_until(condition: Callable[[], Any], timeout: float = 5.0) -> Any:
    """Lets other greenlets run until ``condition()`` holds, and returns what it gave."""
    deadline = time.monotonic() + timeout
    while not (result := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        gevent.sleep(0.002)
    return result
