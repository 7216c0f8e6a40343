"""Tests of WebSocket handlers without a network: no server, no port, no thread.

``connect(app, path)`` runs a session of any WSGI application and returns the client's end::

    from greenws import testing

    def test_echo():
        with testing.connect(app, "/echo") as socket:
            socket.send("hello")
            assert socket.receive() == "hello"

A refused handshake raises :class:`Refused`. What escapes the handler is raised in the test, where
the ``with`` ends. No wait is longer than ``timeout``; its error shows where the handler stands.
``pair()`` gives the two ends of a connection, for a handler that the test calls itself.
``socket.stall()`` and ``socket.cut()`` are a client that stops reading and one that vanishes,
``clock()`` makes time move when the test says so, and ``outage(rooms)`` takes a broker away.

The pytest plugin has the fixture ``websocket``: ``connect``, ended with the test.
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
