"""runserver and other people's servers run Django's WebSockets."""

from __future__ import annotations

import json
import os
import shutil
import threading
import urllib.request

import pytest
from django.core.servers.basehttp import ThreadedWSGIServer, WSGIRequestHandler, WSGIServer
from websockets.exceptions import ConnectionClosed

from greenws.integrations.django import server as integration

from ...support.limits import eventually, limit
from ...support.processes import PROGRAMS, Process, connect
from ...support.wire import Peer

FOLDER = PROGRAMS / "django_project"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A copy of the project that a test may change, with a database."""
    copy = tmp_path_factory.mktemp("project") / "copy"
    shutil.copytree(FOLDER, copy, ignore=shutil.ignore_patterns("__pycache__"))
    with Process(
        "manage.py", "migrate", "--run-syncdb", "-v0", cwd=copy, **env_of(copy)
    ) as process:
        assert process.popen.wait(limit(20)) == 0, process.output
    return copy


def env_of(folder, **options):
    database = {"ENGINE": "django.db.backends.sqlite3", "NAME": str(folder / "database")}
    return {
        "GREENWS_TEST_DATABASE": json.dumps(database),
        "DJANGO_SETTINGS_MODULE": "project.settings",
        "GREENWS_TEST_DEBUG": "1",
        **options,
    }


def converse(process):
    """What a browser would do: log in, and talk."""
    with Peer.connect(process.address) as peer:
        assert peer.shake("/private/").status == 302
    with urllib.request.urlopen(process.url("/login/", "http"), timeout=limit(20)) as response:
        cookies = [text.partition(";")[0] for text in response.headers.get_all("Set-Cookie")]
    cookie = "; ".join(cookies)
    with (
        connect(process.url("/private/"), additional_headers={"Cookie": cookie}) as first,
        connect(process.url("/private/"), additional_headers={"Cookie": cookie}) as second,
    ):
        for ws in (first, second):
            assert ws.recv(timeout=limit(20)) == "hello, ada"
            ws.send("x" * 70_000)
            assert ws.recv(timeout=limit(20)) == "ada: " + "x" * 70_000
    with connect(process.url("/fail/")) as ws:
        ws.send("fail")
        ws.recv(timeout=limit(20))
        with pytest.raises(ConnectionClosed, match="1011"):
            ws.recv(timeout=limit(20))
    process.wait_for("Internal Server Error: /fail/")
    process.wait_for("RuntimeError: on purpose")


def test_runserver_with_reloading_and_static_files(folder):
    with Process("manage.py", "runserver", "127.0.0.1:0", cwd=folder, **env_of(folder)) as process:
        process.wait_for_port()
        converse(process)
        url = process.url("/static/project/style.css", "http")
        with urllib.request.urlopen(url, timeout=limit(20)) as response:
            assert b"green" in response.read()
        with connect(process.url("/echo/")) as ws:
            ws.send("hello")
            assert ws.recv(timeout=limit(20)) == "hello"
            views = folder / "project" / "views.py"
            views.write_text(
                views.read_text().replace("socket.send(message)", "socket.send('new')")
            )

            def is_noticed():
                os.utime(views)  # the reloader may have looked for the first time after the change
                return "changed, reloading" in process.output

            eventually(is_noticed, True, 20)
            with pytest.raises(ConnectionClosed):
                ws.recv(timeout=limit(20))
        process.wait_for_port(start=process.lines.index("Quit the server with CONTROL-C.") + 1)
        with connect(process.url("/echo/")) as ws:
            ws.send("hello")
            assert ws.recv(timeout=limit(20)) == "new"


@pytest.mark.parametrize("worker", ["gevent", "gthread", "greenws.gunicorn.Worker"])
def test_gunicorn(folder, worker):
    command = ["-m", "gunicorn", "-k", worker, "--threads", "4", "-b", "127.0.0.1:0"]
    env = env_of(folder)
    with Process(*command, "project.wsgi", cwd=folder, **env) as process:
        process.wait_for_port(r"Listening at: http://127\.0\.0\.1:(\d+)")
        converse(process)


class Threaded(ThreadedWSGIServer):
    daemon_threads = False  # the end of the server waits for them


@pytest.mark.parametrize(("kind", "has_threads"), [(Threaded, True), (WSGIServer, False)])
def test_the_environ_says_whether_runserver_has_threads(project, kind, has_threads):
    """``--nothreading`` is the second one; wsgiref would say that both have."""

    def application(environ, start_response):
        body = repr(environ["wsgi.multithread"]).encode()
        start_response("200 OK", [("Content-Length", str(len(body)))])
        return [body]

    integration.install()
    with kind(("127.0.0.1", 0), WSGIRequestHandler) as server:
        server.set_app(application)
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}"
        with urllib.request.urlopen(url, timeout=limit(20)) as response:
            assert response.read() == repr(has_threads).encode()
        thread.join(limit(20))
