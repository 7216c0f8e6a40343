"""Flask-SocketIO in gevent mode: under WebSocketServer ("server"), or by socketio.run ("install"),
which listens at the port of the second argument."""

import sys

from flask import Flask, request
from flask_socketio import SocketIO, emit

import greenws

how = sys.argv[1]
config = greenws.Config(max_message_size=5_000_000)
if how == "install":
    import greenws.integrations.gevent_websocket

    greenws.integrations.gevent_websocket.install(config)

app = Flask(__name__)
socketio = SocketIO(app, async_mode="gevent", max_http_buffer_size=5_000_000)


@socketio.on("connect")
def connected():
    environ = request.environ
    if "wsgi.websocket" in environ:
        print(f"handler: {type(environ['wsgi.websocket'].handler).__name__}", flush=True)


@socketio.on("echo")
def echo(data):
    emit("echoed", data)
    return "acknowledged"


@socketio.on("disconnect")
def disconnected(reason=None):
    print("disconnected", flush=True)


if how == "server":
    server = greenws.WebSocketServer(("127.0.0.1", 0), app, config=config)
    server.start()
    print(f"http://127.0.0.1:{server.server_port}", flush=True)
    server.serve_forever()
else:
    port = int(sys.argv[2])
    socketio.start_background_task(lambda: print(f"http://127.0.0.1:{port}", flush=True))
    socketio.run(app, host="127.0.0.1", port=port)
