"""What a session runs in: a framework, a process that is monkey-patched or not, a server's threads.

What does not fit is logged once, with what to do.
"""

from __future__ import annotations

import logging
import selectors
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from types import FrameType
from typing import Any

from gevent import monkey

from . import form
from .distribution import version

__all__ = [
    "Processes",
    "Threads",
    "advice_without_socket",
    "framework_of",
    "processes",
    "tell_form",
    "tell_patched_late",
    "tell_unpatched",
    "tell_without_threads",
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

# What frameworks, database drivers and HTTP clients block in.
_NEEDED = ("socket", "ssl", "select", "time", "threading")

_told: set[str] = set()


def _once(what: str) -> bool:
    """Whether this is the first time in this process."""
    if what in _told:
        return False
    _told.add(what)
    return True


def tell_form() -> None:
    """Logs, once, which form of the modules runs."""
    if _once("form"):
        _logger.info("greenws %s, %s", version(), form.DESCRIPTION)


def framework_of(application: Any) -> str | None:
    """The name of the framework whose application this is, or is around; None if it is none that is
    known. Imports none of them."""
    seen: set[int] = set()
    level = [application]
    for _ in range(_MAX_DEPTH):
        for each in level:
            for base in type(each).__mro__:
                name = _FRAMEWORKS.get(base.__module__.partition(".")[0])
                if name:
                    return name
        seen.update(map(id, level))
        level = [part for each in level for part in _parts(each) if id(part) not in seen]
        del level[_MAX_PARTS:]
    return None


def _parts(application: Any) -> Iterator[Any]:
    """What an application, such as a middleware, may hand its requests to."""
    for name in _WRAPPED:
        part = getattr(application, name, None)
        if callable(part) and not isinstance(part, type):
            yield part
    mounts = getattr(application, "mounts", None)  # werkzeug's DispatcherMiddleware
    if isinstance(mounts, Mapping):
        yield from mounts.values()
    handlers = getattr(application, "handlers", None)  # Routes
    if isinstance(handlers, list):
        yield from handlers


def unpatched_modules() -> list[str]:
    """What gevent has not monkey-patched of the modules in which programs block."""
    return [name for name in _NEEDED if not monkey.is_module_patched(name)]


def tell_unpatched(application: Any) -> None:
    """Warns, once, if a framework's application is served in a process that is not patched."""
    missing = unpatched_modules()
    if not missing or "unpatched" in _told:
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


class Processes:
    """Whether this process is one of several that serve the same application."""

    def __init__(self) -> None:
        self.are_several = False

    def tell_memory(self) -> None:
        """Warns, once, that rooms in memory are in use where there are several processes."""
        if self.are_several and _once("memory"):
            _logger.warning(
                "rooms in memory reach only the members of this process, and this server has "
                "several: messages are lost to the others. Join them: Rooms('redis://...')"
            )


processes = Processes()


def advice_without_socket(software: str) -> str:
    """What to do where the server, by its ``SERVER_SOFTWARE``, keeps the socket to itself."""
    if software.startswith("gevent/") and "gunicorn" not in software:
        return "give it handler_class=greenws.UpgradeHandler, or run greenws.WebSocketServer"
    if (
        software.startswith("WSGIServer/")
        and "django.core.servers.basehttp" in sys.modules
        and "greenws.integrations.django.server" not in sys.modules
    ):
        return (
            "put 'greenws.integrations.django' into INSTALLED_APPS, and Django's runserver does; "
            "or run gunicorn -k greenws.gunicorn.Worker"
        )
    return "run greenws.WebSocketServer, gunicorn (gevent or gthread workers) or 'flask run'"


def tell_without_threads(environ: Mapping[str, Any]) -> None:
    """Warns, once, if the server serves one request at a time: then a session holds up all."""
    if environ.get("wsgi.multiprocess") is True:
        processes.are_several = True
    if environ.get("wsgi.multithread", True) or not _once("threads"):
        return
    if "gunicorn.socket" in environ:
        who, instead = "gunicorn's sync worker", "gunicorn -k greenws.gunicorn.Worker, or -k gevent"
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
    """Sessions that have a thread of gunicorn's gthread worker each, which has so many."""

    _INTERVAL = 60.0  # seconds between two warnings

    def __init__(self) -> None:
        self._open = 0
        self._lock = threading.Lock()
        self._told_at = -self._INTERVAL

    def enter(self) -> None:
        """Counts a session of the current thread."""
        with self._lock:
            self._open += 1
            taken = self._open
        size = _threads_of_gunicorn()
        if size is None or taken < size:
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

    def leave(self) -> None:
        with self._lock:
            self._open -= 1


def _threads_of_gunicorn() -> int | None:
    """How many threads the gthread worker has whose thread this is; None elsewhere."""
    threads = getattr(getattr(_gthread_worker(), "cfg", None), "threads", None)
    return threads if isinstance(threads, int) else None


def _gthread_worker() -> Any:
    """The gthread worker of gunicorn's that has called the current function; None elsewhere."""
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if frame.f_globals.get("__name__") == "gunicorn.workers.gthread":
            return frame.f_locals.get("self")
        frame = frame.f_back
    return None


def tell_patched_late() -> None:
    """Logs, once, that the application has monkey-patched a gthread worker of gunicorn's that had
    begun: its threads become greenlets, its loop waits without gevent, and so it answers nobody."""
    if not monkey.is_module_patched("selectors"):
        return
    poller = getattr(_gthread_worker(), "poller", None)
    if poller is None or isinstance(poller, selectors.DefaultSelector) or not _once("late"):
        return
    _logger.error(
        "the application has monkey-patched this gthread worker after it had begun, so it will "
        "answer no request: put 'from gevent import monkey; monkey.patch_all()' at the top of "
        "gunicorn.conf.py, or run gunicorn -k greenws.gunicorn.Worker, which patches by itself"
    )


threads = Threads()
