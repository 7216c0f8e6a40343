"""Flask views that return a ``WebSocketHandler``, under an ordinary rule.

Flask routes with werkzeug, which answers an upgrade request with 400, without calling the view, if
the rule is not marked ``websocket=True``. ``@app.get("/echo")`` must be enough: the view decides
what to answer, and a server may ignore ``Upgrade`` anyway (RFC 9110, section 7.8).
"""

from __future__ import annotations

import functools
import sys
from typing import Any

from werkzeug.routing import MapAdapter, WebsocketMismatch

__all__ = ["install"]


def install() -> None:
    """Lets upgrade requests reach rules without ``websocket=True`` if no rule with it matches.

    ``import greenws`` does it, once in a process.
    """
    original: Any = MapAdapter.match
    if getattr(original, "_by_greenws", False):
        return

    @functools.wraps(original)
    def match(
        self: MapAdapter,
        path_info: str | None = None,
        method: str | None = None,
        return_rule: bool = False,
        query_args: Any = None,
        websocket: bool | None = None,
    ) -> Any:
        try:
            return original(self, path_info, method, return_rule, query_args, websocket)
        except WebsocketMismatch:
            if websocket is not None or not self.websocket:
                raise
            _keep_type_errors()
            return original(self, path_info, method, return_rule, query_args, False)

    match._by_greenws = True  # type: ignore[attr-defined]
    MapAdapter.match = match  # type: ignore[method-assign]


def _keep_type_errors() -> None:
    """Flask takes any TypeError of a WSGI application that a view returns for a wrong return value
    of that view, and says so in place of the error's own text. Not with a session's error."""
    flask = sys.modules.get("flask")
    if flask is None or getattr(flask.Flask.make_response, "_by_greenws", False):
        return
    from ..session import WebSocketHandler

    original = flask.Flask.make_response

    @functools.wraps(original)
    def make_response(self: Any, rv: Any) -> Any:
        if isinstance(rv, WebSocketHandler):
            return self.response_class.force_type(rv, flask.request.environ)
        return original(self, rv)

    make_response._by_greenws = True  # type: ignore[attr-defined]
    flask.Flask.make_response = make_response
