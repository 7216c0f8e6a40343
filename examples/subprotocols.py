"""One URL, with a handler for each subprotocol.

python examples/subprotocols.py
WebSocket client: ws://127.0.0.1:8000/, offering "upper", "reverse" or both
"""

import argparse

from greenws import WebSocketHandler, WebSocketServer, WebSocketSessionHandler


class Upper(WebSocketSessionHandler):
    socket_protocol = "upper"

    def handle_session(self, request, socket):
        for message in socket:
            socket.send(message.upper())


class Reverse(WebSocketSessionHandler):
    socket_protocol = "reverse"

    def handle_session(self, request, socket):
        for message in socket:
            socket.send(message[::-1])


handlers = {handler.socket_protocol: handler for handler in (Upper, Reverse)}


def producer(request, protocols):
    """A handler for the client's first offer that we know; None refuses the handshake with 400."""
    for protocol in protocols:
        if protocol in handlers:
            return handlers[protocol]()
    return None


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--port", type=int, default=8000)
    server = WebSocketServer(("127.0.0.1", parser.parse_args().port), WebSocketHandler(producer))
    server.start()
    print(f"ws://127.0.0.1:{server.server_port}/", flush=True)
    server.serve_forever()
