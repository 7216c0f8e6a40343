"""The asyncio server of websockets, on uvloop."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections import defaultdict
from collections.abc import Coroutine
from typing import Any

import uvloop
from common import HOST, MAX_MESSAGE_SIZE, ROWS, TICK, announce, parse_options, table
from websockets.asyncio.server import ServerConnection, broadcast, serve
from websockets.exceptions import ConnectionClosed

members: set[ServerConnection] = set()
rooms: defaultdict[str, set[ServerConnection]] = defaultdict(set)
ticking: list[bool] = []
tasks: set[asyncio.Task[None]] = set()


async def session(websocket: ServerConnection) -> None:
    assert websocket.request is not None
    path = websocket.request.path
    await (chat if path.startswith("/chat/") else handlers.get(path, echo))(websocket)


async def echo(websocket: ServerConnection) -> None:
    async for message in websocket:
        await websocket.send(message)


async def room(websocket: ServerConnection) -> None:
    members.add(websocket)
    try:
        async for message in websocket:
            broadcast(members, message)
    finally:
        members.remove(websocket)


async def parse(websocket: ServerConnection) -> None:
    async for message in websocket:
        json.loads(message)


async def send_rows(websocket: ServerConnection) -> None:
    for row in ROWS:
        await websocket.send(row)


def start(task: Coroutine[Any, Any, None]) -> None:
    tasks.add(running := asyncio.create_task(task))
    running.add_done_callback(tasks.discard)


async def conversation(websocket: ServerConnection) -> None:
    async for message in websocket:
        start(answer(websocket, message))


async def answer(websocket: ServerConnection, message: str | bytes) -> None:
    with contextlib.suppress(ConnectionClosed):
        await websocket.send(f"{message!s} 1")
        await asyncio.sleep(0.002)
        await websocket.send(f"{message!s} 2")
        await asyncio.sleep(0.002)
        await websocket.send(f"{message!s} 3")


async def chat(websocket: ServerConnection) -> None:
    """Also the feed: what a member sends goes to all."""
    assert websocket.request is not None
    room = rooms[websocket.request.path]
    room.add(websocket)
    try:
        async for message in websocket:
            broadcast(room, message)
    finally:
        room.remove(websocket)


async def ticker(websocket: ServerConnection) -> None:
    room = rooms["ticker"]
    if not ticking:
        ticking.append(True)
        start(tick())
    room.add(websocket)
    try:
        await websocket.wait_closed()
    finally:
        room.remove(websocket)


async def tick() -> None:
    begun, number = time.monotonic(), 0
    while True:
        number += 1
        await asyncio.sleep(max(0, begun + number * TICK - time.monotonic()))
        broadcast(rooms["ticker"], json.dumps(table(number)))


handlers = {
    "/room": room,
    "/json": parse,
    "/rows": send_rows,
    "/conversation": conversation,
    "/feed": chat,
    "/ticker": ticker,
}


async def main() -> None:
    options = parse_options()
    compression = "deflate" if options.deflate else None
    async with serve(
        session,
        HOST,
        options.port,
        compression=compression,
        max_size=MAX_MESSAGE_SIZE,
        ping_interval=options.ping_interval or 20,
        backlog=4096,
    ) as server:
        announce(next(iter(server.sockets)).getsockname()[1], "websockets", "uvloop")
        await asyncio.Future()


uvloop.run(main())
