"""A chat with a login: one room for each URL.

python chat.py [--port 8000]
"""

from gevent import monkey

if __name__ == "__main__":
    monkey.patch_all()  # before the other imports: whatever blocks lets the others run

import argparse

from flask import Flask, abort, request, session

from greenws import (
    Rooms,
    WebSocketHandler,
    WebSocketServer,
    WebSocketSessionHandler,
    policies,
)
from greenws.brokers import BrokerUnavailable

PAGE = """<!doctype html>
<title>Chat</title>
<form method=post action=/login><input name=name required> <button>Log in</button></form>
<form id=say><input id=text> <button>Say</button></form>
<pre id=log></pre>
<script>
  const socket = new WebSocket(location.href.replace(/^http/, "ws") + "rooms/lobby");
  socket.onmessage = (event) => { log.textContent += event.data + "\\n"; };
  socket.onclose = () => { log.textContent += "(not connected: log in, or reload)\\n"; };
  say.onsubmit = (event) => { event.preventDefault(); socket.send(text.value); text.value = ""; };
</script>
"""


class Member(WebSocketSessionHandler):
    """One person in a room."""

    def __init__(self, room, name):
        self.room = room
        self.name = name

    def handle_session(self, request, socket):
        try:
            with self.room.join(socket, name=self.name):
                self.room.send(f"* {self.name} has joined")
                for text in socket:
                    self.say(text, socket)
        finally:  # a lost connection raises ConnectionClosed
            self.room.send(f"* {self.name} has left")

    def say(self, text, socket):
        try:
            self.room.send(f"{self.name}: {text}")
        except BrokerUnavailable:
            socket.send("* That was not sent. Please try again.")


def create_app(**settings):
    app = Flask(__name__)
    app.config.update(SECRET_KEY="change me", BOT_TOKEN="change me too")
    app.config.update(settings)
    rooms = app.extensions["rooms"] = Rooms(policy=policies.close(limit=100))

    @app.get("/")
    def page():
        return PAGE

    @app.post("/login")
    def login():
        session["name"] = request.form["name"]
        return "", 303, {"Location": "/"}

    @app.get("/rooms/<room>")
    def chat(room):
        # Still HTTP: whoever is refused here gets an ordinary response.
        name = session.get("name")
        if request.headers.get("Authorization") == f"Bearer {app.config['BOT_TOKEN']}":
            name = "bot"
        if name is None:
            abort(401)
        return WebSocketHandler(lambda request, protocols: Member(rooms[room], name))

    return app


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--port", type=int, default=8000)
    server = WebSocketServer(("127.0.0.1", parser.parse_args().port), create_app())
    server.start()
    print(f"http://127.0.0.1:{server.server_port}/", flush=True)
    server.serve_forever()
