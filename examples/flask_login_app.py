"""Flask: login before the upgrade, 401 without it, current_user inside the handler.

python examples/flask_login_app.py
curl -c jar -d name=ada http://127.0.0.1:8000/login
WebSocket client with that cookie: ws://127.0.0.1:8000/inbox (401 without the cookie)
"""

from gevent import monkey

if __name__ == "__main__":
    monkey.patch_all()  # before the other imports: whatever blocks lets the others run

import argparse

from flask import Flask, request
from flask_login import LoginManager, UserMixin, current_user, login_required, login_user

from greenws import WebSocketHandler, WebSocketServer, WebSocketSessionHandler

app = Flask(__name__)
app.secret_key = "change me"
login_manager = LoginManager(app)


class User(UserMixin):
    def __init__(self, name):
        self.id = name


login_manager.user_loader(User)


@app.post("/login")
def login():
    login_user(User(request.form["name"]))
    return "logged in\n"


class Inbox(WebSocketSessionHandler):
    def handle_session(self, request, socket):
        # The request context of the view is still active: current_user, session, g, current_app.
        socket.send(f"Welcome, {current_user.id}.")
        for message in socket:
            socket.send(f"{current_user.id} said: {message}")


@app.get("/inbox")
@login_required
def inbox():
    return WebSocketHandler(lambda request, protocols: Inbox())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--port", type=int, default=8000)
    server = WebSocketServer(("127.0.0.1", parser.parse_args().port), app)
    server.start()
    print(f"http://127.0.0.1:{server.server_port}/", flush=True)
    server.serve_forever()
