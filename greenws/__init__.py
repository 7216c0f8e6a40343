"""greenws: WebSockets for any WSGI application, in plain blocking Python, on gevent."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import form as form  # first: it decides which form of the other modules is imported
from .distribution import check_neighbours as _check_neighbours
from .integrations import flask as _flask
from .lazy import export as _export

if TYPE_CHECKING:
    from .client.opening import connect
    from .client.retrying import reconnect
    from .config import Config
    from .distribution import __version__ as __version__
    from .exceptions import (
        ConcurrentReadError,
        ConnectionClosed,
        GreenwsError,
        HandshakeError,
        ProtocolError,
    )
    from .opcodes import CloseCode, OpcodeType
    from .rooms.broker import BrokerUnavailable
    from .rooms.member import Member
    from .rooms.room import Room, Rooms
    from .rooms.sender import Sender
    from .routes import Routes, StaticFiles
    from .selection import select
    from .server.handler import UpgradeHandler
    from .server.server import WebSocketServer
    from .session import WebSocketHandler, WebSocketSessionHandler
    from .waiting import before_wait
    from .websocket import NO_TIMEOUT, Message, WebSocket

__all__ = [
    "NO_TIMEOUT",
    "BrokerUnavailable",
    "CloseCode",
    "ConcurrentReadError",
    "Config",
    "ConnectionClosed",
    "GreenwsError",
    "HandshakeError",
    "Member",
    "Message",
    "OpcodeType",
    "ProtocolError",
    "Room",
    "Rooms",
    "Routes",
    "Sender",
    "StaticFiles",
    "UpgradeHandler",
    "WebSocket",
    "WebSocketHandler",
    "WebSocketServer",
    "WebSocketSessionHandler",
    "before_wait",
    "connect",
    "reconnect",
    "select",
]

__getattr__, __dir__ = _export(
    __name__,
    {
        "NO_TIMEOUT": ".websocket",
        "BrokerUnavailable": ".rooms.broker",
        "CloseCode": ".opcodes",
        "ConcurrentReadError": ".exceptions",
        "Config": ".config",
        "ConnectionClosed": ".exceptions",
        "GreenwsError": ".exceptions",
        "HandshakeError": ".exceptions",
        "Member": ".rooms.member",
        "Message": ".websocket",
        "OpcodeType": ".opcodes",
        "ProtocolError": ".exceptions",
        "Room": ".rooms.room",
        "Rooms": ".rooms.room",
        "Routes": ".routes",
        "Sender": ".rooms.sender",
        "StaticFiles": ".routes",
        "UpgradeHandler": ".server.handler",
        "WebSocket": ".websocket",
        "WebSocketHandler": ".session",
        "WebSocketServer": ".server.server",
        "WebSocketSessionHandler": ".session",
        "before_wait": ".waiting",
        "__version__": ".distribution",
        "connect": ".client.opening",
        "reconnect": ".client.retrying",
        "select": ".selection",
    },
    modules=(
        *("brokers", "client", "config", "exceptions", "opcodes", "policies", "rooms", "stats"),
        "testing",
    ),
)

_check_neighbours()
_flask.install()
