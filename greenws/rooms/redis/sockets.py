"""The sockets of redis-py: whether they block only a greenlet, and which process owns them."""

from __future__ import annotations

import os
import sys
from typing import Any

import gevent
import redis.connection
from gevent import socket as gevent_socket
from gevent.monkey import is_module_patched

from ...hub.sockets import adopt
from ...surroundings import log_patched_late

__all__ = ["check_sockets", "own_socket"]


def own_socket(connection: Any) -> None:
    """redis-py calls this with a new connection. It makes this process the owner of the socket, so
    that in a forked child no greenlet of the parent reads from it."""
    while connection.pid != os.getpid():  # forked while it was connecting
        gevent.get_hub().switch()  # never returns: the greenlet belongs to the parent
    adopt(connection._sock)
    connection.on_connect()


def check_sockets(url: str) -> None:
    """
    Raises:
        RuntimeError: redis-py would block the hub.
    """
    log_patched_late()
    is_patched = issubclass(vars(redis.connection)["socket"].socket, gevent_socket.socket)
    if url.startswith("rediss"):
        is_patched = is_patched and is_module_patched("ssl")
    if not is_patched and "celery.bin.worker" in sys.modules:
        raise RuntimeError(
            "a Celery worker has no rooms: send from its tasks with greenws.Sender, which needs no "
            "monkey-patching, with the rooms' URL and prefix"
        )
    if not is_patched:
        raise RuntimeError(
            "redis-py would block every greenlet of this process while it waits for Redis: put "
            "'from gevent import monkey; monkey.patch_all()' before all other imports of the "
            "program (gunicorn's gevent workers, without --preload, and run_server.py do that "
            "themselves)"
        )
