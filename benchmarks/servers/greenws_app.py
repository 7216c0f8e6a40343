"""What greenws serves in the cases, on its own server and under gunicorn."""

from __future__ import annotations

import contextlib
import itertools
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import gevent
from common import PART, PARTS, ROWS, SMALL, TICK, table

import greenws
import greenws.protocol.connection
from greenws import Rooms, Routes, policies
from greenws.brokers.memory import MemoryBroker
from greenws.rooms import json_id

FORM = "compiled" if greenws.protocol.connection.__file__.endswith(".so") else "pure"


def small(environ: object, start_response: Callable[..., Any]) -> list[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(SMALL)))])
    return [SMALL]


def download(environ: object, start_response: Callable[..., Any]) -> Iterator[bytes]:
    start_response("200 OK", [("Content-Length", str(PARTS * len(PART)))])
    return (PART for _ in range(PARTS))


def make_app(redis: str | None = None) -> Routes:
    routes = Routes()
    rooms = Rooms(redis)
    # 2 s of messages are more than the 100 that a room keeps by default.
    feeds = Rooms(MemoryBroker(history=1000), stamp=json_id)

    @routes.websocket("/")
    def echo(request: object, socket: greenws.WebSocket) -> None:
        for message in socket:
            socket.send(message)

    @routes.websocket("/json")
    def parse(request: object, socket: greenws.WebSocket) -> None:
        for message in socket:
            json.loads(message)

    @routes.websocket("/rows")
    def send_rows(request: object, socket: greenws.WebSocket) -> None:
        for row in ROWS:
            socket.send(row)

    @routes.websocket("/room")
    def room(request: object, socket: greenws.WebSocket) -> None:
        with rooms["all"].join(socket):
            for message in socket:
                rooms["all"].send(message)

    @routes.websocket("/conversation")
    def conversation(request: object, socket: greenws.WebSocket) -> None:
        for message in socket:
            gevent.spawn(answer, socket, message)

    def answer(socket: greenws.WebSocket, message: str) -> None:
        with contextlib.suppress(greenws.ConnectionClosed):
            socket.send(f"{message} 1")
            gevent.sleep(0.002)
            socket.send(f"{message} 2")
            gevent.sleep(0.002)
            socket.send(f"{message} 3")

    @routes.websocket("/chat/<name>")
    def chat(request: object, socket: greenws.WebSocket, name: str) -> None:
        room = rooms[f"chat-{name}"]
        with room.join(socket):
            for message in socket:
                room.send(message)

    @routes.websocket("/feed")
    def feed(request: Any, socket: greenws.WebSocket) -> None:
        room, since = feeds["feed"], request.args.get("since")
        with room.join(socket, since=since, gap='{"gap": true}') as member:
            if since is None:
                socket.send(json.dumps({"id": member.position}))
            for message in socket:
                room.send(message)

    @routes.websocket("/ticker")
    def ticker(request: object, socket: greenws.WebSocket) -> None:
        if not ticking:
            ticking.append(gevent.spawn(tick))
        policy = policies.coalesce(lambda message: "table")
        with rooms["ticker"].join(socket, policy=policy):
            for _ in socket:
                pass

    ticking: list[gevent.Greenlet] = []

    def tick() -> None:
        begun = time.monotonic()
        for number in itertools.count(1):
            gevent.sleep(max(0, begun + number * TICK - time.monotonic()))
            rooms["ticker"].send(json.dumps(table(number)))

    routes.add(method="GET", uri="/small", handler=small)
    routes.add(method="GET", uri="/download", handler=download)
    return routes
