"""gevent-websocket with ``environ["wsgi.websocket"]``, its shortest and fastest form."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any

from common import HOST, PART, PARTS, ROWS, SMALL, announce_and_serve, parse_options
from geventwebsocket.server import WebSocketServer


def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    path = environ["PATH_INFO"]
    if path == "/small":
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [SMALL]
    if path == "/download":
        start_response("200 OK", [("Content-Length", str(PARTS * len(PART)))])
        return (PART for _ in range(PARTS))
    socket = environ["wsgi.websocket"]
    if path == "/rows":
        for row in ROWS:
            socket.send(row)
        return []
    parses = path == "/json"
    while True:
        message = socket.receive()
        if message is None:
            return []
        if parses:
            json.loads(message)
        else:
            socket.send(message)


options = parse_options()
announce_and_serve(
    WebSocketServer((HOST, options.port), application, log=None), "gevent-websocket", "gevent"
)
