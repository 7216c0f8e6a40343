"""``websocket()``: a Django view that is a WebSocket."""

from __future__ import annotations

import contextlib
import functools
import inspect
import logging
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from django.conf import settings
from django.core.exceptions import BadRequest, PermissionDenied, SuspiciousOperation
from django.http import Http404, HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from gevent import getcurrent
from werkzeug import Response
from werkzeug.exceptions import HTTPException

from ...checks import check_function, check_result, describe
from ...exceptions import HandshakeError
from ...protocol.handshake import check_headers
from ...refusals import ORIGIN_HINT_KEY
from ...session import REQUEST_ATTRIBUTE, WebSocketHandler, WebSocketSessionHandler
from ...upgrade import ENVIRON_KEY, hub_of_this_thread, refusal_response
from . import sessions, waits

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ...options import SessionOptions
    from ...websocket import WebSocket

__all__ = ["websocket"]

_logger = logging.getLogger("greenws.session")

_ANSWERS = (BadRequest, Http404, PermissionDenied, SuspiciousOperation)
_REFUSE_EARLIER = (
    "refuse before the upgrade: in a decorator above @websocket, such as login_required, in a "
    "middleware, or in a producer; or close(4403)"
)

View = Callable[..., HttpResponse]


def websocket(
    function: Any = None,
    /,
    *,
    protocols: Iterable[str] | None = (),
    response_headers: Any = (),
    **options: Unpack[SessionOptions],
) -> Any:
    """Makes a view of a session's function, or of a producer of handlers::

        @login_required
        @websocket
        def chat(request, socket, room):
            for message in socket:
                socket.send(f"{request.user}: {message}")

        urlpatterns = [path("chat/<slug:room>/", chat)]

    ``function(request, socket, **variables)`` runs the session. Or give a ``producer(request,
    protocols, **variables)``, recognised by the name of its second argument: it returns a
    ``WebSocketSessionHandler``, or None, which refuses with 400. ``request`` is Django's. Before
    the session, middleware and decorators such as ``login_required`` answer as for any view, and
    exceptions of a producer (``PermissionDenied``, ``Http404``) become responses. ``websocket`` is
    also a decorator with options, ``@websocket(protocols=["chat"])``, and one for a method of a
    class-based view, ``def get(self, request, socket, room)``.

    With ``protocols``, the session speaks the one of them that the client prefers, and a client
    that offers none of them is refused with 400. ``response_headers`` and ``options`` are those of
    :class:`greenws.WebSocketHandler`. By default, ``allowed_origins`` are the request's own and
    those in ``CSRF_TRUSTED_ORIGINS``.

    Changes to ``request.session`` are saved before the handshake is answered (with the cookie of a
    new session), before each wait, and when the session ends. After a wait it is loaded again at
    its next use. Django handles an exception that escapes the function: ``ATOMIC_REQUESTS`` rolls
    back, ``got_request_exception`` is sent, ``django.request`` logs it.

    Raises:
        TypeError: the function does not accept these arguments, is ``async def`` or a generator, or
            an option does not exist.
        ValueError: the value of an option is not allowed.
    """
    if isinstance(protocols, str):
        raise TypeError(f"protocols is a list of names, such as [{protocols!r}]")
    if function is None:
        return functools.partial(
            websocket, protocols=protocols, response_headers=response_headers, **options
        )
    return _make_view(function, list(protocols or ()), response_headers, options)


def _make_view(function: Any, protocols: list[str], headers: Any, options: Any) -> View:
    given = _check(function)
    is_method = given[0] == "self"
    is_producer = given[-1] == "protocols"
    if is_producer and protocols:
        raise TypeError(f"{describe(function)} chooses the subprotocol: leave out protocols=")

    def answer(call: Any, request: HttpRequest, args: Any, variables: Any) -> HttpResponse:
        def produce(request: Any, offered: list[str]) -> Any:
            if is_producer:
                return call(request, offered, *args, **variables)
            subprotocol = next((name for name in offered if name in protocols), None)
            if protocols and subprotocol is None:
                return None
            return _ViewHandler(call, subprotocol, args, variables)

        return _answer(request, produce, headers, options)

    def view(request: HttpRequest, *args: Any, **variables: Any) -> HttpResponse:
        return answer(function, request, args, variables)

    def method(self: Any, request: HttpRequest, *args: Any, **variables: Any) -> HttpResponse:
        return answer(functools.partial(function, self), request, args, variables)

    upgrade = getattr(getcurrent(), REQUEST_ATTRIBUTE, None)
    had_handler = upgrade is not None and upgrade.unused_handler
    WebSocketHandler(lambda request, protocols: None, response_headers=headers, **options)
    if upgrade is not None:  # Django imports its views in its first request: that is no reply to it
        upgrade.unused_handler = had_handler
    waits.install()
    made: Any = functools.update_wrapper(method if is_method else view, function)
    made.websocket_function = (function, given)
    return made  # type: ignore[no-any-return]


def _check(function: Any) -> list[str]:
    """The arguments of ``function``, except the variables of its URL.

    Raises:
        TypeError: it cannot be a session or a producer of handlers.
    """
    if isinstance(function, type):
        name = function.__qualname__
        hint = (
            f"websocket(lambda request, protocols: {name}())"
            if issubclass(function, WebSocketSessionHandler)
            else f"put @websocket above its get(self, request, socket), and {name}.as_view() into "
            "urlpatterns"
        )
        raise TypeError(f"websocket() takes a function, not the class {name}: {hint}")
    names: list[str] = []
    required: dict[str, str] = {}
    with contextlib.suppress(TypeError, ValueError):
        for parameter in inspect.signature(function, follow_wrapped=False).parameters.values():
            if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
                names.append(parameter.name)
            if parameter.default is parameter.empty and parameter.kind in (
                parameter.POSITIONAL_OR_KEYWORD,
                parameter.KEYWORD_ONLY,
            ):
                required[parameter.name] = parameter.name
    given = ["self"] if names[:1] == ["self"] else []
    second = names[len(given) + 1 : len(given) + 2]
    given += ["request", "protocols" if second == ["protocols"] else "socket"]
    for name in names[: len(given)]:
        required.pop(name, None)  # the others come from the URL
    check_function(function, "a session of websocket()", *given, **required)
    return given


def _answer(request: HttpRequest, produce: Any, headers: Any, options: Any) -> HttpResponse:
    """Runs a session, and returns a response for Django."""
    environ = getattr(request, "environ", None)
    if environ is None:
        message = (
            "No WebSocket here: this is an ASGI server. Run the WSGI application "
            "(WSGI_APPLICATION) under greenws.gunicorn.Worker or greenws.WebSocketServer."
        )
        _logger.error("%s", message)
        return HttpResponse(f"{message}\n", status=501, content_type="text/plain")

    def produce_saved(request: Any, offered: list[str]) -> Any:
        handler = produce(request, offered)
        if not isinstance(handler, WebSocketSessionHandler):
            return handler  # greenws refuses it
        return _SavedHandler(handler, sessions.save_before_handshake(request))

    upgrade = environ.get(ENVIRON_KEY)
    if upgrade is None or upgrade.config.allowed_origins is None:
        options = {"allowed_origins": ["self", *settings.CSRF_TRUSTED_ORIGINS], **options}
    environ[ORIGIN_HINT_KEY] = (
        "In Django: list it in CSRF_TRUSTED_ORIGINS, or write @websocket(allowed_origins=[...])."
    )
    handler = WebSocketHandler(produce_saved, response_headers=headers, **options)
    with hub_of_this_thread(environ), sessions.current(request):
        try:
            session = handler._open(environ, request)
        except HandshakeError as error:
            return _to_django(refusal_response(error), environ)
        except HTTPException as error:
            return _to_django(error.get_response(environ), environ)
        try:
            session.run_inside(lambda error: False)  # Django logs it
        except _ANSWERS as error:
            _logger.warning(
                "%s raised in a session, too late for a response: %s",
                type(error).__name__,
                _REFUSE_EARLIER,
            )
            raise
    return HttpResponse(status=101)  # nothing of it is sent


def _to_django(response: Any, environ: Any) -> HttpResponse:
    """The response of a WSGI application as Django's."""
    plain = Response.from_app(response, environ, buffered=True)
    made = HttpResponse(plain.get_data(), status=plain.status_code)
    for name in {name.lower() for name in plain.headers.keys()} - {"content-length"}:
        made.headers[name] = ", ".join(plain.headers.getlist(name))
    return made


class _ViewHandler(WebSocketSessionHandler):
    """A function as a session, with the variables of the URL."""

    def __init__(
        self, function: Any, subprotocol: str | None, args: Any, variables: dict[str, Any]
    ) -> None:
        self.socket_protocol = subprotocol
        self._function = function
        self._args = args
        self._variables = variables

    def handle_session(self, request: Any, socket: WebSocket) -> None:
        result = self._function(request, socket, *self._args, **self._variables)
        if isinstance(result, HttpResponseBase):
            raise TypeError(
                f"{describe(self._function)} returned {result!r}, too late for a response: put "
                "decorators such as login_required above @websocket, or refuse in a producer"
            )
        check_result(self._function, result)


class _SavedHandler(WebSocketSessionHandler):
    """Adds the cookies to a handler that Django set when it saved its session."""

    def __init__(
        self, handler: WebSocketSessionHandler, cookies: Sequence[tuple[str, str]]
    ) -> None:
        self.socket_protocol = handler.socket_protocol
        self.response_headers = [*check_headers(handler.response_headers), *cookies]
        self._handler = handler

    def handle_session(self, request: Any, socket: WebSocket) -> None:
        self._handler.handle_session(request, socket)
