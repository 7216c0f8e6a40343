"""Flask-SocketIO as it runs under gunicorn: rooms by the query string, an echo without one."""

from __future__ import annotations

from flask import Flask, request
from flask_socketio import SocketIO, join_room, send

app = Flask(__name__)
socketio = SocketIO(app, async_mode="gevent")


@socketio.on("connect")
def connect() -> None:
    if room := request.args.get("room"):
        join_room(room)


@socketio.on("message")
def message(text: str) -> None:
    if room := request.args.get("room"):
        send(text, to=room)
    else:
        send(text)
