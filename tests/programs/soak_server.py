"""An echo server that reports how many descriptors and greenlets it has, at /state."""

import gc
import json
import os

import gevent

from greenws import Routes, WebSocketServer

routes = Routes()


@routes.websocket("/echo")
def echo(request, socket):
    for message in socket:
        socket.send(message)


def state(environ, start_response):
    gc.collect()
    greenlets = [g for g in gc.get_objects() if isinstance(g, gevent.Greenlet) and not g.dead]
    body = json.dumps(
        {"descriptors": len(os.listdir("/proc/self/fd")), "greenlets": len(greenlets)}
    ).encode()
    start_response("200 OK", [("Connection", "close"), ("Content-Length", str(len(body)))])
    return [body]


routes.add(uri="/state", handler=state)

server = WebSocketServer(("127.0.0.1", 0), routes, log=None)
server.start()
print(f"listening on http://127.0.0.1:{server.server_port}", flush=True)
server.serve_forever()
