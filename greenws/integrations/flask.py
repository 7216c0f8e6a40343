"""Flask: ``Sock``, and views that return a ``WebSocketHandler`` under an ordinary rule.

Flask routes with werkzeug, which answers an upgrade request with 400, without calling the view, if
the rule is not marked ``websocket=True``. Here ``@app.get("/echo")`` is enough: the view decides
what to answer, and a server may ignore ``Upgrade`` anyway (RFC 9110, section 7.8).
"""

from __future__ import annotations

import functools
import inspect
import re
import sys
from collections.abc import Callable, Iterable
from types import MethodType
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakSet

from werkzeug.routing import MapAdapter, WebsocketMismatch

if TYPE_CHECKING:
    import flask

__all__ = ["Sock", "install"]

SessionFunction = TypeVar("SessionFunction", bound=Callable[..., object])

_RULE_OPTIONS = frozenset(
    "alias build_only defaults endpoint host merge_slashes provide_automatic_options redirect_to "
    "strict_slashes subdomain".split()
)


class Sock:
    """WebSocket routes of a Flask application or blueprint, as with Flask-Sock::

        sock = Sock(app)  # or Sock(blueprint); or Sock(), and later sock.init_app(app)

        @sock.route("/chat/<room>", protocols=["chat"])
        def chat(socket, room):
            for message in socket:
                socket.send(message)

    Flask's ``request``, ``session``, ``current_app`` and ``g`` work until the function returns, and
    an error that escapes it counts as the request's: teardown functions get it. Code that must run
    before the upgrade belongs in ``before_request``, where ``abort(401)`` is a real response, or in
    a view that returns a :class:`greenws.WebSocketHandler`.

    Differences from Flask-Sock: the function gets a :class:`greenws.WebSocket`, so
    ``receive(timeout=5)`` raises TimeoutError where Flask-Sock returns None, ``close()`` takes
    ``code`` and ``reason`` (there: ``reason`` and ``message``), ``connected`` is ``is_connected``,
    and ConnectionClosed is that of greenws. Pages of other origins are refused unless
    ``allowed_origins`` names them. Set options in ``route()`` and in the server's Config, instead
    of ``SOCK_SERVER_OPTIONS``.
    """

    def __init__(self, app: flask.Flask | flask.Blueprint | None = None) -> None:
        self._targets: WeakSet[Any] = WeakSet()
        self._routes: list[tuple[str, Callable[..., Any], dict[str, Any]]] = []
        self._views: list[tuple[Callable[..., Any], Any, Callable[..., Any]]] = []
        if app is not None:
            self.init_app(app)

    def init_app(self, app: flask.Flask | flask.Blueprint) -> None:
        """Adds all routes to ``app``, including those that are added later."""
        if not callable(getattr(app, "add_url_rule", None)):
            raise TypeError(f"Sock takes a Flask application or a blueprint, not {app!r}")
        self._targets.add(app)
        for path, view, rule in self._routes:
            app.add_url_rule(path, view_func=view, **rule)

    def route(
        self,
        path: str,
        bp: flask.Blueprint | None = None,
        *,
        protocols: Iterable[str] | None = (),
        **options: Any,
    ) -> Callable[[SessionFunction], SessionFunction]:
        """Makes ``function(socket, **variables)`` the session of ``path``, a rule as in
        ``app.route()``; with ``bp``, in that blueprint.

        ``protocols`` and ``options`` are those of :meth:`greenws.Routes.websocket`
        (``allowed_origins``, ``response_headers``, ``max_message_size``...), or
        options of a rule (``endpoint``, ``defaults``, ``host``, ``subdomain``...).

        Raises:
            TypeError: the function is ``async def``, a generator, or does not accept the socket and
                the variables of ``path``; an option does not exist.
        """
        from ..checks import Registration, check_result, unknown_option
        from ..config import SERVER_ONLY, Config
        from ..routes import check_literal, check_protocols, function_handler

        if callable(path):
            raise TypeError("sock.route takes the path first: @sock.route('/chat'), in parentheses")
        if bp is not None and not callable(getattr(bp, "add_url_rule", None)):
            raise TypeError(f"the second argument of sock.route is a blueprint, not {bp!r}")
        check_literal(path)
        accepted = check_protocols(protocols)
        known = {*Config.__dataclass_fields__, "response_headers"}
        for name in options:
            if name not in known | _RULE_OPTIONS:
                raise TypeError(
                    unknown_option(name, {*known - SERVER_ONLY, *_RULE_OPTIONS, "protocols"})
                )
        rule: dict[str, Any] = {"strict_slashes": False, "websocket": True}
        rule.update((name, options.pop(name)) for name in _RULE_OPTIONS & options.keys())

        def decorate(function: SessionFunction) -> SessionFunction:
            self._check(function, path, rule, bp)
            view = self._view_of(function, (accepted, options))
            registration = Registration.of(function, f"@sock.route({path!r})")
            if view is None:
                view = make_view(function, registration)
            if bp is not None:
                bp.add_url_rule(path, view_func=view, **rule)
            else:
                self._routes.append((path, view, rule))
                for target in self._targets:
                    target.add_url_rule(path, view_func=view, **rule)
            return function

        def make_view(
            function: SessionFunction, registration: Registration | None
        ) -> Callable[..., Any]:
            def session(request: Any, socket: Any, **variables: Any) -> None:
                result = function(socket, **variables)
                if result is not None:
                    check_result(function, result)

            handler = function_handler(session, accepted, registration, **options)

            @functools.wraps(function)
            def view(**variables: Any) -> Any:
                from flask import request

                request.environ["wsgiorg.routing_args"] = ((), variables)
                return handler

            view._is_greenws_session = True  # type: ignore[attr-defined]
            self._views.append((function, (accepted, options), view))
            return view

        return decorate

    def _view_of(self, function: Any, options: Any) -> Callable[..., Any] | None:
        """The view of a function that has a route with the same options already: Flask takes two
        routes with one endpoint only if their view is the same."""
        for other, its_options, view in self._views:
            if _is_same(other, function) and its_options == options:
                return view
        return None

    def _check(self, function: Any, path: str, rule: dict[str, Any], bp: Any) -> None:
        from ..checks import check_function, describe

        first = next(iter(getattr(_signature(function), "parameters", ())), None)
        if first in ("request", "req"):
            raise TypeError(
                f"the session of {path!r} is called with the socket first, without a request, and "
                f"{describe(function)} does not fit: leave out {first!r}, and use flask.request"
            )
        places = (path, rule.get("subdomain") or "", rule.get("host") or "")
        names = [name for place in places for name in _VARIABLE.findall(place)]
        names += list(rule.get("defaults") or ())
        if (
            bp is not None
            or not self._targets
            or any(hasattr(target, "record") for target in self._targets)
            or any(getattr(target, "url_value_preprocessors", ()) for target in self._targets)
        ):
            # A blueprint's prefix may add variables, and a preprocessor may remove some.
            names = list(getattr(_signature(function), "parameters", ()))[1:]
        check_function(
            function,
            f"the session of {path!r}",
            "socket",
            **{name: name for name in sorted(names)},
        )


def _is_same(one: Any, other: Any) -> bool:
    # Each look-up of a method makes another object.
    return one is other or (isinstance(one, MethodType) and one == other)


_VARIABLE = re.compile(r"<(?:[^<>]*:)?([a-zA-Z_][a-zA-Z0-9_]*)>")


def _signature(function: Any) -> inspect.Signature | None:
    try:
        # A decorator may add arguments, so the wrapped function does not count.
        return inspect.signature(function, follow_wrapped=False)
    except (TypeError, ValueError):
        return None


def install() -> None:
    """Makes upgrade requests match rules without ``websocket=True``, if no rule with it matches.

    ``import greenws`` calls it, once in a process.
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
        if self.websocket:
            _keep_type_errors()
        try:
            return original(self, path_info, method, return_rule, query_args, websocket)
        except WebsocketMismatch:
            if websocket is not None:
                raise
            if not self.websocket:
                return _match_session(original, self, path_info, method, return_rule, query_args)
            return original(self, path_info, method, return_rule, query_args, False)

    match._by_greenws = True  # type: ignore[attr-defined]
    MapAdapter.match = match  # type: ignore[method-assign]


def _match_session(original: Any, adapter: MapAdapter, *args: Any) -> Any:
    """Makes a plain request match a route of a :class:`Sock`, whose 426 says what is missing.

    Raises:
        WebsocketMismatch: the route does not belong to a ``Sock``.
    """
    path_info, method, return_rule, query_args = args
    flask = sys.modules.get("flask")
    if flask is not None and flask.has_app_context():
        rule, variables = original(adapter, path_info, method, True, query_args, True)
        view = flask.current_app.view_functions.get(rule.endpoint)
        if getattr(view, "_is_greenws_session", False):
            return (rule if return_rule else rule.endpoint), variables
    raise WebsocketMismatch


def _keep_type_errors() -> None:
    """Keeps the text of a session's TypeError. Flask would replace it: it takes a TypeError of a
    WSGI application that a view returns for a wrong return value of the view."""
    flask = sys.modules.get("flask")
    if flask is None or getattr(flask.Flask.make_response, "_by_greenws", False):
        return
    from ..session import WebSocketHandler, WebSocketSessionHandler

    original = flask.Flask.make_response

    @functools.wraps(original)
    def make_response(self: Any, rv: Any) -> Any:
        wrong = rv[0] if isinstance(rv, tuple) and rv else rv
        if (
            (isinstance(wrong, WebSocketSessionHandler) and not callable(wrong))
            or wrong is WebSocketHandler
            or (isinstance(wrong, type) and issubclass(wrong, WebSocketSessionHandler))
        ):
            session = wrong if isinstance(wrong, type) else type(wrong)
            name = "YourSession" if session is WebSocketHandler else session.__qualname__
            raise TypeError(
                f"the view returned {wrong!r}: it returns a WebSocketHandler, as in "
                f"'return WebSocketHandler(lambda request, protocols: {name}())'"
            )
        if isinstance(rv, WebSocketHandler):
            return self.response_class.force_type(rv, flask.request.environ)
        return original(self, rv)

    make_response._by_greenws = True  # type: ignore[attr-defined]
    flask.Flask.make_response = make_response
