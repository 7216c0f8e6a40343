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
from .routes import Routes, StaticFiles
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
    "Message",
    "OpcodeType",
    "ProtocolError",
    "Routes",
    "StaticFiles",
    "UpgradeHandler",
    "WebSocket",
    "WebSocketHandler",
    "WebSocketServer",
    "WebSocketSessionHandler",
]

__version__ = "0.1.0"

_flask.install()
