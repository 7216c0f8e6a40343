"""greenws, as its README shows it."""

from __future__ import annotations

import sys

if "--redis" in sys.argv:
    from gevent import monkey

    monkey.patch_all()

from common import HOST, MAX_MESSAGE_SIZE, announce_and_serve, lead_workers, parse_options

import greenws
import greenws.protocol.connection
from greenws import Config, Rooms, Routes, WebSocketServer

routes = Routes()


@routes.websocket("/")
def echo(request: object, socket: greenws.WebSocket) -> None:
    for message in socket:
        socket.send(message)


options = parse_options(tls=True)
if options.workers > 1:
    lead_workers(options.workers)
rooms = Rooms(options.redis)


@routes.websocket("/room")
def room(request: object, socket: greenws.WebSocket) -> None:
    with rooms["all"].join(socket):
        for message in socket:
            rooms["all"].send(message)


config = Config(max_message_size=MAX_MESSAGE_SIZE)
if options.ping_interval:
    config = config.replace(ping_interval=options.ping_interval)
tls = {"certfile": options.certfile, "keyfile": options.keyfile} if options.certfile else {}
announce_and_serve(
    WebSocketServer(
        (HOST, options.port),
        routes,
        log=None,
        config=config,
        **tls,
    ),
    "gevent",
    "werkzeug",
    greenws=greenws.__version__,
    form="compiled" if greenws.protocol.connection.__file__.endswith(".so") else "pure",
)
