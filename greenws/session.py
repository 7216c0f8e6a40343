"""Sessions: ``WebSocketHandler`` is the WSGI application that upgrades a request and runs one."""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, TypeAlias
from weakref import WeakSet

import gevent
from geventwebsocket.exceptions import WebSocketError
from werkzeug import Request
from werkzeug.datastructures import Headers
from werkzeug.exceptions import HTTPException, InternalServerError

from .checks import REFUSE_EARLIER, check_function, check_result, explains, not_a_handler
from .config import SERVER_ONLY, Config
from .exceptions import ConnectionClosed, HandshakeError
from .opcodes import CloseCode
from .protocol.handshake import check_headers, count_of
from .protocol.origin import check_host, check_origin
from .refusals import log_refusal
from .upgrade import (
    ENVIRON_KEY,
    Upgrade,
    find_upgrade,
    forget_upgrade,
    hub_of_this_thread,
    refusal_response,
)
from .websocket import WebSocket, explain_missing_name

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment
    from typing_extensions import Unpack

    from .options import SessionOptions

__all__ = [
    "EXITS",
    "OpenSession",
    "REQUEST_ATTRIBUTE",
    "around_sessions",
    "WebSocketHandler",
    "WebSocketSessionHandler",
    "end_session",
    "lazy_request",
    "drop_environ",
    "is_normal_end",
    "log_failure",
    "routing_variables",
]

ResponseHeaders: TypeAlias = Headers | Mapping[str, str] | Iterable[tuple[str, str]]

_logger = logging.getLogger("greenws.session")

REQUEST_ATTRIBUTE = "greenws_upgrade"
"""The attribute in which a greenlet that answers a handshake has its ``Upgrade``."""

around_sessions: list[Callable[[Request, WebSocket], AbstractContextManager[None]]] = []
"""Context managers to enter around each session inside a framework."""

EXITS = (gevent.GreenletExit, KeyboardInterrupt, SystemExit)
"""Exceptions that end a greenlet or the process, and are not failures of a session."""

_HOW = (
    "it is a WSGI application, not a response: docs/howto/frameworks.md shows where it can be "
    "returned, and what to write elsewhere (in Django: greenws.integrations.django.websocket)"
)
_DEBUGGER = "werkzeug.debug.preserve_context"
_ERRNOS_OF_GONE_PEERS = (errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN)
_checked_producers: WeakSet[Any] = WeakSet()  # their code


class WebSocketSessionHandler(ABC):
    """One session. Its greenlet runs :meth:`handle_session`; the connection ends with it."""

    socket_protocol: str | None = None
    """The subprotocol that this session speaks. A client that does not offer it is refused."""

    response_headers: ResponseHeaders = ()
    """Headers for the 101 response, such as a cookie: pairs ``("Set-Cookie", "a=b")``, a mapping,
    or ``werkzeug.datastructures.Headers``. Those of the handshake itself, and hop-by-hop ones, are
    refused with ValueError."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        headers = cls.__dict__.get("response_headers", ())
        if isinstance(headers, (list, tuple, Mapping, Headers)):  # a property is checked later
            check_headers(headers)
        protocol = cls.__dict__.get("socket_protocol")
        if isinstance(protocol, (list, tuple, set, frozenset, dict, bytes, int, float, type)):
            raise TypeError(
                f"socket_protocol of {cls.__qualname__} must be one str or None, not {protocol!r}; "
                "the producer chooses among several"
            )
        method = cls.__dict__.get("handle_session")
        if method is not None and not getattr(method, "__isabstractmethod__", False):
            function = getattr(method, "__func__", method)  # of a static or class method
            arguments = () if isinstance(method, staticmethod) else ("self",)
            check_function(function, "handle_session", *arguments, "request", "socket")

    @abstractmethod
    def handle_session(self, request: Request, socket: WebSocket) -> None:
        """Reads from and writes to ``socket``, in plain blocking calls.

        When it returns, the socket is closed with 1000; a return value is ignored, which is logged
        once. ConnectionClosed may escape: that is a normal end. Any other exception closes the
        socket with 1011. Inside a framework, the :class:`WebSocketHandler` then raises it, so that
        the framework treats it as the failure of a request (logs it, rolls back); elsewhere it is
        logged.
        """


class OpenSession:
    """A session whose handshake was accepted and whose handler has not run yet."""

    __slots__ = ("handler", "request", "socket")

    def __init__(
        self, handler: WebSocketSessionHandler, request: Request, socket: WebSocket
    ) -> None:
        self.handler = handler
        self.request = request
        self.socket = socket

    def run_inside(self, is_dropped: Callable[[BaseException], bool]) -> None:
        """Runs the handler inside a framework or a middleware, and closes the socket. Raises what
        escapes the handler, and logs it if ``is_dropped(error)``: nothing else would."""
        try:
            if around_sessions:
                with contextlib.ExitStack() as stack:
                    for around in around_sessions:
                        stack.enter_context(around(self.request, self.socket))
                    self._handle()
            else:
                self._handle()
        except BaseException as error:
            end_session(self.socket, error, is_dropped(error))
            if is_normal_end(error):
                return
            raise
        end_session(self.socket, None)

    def _handle(self) -> None:
        result: Any = self.handler.handle_session(self.request, self.socket)
        if result is not None:
            check_result(self.handler.handle_session, result)


class _NoBody:
    """Makes FastAPI's encoder fail on a handler that an endpoint returns; otherwise it would
    answer with the handler's attributes."""

    __slots__ = ()  # without a __dict__ there is nothing that can be encoded

    def __iter__(self) -> Any:
        raise TypeError(f"an endpoint returned a WebSocketHandler; {_HOW}")


_NO_BODY = _NoBody()


class WebSocketHandler:
    """A WSGI application that upgrades its requests and runs a session on each.

    ``handler_producer(request, protocols)`` gets the request (``werkzeug.Request``) and the
    subprotocols that the client offers, and returns the session's handler. None refuses with 400;
    a ``werkzeug`` ``HTTPException`` (``abort(401)``) that it raises becomes that HTTP response.

    ``response_headers`` are headers for the 101 response, before those of the session's handler
    (:attr:`WebSocketSessionHandler.response_headers`). ``options`` override those of the server's
    :class:`greenws.Config` for the sessions of this handler.

    Raises:
        TypeError: the producer does not accept the two arguments, is ``async def``, a generator or
            itself a handler; or an option does not exist.
        ValueError: the value of an option is not allowed.
    """

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "handle_session" in cls.__dict__ and not issubclass(cls, WebSocketSessionHandler):
            raise TypeError(
                f"{cls.__qualname__} has a handle_session, so it is a session: derive it from "
                "WebSocketSessionHandler, and give WebSocketHandler(lambda request, protocols: "
                f"{cls.__qualname__}())"
            )

    @explains(
        "WebSocketHandler(producer), where producer(request, protocols) returns a session's "
        "handler. A view returns such an object, not the class WebSocketHandler, and handler_class "
        "of a pywsgi server is greenws.UpgradeHandler"
    )
    def __init__(
        self,
        handler_producer: Callable[[Request, list[str]], WebSocketSessionHandler | None],
        *,
        response_headers: ResponseHeaders = (),
        **options: Unpack[SessionOptions],
    ) -> None:
        _check_producer(handler_producer)
        for name in SERVER_ONLY.intersection(options):
            raise TypeError(
                f"{name} is an option of the server: WebSocketServer(config=Config({name}=...))"
            )
        self.handler_producer = handler_producer
        self.options = options
        upgrade = getattr(gevent.getcurrent(), REQUEST_ATTRIBUTE, None)
        if upgrade is not None:
            upgrade.unused_handler = True
        self.response_headers = check_headers(response_headers)
        self._no_body = _NO_BODY
        Config().replace(**options)

    def __call__(
        self,
        environ: WSGIEnvironment | None = None,
        start_response: StartResponse | None = None,
    ) -> Iterable[bytes]:
        if environ is None or start_response is None:
            raise TypeError(f"a WebSocketHandler is called with (environ, start_response); {_HOW}")
        with hub_of_this_thread(environ):
            try:
                session = self._open(environ)
            except HandshakeError as error:
                return refusal_response(error)(environ, start_response)
            except HTTPException as error:
                return error.get_response(environ)(environ, start_response)
            try:
                session.run_inside(functools.partial(_is_dropped, environ, start_response))
            finally:
                forget_upgrade(environ)
        # Nothing of this is sent; it only satisfies frameworks that follow WSGI.
        start_response("101 Switching Protocols", [("Content-Type", "text/plain")])
        return []

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"a WebSocketHandler has no attribute {name!r}; {_HOW}")

    def __iter__(self) -> Any:
        text = f"a WebSocketHandler cannot be iterated over; {_HOW}"
        _logger.error(text)  # Bottle answers 500 and logs nothing
        raise TypeError(text)

    def _open(
        self,
        environ: WSGIEnvironment | None,
        request: Any = None,
        upgrade: Upgrade | None = None,
        fields: Mapping[str, Any] | None = None,
    ) -> OpenSession:
        """Accepts the upgrade that ``environ`` asks for.

        ``request``: a framework's request, which the producer and the session get instead of
        werkzeug's. What the producer raises is then left to the framework. ``upgrade``, with
        ``fields`` (the host and the origin) and a :func:`lazy_request`: an upgrade whose environ is
        made when it is read.

        Raises:
            HandshakeError: the upgrade is refused.
            werkzeug.exceptions.HTTPException: the producer raised it, or it failed (500).
        """
        is_inside = request is not None and upgrade is None
        try:
            if upgrade is None:
                assert environ is not None
                if request is None:
                    request = _LazyRequest(environ)
                upgrade = find_upgrade(environ)
                fields = environ
            assert fields is not None
            upgrade.unused_handler = False
            config = upgrade.config
            if self.options:
                config = config.replace(**self.options)
            if config.allowed_hosts is not None:
                check_host(fields, config.allowed_hosts)
            if "HTTP_ORIGIN" in fields:  # browsers have one
                origins = config.allowed_origins
                check_origin(fields, ("self",) if origins is None else origins)
            handler = self._produce(request, upgrade)
            headers: list[tuple[str, str]] = self.response_headers
            if more := getattr(handler, "response_headers", ()):
                headers = [*headers, *check_headers(more)]
            socket = upgrade.accept(handler.socket_protocol, config, request, headers)
        except HandshakeError as error:
            environ = request.environ if environ is None else environ
            if ENVIRON_KEY in environ:
                environ[ENVIRON_KEY].refusal_reason = error.reason
            log_refusal(environ, error)
            raise
        except HTTPException:
            raise
        except Exception as error:
            if is_inside:
                raise
            pending = upgrade if environ is None else environ.get(ENVIRON_KEY)
            if not isinstance(pending, Upgrade) or not pending.take_error(error):
                _logger.exception("cannot open a session for %r", request.path)
            raise InternalServerError from None
        return OpenSession(handler, request, socket)

    def _produce(self, request: Request, upgrade: Upgrade) -> WebSocketSessionHandler:
        offer = upgrade.offer
        try:
            handler = self.handler_producer(request, list(offer.protocols))
        except Exception:
            upgrade.leave_to_parent()
            raise
        upgrade.leave_to_parent()
        if handler is None:
            raise HandshakeError(
                "WebSocket protocols not supported.",
                reason="subprotocol",
                hint=f"The handler producer returned None, which means that no subprotocol fits; "
                f"the client offers {count_of(offer.protocols)}.",
            )
        if isinstance(handler, type) or not callable(getattr(handler, "handle_session", None)):
            raise not_a_handler(handler)
        return handler


def _check_producer(producer: Any) -> None:
    """
    Raises:
        TypeError: it cannot be called with a request and a list, or a call would not run it.
    """
    code = getattr(producer, "__code__", None)  # a view may make one in each request
    if code is not None and code in _checked_producers:
        return
    if isinstance(producer, type) and issubclass(producer, WebSocketSessionHandler):
        name = producer.__qualname__
        raise TypeError(
            "WebSocketHandler takes a function (request, protocols) that returns a session's "
            f"handler: WebSocketHandler(lambda request, protocols: {name}()), not the class {name}"
        )
    if isinstance(producer, WebSocketSessionHandler):
        raise TypeError(
            "WebSocketHandler takes a function (request, protocols) that makes a handler for each "
            f"session, not {producer!r}: WebSocketHandler(lambda request, protocols: "
            f"{type(producer).__qualname__}())"
        )
    what = "the producer of a WebSocketHandler, which returns a WebSocketSessionHandler,"
    check_function(producer, what, "request", "protocols")
    if code is not None:
        _checked_producers.add(code)


class _LazyRequest(Request):
    """A request that parses its environ at the first access to an attribute. The environ may also
    be dropped and made again at first access."""

    __slots__ = ("_environ", "_is_read", "_make")

    _environ: WSGIEnvironment | None
    _make: Callable[[], WSGIEnvironment] | None  # None once the environ is kept

    def __init__(self, environ: WSGIEnvironment | None, make: Any = None) -> None:
        self._environ = environ
        self._is_read = False
        if make is not None:
            self._make = make

    @property
    def environ(self) -> WSGIEnvironment:
        self._is_read = True
        if self._environ is None:
            assert self._make is not None
            self._environ = self._make()
        return self._environ

    @environ.setter
    def environ(self, environ: WSGIEnvironment) -> None:
        self._environ = environ

    def drop_environ(self, make: Callable[[], WSGIEnvironment]) -> None:
        """Drops the environ, unless it has been read. At the next access, ``make()`` makes a new
        one."""
        if self._is_read:
            self._make = None
        else:
            self._make = make
            self._environ = None

    def __getattr__(self, name: str) -> Any:
        # Only attributes that __init__ sets can be missing.
        if "headers" in self.__dict__:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        super().__init__(self.environ, populate_request=False)
        return getattr(self, name)


def lazy_request(make: Callable[[], WSGIEnvironment]) -> Request:
    """A request whose environ ``make()`` makes at the first access."""
    return _LazyRequest(None, make)


def routing_variables(request: Request) -> dict[str, Any]:
    """The variables of the URI; asking for them does not count as reading the environ."""
    environ = request._environ if type(request) is _LazyRequest else request.environ
    if environ is None:  # a route without variables
        return {}
    variables: dict[str, Any] = environ.get("wsgiorg.routing_args", ((), {}))[1]
    return variables


def drop_environ(request: Any, make: Callable[[], WSGIEnvironment]) -> None:
    """Makes the request of a session drop its environ, unless it has been read; ``make()`` makes
    a new one if it is read later."""
    if type(request) is _LazyRequest:
        request.drop_environ(make)


def end_session(socket: WebSocket, escaped: BaseException | None, log: bool = True) -> None:
    """Ends the connection of a session: with 1000 after a normal end, with 1011 after an error,
    which is logged if ``log`` is true. Call it once.

    Raises ``escaped`` again if that must end the greenlet or the process.
    """
    try:
        _close(socket, escaped, log)
    finally:
        if socket._pulse is not None:
            socket._pulse.stop()
        if socket._record is not None:
            socket._record.end()
            socket._record = None


def is_normal_end(escaped: BaseException | None) -> bool:
    """Whether ``escaped``, which escaped a session, is not a failure."""
    return escaped is None or isinstance(escaped, (ConnectionClosed, WebSocketError))


def log_failure(path: str, address: Any, escaped: BaseException) -> None:
    """Logs what escaped a session."""
    _logger.error("session failed: %r %s", path, address, exc_info=escaped)


def _close(socket: WebSocket, escaped: BaseException | None, log: bool) -> None:
    if is_normal_end(escaped):
        socket.close()
    elif isinstance(escaped, EXITS):
        socket._abandon(CloseCode.GOING_AWAY)
        raise escaped
    else:
        assert escaped is not None
        explain_missing_name(escaped)
        is_taken = socket._record is not None and socket._record.take_error(escaped)
        if log and not is_taken:
            path = "" if socket._record is None else socket._record.path
            path = path if socket.request is None else socket.request.path
            log_failure(path, socket.remote_address, escaped)
        if isinstance(escaped, HTTPException):
            _logger.warning(
                "%s raised in a session, too late for a response: %s", escaped, REFUSE_EARLIER
            )
        socket.close(CloseCode.INTERNAL_ERROR)


def _is_dropped(environ: WSGIEnvironment, start_response: Any, error: BaseException) -> bool:
    """Whether an ``error`` that escapes a session would not be logged: the server drops it, and
    there is no framework in between, which would have its own ``start_response``."""
    if ENVIRON_KEY in environ:
        return False  # UpgradeHandler logs it
    if "werkzeug.socket" in environ and _DEBUGGER in environ:
        return True  # werkzeug's debugger logs an error only when it has sent a page
    bound_to = getattr(start_response, "__self__", start_response)
    module = getattr(bound_to, "__module__", "") or ""
    if module == "werkzeug.serving":
        return isinstance(error, (ConnectionError, TimeoutError))
    return module.startswith("gunicorn.") and (
        isinstance(error, StopIteration)
        or (isinstance(error, OSError) and error.errno in _ERRNOS_OF_GONE_PEERS)
    )
