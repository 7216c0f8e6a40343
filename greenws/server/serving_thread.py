"""The thread that serves: the one whose hub runs a server's greenlets.

gevent's objects belong to the hub of their thread, so what another thread asks of a server is done
there.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable
from typing import Any

import gevent
from gevent._hub_local import get_hub_if_exists
from gevent.monkey import get_original

from ..hub import parking

__all__ = ["ServingThread"]

_POLL_INTERVAL = 0.01  # seconds
_sleep = get_original("time", "sleep")


class _Life:
    """Is freed when the thread ends that has it among its locals. Threads and hubs do not tell:
    their numbers are used again, and hubs live on while somebody refers to them."""


_locals: Any = get_original("_thread", "_local")()


class ServingThread:
    """The current thread, which is to serve."""

    def __init__(self) -> None:
        self.hub: Any = gevent.get_hub()
        if not hasattr(_locals, "life"):
            _locals.life = _Life()
        self._life = weakref.ref(_locals.life)

    @property
    def is_current(self) -> bool:
        return self.hub is get_hub_if_exists()

    def call(
        self, function: Callable[[], object], begin_within: float, end_within: float | None
    ) -> bool:
        """Has a greenlet of the thread call ``function``, and blocks until that has returned.
        ``begin_within`` and ``end_within`` are in seconds from now; None is for no limit. False if
        the thread has ended before.

        Raises:
            TimeoutError: it took longer; the thread may do it later.
            BaseException: what ``function`` raises.
        """
        begun: list[bool] = []
        ended: list[BaseException | None] = []

        def run() -> None:
            begun.append(True)
            try:
                function()
            except BaseException as error:
                ended.append(error)
            else:
                ended.append(None)

        try:
            self.hub.loop.run_callback_threadsafe(gevent.spawn, run)
        except (AttributeError, ValueError):  # its hub was destroyed
            return False
        sleep = _sleep if get_hub_if_exists() is None else gevent.sleep
        began = time.monotonic()
        while not ended:
            if self._life() is None or parking.is_parked(self.hub):
                return False
            limit = end_within if begun else begin_within
            if limit is not None and time.monotonic() - began > limit:
                raise TimeoutError
            sleep(_POLL_INTERVAL)
        if ended[0] is not None:
            raise ended[0]
        return True
