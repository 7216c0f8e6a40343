"""The Flask application that the tests serve with 'flask run' and gunicorn."""

import contextlib
import threading
import time
from wsgiref.validate import validator

import flask
from werkzeug import Request

from greenws import ConnectionClosed, WebSocket, WebSocketHandler, WebSocketSessionHandler

app = flask.Flask(__name__)
app.secret_key = "for the tests"
listeners: list[WebSocket] = []
cut_off: list[WebSocket] = []


class Echo(WebSocketSessionHandler):
    def __init__(self, protocol: str | None) -> None:
        self.socket_protocol = protocol

    def handle_session(self, request: Request, socket: WebSocket) -> None:
        for message in socket:
            socket.send(message)


class Listen(WebSocketSessionHandler):
    """Blocks in its read, for ever; others send."""

    def handle_session(self, request: Request, socket: WebSocket) -> None:
        listeners.append(socket)
        socket.send("listening")
        try:
            for _ in socket:
                pass
        finally:
            listeners.remove(socket)


class Crash(WebSocketSessionHandler):
    def handle_session(self, request: Request, socket: WebSocket) -> None:
        raise ValueError("of the handler")


class Busy(WebSocketSessionHandler):
    """Works on, whatever becomes of its client."""

    def handle_session(self, request: Request, socket: WebSocket) -> None:
        socket.send("busy")
        try:
            time.sleep(60)
        finally:
            print("the handler has cleaned up", flush=True)


class Goodbye(WebSocketSessionHandler):
    def handle_session(self, request: Request, socket: WebSocket) -> None:
        socket.send("goodbye")
        socket.close(4000, "enough")


class Flood(WebSocketSessionHandler):
    """Sends more than the kernel holds to a client that does not read."""

    def handle_session(self, request: Request, socket: WebSocket) -> None:
        try:
            while True:
                socket.send(bytes(1 << 20))
        finally:
            cut_off.append(socket)


class Ping(WebSocketSessionHandler):
    """Waits with a timeout, a ping and its pong, in whatever this server runs its sessions in."""

    def handle_session(self, request: Request, socket: WebSocket) -> None:
        socket.read_timeout_seconds = 0.05
        socket.send(f"{socket.read_string_message().opcode.name} {socket.is_connected}")
        socket.send(f"answered: {socket.ping(timeout=5) < 5}")


class Told(WebSocketSessionHandler):
    def __init__(self, protocol: str) -> None:
        self.socket_protocol = protocol

    def handle_session(self, request: Request, socket: WebSocket) -> None:
        socket.send(f"{socket.remote_address} {socket.receive()}")


@app.get("/changed")
def changed():
    return WebSocketHandler(lambda request, offered: Told(offered[0]))


def changing(environ, start_response):
    environ["HTTP_SEC_WEBSOCKET_PROTOCOL"] = "chat"
    environ.pop("HTTP_SEC_WEBSOCKET_EXTENSIONS", None)
    environ["REMOTE_ADDR"] = "192.0.2.7"
    return flask_itself(environ, start_response)


def middleware(environ, start_response):
    if environ["PATH_INFO"] != "/changed":
        return flask_itself(environ, start_response)
    if "werkzeug.socket" in environ:  # an environ that would not pass
        return changing(environ, start_response)
    return validator(changing)(environ, start_response)


flask_itself, app.wsgi_app = app.wsgi_app, middleware


@app.get("/echo")
def echo():
    return WebSocketHandler(lambda request, offered: Echo("echo" if "echo" in offered else None))


@app.get("/listen")
def listen():
    return WebSocketHandler(lambda request, offered: Listen())


@app.get("/crash")
def crash():
    return WebSocketHandler(lambda request, offered: Crash())


@app.get("/busy")
def busy():
    return WebSocketHandler(lambda request, offered: Busy())


@app.get("/goodbye")
def goodbye():
    return WebSocketHandler(lambda request, offered: Goodbye())


@app.get("/flood")
def flood():
    return WebSocketHandler(lambda request, offered: Flood(), write_timeout=0.3)


@app.get("/cut-off")
def count_cut_off():
    return str(len(cut_off))


@app.get("/ping")
def ping():
    return WebSocketHandler(lambda request, offered: Ping())


@app.get("/secret")
def secret():
    flask.abort(401)


@app.get("/broken")
def broken():
    raise KeyError("of the view")


@app.get("/hello")
def hello():
    return "hello"


@app.post("/length")
def length():
    return str(len(flask.request.get_data()))


@app.get("/tell/<text>")
def tell(text):
    """Sends to all listeners: from this request's thread, and from one that has no hub at all."""

    def send(prefix: str) -> None:
        for socket in list(listeners):
            with contextlib.suppress(ConnectionClosed):  # it has just left
                socket.send(f"{prefix}: {text}")

    send("request")
    thread = threading.Thread(target=send, args=("thread",))
    thread.start()
    thread.join()
    return f"told {len(listeners)}"
