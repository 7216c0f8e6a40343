"""aiohttp on uvloop."""

from __future__ import annotations

import asyncio
import json
import weakref

import uvloop
from aiohttp import WSMsgType, web
from common import HOST, MAX_MESSAGE_SIZE, PART, PARTS, ROWS, SMALL, announce, parse_options

options = parse_options()


async def echo(request: web.Request) -> web.WebSocketResponse:
    socket = web.WebSocketResponse(
        compress=options.deflate, max_msg_size=MAX_MESSAGE_SIZE, heartbeat=options.ping_interval
    )
    await socket.prepare(request)
    async for message in socket:
        if message.type == WSMsgType.BINARY:
            await socket.send_bytes(message.data)
        elif message.type == WSMsgType.TEXT:
            await socket.send_str(message.data)
    return socket


members: weakref.WeakSet[web.WebSocketResponse] = weakref.WeakSet()


async def room(request: web.Request) -> web.WebSocketResponse:
    socket = web.WebSocketResponse(compress=options.deflate)
    await socket.prepare(request)
    members.add(socket)
    try:
        async for message in socket:
            for member in set(members):
                await member.send_str(message.data)
    finally:
        members.discard(socket)
    return socket


async def parse(request: web.Request) -> web.WebSocketResponse:
    socket = web.WebSocketResponse()
    await socket.prepare(request)
    async for message in socket:
        json.loads(message.data)
    return socket


async def rows(request: web.Request) -> web.WebSocketResponse:
    socket = web.WebSocketResponse()
    await socket.prepare(request)
    for row in ROWS:
        await socket.send_str(row)
    return socket


async def small(request: web.Request) -> web.Response:
    return web.Response(body=SMALL, content_type="text/plain")


async def download(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Length": str(PARTS * len(PART))})
    await response.prepare(request)
    for _ in range(PARTS):
        await response.write(PART)
    return response


async def main() -> None:
    app = web.Application()
    app.router.add_get("/json", parse)
    app.router.add_get("/rows", rows)
    app.router.add_get("/small", small)
    app.router.add_get("/download", download)
    app.router.add_get("/", echo)
    app.router.add_get("/room", room)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, HOST, options.port).start()
    announce(runner.addresses[0][1], "aiohttp", "uvloop")
    await asyncio.Future()


uvloop.run(main())
