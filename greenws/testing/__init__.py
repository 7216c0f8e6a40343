"""Tests of WebSocket handlers without a network: no server, no port, no thread.

``connect(app, path)`` runs a session of any WSGI application and returns the client's end::

    from greenws import testing

    def test_echo():
        with testing.connect(app, "/echo") as socket:
            socket.send("hello")
            assert socket.receive() == "hello"

A refused handshake raises :class:`Refused`. An exception that escapes the handler is raised in the
test, at the end of the ``with``. No wait is longer than ``timeout``; its error shows the line at
which the handler is. ``pair()`` returns the two ends of a connection, for a handler that the test
calls itself. ``socket.stall()`` and ``socket.cut()`` simulate a client that stops reading and one
that vanishes, ``clock()`` lets the test control time, and ``outage(rooms)`` makes a broker
unreachable.

The pytest plugin has the fixture ``websocket``: ``connect``, with connections that end with the
test.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy import export

if TYPE_CHECKING:
    from .opening import Refused, connect
    from .outages import outage
    from .sockets import Pair, TestSocket, pair
    from .timers import Clock, clock

__all__ = ["Clock", "Pair", "Refused", "TestSocket", "clock", "connect", "outage", "pair"]

__getattr__, __dir__ = export(
    __name__,
    {
        "Clock": ".timers",
        "Pair": ".sockets",
        "Refused": ".opening",
        "TestSocket": ".sockets",
        "clock": ".timers",
        "connect": ".opening",
        "outage": ".outages",
        "pair": ".sockets",
    },
)
