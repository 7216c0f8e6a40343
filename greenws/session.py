"""From a request to a running session: ``WebSocketHandler`` is the WSGI application that upgrades.

``Upgrade`` is a handshake that nobody has answered yet. A server that knows greenws puts one into
the environ; elsewhere one is made from the raw socket, where the server hands that over.
"""

from __future__ import annotations

import contextlib
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import gevent
from gevent._hub_local import get_hub_if_exists
from geventwebsocket.exceptions import WebSocketError
from werkzeug import Request, Response
from werkzeug.exceptions import HTTPException, InternalServerError

from .config import SERVER_ONLY, Config
from .exceptions import ConnectionClosed, HandshakeError
from .hub.polling import drop_poller
from .hub.transport import Transport
from .keepalive import start_pulse
from .protocol.deflate import Deflate, accept_offer
from .protocol.handshake import Offer, accept_response, parse_request
from .protocol.origin import check_origin
from .stats import SessionRecord
from .websocket import WebSocket

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

__all__ = [
    "ENVIRON_KEY",
    "Upgrade",
    "WebSocketHandler",
    "WebSocketSessionHandler",
    "end_session",
    "refusal",
    "run_session",
    "take_read_ahead",
]

ENVIRON_KEY = "greenws.upgrade"

_logger = logging.getLogger("greenws.session")


class WebSocketSessionHandler(ABC):
    """One session. Its greenlet runs :meth:`handle_session`; the connection ends with it."""

    socket_protocol: str | None = None
    """The subprotocol that this session speaks. A client that does not offer it is refused."""

    @abstractmethod
    def handle_session(self, request: Request, socket: WebSocket) -> None:
        """Reads from and writes to ``socket``, in plain blocking calls.

        When it returns, the socket is closed with 1000. ConnectionClosed may escape it: that is a
        normal end. Any other exception is logged, and closes with 1011.
        """


class Upgrade:
    """A client's handshake, until somebody accepts it. ``socket`` is None before that."""

    def __init__(self, offer: Offer, config: Config) -> None:
        self.offer = offer
        self.config = config
        self.socket: WebSocket | None = None
        self.refusal = ""  # why it was refused, for a counter

    def accept(
        self,
        subprotocol: str | None = None,
        config: Config | None = None,
        request: Request | None = None,
    ) -> WebSocket:
        """Sends 101 and returns the open socket. Does not switch.

        Raises:
            HandshakeError: the client does not offer ``subprotocol``; nothing was sent.
            RuntimeError: it was accepted before.
        """
        if self.socket is not None:
            raise RuntimeError("this WebSocket was accepted already")
        config = config or self.config
        agreed = accept_offer(self.offer.extensions, config)
        response = accept_response(self.offer, subprotocol, agreed)
        transport, early, borrowed = self._take_transport(config)
        self.socket = WebSocket(
            transport,
            config,
            deflate=None if agreed is None else Deflate(agreed, config),
            early=early,
            corking=not borrowed,
            subprotocol=subprotocol,
            request=request,
            remote_address=self._remote_address(),
        )
        transport.send(response)
        transport.sent = 0  # that was HTTP
        start_pulse(self.socket, transport.hub, config)
        self.socket.record = self._record(self.socket, config)
        return self.socket

    def _record(self, socket: WebSocket, config: Config) -> SessionRecord:
        return SessionRecord(socket, "", config)

    def _take_transport(self, config: Config) -> tuple[Transport, bytes, bool]:
        """The transport, what was read from it behind the handshake, and whether it is borrowed."""
        sock, early, borrowed = self._take_socket()
        transport = Transport(
            sock, gevent.get_hub(), config.write_high_water, config.write_timeout, borrowed
        )
        return transport, early, borrowed

    def _take_socket(self) -> tuple[Any, bytes, bool]:
        """The socket, what was read from it behind the handshake, and whether it is borrowed."""
        raise NotImplementedError

    def _remote_address(self) -> Any:
        raise NotImplementedError


class _SocketUpgrade(Upgrade):
    """An upgrade on a server that hands over its raw socket, with a thread for each session."""

    def __init__(self, offer: Offer, config: Config, sock: Any, environ: WSGIEnvironment) -> None:
        super().__init__(offer, config)
        self._sock = sock
        self._environ = environ

    def _take_socket(self) -> tuple[Any, bytes, bool]:
        source = self._environ["wsgi.input"]
        unreader = getattr(getattr(source, "reader", None), "unreader", None)
        if unreader is not None:  # gunicorn
            early = bytes(unreader.buf.getvalue())
        else:
            early = take_read_ahead(source, self._sock)
        return self._sock, early, True

    def _record(self, socket: WebSocket, config: Config) -> SessionRecord:
        path = self._environ.get("SCRIPT_NAME", "") + self._environ.get("PATH_INFO", "")
        return SessionRecord(socket, path, config)

    def _remote_address(self) -> Any:
        with contextlib.suppress(OSError):  # the client is gone already; the first read says so
            return self._sock.getpeername()
        return None


class WebSocketHandler:
    """A WSGI application that upgrades its requests and runs a session on each.

    ``handler_producer(request, protocols)`` gets the request (``werkzeug.Request``) and the
    subprotocols that the client offers, and returns the session's handler. None refuses with 400;
    a ``werkzeug`` ``HTTPException`` (``abort(401)``) that it raises becomes that HTTP response.

    ``options`` are those of :class:`greenws.Config` that this handler's sessions have otherwise
    than their server.

    Raises:
        TypeError: the producer is not callable, or an option does not exist.
        ValueError: an option makes no sense.
    """

    def __init__(
        self,
        handler_producer: Callable[[Request, list[str]], WebSocketSessionHandler | None],
        **options: Any,
    ) -> None:
        if not callable(handler_producer):
            raise TypeError(
                "WebSocketHandler takes a function (request, protocols) that returns a "
                f"WebSocketSessionHandler, not {handler_producer!r}"
            )
        for name in SERVER_ONLY.intersection(options):
            raise TypeError(f"{name} is the server's: WebSocketServer(config=Config({name}=...))")
        self.handler_producer = handler_producer
        self.options = options
        Config().replace(**options)

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        with _hub_of_this_thread(environ):
            opened = self.open(environ)
            if not isinstance(opened, tuple):
                return opened(environ, start_response)
            run_session(*opened)
        # Nothing of this is sent; frameworks that wait for it get what WSGI demands.
        start_response("101 Switching Protocols", [])
        return []

    def open(
        self, environ: WSGIEnvironment
    ) -> tuple[WebSocketSessionHandler, Request, WebSocket] | WSGIApplication:
        """Accepts the upgrade, and returns the arguments of :func:`run_session`; or else the
        response that refuses it."""
        request = _LazyRequest(environ)
        try:
            upgrade = _find_upgrade(environ)
            config = upgrade.config
            if self.options:
                config = config.replace(**self.options)
            check_origin(environ, config.allowed_origins or ("self",))
            handler = self._produce(request, upgrade.offer)
            return handler, request, upgrade.accept(handler.socket_protocol, config, request)
        except HandshakeError as error:
            if ENVIRON_KEY in environ:
                environ[ENVIRON_KEY].refusal = error.reason
            return refusal(error)
        except HTTPException as error:
            return error.get_response(environ)
        except Exception:
            _logger.exception("cannot open a session for %r", request.path)
            return InternalServerError()

    def _produce(self, request: Request, offer: Offer) -> WebSocketSessionHandler:
        handler = self.handler_producer(request, list(offer.protocols))
        if handler is None:
            if not offer.protocols:  # so it may have meant something else by None
                _logger.info(
                    "%r is refused with 400: its handler producer returned None, which says that "
                    "no subprotocol fits; the client offers none",
                    request.path,
                )
            raise HandshakeError("WebSocket protocols not supported.", reason="subprotocol")
        if not callable(getattr(handler, "handle_session", None)):
            raise TypeError(
                "the handler producer must return a WebSocketSessionHandler or None, "
                f"not {handler!r}"
            )
        return handler


class _LazyRequest(Request):
    """A request that takes its environ apart when it is first asked something."""

    def __init__(self, environ: WSGIEnvironment) -> None:
        self.environ = environ

    def __getattr__(self, name: str) -> Any:
        # Nothing but what __init__ sets is missing from an instance.
        if "headers" in self.__dict__:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        super().__init__(self.environ, populate_request=False)
        return getattr(self, name)


def run_session(handler: WebSocketSessionHandler, request: Request, socket: WebSocket) -> None:
    """Runs a session to its end, which is :func:`end_session`."""
    escaped: BaseException | None = None
    try:
        handler.handle_session(request, socket)
    except BaseException as error:
        escaped = error
    try:
        end_session(socket, escaped)
    finally:
        escaped = None  # its traceback knows this frame: a cycle


def end_session(socket: WebSocket, escaped: BaseException | None) -> None:
    """Ends the connection of a session: 1000 after a normal end, 1011 after an error, logged once.

    Raises ``escaped`` again if it is meant to end the greenlet or the process.
    """
    try:
        _close(socket, escaped)
    finally:
        if socket.pulse is not None:
            socket.pulse.stop()
        if socket.record is not None:
            socket.record.end()
            socket.record = None


def _close(socket: WebSocket, escaped: BaseException | None) -> None:
    if escaped is None or isinstance(escaped, (ConnectionClosed, WebSocketError)):
        socket.close()
    elif isinstance(escaped, (gevent.GreenletExit, KeyboardInterrupt, SystemExit)):
        socket.abandon(1001)
        raise escaped
    else:
        path = socket.request.path if socket.request is not None else ""
        _logger.error("a session failed: %r %s", path, socket.remote_address, exc_info=escaped)
        socket.close(1011)


def refusal(error: HandshakeError) -> WSGIApplication:
    """The HTTP response to a handshake that cannot be accepted: one line of text."""
    return Response(f"{error}\n", error.status, error.headers, content_type="text/plain")


def take_read_ahead(rfile: Any, sock: Any) -> bytes:
    """What stands in the buffer of ``rfile``, a reader over ``sock``, without blocking."""
    timeout = sock.gettimeout()
    sock.settimeout(0.0)
    try:
        # peek() asks the socket only if its buffer is empty, and then takes what is there.
        with contextlib.suppress(OSError):
            return bytes(rfile.read(len(rfile.peek(1))))
        return b""
    finally:
        sock.settimeout(timeout)


def _find_upgrade(environ: WSGIEnvironment) -> Upgrade:
    """The upgrade that ``environ`` asks for.

    Raises:
        HandshakeError: it asks for none, or not as it must; 501 if the server hands over no socket.
    """
    upgrade = environ.get(ENVIRON_KEY)
    if isinstance(upgrade, Upgrade):
        if upgrade.socket is not None:
            raise RuntimeError("this request was upgraded already")
        return upgrade
    offer = parse_request(environ)
    sock = environ.get("gunicorn.socket") or environ.get("werkzeug.socket")
    if sock is None:
        software = environ.get("SERVER_SOFTWARE") or "this server"
        advice = (
            "give it handler_class=greenws.UpgradeHandler, or run greenws.WebSocketServer"
            if software.startswith("gevent/") and "gunicorn" not in software
            else "run greenws.WebSocketServer, gunicorn (gevent or gthread workers) or 'flask run'"
        )
        message = f"No WebSocket here: {software} hands over no socket; {advice}."
        _logger.error("%s", message)
        raise HandshakeError(message, 501)
    return _SocketUpgrade(offer, Config(), sock, environ)


@contextlib.contextmanager
def _hub_of_this_thread(environ: WSGIEnvironment) -> Iterator[None]:
    """Takes the hub of a server's thread down with the session for which it was made."""
    had_hub = ENVIRON_KEY in environ or get_hub_if_exists() is not None
    try:
        yield
    finally:
        if not had_hub:
            hub = get_hub_if_exists()
            if hub is not None:
                drop_poller(hub)
                hub.destroy()
