"""An echo by somebody else's server: ``other_server.py websockets|aiohttp|uvicorn``.

It chooses the subprotocol "chat", compresses where it can, closes with 4001 when it is told
"close", and prints the code with which a client has closed.
"""

import asyncio
import sys


async def websockets() -> None:
    from websockets.asyncio.server import serve
    from websockets.exceptions import ConnectionClosed

    async def echo(connection):
        try:
            async for message in connection:
                if message == "close":
                    await connection.close(4001, "bye")
                await connection.send(message)
        except ConnectionClosed:
            pass
        print(f"closed {connection.close_code} {connection.close_reason}", flush=True)

    def choose(connection, offered):
        return "chat" if "chat" in offered else None

    async with serve(echo, "127.0.0.1", 0, select_subprotocol=choose, max_size=None) as server:
        print(f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
        await server.serve_forever()


async def aiohttp() -> None:
    from aiohttp import WSMsgType, web

    async def echo(request):
        socket = web.WebSocketResponse(protocols=["chat"], max_msg_size=0)
        await socket.prepare(request)
        async for message in socket:
            if message.data == "close":
                await socket.close(code=4001, message=b"bye")
            elif message.type is WSMsgType.TEXT:
                await socket.send_str(message.data)
            elif message.type is WSMsgType.BINARY:
                await socket.send_bytes(message.data)
        print(f"closed {socket.close_code}", flush=True)
        return socket

    app = web.Application()
    app.router.add_get("/", echo)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    print(f"ws://127.0.0.1:{runner.addresses[0][1]}", flush=True)
    await asyncio.Event().wait()


async def uvicorn() -> None:
    from uvicorn import Config, Server

    async def app(scope, receive, send):
        if scope["type"] != "websocket":
            return
        await receive()
        chosen = "chat" if "chat" in scope["subprotocols"] else None
        await send({"type": "websocket.accept", "subprotocol": chosen})
        while True:
            event = await receive()
            if event["type"] == "websocket.disconnect":
                print(f"closed {event['code']}", flush=True)
                return
            if event.get("text") == "close":
                await send({"type": "websocket.close", "code": 4001, "reason": "bye"})
            elif event.get("text") is not None:
                await send({"type": "websocket.send", "text": event["text"]})
            else:
                await send({"type": "websocket.send", "bytes": event["bytes"]})

    class Announcing(Server):
        async def startup(self, sockets=None):
            await super().startup(sockets)
            port = self.servers[0].sockets[0].getsockname()[1]
            print(f"ws://127.0.0.1:{port}", flush=True)

    await Announcing(Config(app, port=0, log_level="error", lifespan="off")).serve()


asyncio.run(globals()[sys.argv[1]]())
