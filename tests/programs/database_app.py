"""A Flask application whose sessions ask a database, with a pool of five connections.

``python database_app.py URL``. ``/ws`` runs a query for each message and waits for the next one;
``/held`` says how many connections are checked out; ``/page`` is a page that needs one.
"""

from __future__ import annotations

from gevent import monkey

if __name__ == "__main__":
    monkey.patch_all()

import logging
import sys

from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import String, func, select
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from greenws import WebSocketHandler, WebSocketServer, WebSocketSessionHandler
from greenws.integrations.sqlalchemy import release

logging.basicConfig(level=logging.WARNING)


class Base(DeclarativeBase):
    pass


app = Flask(__name__)
app.config["SQLALCHEMY_DATABASE_URI"] = sys.argv[1]
app.config["SQLALCHEMY_ENGINE_OPTIONS"] = {"pool_size": 5, "max_overflow": 0, "pool_timeout": 20}
db = SQLAlchemy(app, model_class=Base)
if "--without-release" not in sys.argv:
    release(db.session)


class Note(db.Model):
    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str] = mapped_column(String(100))


class Notes(WebSocketSessionHandler):
    def handle_session(self, request, socket):
        for message in socket:
            verb, _, rest = message.partition(" ")
            if verb == "add":
                db.session.add(Note(text=rest))
            elif verb == "flush":
                db.session.flush()
            elif verb == "commit":
                db.session.commit()
            elif verb == "fail":
                raise RuntimeError("on purpose")
            found = db.session.scalar(select(func.count(Note.id)).where(Note.text == rest))
            socket.send(str(found))


@app.get("/ws")
def notes():
    return WebSocketHandler(lambda request, protocols: Notes())


@app.get("/page")
def page():
    return str(len(db.session.scalars(select(Note)).all()))


@app.get("/held")
def held():
    return str(db.engine.pool.checkedout())


if __name__ == "__main__":
    with app.app_context():
        db.create_all()
    server = WebSocketServer(("127.0.0.1", 0), app, log=None)
    server.start()
    print(f"http://127.0.0.1:{server.server_port}", flush=True)
    server.serve_forever()
