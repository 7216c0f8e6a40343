"""The first request on a connection whose server calls a ``Routes`` or a ``WebSocketHandler``.

There is no application around such a session, so it needs no HTTP handler: its first request is
read from the transport that the session will use. When this module's stack frames have been left,
an idle session keeps only its socket and its request. Anything but an accepted handshake continues
in the HTTP handler, which gets all that was found here: nothing is read, parsed, checked or matched
twice.
"""

from __future__ import annotations

import io
import time
from typing import Any

from gevent import get_hub, getcurrent
from werkzeug.exceptions import HTTPException

from ..config import Config
from ..exceptions import HandshakeError, RequestError
from ..http.head import RequestHead, find_head, parse_head
from ..hub import forks
from ..hub.transport import FOREVER, TIMED_OUT, Transport
from ..protocol.handshake import Offer, is_upgrade, offer_in, parse_offer
from ..routes import Routes
from ..session import OpenSession, WebSocketHandler, drop_environ, lazy_request
from ..stats import SessionRecord
from ..upgrade import ENVIRON_KEY, Upgrade, refusal_response
from ..websocket import WebSocket
from .admission import TOO_MANY, Admission
from .environ import make_environ, remote_address
from .gevent_websocket import GeventWebSocket
from .host import Host

__all__ = ["DirectClient", "Opening", "ServerUpgrade", "is_direct"]

forks.load()

# Names with an underscore are C numbers in the compiled form.
_FOREVER = FOREVER
_TIMED_OUT = TIMED_OUT

_NO_BODY = io.BytesIO()


def is_direct(application: Any) -> bool:
    """Whether the server can run sessions of ``application`` without calling it: it is a plain
    ``Routes`` or ``WebSocketHandler``. A subclass may do more."""
    return type(application) is Routes or type(application) is WebSocketHandler


class ServerUpgrade(Upgrade):
    """An upgrade that its server counts, and does not admit while it is stopping.

    Raises:
        HandshakeError: 503, because the server is stopping, or because the client has too many
            connections already.
    """

    def __init__(
        self, offer: Offer, host: Host, environ: dict[str, Any] | None, target: str
    ) -> None:
        self._admit(offer, host, environ, target)

    def _admit(self, offer: Offer, host: Host, environ: dict[str, Any] | None, target: str) -> None:
        """The constructor, also for that of a subclass."""
        self._begin(offer, host.config)
        self._host = host
        # a query may be secret
        self._path = target if "?" not in target else target.partition("?")[0]
        self._claimed: tuple[Admission, str] | None = None
        self._check_open()
        if host.proxy_fix is not None:  # without it, the connection was counted at accept
            assert environ is not None
            address = str(environ.get("REMOTE_ADDR", ""))
            admission = host.admission
            if not admission.claim(address):
                raise HandshakeError(TOO_MANY["address"], 503, reason="address")
            self._claimed = admission, address  # that of a forked child is another one

    def _check_open(self) -> None:
        if self._host.is_stopping:
            raise HandshakeError("The server is stopping.", 503, reason="stopping")

    def take_error(self, error: BaseException) -> bool:
        return self._host.stats is not None and self._host.stats.take_error(error)

    def _record(self, socket: WebSocket, config: Config) -> SessionRecord:
        release = self.release if self._claimed is not None else None
        return SessionRecord(socket, self._path, config, self._host.stats, release)

    def release(self) -> None:
        """Frees the client's place for another connection."""
        claimed, self._claimed = self._claimed, None
        if claimed is not None:
            admission, address = claimed
            admission.release(address)


class _DirectUpgrade(ServerUpgrade):
    """An upgrade of a transport from which nothing but the request has been read."""

    def __init__(
        self, offer: Offer, opening: Opening, environ: dict[str, Any] | None, head: RequestHead
    ) -> None:
        self._admit(offer, opening.host, environ, head.target)
        self._transport = opening.transport
        self._config_at_accept = opening.config
        self._early = opening.rest
        self._address = opening.address
        if environ is not None:
            self._address = remote_address(environ, opening.address)

    def _take_transport(self, config: Config) -> tuple[Transport, bytes, bool]:
        self._transport.received = 0  # that was HTTP
        if config is not self._config_at_accept:  # whose limits the transport has
            self._transport.set_limits(config.write_high_water, config.write_timeout)
        self._transport.watch()  # a handler that only sends needs the clock of the poller
        return self._transport, self._early, False

    def _remote_address(self) -> Any:
        return self._address


class _EnvironSource:
    """The data from which a request's environ can be made again: a fifth of its size."""

    __slots__ = ("_address", "_changes", "_host", "_raw_head")

    def __init__(self, opening: Opening, environ: dict[str, Any] | None) -> None:
        self._host = opening.host
        self._address = opening.address
        self._raw_head = opening.raw_head
        self._changes: dict[str, Any] | None = None
        if environ is None:
            return
        # set by the routes, which may have changed when the environ is made again
        routing = environ.get("wsgiorg.routing_args")
        if (routing is not None and routing[1]) or environ["SCRIPT_NAME"]:
            names = ("SCRIPT_NAME", "PATH_INFO", "wsgiorg.routing_args")
            self._changes = {name: environ[name] for name in names if name in environ}

    def __call__(self) -> dict[str, Any]:
        head = parse_head(self._raw_head, self._host.config)
        environ = _make_environ(self._host, self._address, head)
        if self._changes is not None:
            environ.update(self._changes)
        return environ


def _make_environ(host: Host, address: Any, head: RequestHead) -> dict[str, Any]:
    """The environ of a session whose route, if it has one, has no variables."""
    environ = make_environ(host, address, head)
    if type(host.application) is Routes:
        environ["wsgiorg.routing_args"] = ((), {})
    _add_websocket(environ)
    return environ


def _add_websocket(environ: dict[str, Any]) -> None:
    environ["wsgi.input"] = _NO_BODY
    environ["wsgi.websocket"] = None
    environ["wsgi.websocket_version"] = "13"


class Opening:
    """The first request on a connection, as far as it has been read.

    ``error``: why the head is refused. ``head``: None until it is complete. ``rest``: the bytes
    that were read after the head; all bytes if it is incomplete. For an upgrade that the HTTP
    handler must answer, ``environ`` is set, and one of ``offer`` (not answered yet), ``refused``
    (the handshake is invalid, or the server does not admit it) and ``refusal_reason`` (the reason
    of the refusal that ``application`` responds with). ``application``: the one to call, if not the
    server's. ``upgrade``: the one that is being answered.
    """

    __slots__ = (
        "address",
        "application",
        "config",
        "deadline",
        "environ",
        "error",
        "head",
        "host",
        "offer",
        "raw_head",
        "refusal_reason",
        "refused",
        "rest",
        "transport",
        "upgrade",
    )

    def __init__(self, host: Host, sock: Any, address: Any) -> None:
        config = self.config = host.config
        self.host = host
        self.address = address
        self.error: RequestError | None = None
        self.head: RequestHead | None = None
        self.rest = b""
        self.raw_head = b""
        self.environ: dict[str, Any] | None = None
        self.offer: Offer | None = None
        self.refused: HandshakeError | None = None
        self.application: Any = None
        self.refusal_reason = ""
        self.upgrade: _DirectUpgrade | None = None
        self.transport = Transport(sock, get_hub(), config.write_high_water, config.write_timeout)
        timeout = config.handshake_timeout
        self.deadline = _FOREVER if timeout is None else time.monotonic() + timeout

    def open(self) -> OpenSession | None:
        """Blocks until a session is open, and returns it; None if the HTTP handler must go on. What
        it raises ends the connection."""
        try:
            return self._open_session()
        except BaseException:
            self.transport.close()
            raise

    def _open_session(self) -> OpenSession | None:
        try:
            head = self.head = self._read_head()
            if head is None or not head.upgrade:
                return None
            fields: dict[str, Any] = {}
            handler = self._find_handler(head, fields)
            if handler is None:
                self.environ = make_environ(self.host, self.address, head)
        except RequestError as error:
            self.error = error
            return None
        environ: Any = self.environ
        try:
            if handler is not None:
                return self._open(handler, head, fields)
            if self.offer is None:
                if not is_upgrade(environ):
                    return None
                self.offer = parse_offer(environ)
            application = self.host.application
            while type(application) is Routes:
                application = application.match(environ)
            if type(application) is not WebSocketHandler:
                self.application = application
                return None
            return self._open(application, head, None)
        except HandshakeError as error:
            if self.environ is None:
                self.environ = make_environ(self.host, self.address, head)
            self.refused = error
        except HTTPException as error:
            self._answer(error.get_response(environ), "application")
        return None

    def _find_handler(self, head: RequestHead, fields: dict[str, Any]) -> WebSocketHandler | None:
        """The handler of a handshake that can be answered from its head alone; its host and origin
        go to ``fields``. None if it needs an environ, or if there is anything to refuse. ``offer``
        is set if the handshake has the usual form, whatever is returned."""
        host = self.host
        target = head.target
        if (
            host.proxy_fix is not None
            or self.config.allowed_hosts is not None
            or head.method != "GET"
            or head.version != "HTTP/1.1"
            or head.host is not None  # the target is a URL
            or head.chunked
            or head.content_length is not None
            or "%" in target
            or (
                host._adapt is not None
                and not host._adapt.leaves_unchanged(self.raw_head, self.address)
            )
        ):
            return None
        self.offer = offer_in(head.headers, fields)
        if self.offer is None:
            return None
        path = target if "?" not in target else target.partition("?")[0]
        application = host.application
        while type(application) is Routes:
            application = application.match_literal("GET", path)
        if type(application) is not WebSocketHandler:
            return None
        if "HTTP_ORIGIN" in fields:
            fields["wsgi.url_scheme"] = host.get_environ().get("wsgi.url_scheme")
        return application

    def __call__(self) -> dict[str, Any]:
        """Makes the environ of a request that is being answered."""
        head = self.head
        assert head is not None
        environ = self.environ = _make_environ(self.host, self.address, head)
        environ[ENVIRON_KEY] = self.upgrade
        return environ

    def _answer(self, response: Any, reason: str) -> None:
        self.application = response
        self.refusal_reason = reason
        self.offer = None

    def _open(
        self, handler: WebSocketHandler, head: RequestHead, fields: dict[str, Any] | None
    ) -> OpenSession | None:
        """``fields``: the host and the origin, if the environ is made only when it is read."""
        environ = self.environ
        assert self.offer is not None
        upgrade = self.upgrade = _DirectUpgrade(self.offer, self, environ, head)
        request: Any = None
        if environ is None:
            request = lazy_request(self)
        else:
            _add_websocket(environ)
            environ[ENVIRON_KEY] = upgrade
        admission = self.host.admission
        admission.begin_work()
        try:
            session = handler._open(environ, request, None if request is None else upgrade, fields)
            drop_environ(session.socket.request, _EnvironSource(self, environ))
            return session
        except HandshakeError as error:
            self._answer(refusal_response(error), error.reason)
        except HTTPException as error:
            environ = self.environ if request is None else request.environ
            self._answer(error.get_response(environ), "application")
        finally:
            admission.end_work()
            self.upgrade = None
            if self.environ is not None:
                # The socket refers to its request, and that to the environ: a cycle.
                self.environ.pop(ENVIRON_KEY, None)
            if upgrade.socket is None:
                upgrade.release()
        return None

    def _read_head(self) -> RequestHead | None:
        """The head of the request; None if the peer does not send all of it in time.

        Raises:
            RequestError: the head is refused.
        """
        transport = self.transport
        config = self.config
        size = transport.poll()  # it often comes with the connection
        while True:
            if size == _TIMED_OUT:
                size = transport.receive(self.deadline)
            if size <= 0:
                return None
            seen = len(self.rest)
            self.rest += transport.buffer[:size]
            if seen < 2:  # nothing yet, or half of an empty line
                self.rest = self.rest.removeprefix(b"\r\n")  # RFC 9112, section 2.2
            length = find_head(self.rest, seen, config) if self.rest else -1
            if length >= 0:
                self.raw_head = self.rest[:length]
                head = parse_head(self.raw_head, config)
                self.rest = self.rest[length:]
                return head
            size = _TIMED_OUT


class DirectClient:
    """A connection whose session has no HTTP handler: what is to be done before and after the
    session, and its entry in ``server.clients``, gevent-websocket's register of open sockets.

    It has the attributes of gevent-websocket's ``Client``, and those that ``GeventWebSocket`` reads
    from a handler. ``opening``: the request that :meth:`open` leaves to the HTTP handler.
    """

    __slots__ = (
        "__weakref__",
        "_admission",
        "_counted",
        "_is_shared",
        "_sock",
        "_socket",
        "_ws",
        "address",
        "opening",
        "server",
    )

    def __init__(self, server: Any, address: Any, sock: Any = None) -> None:
        self.server = server
        self.address = address
        self.opening: Opening | None = None
        self._sock = sock
        self._socket: WebSocket | None = None
        self._ws: GeventWebSocket | None = None
        self._counted: str | None = None
        self._is_shared = False  # it counts as one of the connections of this process
        # The one that counts it; a forked child has another one.
        self._admission: Admission | None = None

    def open(self, process: int) -> OpenSession | None:
        """Counts the connection, which ``process`` has accepted, and opens its session. Blocks.
        None if the connection is turned away, or if ``opening`` is left to the HTTP handler. To be
        followed by :meth:`leave`."""
        server = self.server
        if process != forks.process():
            # A child was forked before this greenlet ran, and runs it too. The parent serves the
            # connection.
            return None
        self._is_shared = True
        admission = server.admission
        counted = None if admission._address_limit is None else server._address_of(self.address)
        reason = admission.enter(counted)
        if reason:
            server._turn_away(self._sock, reason)
            return None
        self._counted = counted
        self._admission = admission
        if server._full:
            server._full = False
        admission.greenlets.add(getcurrent())
        opening = Opening(server, self._sock, self.address)
        session = opening.open()
        if session is None:
            self.opening = opening
        else:
            self.begin(session.socket)
        return session

    def begin(self, socket: WebSocket) -> None:
        """Registers the session; to be followed by :meth:`end`."""
        self._socket = socket
        if self._admission is None:
            self._admission = self.server.admission
        self.server.clients[self.address or id(self)] = self
        self._admission.begin_work()

    def end(self) -> None:
        """The session has ended."""
        admission = self._admission
        assert admission is not None
        admission.end_work()
        clients, key = self.server.clients, self.address or id(self)
        if clients.get(key) is self:
            del clients[key]

    def leave(self) -> None:
        """The connection has ended."""
        server = self.server
        admission = self._admission
        if admission is not None:
            admission.greenlets.discard(getcurrent())
            admission.leave(self._counted)
        self._sock.close()
        if self._is_shared and server._share is not None:
            server._share.add(-1)

    @property
    def ws(self) -> GeventWebSocket:
        """The socket with gevent-websocket's API, made at first use."""
        if self._ws is None:
            assert self._socket is not None and self._socket.request is not None
            upgrade = Upgrade(Offer("", []), self.server.config)
            upgrade.socket = self._socket  # it is already accepted
            self._ws = GeventWebSocket(upgrade, self._socket.request.environ, self)
        return self._ws

    @property
    def application(self) -> Any:
        return self.server.application

    @property
    def client_address(self) -> Any:
        return self.address

    @property
    def active_client(self) -> DirectClient:
        return self
