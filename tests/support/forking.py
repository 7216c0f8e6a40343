"""Running something in a forked child of the test's own process."""

from __future__ import annotations

import contextlib
import os
import traceback
from collections.abc import Callable

from .limits import eventually, wait_until

__all__ = ["in_child"]


def in_child(function: Callable[[], object], hub_runs: bool = True) -> None:
    """Calls ``function`` in a child, and asserts that it returned. ``hub_runs``: whether other
    greenlets of the parent run meanwhile."""
    told, tell = os.pipe()
    os.set_blocking(told, False)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            function()
            os.write(tell, b"%d " % os.getpid())
            status = 0
        except BaseException:
            os.write(2, traceback.format_exc().encode())
        finally:
            os._exit(status)
    os.close(tell)
    said: list[bytes] = []

    def has_ended() -> bool:
        try:
            said.append(os.read(told, 100))
        except BlockingIOError:
            return False
        return not said[-1]

    if hub_runs:
        wait_until(has_ended)
    else:
        eventually(has_ended, True)
    os.close(told)
    with contextlib.suppress(ChildProcessError):  # gevent reaps all children once it watches one
        os.waitpid(child, 0)
    assert child in map(int, b"".join(said).split())  # it has returned
