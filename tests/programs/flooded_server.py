"""A server for what flood.py does to it, and an echo for somebody else."""

import json
import logging
import sys

import gevent

from greenws import Config, Routes, WebSocketServer

logging.basicConfig(level=logging.INFO)
routes = Routes()


@routes.websocket("/echo")
def echo(request, socket):
    for message in socket:
        socket.send(message)


@routes.websocket("/json")
def parse(request, socket):
    for message in socket:
        json.loads(message)


@routes.websocket("/rows")
def rows(request, socket):
    for number in range(10_000_000):
        socket.send(f'{{"row": {number}}}')


def respond(start_response, body):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return body


def small(environ, start_response):
    return respond(start_response, [b"small"])


def generated(environ, start_response):
    return respond(start_response, (b"row %d\n" % number for number in range(10_000_000)))


def download(environ, start_response):
    part = bytes(1 << 16)
    return respond(start_response, (part for _ in range(1 << 20)))


def read(environ, start_response):
    while environ["wsgi.input"].read(1 << 16):
        pass
    return respond(start_response, [b"read"])


def lines(environ, start_response):
    return respond(start_response, [str(sum(1 for _ in environ["wsgi.input"])).encode()])


for handler in (small, generated, download, read, lines):
    for method in ("GET", "POST"):
        routes.add(method=method, uri=f"/{handler.__name__}", handler=handler)
config = Config(shutdown_grace=float(sys.argv[1]))
server = WebSocketServer(("127.0.0.1", 0), routes, log=None, config=config)
server.start()
gevent.spawn(print, f"http://127.0.0.1:{server.server_port}/", flush=True)
server.serve_forever()
