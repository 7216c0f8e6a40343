"""``request.session`` in a view that goes on for hours.

Django saves it when a view returns, which would overwrite what other requests have written since
the view began. So it is saved before the handshake is answered and before each wait, and loaded
again when it is next used.
"""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

from django.conf import settings
from django.contrib.sessions.backends.base import SessionBase, UpdateError
from django.contrib.sessions.middleware import SessionMiddleware
from django.http import HttpRequest, HttpResponse
from django.utils.module_loading import import_string

from ...rate_limit import RateLimit

__all__ = ["current", "save", "save_before_handshake"]

_logger = logging.getLogger("greenws.session")

_limit = RateLimit(1 / 60, burst=1)

_request: ContextVar[Any] = ContextVar("greenws_django_request", default=None)


@contextlib.contextmanager
def current(request: HttpRequest) -> Iterator[None]:
    """Makes ``request`` that of the session in this greenlet."""
    token = _request.set(request)
    try:
        yield
    finally:
        _request.reset(token)


@functools.lru_cache(maxsize=1)
def _middleware() -> type[SessionMiddleware]:
    """The project's subclass, if it has one."""
    for name in settings.MIDDLEWARE:
        found = import_string(name)
        if isinstance(found, type) and issubclass(found, SessionMiddleware):
            return found
    return SessionMiddleware  # type: ignore[no-any-return]


def save_before_handshake(request: HttpRequest) -> list[tuple[str, str]]:
    """Saves what was written so far; returns the cookies that Django would set."""
    session = getattr(request, "session", None)
    if not isinstance(session, SessionBase):
        return []
    response = _middleware()(HttpResponse).process_response(request, HttpResponse())
    _forget(session)
    return [("Set-Cookie", cookie.OutputString()) for cookie in response.cookies.values()]


def save() -> None:
    """Saves what this greenlet's session has written since."""
    session = getattr(_request.get(), "session", None)
    if not isinstance(session, SessionBase) or not session.accessed:
        return
    if session.modified and not session.is_empty():
        key = session.session_key
        if key is None:
            _warn_unreachable()
            session.modified = False  # no client could ask for it again
            return
        try:
            session.save()
        except UpdateError:
            _logger.warning(
                "changes of request.session are lost: the session was deleted in the meantime"
            )
        if session.session_key != key:
            _warn_unreachable()
    _forget(session)


def _warn_unreachable() -> None:
    if not _limit.take():  # each session of such a view does it
        return
    _logger.warning(
        "request.session got a new key after the handshake, which cannot reach the browser: write "
        "to it before the handshake (in a producer), or use a SESSION_ENGINE other than "
        "signed_cookies"
    )


def _forget(session: Any) -> None:
    """Makes ``session`` load its data again at its next use."""
    vars(session).pop("_session_cache", None)
    session.accessed = session.modified = False
