"""``WebSocketServer``: a ``gevent.pywsgi.WSGIServer`` whose requests may become WebSockets."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket as native
import ssl
import sys
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import gevent
import gevent.ssl
from gevent import getcurrent
from gevent.event import Event
from gevent.monkey import get_original
from geventwebsocket.server import WebSocketServer as _OriginalServer
from werkzeug.middleware.proxy_fix import ProxyFix

from ..checks import Hint, check_application, check_number, check_registrations, check_result
from ..config import Config
from ..exceptions import RequestError
from ..http.head import error_response
from ..http.stream import HttpStream
from ..hub import syscalls
from ..hub.polling import begin_session, begin_visit, current_process
from ..hub.sockets import OwnedSocket
from ..hub.transport import TCP_FAMILIES, Accepted, accept, no_delay
from ..session import OpenSession, end_session
from ..stats import ServerStats
from ..surroundings import log_form, warn_drivers, warn_unpatched
from .admission import TOO_MANY, Admission
from .balance import Share
from .closing import drain_sessions
from .files import FileWrapper
from .handler import UpgradeHandler
from .opening import DirectClient, Opening, is_direct
from .options import (
    check_config,
    check_listener,
    check_options,
    load_certificates,
    prepare_tls,
)
from .serving_thread import ServingThread
from .signals import stop_at_signals

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication
    from typing_extensions import Unpack

    from ..options import ServerOptions

__all__ = ["ConnectionGreenlet", "WebSocketServer"]


_logger = logging.getLogger("greenws.server")

_ACCEPT_PAUSE = 0.1  # seconds without accepting when the process has run out of resources
_SHARE_PAUSE = 0.001  # seconds without accepting when other processes have fewer connections
_MAX_TURNED_AWAY = 100  # connections that get a 503 at a time; others are closed at once
_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_THREAD_TIMEOUT = 5.0  # seconds more than it needs, for a thread that is asked to stop its server
_NativeSocket = get_original("socket", "SocketType")


def _green(sock: Any) -> Any:
    """The gevent socket of a connection that was accepted without one."""
    if isinstance(sock, (Accepted, _NativeSocket)):
        return OwnedSocket(sock.family, sock.type, sock.proto, sock.detach())
    return sock


class ConnectionGreenlet(gevent.Greenlet):  # type: ignore[type-arg]
    """Runs ``admit``, a bound method of a server. To save memory, it does not record where it was
    spawned, which is the same for every connection, and has no dictionary."""

    __slots__ = ()

    spawning_stack_limit = 0
    # gevent deletes the attribute when the greenlet ends; without a deleter that costs an error.
    _run = property(begin_session, None, id)  # type: ignore[arg-type]

    def __init__(self, admit: Any, *args: Any) -> None:
        super().__init__(None, admit.__self__, *args)  # type: ignore[call-overload]


class _BatchGreenlet(ConnectionGreenlet):
    """A ``ConnectionGreenlet`` for ``_visit``, with the constructor of ``gevent.Greenlet``, which
    is in C, and that class's arguments."""

    __slots__ = ()

    _run = property(begin_visit, None, id)  # type: ignore[arg-type]
    __init__ = gevent.Greenlet.__init__


class WebSocketServer(_OriginalServer):  # type: ignore[misc]
    """A ``gevent.pywsgi.WSGIServer`` whose requests may become WebSockets.

    ``WebSocketServer(("127.0.0.1", 8181), app).serve_forever()`` serves any WSGI application.
    ``config`` sets the limits of its sessions. ``trusted_proxies`` is the number of proxies in
    front of it whose ``X-Forwarded-For``, ``-Proto`` and ``-Host`` are trusted; with 0 these
    headers are ignored. All other options (``log``, ``certfile``, ``keyfile``, ``ssl_context``,
    ``spawn``, ``pre_start_hook``...) are those of ``WSGIServer`` and gevent-websocket.

    Raises:
        TypeError: an option does not exist; ``application`` is not a WSGI application.
        ValueError: the value of an option is not allowed.
        OSError: ``certfile`` or ``keyfile`` cannot be read, or the two do not match.
    """

    handler_class = UpgradeHandler
    _own_handler_class = UpgradeHandler  # a program's subclass may do more
    _spawn = ConnectionGreenlet.spawn

    stats: ServerStats
    """Counters since the server was created."""

    _share: Share | None = None
    """This process's place in the memory in which the processes that share the listener count
    their connections; None if it has its own listener."""

    max_accept = 20
    """Connections to accept before other greenlets run."""

    backlog = 4096
    """Connections that may wait to be accepted, for example after a deploy. The system's
    ``somaxconn`` may allow fewer."""

    _finds_clients = False
    """Whether :meth:`_find_client` is asked for each connection."""

    run = Hint("run", "serve_forever()")
    run_forever = Hint("run_forever", "serve_forever()")
    listen = Hint("listen", "start(), or serve_forever()")
    serve = Hint("serve", "serve_forever()")
    shutdown = Hint("shutdown", "stop()")
    broadcast = Hint("broadcast", "the rooms of greenws: rooms[name].send(data)")
    send = Hint("send", "the rooms of greenws: rooms[name].send(data)")
    route = Hint("route", "Routes, the application of a server: @routes.websocket(path)")
    websocket = Hint("websocket", "Routes, the application of a server: @routes.websocket(path)")

    _adapt: Any = None
    _may_accept = False

    def __init__(
        self,
        listener: Any = None,
        application: WSGIApplication | None = None,
        *args: Any,
        config: Config | None = None,
        trusted_proxies: int = 0,
        **kwargs: Unpack[ServerOptions],
    ) -> None:
        options: dict[str, Any] = {**kwargs}
        check_options(options)
        check_listener(listener)
        if application is not None:
            check_application(application, "the application of a WebSocketServer")
        elif getattr(self, "application", None) is None:
            raise TypeError("WebSocketServer needs an application: WebSocketServer(address, app)")
        self.config = check_config(config)
        self.stats = ServerStats()
        self.admission = Admission(self.config)
        self.proxy_fix = _make_proxy_fix(trusted_proxies)
        self._exhausted = False
        self._full = False
        self._turned_away = 0  # connections beyond max_connections that wait for their clients
        self._stopping: Event | None = None
        self._thread: ServingThread | None = None  # that accepts, or did last
        self._process = current_process()  # the one that may accept
        self._certificate = (options.get("certfile"), options.get("keyfile"))
        self._tls_context = prepare_tls(options)
        _servers.add(self)
        super().__init__(listener, application, *args, **options)
        self.environ.setdefault("wsgi.file_wrapper", FileWrapper)

    def start(self) -> None:
        """Binds the address and accepts connections.

        Raises:
            TypeError: a decorator above ``@routes.websocket`` or ``@sock.route`` has no effect.
        """
        check_registrations(self.application)
        super().start()
        log_form()
        warn_unpatched(self.application)
        warn_drivers()

    def _do_read(self) -> None:
        """Accepts the connections in the listener's queue. It does the same as gevent's method,
        which calls six other methods for each connection."""
        if not self._accepts_batches:
            super()._do_read()
            return
        process = current_process()
        share = self._share
        spawn = _BatchGreenlet.spawn
        family = self.socket.family
        listener = self.socket.fileno()
        for _ in range(self.max_accept):
            if share is not None and not share.may_accept():
                self._pause_accepting(_SHARE_PAUSE)
                return
            try:
                accepted = accept(listener, family)
            except OSError:
                super()._do_read()  # tries again, and handles the error
                return
            if accepted is None:
                return
            if share is not None:
                share.add(1)
            try:
                spawn(None, self, accepted[0], accepted[1], process)
            except BaseException:
                accepted[0].close()
                if share is not None:
                    share.add(-1)
                # If this escaped the callback, gevent would stop watching the listener.
                self.loop.handle_error(self, *sys.exc_info())
                self._pause_accepting(_ACCEPT_PAUSE)
                return

    @property
    def _accepts_batches(self) -> bool:
        """Whether the short way is possible: no subclass or option replaces a method that gevent
        calls for each connection."""
        kind = type(self)
        return (
            kind.do_read is WebSocketServer.do_read
            and kind.do_handle is WebSocketServer.do_handle
            and kind.full is WebSocketServer.full
            and self.__dict__.keys().isdisjoint(("do_read", "do_handle", "full"))
            and getattr(self._accept, "__func__", None) is WebSocketServer._accept
            and getattr(self._spawn, "__self__", None) is ConnectionGreenlet
            and self.pool is None
            and not self._finds_clients
            and self._process == current_process()
            and not self._exhausted
            and self.socket.family in TCP_FAMILIES
            and syscalls.AVAILABLE
            and self._is_bare
        )

    def do_read(self) -> Any:
        """Accepts a connection; None if there is none, or no resources to accept it."""
        if self._process != current_process():
            self._disown()
            return None
        share = self._share
        if share is not None and not share.may_accept():
            self._pause_accepting(_SHARE_PAUSE)
            return None
        try:
            accepted = self._accept()
        except OSError as error:
            if error.errno not in _EXHAUSTED:
                raise
            if not self._exhausted:
                _logger.error("cannot accept connections: %s; retrying", error)
                self._exhausted = True
            # The listener stays readable: without a pause this would be a busy loop.
            self._pause_accepting(_ACCEPT_PAUSE)
            return None
        if accepted and self._exhausted:
            self._exhausted = False
            _logger.warning("accepting connections again")
        if accepted and share is not None:
            share.add(1)
        return accepted

    def _pause_accepting(self, seconds: float) -> None:
        self.stop_accepting()
        self._timer = self.loop.timer(seconds)
        self._timer.start(self._start_accepting_if_started)

    def _accept(self) -> Any:
        """Accepts a connection; without a socket object if only a transport will use it."""
        family = self.socket.family
        if family in TCP_FAMILIES and syscalls.AVAILABLE and self._is_bare:
            return accept(self.socket.fileno(), family)
        try:
            descriptor, address = self.socket._accept()
        except BlockingIOError:
            return None
        sock = _NativeSocket(family, native.SOCK_STREAM, 0, descriptor)
        return sock if self._is_bare else _green(sock), address

    @property
    def _is_bare(self) -> bool:
        return (
            self._is_direct
            and not self.ssl_args
            and type(self).handle is WebSocketServer.handle
            and "handle" not in self.__dict__
        )

    @property
    def _keeps_no_sockets(self) -> bool:
        """Whether only sessions use the sockets of TLS connections."""
        kind = type(self)
        return (
            kind.handle is WebSocketServer.handle
            and kind.wrap_socket_and_handle is WebSocketServer.wrap_socket_and_handle
        )

    @property
    def _is_direct(self) -> bool:
        """Whether connections can open a session without an HTTP handler."""
        return (
            is_direct(self.application)
            and self.handler_class is self._own_handler_class
            and not self.handler_class.eager
            and self._spawn is not None  # it may block
            and not self.pre_start_hook
        )

    def wrap_socket_and_handle(self, client_socket: Any, address: Any) -> None:
        """Does the TLS handshake, within ``handshake_timeout``, and serves the connection."""
        timeout = self.config.handshake_timeout
        try:
            with gevent.Timeout(
                timeout, TimeoutError(f"no TLS handshake within {timeout} s (handshake_timeout)")
            ):
                secured = [self.wrap_socket(client_socket, **self.ssl_args)]
        except OSError as error:  # scanners, plain HTTP, a certificate that is not trusted
            _logger.info("TLS handshake with %s failed: %s", address, error)
            return
        self.handle(secured.pop(), address)  # no reference here: the session may drop the object

    def reload_certificates(self) -> None:
        """Reads ``certfile`` and ``keyfile`` again, for connections that are accepted from now on;
        open ones are not affected.

        Raises:
            OSError: a file is missing, or the two do not match (``ssl.SSLError``); the server keeps
                the previous certificate.
            RuntimeError: the server was not given ``certfile``.
        """
        certfile, keyfile = self._certificate
        if certfile is None:
            raise RuntimeError(
                "no certificates to reload: give certfile= and keyfile= to WebSocketServer; with "
                "ssl_context=, load_cert_chain() of the context does the same"
            )
        load_certificates(gevent.ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), certfile, keyfile)
        # The same context, since open connections may use it. An error here would leave it with a
        # certificate and a key that do not match.
        load_certificates(self._tls_context, certfile, keyfile)
        _logger.info("reloaded the certificate from %s", certfile)

    def do_handle(self, sock: Any, address: Any) -> None:
        """Spawns a greenlet that serves a connection."""
        if self._spawn is None:
            self._admit(sock, address, current_process())
            return
        try:
            self._spawn(self._admit, sock, address, current_process())
        except BaseException:
            sock.close()
            if self._share is not None:
                self._share.add(-1)
            raise

    def _visit(self, sock: Any, address: Any, process: int) -> None:
        """:meth:`_admit` for a connection that needs no HTTP handler to open a session, as one of a
        batch. Its steps before and after the session are compiled."""
        client = DirectClient(self, address, sock)
        del sock
        try:
            session = client.open(process)
            if session is not None:
                self._run_session(session, client)
            elif client.opening is not None:
                opening, client.opening = client.opening, None
                self._serve_http(opening)
        finally:
            client.leave()

    def _find_client(self, sock: Any, address: Any) -> Any:
        """The client's address for a new connection; None to close it. May block until a proxy has
        sent the address."""
        return address

    def _address_of(self, address: Any) -> str | None:
        """The key under which a new connection counts; None if it counts later, under the address
        that a proxy reports."""
        return address[0] if isinstance(address, tuple) and self.proxy_fix is None else None

    def _admit(self, sock: Any, address: Any, process: int) -> None:
        """Serves a connection that ``process`` has accepted, unless there are too many."""
        if process != current_process():
            # A child that was forked before this greenlet ran runs it too, but the parent serves
            # the connection.
            sock.close()
            return
        admission = self.admission
        greenlet = getcurrent()
        reason: str | None = None  # until it is decided whether to admit it
        counted = None if self._finds_clients else self._address_of(address)
        try:
            reason = admission.enter(counted)
            if reason:
                self._turn_away(sock, reason)
                return
            self._full = False
            admission.greenlets.add(greenlet)
            if self._finds_clients:
                address = self._find_client(sock, address)
                if address is None:
                    return
                found = self._address_of(address)
                if not admission.claim(found):
                    self._turn_away(sock, "address")
                    return
                counted = found
            if self.ssl_args:
                self.wrap_socket_and_handle(sock, address)
            else:
                self.handle(sock, address)
        finally:
            if reason == "":
                admission.greenlets.discard(greenlet)
                admission.leave(counted)
            sock.close()
            if self._share is not None:
                self._share.add(-1)

    def _turn_away(self, sock: Any, reason: str) -> None:
        self.stats.refused[reason] += 1
        if reason == "connections" and not self._full:
            self._full = True
            _logger.warning("%s", TOO_MANY[reason])
        if self.ssl_args:  # there, the answer would cost a handshake
            return
        with contextlib.suppress(OSError), _green(sock) as green:
            green.sendall(error_response(RequestError(TOO_MANY[reason], 503)))
            if self._turned_away < _MAX_TURNED_AWAY:  # they cost descriptors and memory too
                self._turned_away += 1
                try:
                    HttpStream(green, self.config).linger()
                finally:
                    self._turned_away -= 1

    def handle(self, sock: Any, address: Any) -> None:
        """Serves a connection."""
        session = self._open(sock, address)
        del sock
        if session is not None:  # the stack frames that opened it have been left
            if self._keeps_no_sockets:
                session.socket._transport.drop_socket()
            client = DirectClient(self, address)
            client.begin(session.socket)
            self._run_session(session, client)

    def _open(self, sock: Any, address: Any) -> OpenSession | None:
        """Opens a session without an HTTP handler; or serves HTTP to the end, and returns None."""
        if type(sock) is not Accepted and not self._is_direct:
            self.handler_class(_green(sock), address, self).handle()
            return None
        opening = Opening(self, sock, address)
        session = opening.open()
        if session is None:
            self._serve_http(opening)
        return session

    def _serve_http(self, opening: Opening) -> None:
        """Serves a connection, whose first request opens no session, to the end."""
        sock = _green(opening.transport.detach())
        stream = HttpStream(sock, self.config, opening.rest)
        try:
            self.handler_class(sock, opening.address, self, stream)._handle_from(opening)
        finally:
            sock.close()

    def _run_session(self, session: OpenSession, client: DirectClient) -> None:
        """Runs the handler, then ``end_session``; an error is logged."""
        escaped: BaseException | None = None
        try:
            # Not in a compiled module: between Python functions there is no C frame, and the C
            # stack of a waiting session is copied at every switch.
            try:
                handler = session.handler
                result: Any = handler.handle_session(session.request, session.socket)
                if result is not None:
                    check_result(handler.handle_session, result)
            except BaseException as error:
                escaped = error
            end_session(session.socket, escaped)
        finally:
            escaped = None  # its traceback refers to this frame: a cycle
            client.end()

    # -- in a forked child

    def _disown(self) -> None:
        """In a child: leaves the listener and the connections to the parent. They do not count
        here, and greenlets that wait for the server in the parent do not continue here."""
        self._process = current_process()
        self._may_accept = False
        self._thread = None
        self._share = None  # the parent's
        self.stop_accepting()
        self.admission = Admission(self.config)
        self.clients: dict[Any, Any] = {}
        self._stopping = None
        started = self.started
        self._stop_event = Event()
        if not started:
            self._stop_event.set()

    def close(self) -> None:
        """Stops accepting, and closes the listener."""
        if self._share is not None and self._process == current_process():
            self._share.end()
        super().close()

    def start_accepting(self) -> None:
        """Begins to accept connections. A forked child, which shares its parent's listener, accepts
        none before it calls this or :meth:`serve_forever`."""
        if self._process != current_process():
            self._disown()
        self._may_accept = True
        if self._share is not None:
            self._share.begin()
        if self._thread is None or not self._thread.is_current:
            self._thread = ServingThread()
            self.loop = self._thread.hub.loop  # the server may have been made in another thread
        no_delay(self.socket)  # on Linux, accepted sockets inherit it
        super().start_accepting()

    def _start_accepting_if_started(self, _event: Any = None) -> None:
        if self._process != current_process():
            self._disown()
        if self._may_accept:
            super()._start_accepting_if_started(_event)

    # -- stopping

    @property
    def is_stopping(self) -> bool:
        """Whether ``stop()`` is running: no request is upgraded, no connection is kept alive."""
        return self._stopping is not None

    @property
    def _ends_connections(self) -> bool:
        """Whether ``stop()`` is running: a response is the last on its connection."""
        return self._stopping is not None

    def stop(self, timeout: float | None = None, *, grace: float | None = None) -> None:
        """Stops accepting, closes every session with 1001, and blocks until all sessions and
        requests have ended; after ``grace`` seconds it kills the rest.

        ``timeout`` is gevent's name for ``grace``; the default is ``shutdown_grace``. Called from
        another thread than the one that serves, it has that one stop, and blocks as long.
        """
        if self._process != current_process():
            self._disown()
        if grace is None:
            grace = self.config.shutdown_grace if timeout is None else timeout
        check_number("grace", grace)
        if self._serves_elsewhere:
            self._stop_in_its_thread(grace)
            return
        if self._stopping is not None:  # another greenlet is stopping the server
            self._stopping.wait()
            return
        stopping = self._stopping = Event()
        draining = None
        try:
            self.close()
            draining = drain_sessions(self.stats.open_sockets, self.config.shutdown_drain, grace)
            if left := self.admission.wait_until_quiet(grace):
                _logger.warning(
                    "%d requests and sessions did not end within %g s (shutdown_grace)", left, grace
                )
            if draining is not None:
                draining.kill()
            self.admission.end_all()
            super().stop(0)
        finally:
            self._stopping = None
            stopping.set()

    @property
    def _serves_elsewhere(self) -> bool:
        """Whether another thread serves, or is stopping."""
        is_at_work = self.started or self._stopping is not None
        return is_at_work and self._thread is not None and not self._thread.is_current

    def _stop_in_its_thread(self, grace: float | None) -> None:
        assert self._thread is not None
        stop = partial(WebSocketServer.stop, self, grace=grace)  # an override has run here
        end_within = None if grace is None else grace + _THREAD_TIMEOUT
        try:
            if not self._thread.call(stop, _THREAD_TIMEOUT, end_within):
                self._watcher = self._timer = None  # of a hub that nobody runs
                self.close()
        except TimeoutError:
            _logger.warning(
                "the thread that serves does not run its hub, or not for long enough: the server "
                "stops when it does"
            )

    def serve_forever(
        self, stop_timeout: float | None = None, *, handle_signals: bool = True
    ) -> None:
        """Serves until :meth:`stop` is called, or SIGTERM or SIGINT arrives; then returns.

        The first signal stops as :meth:`stop` does, with ``stop_timeout`` as its grace; a second
        ends the process at once. Signals are left alone with ``handle_signals=False``, outside the
        main thread, and where the program handles them itself.

        Raises:
            RuntimeError: it was started in another thread, which serves.
        """
        if self._process != current_process():
            self._disown()
        if self._serves_elsewhere:
            raise RuntimeError(
                "the server was started in another thread, which serves it: leave out start(), and "
                "call serve_forever() in one thread only"
            )
        if self.started and not self._may_accept:
            self.start_accepting()
        with stop_at_signals(lambda: self.stop(stop_timeout)) if handle_signals else nullcontext():
            super().serve_forever(stop_timeout)


_servers: WeakSet[WebSocketServer] = WeakSet()


def _after_fork() -> None:
    """In the child: disowns all servers, except those that an earlier hook started here."""
    for server in list(_servers):
        if server._process != current_process():
            server._disown()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _make_proxy_fix(hops: int) -> ProxyFix | None:
    """Rewrites an environ by the headers of ``hops`` proxies; None for no proxies."""
    if isinstance(hops, bool) or not isinstance(hops, int) or hops < 0:
        raise ValueError(
            f"trusted_proxies must be the number of proxies in front of the server, not {hops!r}"
        )
    if hops == 0:
        return None
    return ProxyFix(lambda environ, start_response: [], hops, hops, hops)
