"""Flask-SocketIO on gevent; with --redis its messages go through Redis."""

from __future__ import annotations

from gevent import monkey

monkey.patch_all()

from common import HOST, announce_and_serve, lead_workers, parse_options  # noqa: E402
from flask import Flask  # noqa: E402
from flask_socketio import SocketIO, send  # noqa: E402
from gevent.pywsgi import WSGIServer  # noqa: E402
from geventwebsocket.handler import WebSocketHandler  # noqa: E402

options = parse_options()
if options.workers > 1:
    lead_workers(options.workers)
app = Flask(__name__)
socketio = SocketIO(app, async_mode="gevent", message_queue=options.redis)


@socketio.on("message")
def room(message: str) -> None:
    send(message, broadcast=True)


announce_and_serve(
    WSGIServer((HOST, options.port), app, log=None, handler_class=WebSocketHandler),
    "flask-socketio",
    "python-socketio",
    "python-engineio",
    "gevent-websocket",
    "gevent",
    "redis",
)
