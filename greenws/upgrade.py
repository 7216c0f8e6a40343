"""How an opening handshake is answered, on any server.

``Upgrade`` is a handshake that nobody has answered yet. A server that knows greenws puts one into
the environ; elsewhere one is made from the raw socket, where the server hands that over.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from gevent import get_hub
from gevent._hub_local import get_hub_if_exists
from greenlet import GreenletExit
from werkzeug import Response

from .config import Config
from .exceptions import HandshakeError
from .hub import forks
from .hub.polling import drop_poller
from .hub.transport import Transport
from .keepalive import drop_heartbeat, start_pulse
from .protocol.deflate import Deflate, accept_offer
from .protocol.handshake import Offer, accept_response, parse_request
from .stats import SessionRecord
from .surroundings import advice_without_socket, threads, warn_without_threads
from .websocket import WebSocket

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication, WSGIEnvironment
    from werkzeug import Request

__all__ = [
    "ENVIRON_KEY",
    "INPUT_KEY",
    "Upgrade",
    "find_upgrade",
    "forget_upgrade",
    "hub_of_this_thread",
    "refusal_response",
    "take_read_ahead",
]

forks.load()

ENVIRON_KEY = "greenws.upgrade"
INPUT_KEY = "greenws.input"
"""The key in an environ for the server's reader, if ``wsgi.input`` hides what it has read ahead."""

_ENDED = object()  # replaces the upgrade in the environ of a session that has ended
_ANSWERED = Offer("", [])  # replaces the client's offer, which a session does not keep


class Upgrade:
    """A client's opening handshake, until somebody accepts it.

    ``socket`` is None until then. ``refusal_reason`` is the reason of a refusal, for the counter.
    """

    def __init__(self, offer: Offer, config: Config) -> None:
        self._begin(offer, config)

    def _begin(self, offer: Offer, config: Config) -> None:
        """The constructor, for those of subclasses: ``super()`` takes longer than all this."""
        self.process = forks.process()
        self.offer = offer
        self.config = config
        self.socket: WebSocket | None = None
        self.refusal_reason = ""
        self.unused_handler = False
        """Whether the application made a handler for its request and did not call it."""

    def follow(self, environ: WSGIEnvironment) -> None:
        """Takes the headers as the application sees them: middleware may have changed them.

        Raises:
            HandshakeError: the subprotocols or extensions there are malformed.
        """
        if self.offer.error is not None:
            raise self.offer.error

    def accept(
        self,
        subprotocol: str | None = None,
        config: Config | None = None,
        request: Request | None = None,
        headers: Iterable[tuple[str, str]] = (),
    ) -> WebSocket:
        """Sends 101, with ``headers`` in it, and returns the open socket. Does not switch.

        Raises:
            HandshakeError: the client does not offer ``subprotocol``; nothing was sent.
            RuntimeError: it was accepted before.
        """
        if self.socket is not None:
            raise RuntimeError("this WebSocket was accepted already")
        self._check_open()
        config = config or self.config
        extensions = self.offer.extensions
        agreed = accept_offer(extensions, config) if extensions else None
        response = accept_response(self.offer, subprotocol, agreed, headers)
        self.offer = _ANSWERED
        transport, early, borrowed = self._take_transport(config)
        socket = self.socket = WebSocket(
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
        start_pulse(socket, transport.hub, config)
        socket._record = self._record(socket, config)
        return socket

    def leave_to_parent(self) -> None:
        """In a child that was forked while this greenlet waited: ends the child's copy of it. The
        parent answers the handshake."""
        if self.process != forks.process():
            raise GreenletExit

    def take_error(self, error: BaseException) -> bool:
        """Whether ``error``, of the application, is reported elsewhere than in the log."""
        return False

    def _check_open(self) -> None:
        """
        Raises:
            HandshakeError: the server accepts no more upgrades.
        """

    def _record(self, socket: WebSocket, config: Config) -> SessionRecord:
        return SessionRecord(socket, "", config)

    def _take_transport(self, config: Config) -> tuple[Transport, bytes, bool]:
        """The transport, which is watched, the bytes that were read after the handshake, and
        whether the socket is borrowed from the server.

        Raises:
            OSError: it cannot be watched.
        """
        sock, early, borrowed = self._take_socket()
        transport = Transport(
            sock, get_hub(), config.write_high_water, config.write_timeout, borrowed
        )
        try:
            transport.watch()  # a handler that only sends needs the clock of the poller
        except BaseException:
            transport.detach()  # the server answers on it
            raise
        return transport, early, borrowed

    def _take_socket(self) -> tuple[Any, bytes, bool]:
        """Like :meth:`_take_transport`, with the socket."""
        raise NotImplementedError

    def _remote_address(self) -> Any:
        raise NotImplementedError


class _SocketUpgrade(Upgrade):
    """An upgrade on a server that hands over its raw socket, and has a thread for each session."""

    def __init__(self, offer: Offer, config: Config, sock: Any, environ: WSGIEnvironment) -> None:
        self._begin(offer, config)
        self._sock = sock
        self._environ = environ

    def leave_to_parent(self) -> None:
        while self.process != forks.process():  # the server would answer, or read what follows
            get_hub().switch()

    def _take_socket(self) -> tuple[Any, bytes, bool]:
        source = self._environ.get(INPUT_KEY) or _innermost(self._environ["wsgi.input"])
        unreader = getattr(getattr(source, "reader", None), "unreader", None)
        if unreader is not None:  # gunicorn
            early = bytes(unreader.buf.getvalue())
        else:
            early = take_read_ahead(source, self._sock)
        return self._sock, early, True

    def _record(self, socket: WebSocket, config: Config) -> SessionRecord:
        path = self._environ.get("SCRIPT_NAME", "") + self._environ.get("PATH_INFO", "")
        warn_without_threads(self._environ)
        threads.enter(socket)
        return SessionRecord(socket, path, config, on_end=partial(threads.leave, socket))

    def _remote_address(self) -> Any:
        peer = None
        with contextlib.suppress(OSError):  # the client is gone already; the first read says so
            peer = self._sock.getpeername()
        host = self._environ.get("REMOTE_ADDR")
        if host in (None, "", "<local>") or (isinstance(peer, tuple) and peer[0] == host):
            return peer
        return (host, 0)  # the address was set by middleware, or by a trusted proxy


def find_upgrade(environ: WSGIEnvironment) -> Upgrade:
    """The upgrade that ``environ`` asks for.

    Raises:
        HandshakeError: it does not ask for one, or the handshake is malformed; 501 if the server
            does not hand over the socket.
        RuntimeError: it was accepted before.
    """
    upgrade = environ.get(ENVIRON_KEY)
    if upgrade is _ENDED:
        raise RuntimeError("this request was upgraded already")
    if isinstance(upgrade, Upgrade):
        if upgrade.socket is not None:
            raise RuntimeError("this request was upgraded already")
        upgrade.follow(environ)
        return upgrade
    offer = parse_request(environ)
    sock = environ.get("gunicorn.socket") or environ.get("werkzeug.socket")
    if sock is None:
        software = environ.get("SERVER_SOFTWARE") or "this server"
        message = (
            f"No WebSocket here: {software} does not hand over the socket; "
            f"{advice_without_socket(software)}."
        )
        raise HandshakeError(message, 501, reason="server")
    return _SocketUpgrade(offer, Config(), sock, environ)


def forget_upgrade(environ: WSGIEnvironment) -> None:
    """Removes the upgrade of a session that has ended from the environ of its application, which
    may be a framework's copy. The socket refers to that environ: only the garbage collector would
    free such a cycle."""
    if ENVIRON_KEY in environ:
        environ[ENVIRON_KEY] = _ENDED
    if environ.get("wsgi.websocket") is not None:
        environ["wsgi.websocket"] = None


def refusal_response(error: HandshakeError) -> WSGIApplication:
    """The HTTP response to a handshake that cannot be accepted: one line of text."""
    return Response(f"{error}\n", error.status, error.headers, content_type="text/plain")


def _innermost(source: Any) -> Any:
    """The server's own ``wsgi.input``, where middleware has wrapped it."""
    for _ in range(10):
        if hasattr(source, "reader") or hasattr(source, "peek"):
            break
        inner = next((name for name in ("input", "stream", "_stream") if hasattr(source, name)), "")
        if not inner:
            break
        source = getattr(source, inner)
    return source


def take_read_ahead(rfile: Any, sock: Any) -> bytes:
    """Takes the bytes in the buffer of ``rfile``, a reader over ``sock``, without blocking."""
    timeout = sock.gettimeout()
    sock.settimeout(0.0)
    try:
        # peek() reads the socket only if its buffer is empty, and then only what has arrived.
        with contextlib.suppress(OSError, AttributeError):
            return bytes(rfile.read(len(rfile.peek(1))))
        return b""
    finally:
        sock.settimeout(timeout)


@contextlib.contextmanager
def hub_of_this_thread(environ: WSGIEnvironment) -> Iterator[None]:
    """Destroys the hub of a server's thread after the session for which it was made."""
    had_hub = ENVIRON_KEY in environ or get_hub_if_exists() is not None
    try:
        yield
    finally:
        if not had_hub:
            hub = get_hub_if_exists()
            if hub is not None:
                drop_heartbeat(hub)
                drop_poller(hub)
                hub.destroy()
