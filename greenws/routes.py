"""``Routes``, from a method and a URI to a WSGI application, and ``StaticFiles``.

Matching is werkzeug's, and so is the serving of files.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from werkzeug import Request, Response
from werkzeug.exceptions import HTTPException, MethodNotAllowed, NotFound
from werkzeug.routing import Map, MapAdapter, RequestRedirect, Rule
from werkzeug.utils import send_from_directory

from .checks import (
    Hint,
    Registration,
    check_application,
    check_function,
    check_result,
    explains,
    unknown_option,
)
from .config import SERVER_ONLY, Config
from .exceptions import HandshakeError
from .protocol.handshake import check_protocol, count_of, is_upgrade
from .session import WebSocketHandler, WebSocketSessionHandler, routing_variables
from .surroundings import framework_of
from .websocket import WebSocket

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment
    from typing_extensions import Unpack

    from .options import SessionOptions

__all__ = ["Routes", "StaticFiles", "check_literal", "check_protocols", "function_handler"]

_logger = logging.getLogger("greenws.server")

# "int(max=5):number" in "/room/<int(max=5):number>"
_VARIABLE = re.compile(r"<(?:([^<>:]*(?:\([^<>]*\))?):)?[a-zA-Z_]\w*>")

# As in "/*/chat" and "/static/*.js".
_STAR = re.compile(r"/\*(?=[/.]|$)")

SessionFunction = TypeVar("SessionFunction", bound=Callable[..., object])


class Routes:
    """A WSGI application that passes each request to the handler of its route.

    Variables of the URI are in ``environ["wsgiorg.routing_args"]``, and are keyword arguments of
    the functions of :meth:`websocket`. A request without a route gets 404, or 405 if a route has
    another method.
    """

    route = Hint("route", "websocket(path) for sessions, or add(uri=..., handler=...)")
    get = Hint("get", "add(uri=..., handler=...), or websocket(path) for sessions")
    post = Hint("post", "add(uri=..., handler=..., method='POST')")
    add_route = Hint("add_route", "add(uri=..., handler=...), or websocket(path) for sessions")
    add_url_rule = Hint("add_url_rule", "add(uri=..., handler=...), or websocket(path)")
    websocket_route = Hint("websocket_route", "websocket(path)")
    mount = Hint("mount", "add(uri='/prefix/*', handler=..., method=None)")
    run = Hint("run", "WebSocketServer((host, port), routes).serve_forever()")

    def __init__(self) -> None:
        self._map = Map()
        self._wildcards: list[tuple[str, set[str] | None, WSGIApplication]] = []
        # By method and path: finds these routes in a twentieth of the map's time.
        self._literal: dict[tuple[str, str], WSGIApplication] = {}
        self._known: dict[tuple[str | None, str], str] = {}  # by method, and uri without names
        # Handlers for many paths whose route is for one, until the warning was logged.
        self._of_one_path: list[tuple[str, WSGIApplication]] = []

    @explains(
        "routes.add(uri='/path', handler=application)",
        {"methods": "write method=, one name or a list of them"}
        | dict.fromkeys(("path", "rule", "url", "route"), "write uri=")
        | dict.fromkeys(("app", "application", "view", "view_func", "endpoint"), "write handler="),
    )
    def add(
        self,
        *,
        uri: str,
        handler: WSGIApplication,
        method: str | Sequence[str] | None = "GET",
    ) -> None:
        """Adds a route to ``handler``, a WSGI application.

        ``uri`` has werkzeug's syntax: ``/user/<name>``, ``/room/<int:number>``. ``*`` matches every
        path that no other route matches, and ``/files/*`` every such path below ``/files/``, which
        the handler then sees as its root. ``method`` is one or more methods of HTTP (GET includes
        HEAD); None means any.

        Raises:
            TypeError: ``handler`` is not a WSGI application, ``method`` is neither a str nor a list
                of them, or there is such a route already.
            ValueError: ``uri`` is malformed, or neither begins with ``/`` nor is ``*``; ``method``
                is not the name of a method.
        """
        _check_uri(uri)
        check_application(handler, f"the handler of the route {uri!r}")
        methods = _methods(method)
        if uri == "*":
            uri = "/*"
        self._check_new(uri, methods)
        if uri.endswith("/*"):
            allowed = None if methods is None else {name.upper() for name in methods}
            if allowed is not None and "GET" in allowed:
                allowed.add("HEAD")
            self._wildcards.append((uri[:-1], allowed, handler))
            self._wildcards.sort(key=lambda wildcard: len(wildcard[0]), reverse=True)
        else:
            rule = Rule(uri, endpoint=handler, methods=methods)
            self._map.add(rule)
            if isinstance(handler, StaticFiles) and handler.not_found is None:
                _check_static(uri, handler)
            if not rule.arguments and (
                isinstance(handler, (Routes, StaticFiles)) or framework_of(handler)
            ):
                self._of_one_path.append((uri, handler))
            # If a route for any method was added before, the map decides.
            if rule.methods is None:
                self._literal[("", uri)] = handler
            elif uri.isascii() and not set("<>|") & set(uri) and ("", uri) not in self._literal:
                for name in rule.methods:
                    self._literal.setdefault((name, uri), handler)

    @property
    def handlers(self) -> list[WSGIApplication]:
        """The handlers of all routes."""
        endpoints: list[WSGIApplication] = [rule.endpoint for rule in self._map.iter_rules()]
        return [*endpoints, *(handler for _, _, handler in self._wildcards)]

    def _check_new(self, uri: str, methods: list[str] | None) -> None:
        """
        Raises:
            TypeError: an earlier route matches all requests for this one.
        """
        key = _VARIABLE.sub(lambda match: f"<{match[1] or ''}>", uri)
        for name in (None,) if methods is None else tuple(name.upper() for name in methods):
            if (name, key) in self._known:
                earlier = self._known[name, key]
                same = "" if earlier == uri else f" (as {earlier!r})"
                raise TypeError(
                    f"there is a route for {name or 'any method'} {uri!r} already{same}; the "
                    "second would never be used"
                )
            self._known[name, key] = uri

    def websocket(
        self, uri: str, protocols: Iterable[str] | None = (), **options: Unpack[SessionOptions]
    ) -> Callable[[SessionFunction], SessionFunction]:
        """Makes a function the session handler of ``uri``::

            @routes.websocket("/chat/<room>", protocols=["chat"])
            def chat(request, socket, room):
                for message in socket:
                    socket.send(message)

        With ``protocols``, the session speaks the one of them that the client prefers, and a client
        that offers none of them is refused with 400. ``options``: as for
        :class:`WebSocketHandler`.

        Raises:
            TypeError: the function does not accept the request, the socket and the variables of
                ``uri``; it is ``async def`` or a generator; there is such a route already.
        """
        if callable(uri):
            raise TypeError(
                "routes.websocket takes the path first: @routes.websocket('/chat'), in parentheses"
            )
        _check_uri(uri)
        accepted = check_protocols(protocols)
        known = {*Config.__dataclass_fields__, "protocols", "response_headers"}
        for name in options.keys() - known:
            raise TypeError(unknown_option(name, known - SERVER_ONLY))

        def decorate(function: SessionFunction) -> SessionFunction:
            _check_session(function, uri)
            registration = Registration.of(function, f"@routes.websocket({uri!r})", self)
            handler = function_handler(function, accepted, registration, **options)
            self.add(uri=uri, handler=handler)
            return function

        return decorate

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        try:
            handler = self.match(environ)
        except HTTPException as error:
            return error.get_response(environ)(environ, start_response)
        return handler(environ, start_response)

    def match(self, environ: WSGIEnvironment) -> WSGIApplication:
        """Returns the handler of a request, and puts the variables of the URI into ``environ``.

        Raises:
            werkzeug.exceptions.HTTPException: there is no route, or the route redirects.
        """
        handler = self._literal.get((environ["REQUEST_METHOD"], environ.get("PATH_INFO", "")))
        variables: dict[str, Any] = {}
        if handler is None:
            handler, variables = self._match(environ)
        environ["wsgiorg.routing_args"] = ((), variables)
        return handler

    def match_literal(self, method: str, path: str) -> WSGIApplication | None:
        """The handler of a route without variables; None if only :meth:`match` finds it."""
        return self._literal.get((method, path))

    def _match(self, environ: WSGIEnvironment) -> tuple[WSGIApplication, dict[str, Any]]:
        adapter = self._map.bind_to_environ(environ)
        try:
            # A route has one handler, whether the request asks for an upgrade or not.
            return adapter.match(websocket=False)  # type: ignore[return-value]
        except RequestRedirect:
            if not is_upgrade(environ):
                raise
            return _match_without_redirect(adapter)
        except (NotFound, MethodNotAllowed) as error:
            handler = self._match_wildcard(environ)
            if handler is None:
                if self._of_one_path:
                    self._warn_of_one_path(environ.get("PATH_INFO", ""))
                raise error
            return handler, {}

    def _warn_of_one_path(self, path: str) -> None:
        """Warns, once for each, of a route that was probably meant for ``path``, too."""
        for uri, handler in list(self._of_one_path):
            prefix = f"{uri.rstrip('/')}/"
            if not path.startswith(prefix):
                continue
            if isinstance(handler, StaticFiles) and not handler.has(path[len(prefix) :]):
                continue
            try:
                self._of_one_path.remove((uri, handler))
            except ValueError:  # another thread has logged it
                continue
            _logger.warning(
                "no route for %.200r: the route %r matches only that path; to match all paths "
                "below it, write uri=%r",
                path,
                uri,
                f"{prefix}*",
            )

    def _match_wildcard(self, environ: WSGIEnvironment) -> WSGIApplication | None:
        path = environ.get("PATH_INFO", "") or "/"
        for prefix, methods, handler in self._wildcards:
            if path.startswith(prefix):
                if methods is not None and environ["REQUEST_METHOD"] not in methods:
                    raise MethodNotAllowed(methods)
                environ["SCRIPT_NAME"] = environ.get("SCRIPT_NAME", "") + prefix[:-1]
                environ["PATH_INFO"] = path[len(prefix) - 1 :]
                return handler
        return None


def _check_static(uri: str, handler: StaticFiles) -> None:
    """Warns of a route without ``*`` that leads to no file: ``handler`` gets the whole path."""
    literal, variable, _ = uri.partition("<")
    name = literal.rpartition("/")[2]
    if handler.has(literal if not variable else literal.rpartition("/")[0] or "/", bool(variable)):
        return
    # A file that is not there yet has an extension, such as ".js".
    if variable or "." not in name:
        prefix = literal.rpartition("/")[0] if variable or not name else literal
        _logger.warning(
            "the route %r leads to %r, which is not a %s: without '*', StaticFiles looks for the "
            "whole path; uri=%r serves all files of %r",
            uri,
            os.path.join(handler.root, literal.lstrip("/")),
            "folder" if variable else "file",
            f"{prefix}/*",
            handler.root,
        )


def _methods(method: Any) -> list[str] | None:
    """The names in ``method``; None for any.

    Raises:
        TypeError: it is neither a str nor a list of them.
        ValueError: it is not the name of a method.
    """
    if method is None:
        return None
    names = [method] if isinstance(method, str) else method
    is_list = isinstance(names, Iterable) and not isinstance(names, (bytes, Mapping))
    names = list(names) if is_list else []
    if not is_list or not all(isinstance(name, str) for name in names):
        raise TypeError(
            f"a route's method must be a str such as 'GET', or a list of them, not {method!r}"
        )
    for name in names:
        if not re.fullmatch(r"[A-Za-z]+(-[A-Za-z]+)*", name):
            raise ValueError(
                f"a route's method must be a name such as 'GET', or None for any, not {name!r}"
            )
    if not names:
        raise ValueError(
            "a route without a method matches no request; method=None means any method"
        )
    return names


def _check_uri(uri: Any) -> None:
    """
    Raises:
        TypeError: it is not a str.
        ValueError: no request would match it, or it is malformed.
    """
    wildcard = isinstance(uri, str) and (uri == "*" or uri.endswith("/*"))
    check_literal(uri[:-1] if wildcard else uri)
    if not uri.startswith("/") and uri != "*":
        raise ValueError(f"a route's uri must begin with '/' or be '*', not {uri!r}")
    try:
        Rule(uri if uri.startswith("/") else "/").bind(Map())
    except (LookupError, SyntaxError, ValueError) as error:
        reason = error.msg if isinstance(error, SyntaxError) else error.args[0]
        names = ", ".join(sorted(Map.default_converters))
        hint = f"; the converters are {names}" if isinstance(error, LookupError) else ""
        raise ValueError(f"the uri {uri!r} is malformed: {reason}{hint}") from None


def check_literal(uri: Any) -> None:
    """Checks the parts of a route's uri between its variables; what was probably meant for any name
    is logged.

    Raises:
        TypeError: it is not a str.
        ValueError: it has a part that no path can have.
    """
    if not isinstance(uri, str):
        raise TypeError(f"a route's uri must be a str such as '/chat/<room>', not {uri!r}")
    literal = re.sub(r"<(?:[a-zA-Z_]\w*(?:\(.*?\))?:)?[a-zA-Z_]\w*>", "<>", uri)
    for mark, what in (("?", "a query"), ("#", "a fragment")):
        if mark in literal:
            raise ValueError(
                f"the uri {uri!r} has {what}, which cannot be part of a route; a handler reads the "
                "query in request.args"
            )
    if braces := re.search(r"\{([a-zA-Z_]\w*)[^{}]*\}", literal):  # as in FastAPI and Pyramid
        raise ValueError(f"a variable of the uri {uri!r} is written <{braces[1]}>")
    if colon := re.search(r"(?<=/):([a-zA-Z_]\w*)", literal):  # as in Express and Bottle
        _logger.warning(
            "the route %r matches only a path with ':%s' in it; a variable is written <%s>",
            *(uri, colon[1], colon[1]),
        )
    if _STAR.search(literal):
        _logger.warning(
            "the route %r matches only a path with this '*' in it; a part of any path is a "
            "variable: '/files/<path:name>', '/<name>.js'",
            uri,
        )


def _check_session(function: Any, uri: str) -> None:
    """
    Raises:
        TypeError: ``function`` cannot be the session of ``uri``.
    """
    if isinstance(function, type) or isinstance(function, (WebSocketHandler, Routes)):
        raise TypeError(
            f"@routes.websocket({uri!r}) is for a function (request, socket), not {function!r}: "
            "give a class to routes.add(uri=..., handler=WebSocketHandler(lambda request, "
            "protocols: TheClass()))"
        )
    rule = Rule(uri if uri.startswith("/") else "/")
    rule.bind(Map())  # before that, it has no arguments
    variables = sorted(rule.arguments)
    check_function(
        function,
        f"the session of {uri!r}",
        "request",
        "socket",
        **{name: name for name in variables},
    )


def _match_without_redirect(adapter: MapAdapter) -> tuple[WSGIApplication, dict[str, Any]]:
    """Matches the target of a redirect: browsers do not follow redirects of a WebSocket."""
    path = re.sub("/{2,}", "/", f"/{adapter.path_info}")
    for candidate in (path, f"{path}/"):
        try:
            return adapter.match(candidate, websocket=False)  # type: ignore[return-value]
        except RequestRedirect:
            continue
    raise NotFound


def check_protocols(protocols: Iterable[str] | None) -> list[str]:
    """
    Raises:
        TypeError: ``protocols`` is a str, or an item is not a str.
        ValueError: a name is not a token.
    """
    if isinstance(protocols, str):
        raise TypeError(f"protocols is a list of names, such as [{protocols!r}]")
    if protocols is None:
        return []
    if not isinstance(protocols, Iterable):
        raise TypeError(f"protocols is a list of names, such as ['chat'], not {protocols!r}")
    names = list(protocols)
    for name in names:
        check_protocol(name)
    return names


def function_handler(
    function: Callable[..., object],
    accepted: list[str],
    registration: Registration | None,
    **options: Any,
) -> WebSocketHandler:
    """A handler whose sessions call ``function(request, socket, **variables)``, with the variables
    in ``environ["wsgiorg.routing_args"]``. They speak the one of the ``accepted`` subprotocols that
    the client prefers; if none are given, none."""

    plain = _FunctionHandler(function, None, {})  # it keeps nothing of a session

    def produce(request: Request, offered: list[str]) -> WebSocketSessionHandler:
        if registration is not None:
            registration.check()
        if not accepted:
            variables = routing_variables(request)
            return _FunctionHandler(function, None, variables) if variables else plain
        subprotocol = next((name for name in offered if name in accepted), None)
        if subprotocol is None:
            raise HandshakeError(
                "WebSocket protocols not supported.",
                reason="subprotocol",
                hint=f"The route accepts {accepted}, and the client offers "
                f"{count_of(offered)}; in a browser: "
                f"new WebSocket(url, {accepted[:1]}).",
            )
        return _FunctionHandler(function, subprotocol, routing_variables(request))

    return WebSocketHandler(produce, **options)


class _FunctionHandler(WebSocketSessionHandler):
    """The short form: a function as a session."""

    def __init__(
        self, function: Callable[..., object], subprotocol: str | None, variables: dict[str, Any]
    ) -> None:
        if subprotocol is not None:
            self.socket_protocol = subprotocol
        self._function = function
        if variables:
            self._variables = variables

    _variables: dict[str, Any] | None = None

    def handle_session(self, request: Request, socket: WebSocket) -> None:
        if self._variables:
            result = self._function(request, socket, **self._variables)
        else:  # a call without ** takes less stack, which a waiting session keeps
            result = self._function(request, socket)
        if result is not None:
            check_result(self._function, result)


class StaticFiles:
    """A WSGI application that serves the files under ``root``; for a folder, its ``index.html``.

    It answers conditional and range requests. It does not serve paths in which a name begins with a
    dot (except ``/.well-known/``), or symbolic links that lead out of ``root``. Responses have
    ``X-Content-Type-Options: nosniff``. ``not_found`` is a page in ``root`` that browsers get with
    a 404. Over plain TCP, a ``WebSocketServer`` sends files of more than 32 KiB by ``sendfile``,
    without a copy.

    Raises:
        ValueError: ``root`` is not a directory, or has no file ``not_found``.
    """

    @explains(
        "StaticFiles('folder'); the prefix is that of its route, "
        "routes.add(uri='/static/*', handler=StaticFiles('folder'))"
    )
    def __init__(
        self, root: str | os.PathLike[str], *, not_found: str | os.PathLike[str] | None = None
    ) -> None:
        if not isinstance(root, (str, os.PathLike)):
            raise TypeError(f"StaticFiles needs the path of a directory, not {root!r}")
        if not os.fspath(root):
            raise ValueError("StaticFiles needs the path of a directory, not ''; '.' is this one")
        if isinstance(not_found, os.PathLike):
            not_found = os.fspath(not_found)
        if not_found is not None and not isinstance(not_found, str):
            raise TypeError(f"not_found must be the name of a file, not {not_found!r}")
        self.root = os.path.abspath(root)
        self._real_root = os.path.join(os.path.realpath(root), "")
        if not os.path.isdir(self.root):
            raise ValueError(f"StaticFiles needs a directory, and {self.root!r} is not one")
        self.not_found = not_found
        if not_found is not None and not os.path.isfile(os.path.join(self.root, not_found)):
            raise ValueError(f"StaticFiles: {self.root!r} has no file {not_found!r}")

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        request = Request(environ)
        try:
            if request.method not in ("GET", "HEAD"):
                raise MethodNotAllowed(["GET", "HEAD"])
            path = request.path.lstrip("/")
            if path == "" or path.endswith("/"):
                path += "index.html"
            self._check(path)
            response = send_from_directory(self.root, path, environ)
            response.headers["X-Content-Type-Options"] = "nosniff"
        except NotFound as error:
            missing: WSGIApplication = self._miss(request, error)
            return missing(environ, start_response)
        except HTTPException as error:
            return error.get_response(environ)(environ, start_response)
        return response(environ, start_response)

    def has(self, path: str, is_folder: bool = False) -> bool:
        """Whether there is a file for ``path``, or a folder."""
        full = os.path.normpath(os.path.join(self.root, path.lstrip("/")))
        if is_folder:
            return os.path.isdir(full)
        return os.path.isfile(os.path.join(full, "index.html") if path.endswith("/") else full)

    def _miss(self, request: Request, error: NotFound) -> Any:
        """The response where there is no file."""
        if self.not_found is None or not request.accept_mimetypes.accept_html:
            return error.get_response(request.environ)
        with open(os.path.join(self.root, self.not_found), "rb") as file:
            return Response(file.read(), 404, content_type="text/html; charset=utf-8")

    def _check(self, path: str) -> None:
        """
        Raises:
            NotFound: ``path`` is hidden, or leads out of the root.
        """
        names = path.split("/")
        hidden = names[1:] if names[0] == ".well-known" else names
        if any(name.startswith(".") for name in hidden):
            raise NotFound
        full = os.path.join(self.root, path)
        if not os.path.realpath(full).startswith(self._real_root):
            raise NotFound
