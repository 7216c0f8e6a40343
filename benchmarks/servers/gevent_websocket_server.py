"""gevent-websocket with ``environ["wsgi.websocket"]``, its shortest and fastest form."""

from __future__ import annotations

from common import HOST, announce_and_serve, parse_options
from gevent_websocket_app import application
from geventwebsocket.server import WebSocketServer

options = parse_options()
announce_and_serve(
    WebSocketServer((HOST, options.port), application, log=None), "gevent-websocket", "gevent"
)
