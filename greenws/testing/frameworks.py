"""What tests of Flask and Django applications expect beyond WSGI, if these are imported."""

from __future__ import annotations

import contextlib
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

__all__ = [
    "client_of",
    "databases_of_test",
    "default_host",
    "is_flasks",
    "origin_of",
    "watch",
]

_watched: set[str] = set()
_kept: Counter[Any] = Counter()  # how many sessions have a connection of a test


def watch(take: Callable[[BaseException], None]) -> None:
    """Calls ``take`` with the errors that Flask and Django answer themselves."""
    for name in ("flask", "django.core.signals"):
        module = sys.modules.get(name)
        if module is not None and name not in _watched:
            _watched.add(name)
            module.got_request_exception.connect(_Receiver(take), weak=False)


class _Receiver:
    def __init__(self, take: Callable[[BaseException], None]) -> None:
        self._take = take

    def __call__(self, sender: Any = None, **options: Any) -> None:
        error = options.get("exception") or sys.exc_info()[1]
        if error is not None:
            self._take(error)


def client_of(application: Any) -> Any:
    """A test client of Flask's, without cookies, for a Flask application: it uses the host and the
    scheme that are configured. None for any other application."""
    flask = sys.modules.get("flask")
    if flask is not None and isinstance(application, flask.Flask):
        return application.test_client(use_cookies=False)
    return None


def is_flasks(client: Any) -> bool:
    """Whether ``client`` is a test client of Flask's."""
    flask = sys.modules.get("flask.testing")
    return flask is not None and isinstance(client, flask.FlaskClient)


def origin_of(defaults: dict[str, Any]) -> str:
    """The URL of the application in requests of a test client of Django's, from its ``defaults``,
    which are keys of an environ."""
    scheme = defaults.get("wsgi.url_scheme", "http")
    host = defaults.get("HTTP_HOST")
    if host is None:
        host = defaults.get("SERVER_NAME", "testserver")
        port = str(defaults.get("SERVER_PORT", ""))
        if port not in ("", "443" if scheme == "https" else "80"):
            host = f"{host}:{port}"
    return f"{scheme}://{host}{defaults.get('SCRIPT_NAME', '')}"


def default_host() -> str:
    """The host in requests without a client: Django's, whose test runner allows only that."""
    django = sys.modules.get("django.conf")
    if django is not None and django.settings.configured:
        if "testserver" in django.settings.ALLOWED_HOSTS:
            return "testserver"
    return "localhost"


def databases_of_test() -> AbstractContextManager[None]:
    """A context for a greenlet in which Django uses those database connections of the caller that
    are in a transaction: the connections of a ``TestCase``, since no others see its data. Otherwise
    each greenlet would have its own, if gevent has patched ``threading``. The beginning and the end
    of a request leave all connections of the caller alone, as with Django's own test client: a test
    may be one that must not use a database."""
    django = sys.modules.get("django.db")
    if django is None or not sys.modules["django.conf"].settings.configured:
        return nullcontext()
    connections = django.connections
    return _shared(connections, connections.all(initialized_only=True))


@contextlib.contextmanager
def _shared(connections: Any, opened: list[Any]) -> Iterator[None]:
    known = connections.all(initialized_only=True)
    added = [
        each
        for each in opened
        if each.in_atomic_block and not any(each is other for other in known)
    ]
    with contextlib.ExitStack() as stack:
        for each in added:
            each.inc_thread_sharing()
            stack.callback(each.dec_thread_sharing)
            connections[each.alias] = each
            stack.callback(connections.__delitem__, each.alias)
        for each in opened:
            _keep(each)
            stack.callback(_keep_no_more, each)
        yield


def _keep(connection: Any) -> None:
    """Makes ``close_old_connections`` skip ``connection``. Disconnecting that function from its
    signals, as Django's client does, is not enough: the client connects it again while a session is
    open."""
    if connection not in _kept:
        connection.close_if_unusable_or_obsolete = _do_nothing
    _kept[connection] += 1


def _keep_no_more(connection: Any) -> None:
    _kept[connection] -= 1
    if not _kept[connection]:
        del _kept[connection]
        connection.__dict__.pop("close_if_unusable_or_obsolete", None)


def _do_nothing() -> None:
    pass
