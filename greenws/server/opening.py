"""How a connection opens whose server calls a ``Routes`` or a ``WebSocketHandler`` itself.

No application stands around such a session, so it needs no HTTP handler: its first request is read
from the transport that it will have. When the frames of this module are gone, an idle session keeps
its socket and its request. Whatever is not an ordinary handshake goes to the HTTP handler, with the
bytes that were read.
"""

from __future__ import annotations

import io
import time
from typing import Any

import gevent
from werkzeug import Request
from werkzeug.exceptions import HTTPException

from ..config import Config
from ..exceptions import HandshakeError, RequestError
from ..http.head import RequestHead, find_head, parse_head
from ..hub.transport import FOREVER, TIMED_OUT, Transport
from ..protocol.handshake import Offer, parse_request
from ..routes import Routes
from ..session import ENVIRON_KEY, Upgrade, WebSocketHandler, WebSocketSessionHandler
from ..stats import SessionRecord
from ..websocket import WebSocket
from .admission import TOO_MANY

__all__ = ["Opening", "ServerUpgrade", "is_direct", "make_environ", "remote_address"]

_NO_BODY = io.BytesIO()


def is_direct(application: Any) -> bool:
    """Whether nothing stands around the sessions of ``application``: a subclass may do more."""
    return type(application) is Routes or type(application) is WebSocketHandler


def make_environ(server: Any, address: Any, head: RequestHead) -> dict[str, Any]:
    """The environ of a request but for its body."""
    environ: dict[str, Any] = server.get_environ()
    if isinstance(address, tuple):
        environ["REMOTE_ADDR"] = str(address[0])
        environ["REMOTE_PORT"] = str(address[1])
    head.add_to(environ)
    environ["wsgi.input_terminated"] = True
    fix = getattr(server, "proxy_fix", None)
    if fix is not None:
        fix(environ, None)
    return environ


def remote_address(environ: dict[str, Any], peer: Any) -> Any:
    """The client's address; port 0 where proxies that are trusted say who the client is."""
    if "werkzeug.proxy_fix.orig" in environ:
        host = environ.get("REMOTE_ADDR")
        if host != environ["werkzeug.proxy_fix.orig"].get("REMOTE_ADDR"):
            return (host, 0)
    return peer


class ServerUpgrade(Upgrade):
    """An upgrade that its server counts, and admits unless it is about to stop.

    Raises:
        HandshakeError: 503, if it is, or if the client has too many connections already.
    """

    def __init__(
        self, offer: Offer, config: Config, server: Any, environ: dict[str, Any], target: str
    ) -> None:
        super().__init__(offer, config)
        self._server = server
        self._path = target.partition("?")[0]  # what stands in a query may be secret
        self._claimed: str | None = None
        self._check_stopping()
        # By the address of the peer it is counted already.
        if getattr(server, "proxy_fix", None) is not None:
            address = str(environ.get("REMOTE_ADDR", ""))
            if not server.admission.claim(address):
                raise HandshakeError(TOO_MANY["address"], 503, reason="address")
            self._claimed = address

    def _check_stopping(self) -> None:
        if getattr(self._server, "is_stopping", False):
            raise HandshakeError("The server is about to stop.", 503, reason="stopping")

    def accept(self, *args: Any, **options: Any) -> WebSocket:
        self._check_stopping()
        return super().accept(*args, **options)

    def _record(self, socket: WebSocket, config: Config) -> SessionRecord:
        stats = getattr(self._server, "stats", None)
        release = self.release if self._claimed is not None else None
        return SessionRecord(socket, self._path, config, stats, release)

    def release(self) -> None:
        """The client's place is free for another."""
        if self._claimed is not None:
            self._server.admission.release(self._claimed)


class _DirectUpgrade(ServerUpgrade):
    """An upgrade of a transport from which nothing but its request has been read."""

    def __init__(self, offer: Offer, opening: Opening, environ: dict[str, Any], head: RequestHead):
        super().__init__(offer, opening.server.config, opening.server, environ, head.target)
        self._transport = opening.transport
        self._early = opening.received[head.size :]
        self._address = remote_address(environ, opening.address)

    def _take_transport(self, config: Config) -> tuple[Transport, bytes, bool]:
        self._transport.received = 0  # that was HTTP
        self._transport.limit(config.write_high_water, config.write_timeout)
        return self._transport, self._early, False

    def _remote_address(self) -> Any:
        return self._address


class Opening:
    """The first request on a connection.

    ``received`` is what was read. ``answer``, if it is not None, is the
    response to the request, which must not be asked again; ``refusal`` says why, for a counter.
    """

    def __init__(self, server: Any, sock: Any, address: Any) -> None:
        config: Config = server.config
        self.server = server
        self.address = address
        self.received = b""
        self.answer: Any = None
        self.refusal = ""
        self.transport = Transport(
            sock, gevent.get_hub(), config.write_high_water, config.write_timeout
        )
        timeout = config.handshake_timeout
        self.deadline = FOREVER if timeout is None else time.monotonic() + timeout

    def open(self) -> tuple[WebSocketSessionHandler, Request, WebSocket] | None:
        """Blocks until a session is open, and returns it; None if this is for the HTTP handler."""
        try:
            head = self._read_head()
            if head is None or not head.upgrade:
                return None
            environ = make_environ(self.server, self.address, head)
            offer = parse_request(environ)
            application = self.server.application
            while type(application) is Routes:
                application = application.match(environ)
            if type(application) is not WebSocketHandler:
                return None
            upgrade = _DirectUpgrade(offer, self, environ, head)
        except (RequestError, HandshakeError, HTTPException):
            return None  # which finds the same, and answers
        environ["wsgi.input"] = _NO_BODY
        environ["wsgi.websocket"] = None
        environ["wsgi.websocket_version"] = "13"
        environ[ENVIRON_KEY] = upgrade
        self.server.admission.begin_work()
        try:
            opened = application.open(environ)
        finally:
            self.server.admission.end_work()
            # The socket knows its request, and that the environ: a cycle.
            del environ[ENVIRON_KEY]
            if upgrade.socket is None:
                upgrade.release()
        if isinstance(opened, tuple):
            return opened
        self.answer = opened
        self.refusal = upgrade.refusal
        return None

    def _read_head(self) -> RequestHead | None:
        """The head of the request; None if it does not come."""
        transport = self.transport
        config = self.server.config
        size = transport.poll()  # it often comes with the connection
        while True:
            if size == TIMED_OUT:
                size = transport.receive(self.deadline)
            if size <= 0:
                return None
            seen = len(self.received)
            self.received += transport.buffer[:size]
            length = find_head(self.received, seen, config)
            if length >= 0:
                return parse_head(self.received[:length], config)
            size = TIMED_OUT
