"""Makes Django's development server hand over the sockets of its requests.

``runserver`` and ``LiveServerTestCase`` have a thread for each connection, so each session has a
thread, as under ``flask run``. All else is Django's: reloading, static files.
"""

from __future__ import annotations

import functools
from typing import Any

from django.core.servers.basehttp import WSGIRequestHandler

from ...upgrade import INPUT_KEY

__all__ = ["install"]


def install() -> None:
    """Puts the socket into the environ of each request. Idempotent."""
    original = WSGIRequestHandler.get_environ
    if getattr(original, "_by_greenws", False):
        return

    @functools.wraps(original)
    def get_environ(self: Any) -> dict[str, Any]:
        environ: dict[str, Any] = original(self)
        environ["werkzeug.socket"] = self.connection  # where libraries look for it
        environ[INPUT_KEY] = self.rfile  # Django's wsgi.input does not show what it has read ahead
        return environ

    get_environ._by_greenws = True  # type: ignore[attr-defined]
    WSGIRequestHandler.get_environ = get_environ
