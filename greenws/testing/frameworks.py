"""What the tests of Flask's and Django's users expect beyond WSGI, where these are imported."""

from __future__ import annotations

import contextlib
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

__all__ = ["client_of", "databases_of_test", "default_host", "watch"]

_watched: set[str] = set()
_kept: Counter[Any] = Counter()  # how many sessions have a connection of a test


def watch(take: Callable[[BaseException], None]) -> None:
    """Has ``take`` called with the errors that Flask and Django answer themselves."""
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
    """A client of Flask's, without cookies, for an application of Flask's: it knows the host and
    the scheme that are configured. None for any other."""
    flask = sys.modules.get("flask")
    if flask is not None and isinstance(application, flask.Flask):
        return application.test_client(use_cookies=False)
    return None


def default_host() -> str:
    """The host in requests without a client. Django's test runner allows that of its clients."""
    django = sys.modules.get("django.conf")
    if django is not None and django.settings.configured:
        if "testserver" in django.settings.ALLOWED_HOSTS:
            return "testserver"
    return "localhost"


def databases_of_test() -> AbstractContextManager[None]:
    """A context for a greenlet in which Django uses the database connections of the caller that are
    in a transaction: those of a ``TestCase``, whose data nobody else sees. Where gevent has patched
    ``threading``, each greenlet has its own otherwise. The beginning and the end of a request leave
    them open, as with Django's own test client."""
    django = sys.modules.get("django.db")
    if django is None or not sys.modules["django.conf"].settings.configured:
        return nullcontext()
    connections = django.connections
    return _shared(
        connections,
        [each for each in connections.all(initialized_only=True) if each.in_atomic_block],
    )


@contextlib.contextmanager
def _shared(connections: Any, opened: list[Any]) -> Iterator[None]:
    known = connections.all(initialized_only=True)
    added = [each for each in opened if not any(each is other for other in known)]
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
    """Has ``close_old_connections`` pass ``connection`` over. To disconnect that from its signals,
    as Django's client does, would not do: the client connects it again while a session is open."""
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
