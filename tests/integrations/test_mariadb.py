"""MariaDB by PyMySQL, under SQLAlchemy and under Django: idle sessions hold no connection, and what
was not committed is kept."""

from __future__ import annotations

import json

import pytest

from ..support.idle import idle_sessions
from ..support.limits import eventually, limit
from ..support.processes import PROGRAMS, Process, connect

MANAGE = PROGRAMS / "django_project" / "manage.py"


@pytest.fixture(scope="module")
def flask_program(mariadb):
    mariadb.call("CREATE DATABASE flask")
    with Process(PROGRAMS / "database_app.py", mariadb.url(database="flask")) as process:
        yield process.wait_for_port()


@pytest.fixture(scope="module")
def django_program(mariadb):
    mariadb.call("CREATE DATABASE django")
    database = {
        "ENGINE": "django.db.backends.mysql",
        "NAME": "django",
        "USER": "root",
        "OPTIONS": {"unix_socket": mariadb.socket},
    }
    env = {"GREENWS_TEST_DATABASE": json.dumps(database)}
    with Process(MANAGE, "migrate", "--run-syncdb", "--verbosity=0", **env) as process:
        assert process.popen.wait(limit(20)) == 0, process.output
    with Process(MANAGE, "serve", **env) as process:
        yield process.wait_for_port()


def test_idle_sessions_of_sqlalchemy_hold_no_connection(flask_program):
    """20 with a pool of five; each has run a query."""
    with idle_sessions(flask_program.address, "/ws", 20, b"count", b"0"):
        with connect(flask_program.url("/ws")) as ws:
            ws.send("count")
            assert ws.recv(limit(20)) == "0"
    assert "keeps its database connection" not in flask_program.output


def test_uncommitted_work_of_sqlalchemy_is_kept(flask_program, mariadb):
    def ask(message):
        ws.send(message)
        return ws.recv(limit(20))

    with connect(flask_program.url("/ws")) as ws:
        assert ask("add one") == "1"  # flushed by the query
        flask_program.wait_for("INSERT INTO note .* which is not a plain SELECT")
        assert ask("count one") == "1"
        assert mariadb.call("SELECT text FROM note", "flask") == ()
        assert ask("commit one") == "1"
        assert mariadb.call("SELECT text FROM note", "flask") == (("one",),)


def test_idle_sessions_of_django_hold_no_connection(django_program, mariadb):
    with idle_sessions(django_program.address, "/notes/", 20, b"count", b"0"):
        eventually(lambda: mariadb.connections("django"), 0, 20)
    assert "keeps its database connection" not in django_program.output


def test_what_sessions_of_django_write_or_lock_is_kept(django_program, mariadb):
    with connect(django_program.url("/notes/")) as ws:
        ws.send("add one")
        assert ws.recv(limit(20)) == "1"
        eventually(lambda: mariadb.connections("django"), 0, 20)
        assert mariadb.call("SELECT text FROM project_note", "django") == (("one",),)
        ws.send("run SELECT 1")  # its cursor is closed, and a variable still refers to it
        assert ws.recv(limit(20)) == "1"
        eventually(lambda: mariadb.connections("django"), 0, 20)
        ws.send("run SELECT GET_LOCK('mine', 0)")
        assert ws.recv(limit(20)) == "1"
        django_program.wait_for("it ran .SELECT GET_LOCK")
        assert mariadb.call("SELECT IS_FREE_LOCK('mine')") == ((0,),)
    eventually(lambda: mariadb.connections("django"), 0, 20)
