"""What ``manage.py check`` says about views that are WebSockets, and where they will run."""

from __future__ import annotations

import ast
import contextlib
import functools
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from django.apps import apps
from django.conf import settings
from django.core.checks import CheckMessage, Error, Warning
from django.core.exceptions import ImproperlyConfigured
from django.core.management import get_commands
from django.db import connections
from django.urls import URLPattern, URLResolver, get_resolver

from ...checks import describe, fits
from .views import websocket

__all__ = ["check_views"]


def check_views(app_configs: Any = None, **options: Any) -> list[CheckMessage]:
    """Warns of views that look as if ``websocket()`` was forgotten, and, if the project has views
    of ``websocket()``, of settings that do not suit them."""
    patterns = list(_walk()) if getattr(settings, "ROOT_URLCONF", None) else []
    unmade = [each for pattern in patterns for each in _check_unmade(*pattern)]
    views = list(_find_views(patterns))
    if not views:
        return unmade
    found = [*unmade, *_check_asgi(), *_check_sessions(), *_check_drivers(), *_check_gunicorn()]
    for route, callback, function, given, names in views:
        found += _check_arguments(route, function, given, names)
        found += _check_atomic(route, callback)
    return found


def _walk() -> Iterator[tuple[str, Any, list[str], int]]:
    """(route, callback, names of its keyword arguments, number of unnamed groups) of each view."""

    def walk(patterns: Any, prefix: str, names: list[str], unnamed: int) -> Iterator[Any]:
        for pattern in patterns:
            route = prefix + str(pattern.pattern)
            regex = pattern.pattern.regex
            known = [*names, *getattr(pattern.pattern, "converters", {}), *regex.groupindex]
            count = unnamed + (0 if regex.groupindex else regex.groups)
            if isinstance(pattern, URLResolver):
                known += pattern.default_kwargs
                yield from walk(pattern.url_patterns, route, known, count)
            elif isinstance(pattern, URLPattern):
                yield route, pattern.callback, [*known, *pattern.default_args], count

    yield from walk(get_resolver().url_patterns, "", [], 0)


def _find_views(patterns: Any) -> Iterator[tuple[str, Any, Any, list[str], list[str]]]:
    """(route, callback, function, its positional arguments, its keyword arguments) of each view of
    ``websocket()``."""
    for route, callback, known, count in patterns:
        found = _function_of(callback)
        if found is not None:
            function, given = found
            # As in Django, the unnamed groups count only if no group has a name.
            places = [] if known else [f"group {n}" for n in range(1, count + 1)]
            yield route, callback, function, [*given, *places], known


def _function_of(callback: Any) -> Any:
    """The session's function of a view, or of get() of a class-based one, with its first arguments;
    None if it is not a session. Decorators copy the attributes of the functions that they wrap."""
    method = getattr(getattr(callback, "view_class", None), "get", None)
    return getattr(callback, "websocket_function", getattr(method, "websocket_function", None))


def _check_arguments(
    route: str, function: Any, given: list[str], names: list[str]
) -> Iterator[CheckMessage]:
    reason = fits(function, *given, **dict.fromkeys(names))
    if reason is not None:
        call = ", ".join([*given, *dict.fromkeys(names)])
        yield Error(
            f"The WebSocket {route!r} is called with ({call}), but {describe(function)} does not "
            f"fit: {reason}.",
            hint="Give the function the variables of its URL.",
            id="greenws.E001",
        )


def _check_unmade(
    route: str, callback: Any, names: list[str], unnamed: int
) -> Iterator[CheckMessage]:
    """Views that look as if ``websocket()`` was forgotten."""
    if isinstance(callback, functools.partial) and callback.func is websocket:
        yield Error(
            f"The view {route!r} is websocket() without a function.",
            hint="Write @websocket above the function, and give path() the function.",
            id="greenws.E003",
        )
        return
    if _function_of(callback) is not None or "socket" in names or (unnamed and not names):
        return
    function = getattr(getattr(callback, "view_class", None), "get", callback)
    try:
        # A decorator may supply arguments of the function that it wraps.
        signature = inspect.signature(function, follow_wrapped=False)
        parameters = list(signature.parameters.values())[:3]
    except (TypeError, ValueError):
        return
    if any(each.name == "socket" and each.default is each.empty for each in parameters):
        yield Warning(
            f"The view {route!r}, {describe(function)}, takes a socket, and Django gives it none.",
            hint="Put @websocket of greenws.integrations.django above it.",
            id="greenws.W007",
        )


def _check_asgi() -> Iterator[CheckMessage]:
    name, remedy = None, "Remove it"
    if apps.is_installed("daphne"):
        name = "daphne"
    elif get_commands().get("runserver") == "channels":
        name, remedy = "channels", "Update channels to 4, which leaves runserver to Django"
    if name is not None:
        yield Error(
            f"{name} is in INSTALLED_APPS, so runserver is an ASGI server, which hands over no "
            "socket: the views of greenws do not work there.",
            hint=f"{remedy}; serve the ASGI part by a server of its own.",
            id="greenws.E002",
        )
    if getattr(settings, "ASGI_APPLICATION", None) and not settings.WSGI_APPLICATION:
        yield Warning(
            "ASGI_APPLICATION is set and WSGI_APPLICATION is not: WebSockets of greenws need WSGI.",
            hint="Set WSGI_APPLICATION, and serve it by greenws.gunicorn.Worker or "
            "greenws.WebSocketServer.",
            id="greenws.W001",
        )


def _check_atomic(route: str, callback: Any) -> Iterator[CheckMessage]:
    exempt: Any = getattr(callback, "_non_atomic_requests", set())
    for alias, database in settings.DATABASES.items():
        if database.get("ATOMIC_REQUESTS") and alias not in exempt:
            yield Warning(
                f"ATOMIC_REQUESTS of the database {alias!r} holds one transaction, and its "
                f"connection, open as long as a session of {route!r} lasts.",
                hint="Put @transaction.non_atomic_requests above the view, and atomic() around "
                "what belongs together.",
                id="greenws.W002",
            )


def _check_sessions() -> Iterator[CheckMessage]:
    if settings.SESSION_ENGINE == "django.contrib.sessions.backends.signed_cookies":
        yield Warning(
            "With signed_cookies, what a WebSocket writes to request.session after its handshake "
            "cannot reach the browser.",
            hint="Use another SESSION_ENGINE, or write to the session before the handshake.",
            id="greenws.W003",
        )


def _check_drivers() -> Iterator[CheckMessage]:
    drivers = set()
    for alias in connections:
        with contextlib.suppress(ImproperlyConfigured):  # Django reports it
            driver = getattr(connections[alias], "Database", None)
            drivers.add(getattr(driver, "__name__", ""))
    if "psycopg2" in drivers and not _has_psycogreen():
        yield Warning(
            "psycopg2 stops all sessions of a process while one of them asks PostgreSQL.",
            hint="Install psycopg (version 3), or call psycogreen.gevent.patch_psycopg().",
            id="greenws.W004",
        )
    if "MySQLdb" in drivers:
        yield Warning(
            "mysqlclient stops all sessions of a process while one of them asks the database.",
            hint="Use PyMySQL: pymysql.install_as_MySQLdb().",
            id="greenws.W005",
        )


def _has_psycogreen() -> bool:
    try:
        import psycogreen  # noqa: F401
    except ImportError:
        return False
    return True


def _check_gunicorn() -> Iterator[CheckMessage]:
    """Warns of the workers in gunicorn.conf.py, in the current folder."""
    path = Path("gunicorn.conf.py")
    if not path.is_file():
        return
    worker = _constant(path, "worker_class", "sync")
    threads = _constant(path, "threads", 1)
    if worker == "sync" and threads not in (None, 1):
        worker = "gthread"
    if worker is None or "greenws" in str(worker) or str(worker).startswith("gevent"):
        return
    if worker == "gthread":
        problem = f"gthread workers take a thread for each session: {threads} in a worker"
    elif worker == "sync":
        problem = "a sync worker that serves a session serves nothing else"
    else:
        problem = f"worker_class {worker!r} does not hand over the socket"
    yield Warning(
        f"gunicorn.conf.py: {problem}.",
        hint='worker_class = "greenws.gunicorn.Worker"',
        id="greenws.W006",
    )


def _constant(path: Path, name: str, default: Any) -> Any:
    """The value that a settings file assigns to ``name``; None if that is not a constant."""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (OSError, SyntaxError, ValueError):
        return None
    value = default
    for node in tree.body:
        if isinstance(node, ast.Assign) and any(
            isinstance(target, ast.Name) and target.id == name for target in node.targets
        ):
            value = node.value.value if isinstance(node.value, ast.Constant) else None
    return value
