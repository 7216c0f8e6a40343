"""The WSGI server that upgrades: ``WebSocketServer``, and ``UpgradeHandler`` for any pywsgi server.

The upgrade is lazy. A request that no application could accept is refused here; any other goes to
the application with a pending ``Upgrade`` in its environ, and nothing is sent until somebody
accepts. Then nothing of HTTP is written to or read from that connection again, whatever the
application returns or raises.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import signal
import socket as native
import ssl
import time
from collections.abc import Iterator
from http.client import HTTPMessage
from typing import TYPE_CHECKING, Any

import gevent
import gevent.socket
import gevent.ssl
from gevent import getcurrent
from gevent.event import Event
from gevent.monkey import get_original
from gevent.pywsgi import WSGIHandler
from geventwebsocket.handler import Client
from geventwebsocket.handler import WebSocketHandler as _OriginalHandler
from geventwebsocket.server import WebSocketServer as _OriginalServer
from werkzeug.middleware.proxy_fix import ProxyFix

from ..config import Config
from ..exceptions import HandshakeError, RequestError
from ..http.head import RequestHead, refuse
from ..http.stream import HttpStream, RequestBody
from ..hub.transport import FOREVER
from ..protocol.handshake import Offer, is_upgrade, parse_request
from ..session import (
    ENVIRON_KEY,
    Upgrade,
    WebSocketSessionHandler,
    end_session,
    refusal,
    run_session,
)
from ..stats import ServerStats
from ..websocket import WebSocket
from .admission import TOO_MANY, Admission
from .gevent_websocket import GeventWebSocket
from .opening import Opening, ServerUpgrade, is_direct, make_environ, remote_address

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication
    from werkzeug import Request

__all__ = ["UpgradeHandler", "WebSocketServer"]


_logger = logging.getLogger("greenws.server")

_ACCEPT_PAUSE = 0.1  # seconds without accepting when the process has run out of something
_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_NativeSocket = get_original("socket", "SocketType")


class UpgradeHandler(_OriginalHandler):  # type: ignore[misc]
    """A ``handler_class`` for ``gevent.pywsgi.WSGIServer``, in gevent-websocket's place."""

    eager = False
    """Whether to accept before the application is called, as gevent-websocket does: for an
    application that waits for something else before it uses its socket."""

    config = Config()
    """The limits of the sessions of a server that is not a :class:`WebSocketServer`."""

    websocket: Any = None
    _upgrade: Upgrade | None = None
    _head: RequestHead | None = None
    _headers: Any = None
    _deadline: float | None = None
    client_address: Any
    _opening: Opening | None = None

    def __init__(self, sock: Any, address: Any, server: Any, rfile: Any = None) -> None:
        config = getattr(server, "config", self.config)
        super().__init__(sock, address, server, rfile or HttpStream(sock, config))
        if config.handshake_timeout is not None:
            self._deadline = time.monotonic() + config.handshake_timeout

    def continue_from(self, opening: Opening) -> None:
        """Serves the request that ``opening`` has begun to read."""
        self._opening = opening
        self._deadline = None if opening.deadline == FOREVER else opening.deadline

    # -- reading requests, in the place of pywsgi's own parser

    def handle_one_request(self) -> bool | None:
        """Reads a request and answers it; True if another may follow on this connection."""
        if self.rfile.closed:
            return None
        self.response_length = 0
        try:
            head = self._read_head()
        except RequestError as error:
            self._refuse_request(error)
            return None
        except OSError:
            return None
        if head is None:
            return None
        self._head = head
        self._headers = None
        self.command, self.path, self.request_version = head.method, head.target, head.version
        self.requestline = head.line
        self.content_length = head.content_length
        self.close_connection = not head.keep_alive or self._is_stopping
        self.environ = self.get_environ()
        self.application = self.server.application
        if self._opening is not None and self._opening.answer is not None:
            self.application = self._opening.answer
        self.handle_one_response()
        self._opening = None
        if self.socket is None or self.rfile.closed:
            return None
        if self.wsgi_input.ends_the_connection:
            self.rfile.linger()
            return None
        return None if self.close_connection else True

    def _read_head(self) -> RequestHead | None:
        deadline, self._deadline = self._deadline, None
        idle: float | None = self.rfile.config.keep_alive_timeout
        if idle is not None:
            idle += time.monotonic()
        head: RequestHead | None = self.rfile.read_head(deadline, idle)
        return head

    def _refuse_request(self, error: RequestError) -> None:
        self.log_error("%s", f"(from {self.client_address}) {error.status}: {str(error)!r}")
        sock: Any = self.socket
        try:
            sock.sendall(refuse(error))
        except OSError:
            return
        self.rfile.linger()

    def get_environ(self) -> dict[str, Any]:
        """The environ of the request, as pywsgi builds it."""
        head = self._head
        assert head is not None
        environ = make_environ(self.server, self.client_address, head)
        expects = environ.get("HTTP_EXPECT", "").lower() == "100-continue"
        body = RequestBody(self.rfile, head, self.socket if expects else None)
        self.wsgi_input = environ["wsgi.input"] = body
        return environ

    @property
    def _is_stopping(self) -> bool:
        return bool(getattr(self.server, "is_stopping", False))

    @property
    def remote_address(self) -> Any:
        """The client's address; port 0 where proxies that are trusted say who the client is."""
        return remote_address(self.environ or {}, self.client_address)

    def handle_one_response(self) -> None:
        admission = getattr(self.server, "admission", None)
        if admission is None:
            super().handle_one_response()
            return
        admission.begin_work()
        try:
            super().handle_one_response()
        finally:
            admission.end_work()

    def format_request(self) -> str:
        peer, self.client_address = self.client_address, self.remote_address
        try:
            line: str = super().format_request()
        finally:
            self.client_address = peer
        return line

    @property
    def headers(self) -> Any:
        """The request's headers, as pywsgi has them, for subclasses that look."""
        if self._headers is None:
            self._headers = HTTPMessage()
            for name, value in self._head.headers if self._head is not None else ():
                self._headers[name.decode("ascii")] = value.decode("latin-1")
        return self._headers

    def _sendall(self, data: bytes | bytearray) -> None:
        try:
            super()._sendall(data)
        except ssl.SSLError as error:
            # The client is gone, which pywsgi passes over in silence for plain connections only.
            raise ConnectionResetError(errno.ECONNRESET, str(error)) from None

    # -- upgrading

    def run_application(self) -> None:
        hook = getattr(self.server, "pre_start_hook", None)
        if not is_upgrade(self.environ) or (hook and hook(self)):
            WSGIHandler.run_application(self)
            return
        try:
            upgrade = self._upgrade = _HandlerUpgrade(parse_request(self.environ), self)
        except HandshakeError as error:
            self._count_refusal(error.reason)
            self._refuse(error)
            return
        self.websocket = GeventWebSocket(upgrade, self.environ, self)
        self.environ[ENVIRON_KEY] = upgrade
        self.environ["wsgi.websocket"] = self.websocket
        self.environ["wsgi.websocket_version"] = "13"
        clients = self._clients()
        key = self._client_key
        clients[key] = Client(self.client_address, self.websocket)
        try:
            self._run_upgrade(upgrade)
        except HandshakeError as error:
            upgrade.refusal = error.reason
            self._refuse(error)
        finally:
            del clients[key]
            # The socket knows its request, and that the environ: a cycle.
            self.environ.pop(ENVIRON_KEY, None)
            upgrade.forget()
            self.environ["wsgi.websocket"] = None
            self.websocket.environ = None
            self.websocket = None
            if upgrade.socket is None:
                self._upgrade = None
                told = self._opening.refusal if self._opening is not None else upgrade.refusal
                self._count_refusal(told or "application")
                upgrade.release()

    def _run_upgrade(self, upgrade: Upgrade) -> None:
        prevented = getattr(self, "prevent_wsgi_call", False)
        if self.eager or prevented:
            self.websocket.socket  # noqa: B018 - accepts
        escaped: BaseException | None = None
        try:
            if not prevented:
                WSGIHandler.run_application(self)
        except BaseException as error:
            if upgrade.socket is None:
                raise
            escaped = error
        if upgrade.socket is None and self.status is None:
            # Neither used nor answered: gevent-websocket's applications have it accepted all the
            # same.
            self.websocket.socket  # noqa: B018 - accepts
        if upgrade.socket is not None:
            try:
                end_session(upgrade.socket, escaped)
            finally:
                escaped = None

    def _count_refusal(self, reason: str) -> None:
        stats = getattr(self.server, "stats", None)
        if stats is not None:
            stats.refused[reason] += 1

    def _refuse(self, error: HandshakeError) -> None:
        # Whatever follows a refused handshake may be meant for a WebSocket, or be its body.
        self.close_connection = True
        self.wsgi_input.drop()
        self.application = refusal(error)
        WSGIHandler.run_application(self)

    def _clients(self) -> dict[Any, Client]:
        """gevent-websocket's register of the open sockets of a server."""
        if not hasattr(self.server, "clients"):
            self.server.clients = {}
        clients: dict[Any, Client] = self.server.clients
        return clients

    @property
    def _client_key(self) -> Any:
        # The clients of a unix socket have no address to tell them by.
        return self.client_address or id(self)

    @property
    def active_client(self) -> Client:
        return self._clients()[self._client_key]

    @property
    def _is_upgraded(self) -> bool:
        return self._upgrade is not None and self._upgrade.socket is not None

    @property
    def _is_beside_the_socket(self) -> bool:
        """Whether what the application returns means nothing: it has upgraded, or it was asked to
        and has not begun an HTTP response."""
        return self._is_upgraded or (self._upgrade is not None and self.status is None)

    def start_response(self, status: str, headers: Any, exc_info: Any = None) -> Any:
        if self._is_upgraded:
            return self.write
        return WSGIHandler.start_response(self, status, headers, exc_info)

    def write(self, data: bytes) -> None:
        if self._is_beside_the_socket:
            return
        WSGIHandler.write(self, data)

    def process_result(self) -> None:
        if self._is_beside_the_socket and not hasattr(self.result, "__iter__"):
            return
        WSGIHandler.process_result(self)

    def finalize_headers(self) -> None:
        # Both are hop by hop, so the server's to set and not the application's.
        connection = []
        if self.code == 426:  # RFC 9110, 15.5.22
            self.response_headers.append((b"Upgrade", b"websocket"))
            connection.append(b"Upgrade")
        if self.close_connection or self.wsgi_input.ends_the_connection:
            connection.append(b"close")
        if connection and not any(
            name.lower() == b"connection" for name, _ in self.response_headers
        ):
            self.response_headers.append((b"Connection", b", ".join(connection)))
        WSGIHandler.finalize_headers(self)

    def log_request(self) -> None:
        if not self._is_upgraded:
            WSGIHandler.log_request(self)


def _green(sock: Any) -> Any:
    """The gevent socket of a connection that was accepted without one."""
    if isinstance(sock, _NativeSocket):
        return gevent.socket.socket(sock.family, sock.type, sock.proto, sock.detach())
    return sock


class _Greenlet(gevent.Greenlet):  # type: ignore[type-arg]
    """Keeps no record of where it was spawned, which would be the same for every connection, and no
    dictionary for what it runs."""

    spawning_stack_limit = 0

    def __init__(self, serve: Any, sock: Any, address: Any) -> None:
        super().__init__(None, serve, sock, address)  # type: ignore[call-overload]

    def _run(self, serve: Any, sock: Any, address: Any) -> None:
        serve(sock, address)


class _Client:
    """What ``server.clients`` knows of a session without a handler.

    It looks like gevent-websocket's ``Client``, and its ``ws`` finds in it what it looks for in a
    handler.
    """

    __slots__ = ("_socket", "_ws", "address", "server")

    def __init__(self, server: Any, address: Any, socket: WebSocket) -> None:
        self.server = server
        self.address = address
        self._socket = socket
        self._ws: GeventWebSocket | None = None

    @property
    def ws(self) -> GeventWebSocket:
        """gevent-websocket's face of the socket, made when somebody asks for it."""
        if self._ws is None:
            upgrade = Upgrade(Offer("", []), Config())  # accepted long ago
            upgrade.socket = self._socket
            assert self._socket.request is not None
            self._ws = GeventWebSocket(upgrade, self._socket.request.environ, self)
        return self._ws

    @property
    def application(self) -> Any:
        return self.server.application

    @property
    def client_address(self) -> Any:
        return self.address

    @property
    def active_client(self) -> _Client:
        return self


class _HandlerUpgrade(ServerUpgrade):
    """The upgrade of the request that an ``UpgradeHandler`` is at."""

    def __init__(self, offer: Offer, handler: UpgradeHandler) -> None:
        server: Any = handler.server
        config = getattr(server, "config", handler.config)
        super().__init__(offer, config, server, handler.environ, handler.path)
        self._handler: Any = handler  # None once the request is over

    def forget(self) -> None:
        self._handler = None

    def _take_socket(self) -> tuple[Any, bytes, bool]:
        handler = self._handler
        if handler.headers_sent:
            raise RuntimeError("the application has begun an HTTP response; too late to upgrade")
        early = handler.rfile.take()
        handler.rfile.close()
        handler.close_connection = True
        return handler.socket, early, False

    def _remote_address(self) -> Any:
        return self._handler.remote_address


class WebSocketServer(_OriginalServer):  # type: ignore[misc]
    """A ``gevent.pywsgi.WSGIServer`` whose requests may become WebSockets.

    ``WebSocketServer(("127.0.0.1", 8181), app).serve_forever()`` serves any WSGI application.
    ``config`` sets the limits of its sessions. ``trusted_proxies`` says how many proxies stand in
    front of it, whose ``X-Forwarded-For``, ``-Proto`` and ``-Host`` are believed; 0, and those
    headers mean nothing. Everything else (``log``, ``certfile``, ``keyfile``, ``ssl_context``,
    ``spawn``, ``pre_start_hook``...) is as in ``WSGIServer`` and gevent-websocket.

    Raises:
        TypeError, ValueError: an option makes no sense.
    """

    handler_class = UpgradeHandler
    _spawn = _Greenlet.spawn

    stats: ServerStats
    """What has happened since it was made, in numbers."""

    def __init__(
        self,
        listener: Any,
        application: WSGIApplication | None = None,
        *args: Any,
        config: Config | None = None,
        trusted_proxies: int = 0,
        **kwargs: Any,
    ) -> None:
        self.config = config or Config()
        self.stats = ServerStats()
        self.admission = Admission(self.config)
        self.proxy_fix = _make_proxy_fix(trusted_proxies)
        self._exhausted = False
        self._full = False
        self._stopping: Event | None = None
        _prepare_tls(kwargs)
        super().__init__(listener, application, *args, **kwargs)

    def do_read(self) -> Any:
        """Accepts a connection; None if there is none, or nothing left to accept it with."""
        try:
            accepted = self._accept() if self._is_bare else super().do_read()
        except OSError as error:
            if error.errno not in _EXHAUSTED:
                raise
            if not self._exhausted:
                _logger.error("cannot accept connections for the time being: %s", error)
                self._exhausted = True
            # The listener stays readable: without a pause this would be a busy loop.
            self.stop_accepting()
            self._timer = self.loop.timer(_ACCEPT_PAUSE)
            self._timer.start(self._start_accepting_if_started)
            return None
        if accepted and self._exhausted:
            self._exhausted = False
            _logger.warning("accepting connections again")
        return accepted

    def _accept(self) -> Any:
        """A connection without gevent's socket around it, which its transport does not need."""
        try:
            descriptor, address = self.socket._accept()
        except BlockingIOError:
            return None
        return _NativeSocket(self.socket.family, native.SOCK_STREAM, 0, descriptor), address

    @property
    def _is_bare(self) -> bool:
        return not self.ssl_args and type(self).handle is WebSocketServer.handle and self._is_direct

    @property
    def _is_direct(self) -> bool:
        """Whether a connection needs no HTTP handler to open a session."""
        return (
            is_direct(self.application)
            and self.handler_class is UpgradeHandler
            and not UpgradeHandler.eager
            and self._spawn is not None  # it may block
            and not self.pre_start_hook
        )

    def wrap_socket_and_handle(self, client_socket: Any, address: Any) -> None:
        """Shakes hands for TLS, within ``handshake_timeout``; the handler closes the socket."""
        timeout = self.config.handshake_timeout
        try:
            with gevent.Timeout(timeout, TimeoutError(f"no TLS within {timeout} s")):
                sock = self.wrap_socket(client_socket, **self.ssl_args)
        except OSError as error:  # scanners, plain HTTP, a certificate that is not trusted
            _logger.info("no TLS with %s: %s", address, error)
            return
        self.handle(sock, address)

    def do_handle(self, sock: Any, address: Any) -> None:
        """Has a greenlet serve a connection."""
        if self._spawn is None:
            self._admit(sock, address)
            return
        try:
            self._spawn(self._admit, sock, address)
        except BaseException:
            sock.close()
            raise

    def address_of(self, address: Any) -> str | None:
        """By what the connections of an address are counted; None if not by that of the peer."""
        return address[0] if isinstance(address, tuple) and self.proxy_fix is None else None

    def _admit(self, sock: Any, address: Any) -> None:
        """Serves a connection, unless there are too many."""
        admission = self.admission
        counted = self.address_of(address)
        reason = admission.enter(counted)
        greenlet = getcurrent()
        try:
            if reason:
                self._turn_away(sock, reason)
                return
            self._full = False
            admission.greenlets.add(greenlet)
            if self.ssl_args:
                self.wrap_socket_and_handle(sock, address)
            else:
                self.handle(sock, address)
        finally:
            if not reason:
                admission.greenlets.discard(greenlet)
                admission.leave(counted)
            sock.close()

    def _turn_away(self, sock: Any, reason: str) -> None:
        self.stats.refused[reason] += 1
        if reason == "connections" and not self._full:
            self._full = True
            _logger.warning("%s", TOO_MANY[reason])
        if not self.ssl_args:  # there, the answer would cost a handshake
            with contextlib.suppress(OSError), _green(sock) as green:
                green.sendall(refuse(RequestError(TOO_MANY[reason], 503)))
                HttpStream(green, self.config).linger()

    def handle(self, sock: Any, address: Any) -> None:
        """Serves a connection."""
        session = self._open(sock, address)
        if session is not None:  # what led to it is gone from the stack
            self._run_session(session, address)

    def _open(self, sock: Any, address: Any) -> Any:
        """Opens a session without an HTTP handler; or serves HTTP to the end, and returns None."""
        if not self._is_direct:
            self.handler_class(_green(sock), address, self).handle()
            return None
        opening = Opening(self, sock, address)
        try:
            session = opening.open()
        except BaseException:
            opening.transport.close()
            raise
        if session is None:
            sock = _green(opening.transport.detach())
            stream = HttpStream(sock, self.config, opening.received)
            handler = UpgradeHandler(sock, address, self, stream)
            handler.continue_from(opening)
            handler.handle()
        return session

    def _run_session(
        self, session: tuple[WebSocketSessionHandler, Request, WebSocket], address: Any
    ) -> None:
        handler, request, socket = session
        client = _Client(self, address, socket)
        key = address or id(client)
        self.clients[key] = client
        self.admission.begin_work()
        try:
            run_session(handler, request, socket)
        finally:
            self.admission.end_work()
            if self.clients.get(key) is client:
                del self.clients[key]

    # -- stopping

    @property
    def is_stopping(self) -> bool:
        """Whether ``stop()`` is at work: no upgrade is accepted, no connection kept alive."""
        return self._stopping is not None

    def stop(self, timeout: float | None = None, *, grace: float | None = None) -> None:
        """Stops accepting, and closes every session with 1001; blocks until all of them and all
        requests have ended, and ends by force what has not within ``grace`` seconds.

        ``timeout`` is what gevent calls ``grace``; without either it is ``shutdown_grace``.
        """
        if self._stopping is not None:  # another greenlet is at it
            self._stopping.wait()
            return
        if grace is None:
            grace = self.config.shutdown_grace if timeout is None else timeout
        stopping = self._stopping = Event()
        try:
            self.close()
            for socket in self.stats.open_sockets:
                socket.start_closing(1001)
            if not self.admission.wait_until_quiet(grace):
                _logger.warning(
                    "%d requests and sessions did not end within %g s (shutdown_grace)",
                    self.admission.busy,
                    grace,
                )
            self.admission.end_all()
            super().stop(0)
        finally:
            self._stopping = None
            stopping.set()

    def serve_forever(
        self, stop_timeout: float | None = None, *, handle_signals: bool = True
    ) -> None:
        """Serves until :meth:`stop` is called, or SIGTERM or SIGINT comes; then returns.

        The first signal stops as :meth:`stop` does, with ``stop_timeout`` as its grace; a second
        ends the process at once. ``handle_signals=False`` leaves signals alone, and so does a
        server outside the main thread; a signal that the program handles itself is left to it.
        """
        with _signals(self, stop_timeout) if handle_signals else contextlib.nullcontext():
            super().serve_forever(stop_timeout)


@contextlib.contextmanager
def _signals(server: WebSocketServer, grace: float | None) -> Iterator[None]:
    """Stops ``server`` at the first SIGTERM or SIGINT; the second has its default effect."""
    before = {}
    watchers: list[Any] = []

    def stop(number: int) -> None:
        _logger.info("%s: stopping", signal.Signals(number).name)
        forget()
        server.stop(grace)

    def forget() -> None:
        # With the last watcher of a signal its default action is back, without Python in between.
        while watchers:
            watchers.pop().cancel()

    if gevent.get_hub().loop.default:  # no other gets signals
        for number in (signal.SIGTERM, signal.SIGINT):
            if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
                before[number] = signal.getsignal(number)
                watchers.append(gevent.signal_handler(number, stop, number))
    try:
        yield
    finally:
        forget()
        for number, action in before.items():
            signal.signal(number, action)


def _make_proxy_fix(hops: int) -> ProxyFix | None:
    """What rewrites an environ by the headers of ``hops`` proxies."""
    if isinstance(hops, bool) or not isinstance(hops, int) or hops < 0:
        raise ValueError(
            f"trusted_proxies is the number of proxies in front of the server, not {hops!r}"
        )
    if hops == 0:
        return None
    return ProxyFix(lambda environ, start_response: [], hops, hops, hops)


def _prepare_tls(options: dict[str, Any]) -> None:
    """Makes the context that ``certfile`` and ``keyfile`` ask for, and has it speak HTTP/1.1."""
    if "certfile" in options and "ssl_context" not in options:
        context = gevent.ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(options.pop("certfile"), options.pop("keyfile", None))
        options["ssl_context"] = context
    if "ssl_context" in options:
        if not isinstance(options["ssl_context"], gevent.ssl.SSLContext):
            raise TypeError(
                "ssl_context must be a gevent.ssl.SSLContext: one of Python's own would stop all "
                f"greenlets for each handshake; not {options['ssl_context']!r}"
            )
        options["ssl_context"].set_alpn_protocols(["http/1.1"])
