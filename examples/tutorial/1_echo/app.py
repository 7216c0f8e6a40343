"""Step 1: an echo behind a login.

python app.py
"""

from gevent import monkey

monkey.patch_all()  # before all other imports

import os  # noqa: E402

from flask import Flask, abort, redirect, render_template, request, session  # noqa: E402

from greenws import WebSocketServer  # noqa: E402
from greenws.integrations.flask import Sock  # noqa: E402

app = Flask(__name__)
app.secret_key = os.environ.get("SECRET_KEY", "for this machine only")
sock = Sock(app)


@app.before_request
def check_login():
    if request.endpoint in ("login", "static") or "name" in session:
        return None
    if request.endpoint == "index":
        return redirect("/login")
    abort(401)  # before the upgrade: an ordinary response


@app.route("/login", methods=["GET", "POST"])
def login():
    if request.method == "POST" and request.form["name"]:
        session["name"] = request.form["name"]  # a real login checks a password
        return redirect("/")
    return render_template("login.html")


@app.get("/")
def index():
    return render_template("index.html", name=session["name"])


@sock.route("/echo")
def echo(socket):
    for message in socket:
        socket.send(f"{session['name']}: {message}")


if __name__ == "__main__":
    server = WebSocketServer(("127.0.0.1", int(os.environ.get("PORT", 5000))), app)
    server.start()
    print(f"Listening on http://127.0.0.1:{server.server_port}/", flush=True)
    server.serve_forever()
