"""Step 5: the chat in production.

gunicorn -c gunicorn.conf.py app:app
"""

from gevent import monkey

monkey.patch_all()  # before all other imports

import json  # noqa: E402
import os  # noqa: E402

from flask import Flask, abort, redirect, render_template, request, session  # noqa: E402

from greenws import Rooms  # noqa: E402
from greenws.integrations.flask import Sock  # noqa: E402
from greenws.rooms import json_id  # noqa: E402

app = Flask(__name__)
app.secret_key = os.environ["SECRET_KEY"]
app.config.update(SESSION_COOKIE_SECURE=True, SESSION_COOKIE_SAMESITE="Lax")
sock = Sock(app)
rooms = Rooms(os.environ.get("REDIS_URL"), stamp=json_id)  # None: this process alone


@app.get("/healthz")
def healthz():
    return "ok\n"


@app.before_request
def check_login():
    if request.endpoint in ("healthz", "login", "static") or "name" in session:
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


def tell(kind, id, info):  # kind: "join" or "leave"
    return json.dumps({kind: id, "name": info["name"]})


@sock.route("/chat")
def chat(socket):
    name, since = session["name"], request.args.get("since") or None
    room = rooms["lobby"]
    gap = json.dumps({"gap": True})
    with room.join(socket, since=since, gap=gap, presence=tell, name=name) as member:
        present = [(each.id, each.info["name"]) for each in member.present or ()]
        socket.send(json.dumps({"present": present, "id": member.position}))
        for text in socket:
            room.send(json.dumps({"name": name, "text": text}))
