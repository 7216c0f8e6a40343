"""A server as a user writes it, for signals: echoes, and handlers that take their time."""

import logging

import gevent

from greenws import Config, Routes, WebSocketServer

logging.basicConfig(level=logging.INFO)
routes = Routes()


@routes.websocket("/echo")
def echo(request, socket):
    for message in socket:
        socket.send(message)


@routes.websocket("/slow")
def slow(request, socket):
    list(socket)
    gevent.sleep(0.3)  # what a handler does once its peer is gone
    print("slow: finished", flush=True)


@routes.websocket("/deaf")
def deaf(request, socket):
    try:
        gevent.sleep(1000)
    finally:
        print("deaf: ended", flush=True)


def page(environ, start_response):
    print("page: begun", flush=True)
    gevent.sleep(0.3)
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"page"]


routes.add(uri="/page", handler=page)
server = WebSocketServer(("127.0.0.1", 0), routes, config=Config(shutdown_grace=1))
server.start()
gevent.spawn(print, f"http://127.0.0.1:{server.server_port}/", flush=True)
server.serve_forever()
print("behind serve_forever", flush=True)
