"""A bare WSGI application with pages and a WebSocket.

python examples/wsgi_app.py
curl http://127.0.0.1:8000/            a page
WebSocket client: ws://127.0.0.1:8000/time    the time, every second
"""

import argparse
import time

import gevent

from greenws import WebSocketHandler, WebSocketServer, WebSocketSessionHandler


class Clock(WebSocketSessionHandler):
    def handle_session(self, request, socket):
        while True:  # send() raises ConnectionClosed when the peer is gone
            socket.send(time.strftime("%H:%M:%S"))
            gevent.sleep(1)


clock = WebSocketHandler(lambda request, protocols: Clock())


def application(environ, start_response):
    if environ["PATH_INFO"] == "/time":
        return clock(environ, start_response)
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"There is a clock at /time.\n"]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--port", type=int, default=8000)
    server = WebSocketServer(("127.0.0.1", parser.parse_args().port), application)
    server.start()
    print(f"http://127.0.0.1:{server.server_port}/", flush=True)
    server.serve_forever()
