"""The asyncio server of websockets, on uvloop."""

from __future__ import annotations

import asyncio

import uvloop
from common import HOST, MAX_MESSAGE_SIZE, announce, parse_options
from websockets.asyncio.server import ServerConnection, broadcast, serve

members: set[ServerConnection] = set()


async def session(websocket: ServerConnection) -> None:
    assert websocket.request is not None
    await (room if websocket.request.path == "/room" else echo)(websocket)


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
    ) as server:
        announce(next(iter(server.sockets)).getsockname()[1], "websockets", "uvloop")
        await asyncio.Future()


uvloop.run(main())
