"""Makes Django's development server hand over the sockets of its requests.

``runserver`` and ``LiveServerTestCase`` have a thread for each connection, so each session has a
thread, as under ``flask run``. All else is Django's: reloading, static files. With
``--nothreading`` an open session stops all other requests. The environ says then that the server
has no threads, though wsgiref says that it has, and the log gets a warning.
"""

from __future__ import annotations

import functools
import socketserver
from typing import Any

from django.core.servers.basehttp import ServerHandler, WSGIRequestHandler

from ...upgrade import INPUT_KEY

__all__ = ["install"]


def install() -> None:
    """Puts the socket into the environ of each request, and whether the server has threads.
    Idempotent."""
    original = WSGIRequestHandler.get_environ
    original_setup = ServerHandler.setup_environ
    if getattr(original, "_by_greenws", False):
        return

    @functools.wraps(original)
    def get_environ(self: Any) -> dict[str, Any]:
        environ: dict[str, Any] = original(self)
        environ["werkzeug.socket"] = self.connection  # where libraries look for it
        environ[INPUT_KEY] = self.rfile  # Django's wsgi.input does not show what it has read ahead
        return environ

    @functools.wraps(original_setup)
    def setup_environ(self: Any) -> None:
        if not isinstance(self.request_handler.server, socketserver.ThreadingMixIn):
            self.wsgi_multithread = False
        original_setup(self)

    ServerHandler.setup_environ = setup_environ
    get_environ._by_greenws = True  # type: ignore[attr-defined]
    WSGIRequestHandler.get_environ = get_environ
