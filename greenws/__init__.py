"""greenws: WebSockets for any WSGI application, in plain blocking Python, on gevent."""

from __future__ import annotations

from . import form as form  # first: it decides which modules the others are
from .config import Config
from .exceptions import (
    ConcurrentReadError,
    ConnectionClosed,
    GreenwsError,
    HandshakeError,
    ProtocolError,
)
from .integrations import flask as _flask
from .opcodes import CloseCode, OpcodeType
from .rooms import Member, Room, Rooms
from .routes import Routes, StaticFiles
from .selection import select
from .server import UpgradeHandler, WebSocketServer
from .session import WebSocketHandler, WebSocketSessionHandler
from .websocket import NO_TIMEOUT, Message, WebSocket

__all__ = [
    "NO_TIMEOUT",
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
    "StaticFiles",
    "UpgradeHandler",
    "WebSocket",
    "WebSocketHandler",
    "WebSocketServer",
    "WebSocketSessionHandler",
    "select",
]

__version__ = "0.1.0"

_flask.install()
