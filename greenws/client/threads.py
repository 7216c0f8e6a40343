"""Ends the hub of a thread that has a client with the thread, and closes forgotten sockets.

gevent keeps the hub of a thread, its descriptors and its resolver's threads unless the hub is
destroyed. In a thread of a user's script, no code of ours runs at the end. But Python drops the
objects in a thread-local when the thread ends, in that thread.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import warnings
from typing import Any
from weakref import finalize

import gevent
import gevent.hub
from gevent._hub_local import get_hub_if_exists, set_hub
from gevent.hub import Hub
from gevent.monkey import get_original, is_module_patched

from ..hub import forks, switching
from ..hub.polling import drop_poller
from ..hub.transport import Transport
from ..keepalive import drop_heartbeat
from ..websocket import WebSocket

__all__ = ["close_if_forgotten", "hub_of_thread"]


class _End:
    """Destroys ``hub`` when it is dropped."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._process = forks.process()

    def __del__(self) -> None:
        if (
            self._process != forks.process()
            or sys.is_finalizing()
            or self._hub.loop is None  # the program has destroyed it
        ):
            return
        if get_hub_if_exists() is not self._hub:  # gevent's thread-local may be dropped first
            set_hub(self._hub)
        drop_heartbeat(self._hub)
        drop_poller(self._hub)
        self._hub.destroy()


def _correct_main_thread() -> None:
    """Corrects gevent's main thread: gevent takes the one that imported it, which may be another
    thread whose first use of greenws did that."""
    if not is_module_patched("threading"):
        hubs: Any = gevent.hub
        hubs.MAIN_THREAD_IDENT = threading.main_thread().ident


_correct_main_thread()

_of_thread: Any = get_original("_thread", "_local")()


def hub_of_thread() -> Hub:
    """The hub of this thread. If it is made here, it ends with the thread, except in the main
    thread."""
    hub: Any = get_hub_if_exists()
    if hub is None:
        hub = gevent.get_hub()
        if not hub.loop.default:
            _of_thread.end = _End(hub)
    return hub  # type: ignore[no-any-return]


def close_if_forgotten(socket: WebSocket, transport: Transport) -> None:
    """Closes ``transport`` when ``socket`` is no longer referenced, as Python does with sockets."""
    end = finalize(socket, _close, transport, repr(socket), switching.thread_id())
    end.atexit = False


def _close(transport: Transport, name: str, thread_id: int) -> None:
    if transport.closed:
        return
    warnings.warn(f"unclosed {name}", ResourceWarning, stacklevel=2)
    if switching.thread_id() == thread_id:
        transport.close()
    else:
        with contextlib.suppress(AttributeError):  # the thread and its hub have ended
            transport.hub.loop.run_callback_threadsafe(transport.close)
