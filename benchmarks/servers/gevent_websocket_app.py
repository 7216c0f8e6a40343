"""What gevent-websocket serves in the cases, on its own server and under gunicorn."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable
from typing import Any

import gevent
from common import PART, PARTS, ROWS, SMALL
from geventwebsocket import WebSocketError
from geventwebsocket.websocket import WebSocket


def answer(socket: WebSocket, message: str) -> None:
    with contextlib.suppress(WebSocketError):
        socket.send(f"{message} 1")
        gevent.sleep(0.002)
        socket.send(f"{message} 2")
        gevent.sleep(0.002)
        socket.send(f"{message} 3")


def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    path = environ["PATH_INFO"]
    if path == "/small":
        length = str(len(SMALL))
        start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", length)])
        return [SMALL]
    if path == "/download":
        start_response("200 OK", [("Content-Length", str(PARTS * len(PART)))])
        return (PART for _ in range(PARTS))
    socket = environ["wsgi.websocket"]
    if path == "/rows":
        for row in ROWS:
            socket.send(row)
        return []
    while True:
        message = socket.receive()
        if message is None:
            return []
        if path == "/json":
            json.loads(message)
        elif path == "/conversation":
            gevent.spawn(answer, socket, message)
        else:
            socket.send(message)
