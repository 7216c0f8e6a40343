"""Running something in a forked child of the test's own process."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable

from .limits import wait_until

__all__ = ["in_child"]


def in_child(function: Callable[[], object]) -> None:
    """Calls ``function`` in a child, and asserts that it returned; the hub of the parent runs
    meanwhile."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            function()
            status = 0
        except BaseException:
            os.write(2, traceback.format_exc().encode())
        finally:
            os._exit(status)
    ended: list[int] = []

    def has_ended() -> bool:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            ended.append(os.waitstatus_to_exitcode(status))
        return bool(pid)

    wait_until(has_ended)
    assert ended == [0]
