"""Calls of greenws for the type checker, which `make types` runs on this file: where "type: ignore"
stands, it must find an error."""

from __future__ import annotations

from werkzeug import Request

from greenws import Config, Routes, WebSocket, WebSocketHandler, WebSocketServer


def options(routes: Routes) -> None:
    WebSocketHandler(lambda request, protocols: None, max_message_size=5, allowed_origins=["self"])
    WebSocketHandler(lambda request, protocols: None, max_mesage_size=5)  # type: ignore[call-arg]
    WebSocketHandler(lambda request, protocols: None, max_connections=5)  # type: ignore[call-arg]
    Config(max_size=5)  # type: ignore[call-arg]
    Config().replace(max_connections=5)
    Config().replace(max_size=5)  # type: ignore[call-arg]
    WebSocketServer(("", 0), routes, backlog=5, config=Config())
    WebSocketServer(("", 0), routes, max_message_size=5)  # type: ignore[call-arg]
    WebSocketServer(("", 0), routes, config={})  # type: ignore[arg-type]


def decorators(routes: Routes) -> None:
    @routes.websocket("/chat/<room>", ["chat"], ping_interval=5.0)
    def chat(request: Request, socket: WebSocket, room: str) -> None: ...

    routes.websocket("/", ping_interval="5")  # type: ignore[arg-type]
    routes.websocket("/", pings=5)  # type: ignore[call-arg]
    routes.websocket(chat)  # type: ignore[arg-type]


def sockets(socket: WebSocket) -> None:
    socket.recv()  # type: ignore[attr-defined]
    socket.close("bye")  # type: ignore[arg-type]
    socket.send({})  # type: ignore[arg-type]
