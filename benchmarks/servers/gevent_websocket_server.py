"""gevent-websocket with ``environ["wsgi.websocket"]``, its shortest and fastest form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from common import HOST, announce_and_serve, parse_options
from geventwebsocket.server import WebSocketServer


def echo(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
    socket = environ["wsgi.websocket"]
    while True:
        message = socket.receive()
        if message is None:
            return []
        socket.send(message)


options = parse_options()
announce_and_serve(
    WebSocketServer((HOST, options.port), echo, log=None), "gevent-websocket", "gevent"
)
