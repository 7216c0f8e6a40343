"""Running something in a forked child of the test's own process."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable

from .limits import eventually, wait_until

__all__ = ["in_child"]


def in_child(function: Callable[[], object], hub_runs: bool = True) -> None:
    """Calls ``function`` in a child, and asserts that it returned. ``hub_runs``: whether other
    greenlets of the parent run meanwhile."""
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

    if hub_runs:
        wait_until(has_ended)
    else:
        eventually(has_ended, True)
    assert ended == [0]
