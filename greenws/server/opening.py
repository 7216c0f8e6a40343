"""The first request on a connection whose server calls a ``Routes`` or a ``WebSocketHandler``.

No application stands around such a session, so it needs no HTTP handler: its first request is read
from the transport that it will have. When the frames of this module are gone, an idle session keeps
its socket and its request. Whatever is not an accepted handshake goes on in the HTTP handler, which
is handed all that was found here: nothing is read, parsed, checked or matched twice.
"""

from __future__ import annotations

import io
import time
from typing import Any

from gevent import get_hub
from werkzeug.exceptions import HTTPException

from ..config import Config
from ..exceptions import HandshakeError, RequestError
from ..http.head import RequestHead, find_head, parse_head
from ..hub.transport import FOREVER, TIMED_OUT, Transport
from ..protocol.handshake import Offer, is_upgrade, parse_offer
from ..routes import Routes
from ..session import OpenSession, WebSocketHandler, let_environ_go
from ..stats import SessionRecord
from ..upgrade import ENVIRON_KEY, Upgrade, refusal_response
from ..websocket import WebSocket
from .admission import TOO_MANY
from .environ import make_environ, remote_address
from .host import Host

__all__ = ["Opening", "ServerUpgrade", "is_direct"]

# Names with an underscore are C numbers in the compiled form.
_FOREVER = FOREVER
_TIMED_OUT = TIMED_OUT

_NO_BODY = io.BytesIO()


def is_direct(application: Any) -> bool:
    """Whether nothing stands around the sessions of ``application``: a subclass may do more."""
    return type(application) is Routes or type(application) is WebSocketHandler


class ServerUpgrade(Upgrade):
    """An upgrade that its server counts, and does not admit while it is stopping.

    Raises:
        HandshakeError: 503, because the server is stopping, or because the client has too many
            connections already.
    """

    def __init__(self, offer: Offer, host: Host, environ: dict[str, Any], target: str) -> None:
        super().__init__(offer, host.config)
        self._host = host
        # a query may be secret
        self._path = target if "?" not in target else target.partition("?")[0]
        self._claimed: str | None = None
        self._check_open()
        if host.proxy_fix is not None:  # otherwise the connection was counted when it was accepted
            address = str(environ.get("REMOTE_ADDR", ""))
            if not host.admission.claim(address):
                raise HandshakeError(TOO_MANY["address"], 503, reason="address")
            self._claimed = address

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
            self._host.admission.release(claimed)


class _DirectUpgrade(ServerUpgrade):
    """An upgrade of a transport from which nothing but the request has been read."""

    def __init__(self, offer: Offer, opening: Opening, environ: dict[str, Any], head: RequestHead):
        super().__init__(offer, opening.host, environ, head.target)
        self._transport = opening.transport
        self._early = opening.rest
        self._address = remote_address(environ, opening.address)

    def _take_transport(self, config: Config) -> tuple[Transport, bytes, bool]:
        self._transport.received = 0  # that was HTTP
        self._transport.set_limits(config.write_high_water, config.write_timeout)
        return self._transport, self._early, False

    def _remote_address(self) -> Any:
        return self._address


class _EnvironSource:
    """What the environ of a session's request can be made from again: a fifth of its size."""

    __slots__ = ("_address", "_changes", "_host", "_raw_head")

    def __init__(self, opening: Opening, environ: dict[str, Any]) -> None:
        self._host = opening.host
        self._address = opening.address
        self._raw_head = opening.raw_head
        # by routes, which may have changed since when it is made again
        routing = environ.get("wsgiorg.routing_args")
        self._changes: dict[str, Any] | None = None
        if (routing is not None and routing[1]) or environ["SCRIPT_NAME"]:
            names = ("SCRIPT_NAME", "PATH_INFO", "wsgiorg.routing_args")
            self._changes = {name: environ[name] for name in names if name in environ}

    def __call__(self) -> dict[str, Any]:
        head = parse_head(self._raw_head, self._host.config)
        environ = make_environ(self._host, self._address, head)
        if type(self._host.application) is Routes:
            environ["wsgiorg.routing_args"] = ((), {})
        environ.update(self._changes or {})
        _add_websocket(environ)
        return environ


def _add_websocket(environ: dict[str, Any]) -> None:
    environ["wsgi.input"] = _NO_BODY
    environ["wsgi.websocket"] = None
    environ["wsgi.websocket_version"] = "13"


class Opening:
    """The first request on a connection, as far as it is known.

    ``error``: why the head is refused. ``head``: None until it is complete. ``rest``: the bytes
    that were read behind it, or all of them. For an upgrade, ``environ`` is there, and one of
    ``offer`` (nobody has answered it yet), ``refused`` (the handshake is invalid, or the server
    does not admit it) and ``refusal_reason`` (why ``application``, a response, refuses it).
    ``application`` is what is to be called, unless that is the server's.
    """

    __slots__ = (
        "address",
        "application",
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
    )

    def __init__(self, host: Host, sock: Any, address: Any) -> None:
        config = host.config
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
        self.transport = Transport(sock, get_hub(), config.write_high_water, config.write_timeout)
        timeout = config.handshake_timeout
        self.deadline = _FOREVER if timeout is None else time.monotonic() + timeout

    def open(self) -> OpenSession | None:
        """Blocks until a session is open, and returns it; None if the HTTP handler is to go on."""
        try:
            head = self.head = self._read_head()
            if head is None or not head.upgrade:
                return None
            environ = self.environ = make_environ(self.host, self.address, head)
        except RequestError as error:
            self.error = error
            return None
        if not is_upgrade(environ):
            return None
        try:
            self.offer = parse_offer(environ)
            application = self.host.application
            while type(application) is Routes:
                application = application.match(environ)
            if type(application) is not WebSocketHandler:
                self.application = application
                return None
            return self._open(application, _DirectUpgrade(self.offer, self, environ, head))
        except HandshakeError as error:
            self.refused = error
        except HTTPException as error:
            self._answer(error.get_response(environ), "application")
        return None

    def _answer(self, response: Any, reason: str) -> None:
        self.application = response
        self.refusal_reason = reason
        self.offer = None

    def _open(self, handler: WebSocketHandler, upgrade: _DirectUpgrade) -> OpenSession | None:
        environ = self.environ
        assert environ is not None
        _add_websocket(environ)
        environ[ENVIRON_KEY] = upgrade
        admission = self.host.admission
        admission.begin_work()
        try:
            session = handler._open(environ)
            let_environ_go(session.socket.request, _EnvironSource(self, environ))
            return session
        except HandshakeError as error:
            self._answer(refusal_response(error), error.reason)
        except HTTPException as error:
            self._answer(error.get_response(environ), "application")
        finally:
            admission.end_work()
            # The socket refers to its request, and that to the environ: a cycle.
            del environ[ENVIRON_KEY]
            if upgrade.socket is None:
                upgrade.release()
        return None

    def _read_head(self) -> RequestHead | None:
        """The head of the request; None if the peer does not send all of it in time.

        Raises:
            RequestError: the head is refused.
        """
        transport = self.transport
        config = self.host.config
        size = transport.poll()  # it often comes with the connection
        while True:
            if size == _TIMED_OUT:
                size = transport.receive(self.deadline)
            if size <= 0:
                return None
            seen = len(self.rest)
            self.rest += transport.buffer[:size]
            if seen == 0:
                self.rest = self.rest.removeprefix(b"\r\n")  # RFC 9112, section 2.2
            length = find_head(self.rest, seen, config) if self.rest else -1
            if length >= 0:
                self.raw_head = self.rest[:length]
                head = parse_head(self.raw_head, config)
                self.rest = self.rest[length:]
                return head
            size = _TIMED_OUT
