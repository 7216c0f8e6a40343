"""A program written for gevent-websocket, with one import changed.

python examples/gevent_websocket_app.py
WebSocket clients: ws://127.0.0.1:8000/ (what one sends, all receive)
"""

import argparse
from collections import OrderedDict

from geventwebsocket import Resource, WebSocketApplication

from greenws import WebSocketServer  # was: from geventwebsocket import WebSocketServer


class Broadcast(WebSocketApplication):
    def on_open(self):
        self.ws.send("welcome")

    def on_message(self, message):
        if message is None:
            return
        for client in self.ws.handler.server.clients.values():
            client.ws.send(message)

    def on_close(self, reason):
        print(f"a client left: {reason}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--port", type=int, default=8000)
    server = WebSocketServer(
        ("127.0.0.1", parser.parse_args().port), Resource(OrderedDict([("/", Broadcast)]))
    )
    server.start()
    print(f"ws://127.0.0.1:{server.server_port}/", flush=True)
    server.serve_forever()
