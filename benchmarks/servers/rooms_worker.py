"""A worker for rooms_workers.py: a room for each path, over Redis."""

# ruff: noqa: E402 - what follows is imported patched
from __future__ import annotations

from gevent import monkey

monkey.patch_all()

import contextlib
import json
import sys
import time
from typing import Any

import gevent
from common import HOST, announce_and_serve
from gevent import socket as gevent_socket

import greenws
from greenws import Config, Rooms, Routes, WebSocketServer
from greenws.brokers.redis import RedisBroker
from greenws.hub.transport import Transport
from greenws.rooms import json_id

url, options = sys.argv[1], json.loads(sys.argv[2])
rooms = Rooms(RedisBroker(url, **options), stamp=json_id)
routes = Routes()
kept = contextlib.ExitStack()
stops: list[float] = []


def tell(kind: str, key: str, info: dict[str, Any]) -> str:
    return json.dumps({kind: key})


@routes.websocket("/room/<name>")
def join(request: Any, socket: greenws.WebSocket, name: str) -> None:
    since, watch = request.args.get("since"), tell if "watch" in request.args else None
    with rooms[name].join(socket, since=since, gap='{"gap": true}', presence=watch) as member:
        socket.send(json.dumps({"joined": [each.id for each in member.present or ()]}))
        for message in socket:
            rooms[name].send(message)


@routes.websocket("/control")
def control(request: object, socket: greenws.WebSocket) -> None:
    for message in socket:
        command, argument = json.loads(message)
        if command == "open":
            for number in range(argument):
                ours, theirs = gevent_socket.socketpair()
                kept.callback(theirs.close)
                transport = Transport(ours, gevent.get_hub(), None, None)
                kept.enter_context(rooms[f"n{number}"].join(greenws.WebSocket(transport, Config())))
        elif command == "watch":
            gevent.spawn(watch)
        elif command == "send":
            name, count, size = argument
            for number in range(count):
                rooms[name].send(json.dumps({"n": number, "x": "x" * size}))
                if number % 1000 == 999:
                    rooms.flush()
            rooms.flush()
        elif command == "settle":
            rooms.flush()
            gevent.sleep(1)
        socket.send(json.dumps({"stop": max(stops, default=0.0)}))
        stops.clear()


def watch() -> None:
    last = time.process_time()
    while True:
        gevent.sleep(1e-4)
        now = time.process_time()
        stops[:] = [max(stops[0] if stops else 0.0, now - last)]
        last = now


announce_and_serve(
    WebSocketServer((HOST, 0), routes, log=None, config=Config(max_message_size=1 << 22)), "gevent"
)
