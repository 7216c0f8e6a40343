"""A program of Flask-Sock's, and so of simple-websocket's."""

from gevent import monkey

if __name__ == "__main__":
    monkey.patch_all()

import flask
from flask_sock import Sock

app = flask.Flask(__name__)
app.config["SOCK_SERVER_OPTIONS"] = {"subprotocols": ["chat"]}
sock = Sock(app)


@sock.route("/echo/<name>")
def echo(ws, name):
    ws.send(f"hello {name} {ws.subprotocol}")
    while True:
        data = ws.receive()
        if data == "fail":
            raise LookupError("of the view")
        if data == "bye":
            return
        ws.send(data)


@app.get("/hello")
def hello():
    return "hello"


if __name__ == "__main__":
    from greenws import WebSocketServer

    server = WebSocketServer(("127.0.0.1", 0), app)
    server.start()
    print(f"http://127.0.0.1:{server.server_port}", flush=True)
    server.serve_forever()
