"""flask-sock (simple-websocket) on gevent's WSGI server, with gevent's monkey-patching."""

from __future__ import annotations

from gevent import monkey

monkey.patch_all()

from common import HOST, MAX_MESSAGE_SIZE, announce_and_serve, parse_options  # noqa: E402
from flask import Flask  # noqa: E402
from flask_sock import Sock  # noqa: E402
from gevent.pywsgi import WSGIServer  # noqa: E402
from simple_websocket import Server  # noqa: E402

app = Flask(__name__)
app.config["SOCK_SERVER_OPTIONS"] = {"max_message_size": MAX_MESSAGE_SIZE}
sock = Sock(app)


@sock.route("/")
def echo(ws: Server) -> None:
    while True:
        ws.send(ws.receive())


options = parse_options()
announce_and_serve(
    WSGIServer((HOST, options.port), app, log=None),
    "flask-sock",
    "simple-websocket",
    "flask",
    "gevent",
)
