"""websockets, its asyncio server, on uvloop."""

from __future__ import annotations

import asyncio

import uvloop
from common import HOST, MAX_MESSAGE_SIZE, announce, parse_options
from websockets.asyncio.server import ServerConnection, serve


async def echo(websocket: ServerConnection) -> None:
    async for message in websocket:
        await websocket.send(message)


async def main() -> None:
    options = parse_options()
    compression = "deflate" if options.deflate else None
    async with serve(
        echo, HOST, options.port, compression=compression, max_size=MAX_MESSAGE_SIZE
    ) as server:
        announce(next(iter(server.sockets)).getsockname()[1], "websockets", "uvloop")
        await asyncio.Future()


uvloop.run(main())
