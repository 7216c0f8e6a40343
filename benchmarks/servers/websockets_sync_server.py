"""The threading server of websockets; gevent's monkey-patching turns its threads into greenlets."""

from __future__ import annotations

from gevent import monkey

monkey.patch_all()

from common import HOST, MAX_MESSAGE_SIZE, announce, parse_options  # noqa: E402
from websockets.sync.server import ServerConnection, serve  # noqa: E402


def echo(websocket: ServerConnection) -> None:
    for message in websocket:
        websocket.send(message)


options = parse_options()
compression = "deflate" if options.deflate else None
with serve(echo, HOST, options.port, compression=compression, max_size=MAX_MESSAGE_SIZE) as server:
    announce(server.socket.getsockname()[1], "websockets", "gevent")
    server.serve_forever()
