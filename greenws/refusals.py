"""Logs refused handshakes: why, and what would allow them. Browsers hide the response."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from werkzeug.http import HTTP_STATUS_CODES

from .exceptions import HandshakeError
from .rate_limit import RateLimit
from .surroundings import framework_of

__all__ = ["ORIGIN_HINT_KEY", "log_answer", "log_refusal"]

ORIGIN_HINT_KEY = "greenws.origin_hint"
"""The key in an environ for a hint where a framework lists the origins that may connect."""

_logger = logging.getLogger("greenws.handshake")

_MAX_TEXT = 1000  # characters of a text that a client may have chosen


class _Limit(RateLimit):
    """Ten lines at once, then one every six seconds: a scan of a server must not fill its log."""

    def __init__(self) -> None:
        super().__init__(1 / 6, burst=10)
        self.dropped = 0


_limit = _Limit()


def log_refusal(environ: Mapping[str, Any], error: HandshakeError) -> None:
    """Logs a handshake that greenws has refused."""
    level = logging.WARNING
    if error.reason == "stopping":
        level = logging.INFO
    elif error.status == 501:
        level = logging.ERROR
    hint = environ.get(ORIGIN_HINT_KEY, "") if error.reason == "origin" else error.hint
    text = f"{error} {hint}" if hint else str(error)
    _log(level, environ, error.status, text)


def log_answer(environ: Mapping[str, Any], status: str, application: Any = None) -> None:
    """Logs that an application has answered a handshake with HTTP, such as ``"404 NOT FOUND"``."""
    code = int(status[:3])
    if code >= 500:  # errors have their own log
        return
    if code == 404:
        text = "no route of the application has this path, or the view found nothing"
    elif code == 405:
        text = "the route of this path does not accept the method GET"
    elif code in (401, 403):
        text = "the application refuses this client"
    elif 300 <= code < 400:
        text = "the application redirects it, and browsers do not follow that for a WebSocket"
    elif code < 300 and framework_of(application) == "Django":
        text = (
            "the view is not a WebSocket: put @websocket of greenws.integrations.django above it, "
            "def view(request, socket)"
        )
    elif code < 300:
        text = (
            "the application did not accept it: return a greenws.WebSocketHandler (call it where "
            "the framework ignores what a view returns, as Falcon and FastAPI do; "
            "docs/howto/frameworks.md shows how), or use environ['wsgi.websocket']"
        )
    else:
        text = "the application answered it"
    _log(logging.INFO if code in (401, 403) else logging.WARNING, environ, code, text)


def _log(level: int, environ: Mapping[str, Any], status: int, text: str) -> None:
    if not _logger.isEnabledFor(level):
        return
    if not _limit.take():
        _limit.dropped += 1
        return
    dropped, _limit.dropped = _limit.dropped, 0
    path = (
        f"{environ.get('SCRIPT_NAME', '')}{environ.get('PATH_INFO', '')}"  # a query may be secret
    )
    origin = environ.get("HTTP_ORIGIN")
    _logger.log(
        level,
        "refused the handshake of %s for %s%s with %d %s: %s%s",
        environ.get("REMOTE_ADDR") or "a client",
        ascii(path[:_MAX_TEXT]),
        "" if origin is None else f" (Origin: {ascii(origin[:_MAX_TEXT])})",
        status,
        HTTP_STATUS_CODES.get(status, ""),
        text[:_MAX_TEXT],
        f" (and {dropped} more since the last such line)" if dropped else "",
    )
