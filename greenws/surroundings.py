"""Checks what a session runs in: the framework, the server's threads, and monkey-patching.

A problem is logged once, with what to do.
"""

from __future__ import annotations

import logging
import os
import selectors
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from types import FrameType
from typing import TYPE_CHECKING, Any

from gevent import monkey

from . import form
from .distribution import version
from .opcodes import CloseCode

if TYPE_CHECKING:
    from .websocket import WebSocket

__all__ = [
    "Processes",
    "Threads",
    "advice_without_socket",
    "blocking_drivers",
    "framework_of",
    "processes",
    "warn_drivers",
    "log_form",
    "log_patched_late",
    "warn_unpatched",
    "warn_without_threads",
    "threads",
    "unpatched_modules",
]

_logger = logging.getLogger("greenws.server")

_FRAMEWORKS = {
    "bottle": "Bottle",
    "cherrypy": "CherryPy",
    "connexion": "Connexion",
    "dash": "Dash",
    "django": "Django",
    "falcon": "Falcon",
    "flask": "Flask",
    "odoo": "Odoo",
    "pyramid": "Pyramid",
    "tg": "TurboGears",
    "trac": "Trac",
    "web": "web.py",
}
_WRAPPED = ("app", "application", "wsgi_app", "wrapped", "func", "__self__", "__wrapped__")
_MAX_DEPTH = 8
_MAX_PARTS = 30

# The modules in which frameworks, database drivers and HTTP clients block.
_NEEDED = ("socket", "ssl", "select", "time", "threading")

_logged: set[str] = set()


def _once(what: str) -> bool:
    """Whether this is the first time in this process."""
    if what in _logged:
        return False
    _logged.add(what)
    return True


def log_form() -> None:
    """Logs, once, which form of the modules runs."""
    if _once("form"):
        _logger.info("greenws %s, %s", version(), form.DESCRIPTION)


def framework_of(application: Any) -> str | None:
    """The name of the framework of an application, or of one inside it; None if it is unknown.
    Imports no framework."""
    seen: set[int] = set()
    level = [application]
    for _ in range(_MAX_DEPTH):
        for each in level:
            for base in type(each).__mro__:
                name = _FRAMEWORKS.get(str(base.__module__).partition(".")[0])
                if name:
                    return name
        seen.update(map(id, level))
        level = [part for each in level for part in _parts(each) if id(part) not in seen]
        del level[_MAX_PARTS:]
    return None


def _parts(application: Any) -> Iterator[Any]:
    """The applications to which an application, such as a middleware, may pass requests."""
    for name in _WRAPPED:
        part = _attribute(application, name)
        if callable(part) and not isinstance(part, type):
            yield part
    mounts = _attribute(application, "mounts")  # werkzeug's DispatcherMiddleware
    if isinstance(mounts, Mapping):
        yield from mounts.values()
    handlers = _attribute(application, "handlers")  # Routes
    if isinstance(handlers, list):
        yield from handlers


def _attribute(thing: Any, name: str) -> Any:
    """None if there is none, or if an object that answers for another, such as a LocalProxy, has
    nothing to answer for."""
    try:
        return getattr(thing, name, None)
    except Exception:
        return None


def unpatched_modules() -> list[str]:
    """The modules of ``_NEEDED`` that are not monkey-patched."""
    return [name for name in _NEEDED if not monkey.is_module_patched(name)]


def warn_unpatched(application: Any) -> None:
    """Warns, once, if a framework's application is served in a process that is not patched."""
    missing = unpatched_modules()
    if not missing or "unpatched" in _logged:
        return
    framework = framework_of(application)
    if framework is None or not _once("unpatched"):
        return
    shared = " All sessions share one database connection." if framework == "Django" else ""
    what = "not monkey-patched"
    if len(missing) < len(_NEEDED):
        what += f" ({', '.join(missing)})"
    _logger.warning(
        "serving a %s application in a process that is %s: a call that blocks (time.sleep(), a "
        "database, requests) stops all sessions.%s Begin the program with 'from gevent import "
        "monkey; monkey.patch_all()', before all other imports",
        framework,
        what,
        shared,
    )


# Those that wait in C, where no patching reaches: name of the module, of the package, what to do.
_DRIVERS = {
    "MySQLdb": ("mysqlclient", "use PyMySQL (pymysql.install_as_MySQLdb())"),
    "_mysql_connector": ("mysql-connector-python", "connect with use_pure=True"),
    "cx_Oracle": ("cx_Oracle", "use oracledb in its thin mode"),
    "pymssql": ("pymssql", "use python-tds"),
    "psycopg2": ("psycopg2", "use psycopg 3, or call psycogreen.gevent.patch_psycopg()"),
    "pyodbc": ("pyodbc", "ask the database in gevent.get_hub().threadpool.apply(...)"),
}


def blocking_drivers() -> dict[str, str]:
    """The database drivers that are imported and stop a process while they wait, each with what to
    do about it."""
    found = {}
    for name, (package, advice) in _DRIVERS.items():
        module = sys.modules.get(name)
        # Another module may be in its place: pymysql.install_as_MySQLdb(), a mock of a test.
        if _attribute(module, "__name__") != name:
            continue
        if name != "psycopg2" or not _waits_with_gevent():
            found[package] = advice
    return found


def _waits_with_gevent() -> bool:
    """Whether psycopg2 has a wait callback, such as psycogreen's."""
    callback = _attribute(sys.modules.get("psycopg2.extensions"), "get_wait_callback")
    try:
        return callback is not None and callback() is not None
    except Exception:
        return False


def warn_drivers() -> None:
    """Warns, once each, of the database drivers that certainly block."""
    for package, advice in blocking_drivers().items():
        # It imports its C module even if all connections have use_pure=True.
        if package != "mysql-connector-python" and _once(package):
            _logger.warning(
                "%s is imported: it blocks all sessions of this process while it waits for the "
                "database; %s",
                package,
                advice,
            )


class Processes:
    """Whether this process is one of several that serve the same application."""

    def __init__(self) -> None:
        self.are_several = False

    def warn_memory(self) -> None:
        """Warns, once, if there are several processes: rooms in memory do not connect them."""
        if self.are_several and _once("memory"):
            _logger.warning(
                "rooms in memory reach only the members of this process, and this server has "
                "several: the others do not get messages. Connect them with Rooms('redis://...')"
            )


processes = Processes()


def advice_without_socket(software: str) -> str:
    """What to do if a server, named by its ``SERVER_SOFTWARE``, does not hand over the socket."""
    if software.startswith("gevent/") and "gunicorn" not in software:
        return "give it handler_class=greenws.UpgradeHandler, or run greenws.WebSocketServer"
    if software.startswith("gevent/"):  # gevent_pywsgi, or gevent-websocket's worker
        return "run gunicorn -k greenws.gunicorn.Worker in place of this worker"
    if (
        software.startswith("WSGIServer/")
        and "django.core.servers.basehttp" in sys.modules
        and "greenws.integrations.django.server" not in sys.modules
    ):
        return (
            "put 'greenws.integrations.django' into INSTALLED_APPS, for Django's runserver, or run "
            "gunicorn -k greenws.gunicorn.Worker"
        )
    return "run greenws.WebSocketServer, gunicorn (gevent or gthread workers) or 'flask run'"


def warn_without_threads(environ: Mapping[str, Any]) -> None:
    """Warns, once, if the server serves one request at a time: a session blocks all others."""
    if environ.get("wsgi.multiprocess") is True:
        processes.are_several = True
    if environ.get("wsgi.multithread", True) or not _once("threads"):
        return
    if "gunicorn.socket" in environ:
        who, instead = "gunicorn's sync worker", "gunicorn -k greenws.gunicorn.Worker, or -k gevent"
    elif str(environ.get("SERVER_SOFTWARE")).startswith("WSGIServer/"):
        who, instead = "Django's server (--nothreading)", "'manage.py runserver' with threads"
    elif "werkzeug.socket" in environ:
        who, instead = "this server (--without-threads)", "'flask run' with threads"
    else:
        who, instead = str(environ.get("SERVER_SOFTWARE", "this server")), "a server with threads"
    _logger.warning(
        "%s serves one request at a time: while a WebSocket session is open, nobody else is "
        "served. Run %s",
        who,
        instead,
    )


class Threads:
    """The sessions in a gthread worker of gunicorn's: each takes one of its threads.

    Gunicorn waits for these threads when it stops a worker, and kills it when they do not end. So
    the sessions are closed when the worker begins to stop.
    """

    _INTERVAL = 60.0  # seconds between two warnings
    _POLL_INTERVAL = 0.5  # seconds between two looks at whether the worker stops

    def __init__(self) -> None:
        self._sockets: set[WebSocket] = set()
        self._lock = threading.Lock()
        self._told_at = -self._INTERVAL
        self._watched: Any = None

    def enter(self, socket: WebSocket) -> None:
        """Adds a session of the current thread."""
        worker = _gthread_worker()
        with self._lock:
            self._sockets.add(socket)
            taken = len(self._sockets)
            is_new = worker is not None and self._watched is not worker
            if is_new:
                self._watched = worker
        if is_new:
            self._watch(worker)
        size = getattr(getattr(worker, "cfg", None), "threads", None)
        if not isinstance(size, int) or taken < size:
            return
        now = time.monotonic()
        if now - self._told_at >= self._INTERVAL:
            self._told_at = now
            _logger.warning(
                "all %d threads of this gunicorn worker are taken by WebSocket sessions: other "
                "requests wait until one ends. Raise --threads, or run gunicorn -k "
                "greenws.gunicorn.Worker, or -k gevent, where a session needs no thread",
                size,
            )

    def leave(self, socket: WebSocket) -> None:
        with self._lock:
            self._sockets.discard(socket)

    def _watch(self, worker: Any) -> None:
        try:
            threading.Thread(
                target=self._close_at_stop, args=(worker,), name="greenws-stop", daemon=True
            ).start()
        except RuntimeError as error:  # the next session tries again
            self._watched = None
            if _once("no thread"):
                _logger.warning(
                    "the sessions of this gunicorn worker are not closed when it stops: %s", error
                )

    def _close_at_stop(self, worker: Any) -> None:
        """Closes all sessions with 1001 when gunicorn stops the worker, or loads it again, or when
        gunicorn itself has died. Ends when none is left after that."""
        parent = getattr(worker, "ppid", os.getppid())
        while getattr(worker, "alive", True) and parent == os.getppid():
            time.sleep(self._POLL_INTERVAL)
        closed: set[WebSocket] = set()
        while True:
            with self._lock:
                sockets = set(self._sockets)
                if not sockets:
                    self._watched = None
                    return
            for socket in sockets - closed:
                socket.start_closing(CloseCode.GOING_AWAY)
            closed = sockets
            time.sleep(self._POLL_INTERVAL)


def _gthread_worker() -> Any:
    """The gthread worker of gunicorn's that called the current function; None elsewhere."""
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if frame.f_globals.get("__name__") == "gunicorn.workers.gthread":
            return frame.f_locals.get("self")
        frame = frame.f_back
    return None


def log_patched_late() -> None:
    """Logs, once, if the application has monkey-patched a gthread worker of gunicorn's after its
    start: its threads are greenlets then, and its loop waits without gevent, so nothing runs."""
    if not monkey.is_module_patched("selectors"):
        return
    poller = getattr(_gthread_worker(), "poller", None)
    if poller is None or isinstance(poller, selectors.DefaultSelector) or not _once("late"):
        return
    _logger.error(
        "the application has monkey-patched this gthread worker after its start, so it answers no "
        "more requests: put 'from gevent import monkey; monkey.patch_all()' at the top of "
        "gunicorn.conf.py, or run gunicorn -k greenws.gunicorn.Worker, which patches by itself"
    )


threads = Threads()
