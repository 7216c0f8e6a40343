"""What a session runs in, and what is told of it."""

from __future__ import annotations

import os
import signal
import sys
import threading
from contextvars import ContextVar
from types import ModuleType
from unittest.mock import MagicMock, Mock

import bottle
import flask
import pytest
from gevent import monkey
from gevent.pywsgi import WSGIServer
from websockets.exceptions import ConnectionClosed
from werkzeug.local import LocalProxy
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from werkzeug.middleware.proxy_fix import ProxyFix

import greenws
from greenws import Routes, UpgradeHandler, surroundings, testing

from .support.limits import limit, wait_until
from .support.paths import PROGRAMS
from .support.processes import Process, connect
from .support.wire import Peer


@pytest.fixture(autouse=True)
def nothing_told(monkeypatch):
    monkeypatch.setattr(surroundings, "_logged", set())
    for name in surroundings._DRIVERS:  # of other tests
        monkeypatch.delitem(sys.modules, name, raising=False)


def bare(environ, start_response):
    start_response("200 OK", [("Content-Length", "0")])
    return []


def lines(caplog, level="WARNING"):
    return [r.getMessage() for r in caplog.records if r.levelname == level]


# -- which framework


class Middleware:
    def __init__(self, inner):
        self._hidden = inner
        self.wrapped = inner

    def __call__(self, environ, start_response):
        return self.wrapped(environ, start_response)


class Site(flask.Flask):
    pass


def mounted():
    routes = Routes()
    routes.add(uri="/x", handler=bare)
    routes.add(uri="*", handler=ProxyFix(flask.Flask("x")))
    return routes


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: flask.Flask("x"), "Flask"),
        (lambda: Site("x"), "Flask"),
        (lambda: Site("x").wsgi_app, "Flask"),
        (lambda: Middleware(ProxyFix(Middleware(flask.Flask("x")))), "Flask"),
        (lambda: DispatcherMiddleware(bare, {"/x": bottle.Bottle()}), "Bottle"),
        (mounted, "Flask"),
        (lambda: bare, None),
        (lambda: ProxyFix(bare), None),
        (Routes, None),
        (Mock, None),
    ],
)
def test_the_framework_is_found_behind_middleware(make, name):
    assert surroundings.framework_of(make()) == name


def test_a_circle_of_applications_ends():
    one, two = Middleware(None), Middleware(None)
    one.wrapped, two.wrapped = two, one
    assert surroundings.framework_of(one) is None


# -- a process that is not patched


def test_an_unpatched_process_that_serves_a_framework_is_reported_once(serve, caplog):
    serve(flask.Flask("x"))
    serve(flask.Flask("y"))
    (line,) = lines(caplog)
    assert line.startswith("serving a Flask application in a process that is not monkey-patched:")
    assert "from gevent import monkey; monkey.patch_all()" in line


def test_django_is_warned_of_its_database_connection(caplog):
    application = type("WSGIHandler", (), {"__module__": "django.core.handlers.wsgi"})()
    surroundings.warn_unpatched(application)
    assert "All sessions share one database connection." in lines(caplog)[0]


def test_any_pywsgi_server_is_warned_at_its_first_connection(serve, caplog):
    server = serve(flask.Flask("x"), cls=WSGIServer, handler_class=UpgradeHandler)
    for _ in range(2):
        with Peer.connect(server.address) as peer:
            peer.send(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            assert peer.read_response().status == 404
    assert len([line for line in lines(caplog) if "monkey-patched" in line]) == 1


def test_a_patched_process_is_not_warned(serve, caplog, monkeypatch):
    monkeypatch.setattr(monkey, "is_module_patched", lambda name: True)
    serve(flask.Flask("x"))
    assert lines(caplog) == []


def test_what_is_missing_is_named(caplog, monkeypatch):
    monkeypatch.setattr(monkey, "is_module_patched", lambda name: name != "threading")
    surroundings.warn_unpatched(flask.Flask("x"))
    assert "not monkey-patched (threading)" in lines(caplog)[0]


def test_an_application_of_no_framework_is_not_warned(serve, caplog):
    serve(Routes())
    assert lines(caplog) == []


# -- database drivers


def test_a_driver_that_blocks_is_reported_once_at_a_servers_start(serve, caplog, monkeypatch):
    # The real one would stay in this process.
    callbacks = [None]
    for name in ("psycopg2", "psycopg2.extensions"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setattr(
        sys.modules["psycopg2.extensions"],
        "get_wait_callback",
        lambda: callbacks[0],
        raising=False,
    )
    serve(Routes())
    serve(Routes())
    (line,) = lines(caplog)
    assert line.startswith("psycopg2 is imported: it blocks all sessions of this process")
    assert "use psycopg 3, or call psycogreen.gevent.patch_psycopg()" in line
    callbacks[0] = print  # as psycogreen does
    assert surroundings.blocking_drivers() == {}


def test_pymysql_in_the_place_of_mysqlclient_is_right(monkeypatch):
    pymysql = pytest.importorskip("pymysql")
    monkeypatch.setitem(sys.modules, "MySQLdb", pymysql)
    assert "mysqlclient" not in surroundings.blocking_drivers()
    monkeypatch.setitem(sys.modules, "MySQLdb", ModuleType("MySQLdb"))
    assert surroundings.blocking_drivers()["mysqlclient"].startswith("use PyMySQL")


def test_a_stand_in_for_a_driver_is_not_a_driver(serve, caplog, monkeypatch):
    for name in ("pyodbc", "psycopg2"):
        monkeypatch.setitem(sys.modules, name, MagicMock())
    serve(Routes())
    assert lines(caplog) == []
    for name in ("psycopg2", "psycopg2.extensions"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sys.modules["psycopg2.extensions"].get_wait_callback = Mock(side_effect=RuntimeError)
    serve(Routes())
    assert lines(caplog)[0].startswith("psycopg2 is imported")


def test_a_driver_that_blocks_by_choice_is_left_to_the_doctor(serve, caplog, monkeypatch):
    monkeypatch.setitem(sys.modules, "_mysql_connector", ModuleType("_mysql_connector"))
    serve(Routes())
    assert lines(caplog) == []
    assert "mysql-connector-python" in surroundings.blocking_drivers()


def test_an_object_that_answers_for_none_is_of_no_framework():
    assert surroundings.framework_of(LocalProxy(ContextVar("unbound"))) is None


# -- the form


def test_the_form_is_reported_once_at_a_servers_start(serve, caplog):
    caplog.set_level("INFO", "greenws.server")
    serve(Routes())
    serve(Routes())
    text = f"greenws {greenws.__version__}, {greenws.form.DESCRIPTION}"
    assert lines(caplog, "INFO").count(text) == 1


# -- threads


def test_the_sync_worker_is_reported(tmp_path):
    arguments = ("-m", "gunicorn", "-b", "127.0.0.1:0", "-w", "1", "conversation_app:app")
    with Process(*arguments, cwd=PROGRAMS) as process:
        process.wait_for_port()
        for _ in range(2):
            with connect(process.url()) as peer:
                peer.send("a")
                assert peer.recv(timeout=limit()) == "a"
        process.wait_for(r"gunicorn's sync worker serves one request at a time.*greenws\.gunicorn")
    assert process.output.count("sync worker serves") == 1
    process.assert_no_trouble()


def test_a_gthread_pool_that_sessions_have_filled_is_reported(tmp_path):
    log = tmp_path / "log.json"
    log.write_text('{"loggers": {"greenws.access": {"level": "INFO", "handlers": ["console"]}}}')
    options = ("-k", "gthread", "--threads", "2", "-b", "127.0.0.1:0", "--log-config-json", log)
    with Process("-m", "gunicorn", *options, "conversation_app:flask_app", cwd=PROGRAMS) as process:
        process.wait_for_port()
        with connect(process.url()):
            pass
        process.wait_for("closed 1000")  # so the session no longer counts
        with connect(process.url()) as one:
            one.send("a")
            assert [one.recv(timeout=limit()) for _ in range(3)] == ["a"] * 3
            assert "are taken" not in process.output
            with connect(process.url()) as two:
                process.wait_for("all 2 threads of this gunicorn worker are taken .*--threads")
                # Gunicorn waits for the threads when it stops.
                process.popen.send_signal(signal.SIGTERM)
                for ws in (one, two):
                    with pytest.raises(ConnectionClosed, match="1001"):
                        ws.recv(timeout=limit(20))
        process.popen.wait(limit(20))
    process.assert_no_trouble()


@pytest.fixture
def worker(monkeypatch):
    """Stands in for a gthread worker of gunicorn's, in which the test runs."""
    worker = Mock(alive=True, ppid=os.getppid(), cfg=Mock(threads=9))
    monkeypatch.setattr(surroundings, "_gthread_worker", lambda: worker)
    monkeypatch.setattr(surroundings.Threads, "_POLL_INTERVAL", 0.01)
    return worker


@pytest.fixture
def threads(worker):
    threads = surroundings.Threads()
    yield threads
    worker.alive = False
    for socket in list(threads._sockets):
        threads.leave(socket)
    wait_until(lambda: not any(each.name == "greenws-stop" for each in threading.enumerate()))


@pytest.mark.parametrize("is_killed", [False, True], ids=["worker", "gunicorn"])
def test_sessions_are_closed_when_a_gthread_worker_stops(monkeypatch, worker, threads, is_killed):
    """Those of before, and one that begins while it stops."""
    with testing.pair() as (server, client), testing.pair() as (late_server, late_client):
        threads.enter(server)
        if is_killed:  # the worker leaves its loop then, as if nothing were
            monkeypatch.setattr(os, "getppid", lambda: 1)
        else:
            worker.alive = False
        with pytest.raises(greenws.ConnectionClosed, match="1001"):
            client.receive()
        threads.enter(late_server)
        with pytest.raises(greenws.ConnectionClosed, match="1001"):
            late_client.receive()


def test_each_session_is_closed_once_when_a_gthread_worker_stops(worker, threads):
    worker.alive = False
    sockets = [Mock() for _ in range(3)]
    for socket in sockets:
        threads.enter(socket)
        wait_until(lambda socket=socket: socket.start_closing.called)
    assert [socket.start_closing.call_count for socket in sockets] == [1, 1, 1]


def test_a_session_tries_again_if_no_thread_could_be_started(monkeypatch, caplog, worker, threads):
    with monkeypatch.context() as patches:
        failure = Mock(side_effect=RuntimeError("can't start new thread"))
        patches.setattr(threading.Thread, "start", failure)
        for _ in range(3):
            threads.enter(Mock())
    (line,) = lines(caplog)
    assert "are not closed when it stops: can't start new thread" in line
    socket = Mock()
    threads.enter(socket)
    worker.alive = False
    wait_until(lambda: socket.start_closing.called)


@pytest.mark.parametrize(
    ("software", "name"),
    [("Werkzeug/3.1", "(--without-threads)"), ("WSGIServer/0.2", "(--nothreading)")],
)
def test_a_server_without_threads_is_reported_by_its_name(caplog, software, name):
    environ = {"SERVER_SOFTWARE": software, "werkzeug.socket": 1}
    surroundings.warn_without_threads(environ | {"wsgi.multithread": True})
    assert lines(caplog) == []
    surroundings.warn_without_threads(environ | {"wsgi.multithread": False})
    surroundings.warn_without_threads({"wsgi.multithread": False})
    assert len(lines(caplog)) == 1 and name in lines(caplog)[0]


def test_outside_of_gunicorn_sessions_are_only_counted(caplog):
    threads = surroundings.Threads()
    sockets = [Mock() for _ in range(100)]
    for socket in sockets:
        threads.enter(socket)
    for socket in sockets:
        threads.leave(socket)
    assert lines(caplog) == []


def test_django_s_development_server_without_the_application(monkeypatch):
    monkeypatch.delitem(sys.modules, "greenws.integrations.django.server", raising=False)
    monkeypatch.setitem(sys.modules, "django.core.servers.basehttp", Mock())
    advice = surroundings.advice_without_socket("WSGIServer/0.2")
    assert advice.startswith("put 'greenws.integrations.django' into INSTALLED_APPS")
    monkeypatch.delitem(sys.modules, "django.core.servers.basehttp")
    assert "INSTALLED_APPS" not in surroundings.advice_without_socket("WSGIServer/0.2")


def test_a_worker_of_gunicorn_that_keeps_the_socket_is_to_be_replaced():
    advice = surroundings.advice_without_socket("gevent/26.9.0 gunicorn/27.0.1")
    assert advice == "run gunicorn -k greenws.gunicorn.Worker in place of this worker"


PATCH = "from gevent import monkey; monkey.patch_all()"
LATE = f"""
import os
{PATCH}
from greenws import Rooms
Rooms("redis://localhost:1")
os._exit(3)  # which ends gunicorn, too: a worker that is patched so would only be killed
"""
EARLY = """
from conversation_app import flask_app
from greenws import Rooms
Rooms("redis://localhost:1")
"""


def test_a_gthread_worker_that_its_application_patches(tmp_path):
    (tmp_path / "late.py").write_text(LATE)
    arguments = ("-m", "gunicorn", "-k", "gthread", "-b", "127.0.0.1:0", "late:app")
    with Process(*arguments, cwd=tmp_path) as process:
        process.wait_for("has monkey-patched this gthread worker after its start.*conf.py")


def test_a_gthread_worker_that_was_patched_at_first_serves(tmp_path):
    (tmp_path / "gunicorn.conf.py").write_text(PATCH)
    (tmp_path / "early.py").write_text(EARLY)
    options = ("-k", "gthread", "-b", "127.0.0.1:0")
    with Process("-m", "gunicorn", *options, "early:flask_app", cwd=tmp_path) as process:
        process.wait_for_port()
        with connect(process.url()) as one:
            one.send("a")
            assert one.recv(timeout=limit()) == "a"
    process.assert_no_trouble()
    assert "gthread worker after its start" not in process.output


# -- several processes


@pytest.fixture
def several(monkeypatch):
    monkeypatch.setattr(surroundings.processes, "are_several", False)
    surroundings.warn_without_threads({"wsgi.multithread": True, "wsgi.multiprocess": True})


def join(room):
    with testing.pair() as (server, client), room.join(server):
        pass


@pytest.mark.parametrize("use", [join, lambda room: room.send("hello")])
def test_rooms_in_memory_of_one_process_among_several(several, use, caplog):
    room = greenws.Rooms()["lobby"]
    for _ in range(2):
        use(room)
    (line,) = lines(caplog)
    assert line.startswith("rooms in memory reach only the members of this process")
    assert "Rooms('redis://...')" in line


def test_rooms_in_memory_of_the_only_process(caplog):
    surroundings.warn_without_threads({"wsgi.multithread": True, "wsgi.multiprocess": False})
    greenws.Rooms()["lobby"].send("hello")
    assert lines(caplog) == []
