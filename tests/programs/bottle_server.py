"""bottle-websocket, with greenws installed underneath."""

import sys

import greenws.integrations.gevent_websocket

greenws.integrations.gevent_websocket.install()

import bottle  # noqa: E402
from bottle_websocket import GeventWebSocketServer, websocket  # noqa: E402


@bottle.get("/echo/<name>", apply=[websocket])
def echo(ws, name):
    print(f"handler: {type(ws.handler).__name__}", flush=True)
    while (message := ws.receive()) is not None:
        ws.send(f"{name}: {message}")
    print("left", flush=True)


# bottle itself says "Listening on http://127.0.0.1:..." just before it does
bottle.run(host="127.0.0.1", port=int(sys.argv[1]), server=GeventWebSocketServer)
