"""``connect()``: from a URL to an open ``WebSocket`` in the client's role."""

from __future__ import annotations

import ssl
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import gevent
from werkzeug.datastructures import Headers

from ..checks import explains
from ..config import Config, check_seconds
from ..exceptions import HandshakeError
from ..hub.transport import Transport
from ..keepalive import start_pulse
from ..protocol.deflate import Deflate, make_offer
from ..protocol.handshake import (
    check_request_headers,
    check_response,
    check_subprotocols,
    client_request,
    new_key,
)
from ..websocket import WebSocket
from .dialing import dial, dial_unix, start_tls, trusting_context
from .exchange import Response, exchange, explain
from .proxy import dial_through, find_proxy
from .threads import close_if_forgotten, hub_of_thread
from .url import Target, is_same_host, parse_url, redirect

__all__ = ["HINTS", "Request", "connect", "open_socket", "shake_hands"]

_MAX_REDIRECTS = 10
_SHOWN_PATH = 200  # characters
_REDIRECTS = (301, 302, 303, 307, 308)
_USER_AGENT = f"Python/{sys.version_info[0]}.{sys.version_info[1]} greenws"

# The only headers of the caller that are sent to another host: any other may be a credential.
_HARMLESS = frozenset({"accept-language", "origin", "user-agent"})


class Request:
    """What a client asks for, on any connection."""

    def __init__(
        self,
        subprotocols: Sequence[str] | None = (),
        headers: Mapping[str, str] | Iterable[tuple[str, str]] | None = None,
        origin: str | None = None,
        config: Config | None = None,
    ) -> None:
        self.subprotocols = check_subprotocols(subprotocols)
        self.headers = check_request_headers(() if headers is None else headers)
        names = {name.lower() for name, _ in self.headers}
        if origin is not None:
            if "origin" in names:
                raise ValueError("the origin is given twice: in headers and as origin=")
            self.headers += check_request_headers({"Origin": origin})
        if "user-agent" not in names:
            self.headers.append(("User-Agent", _USER_AGENT))
        if config is not None and not isinstance(config, Config):
            raise TypeError(f"config must be a greenws.Config, not {config!r}")
        self.config = config or Config()
        self.socket_class = WebSocket

    def without_credentials(self) -> Request:
        """A copy for another host."""
        other = Request(self.subprotocols, config=self.config)
        other.socket_class = self.socket_class
        other.headers = [pair for pair in self.headers if pair[0].lower() in _HARMLESS]
        return other

    def headers_for(self, target: Target) -> list[tuple[str, str]]:
        """The headers, with the credentials of the URL unless there are others."""
        if target.credentials is None:
            return self.headers
        if any(name.lower() == "authorization" for name, _ in self.headers):
            return self.headers
        return [*self.headers, ("Authorization", target.credentials)]


HINTS = {
    **dict.fromkeys(("timeout", "close_timeout"), "write open_timeout=, or config=Config(...)"),
    **dict.fromkeys(
        ("extra_headers", "additional_headers", "header", "cookie"), "write headers={...}"
    ),
    **dict.fromkeys(("ssl", "sslopt", "ssl_options"), "write ssl_context="),
    "protocols": "write subprotocols=",
    **dict.fromkeys(
        ("ping_interval", "ping_timeout", "max_size", "max_message_size", "compression"),
        "write config=Config(...), with ping_interval, ping_timeout, max_message_size, deflate",
    ),
}
"""Arguments of other libraries' clients, and what to write here."""


@explains("greenws.connect('ws://host/path')", HINTS)
def connect(
    url: str,
    *,
    subprotocols: Sequence[str] | None = (),
    headers: Mapping[str, str] | Iterable[tuple[str, str]] | None = None,
    origin: str | None = None,
    ssl_context: ssl.SSLContext | None = None,
    proxy: bool | str | None = True,
    open_timeout: float | None = 10.0,
    config: Config | None = None,
) -> WebSocket:
    """Connects to ``url``, and blocks until the opening handshake is done (RFC 6455, section 4.1).
    The connection is closed at the end of a ``with`` block::

        with greenws.connect("wss://example.com/chat", subprotocols=["chat"]) as socket:
            socket.send("hello")
            for message in socket:
                print(message)

    Blocks only the calling greenlet, in programs that are monkey-patched and in those that are not.
    A plain thread gets its own hub, which ends with the thread.

    ``url``: ``ws://``, ``wss://``, or ``ws+unix:///run/app.sock:/path`` for a Unix socket. A user
    and password in it become an Authorization header (RFC 7617). ``headers``: a mapping, or pairs
    if a name repeats. ``origin``: for servers that expect one, as from a browser. ``ssl_context``:
    Python's or gevent's; by default, the certificates that the system trusts are trusted.
    ``proxy``: True for the proxy in the environment (the first of ``wss_proxy``, ``https_proxy``,
    ``all_proxy`` and ``socks_proxy``, without TLS ``ws_proxy`` and ``http_proxy`` in place of the
    first two; none for hosts in ``no_proxy``); ``"http://user:password@host:port"`` or
    ``"socks5://host:port"`` (needs ``greenws-wsgi[socks]``); None for no proxy. ``open_timeout``:
    seconds until the socket must be open; None for no limit. ``config``: limits, keepalive and
    compression, as for a server.

    Up to 10 redirects are followed, but not from TLS to a connection without it. Credentials are
    not sent to another host: it gets only User-Agent, Accept-Language and Origin of ``headers``.

    Raises:
        HandshakeError: the server or the proxy refuses, or its response is invalid; with
            ``status``, ``headers`` and ``body``.
        TimeoutError: the socket is not open within ``open_timeout``.
        OSError: the connection fails: ConnectionRefusedError, socket.gaierror,
            ssl.SSLCertVerificationError, ...
        ValueError: the URL, a header, a subprotocol or the proxy is invalid.
        TypeError: an argument has the wrong type.
    """
    request = Request(subprotocols, headers, origin, config)
    return open_socket(url, request, ssl_context, proxy, open_timeout)


def open_socket(
    url: str,
    request: Request,
    context: ssl.SSLContext | None,
    proxy: bool | str | None,
    open_timeout: float | None,
) -> WebSocket:
    """:func:`connect` with a prepared request."""
    if context is not None and not hasattr(context, "wrap_socket"):
        raise TypeError(f"ssl_context must be an ssl.SSLContext, not {context!r}")
    target = parse_url(url)
    hub_of_thread()
    if open_timeout is None:
        return _open(target, request, context, proxy)
    check_seconds("open_timeout", open_timeout)
    with gevent.Timeout(open_timeout) as timer:
        try:
            return _open(target, request, context, proxy)
        except gevent.Timeout as error:
            if error is not timer:
                raise
    raise TimeoutError(
        f"the connection to {target.place} was not open within {open_timeout:g} s (open_timeout)"
    )


def _open(
    target: Target, request: Request, context: ssl.SSLContext | None, proxy: bool | str | None
) -> WebSocket:
    """Connects, and follows redirects."""
    first = target
    redirects = 0
    while True:
        config = request.config
        sock = _dial(target, context, proxy, config)
        try:
            address = target.socket_path or sock.getpeername()
            transport = Transport(
                sock, hub_of_thread(), config.write_high_water, config.write_timeout
            )
        except BaseException:
            sock.close()
            raise
        try:
            return shake_hands(transport, target, request, address)
        except HandshakeError as error:
            if error.status not in _REDIRECTS or "Location" not in error.headers:
                if redirects:  # often to a login page
                    path = target.target.partition("?")[0][:_SHOWN_PATH]
                    error.args = (f"{first.place} redirected to {target.place}{path}: {error}",)
                raise
            if redirects == _MAX_REDIRECTS:
                error.args = (f"The server redirects more than {_MAX_REDIRECTS} times.",)
                error.reason = "redirect"
                raise
            redirects += 1
            before = target
            try:
                target = redirect(target, error.headers["Location"])
            except HandshakeError as wrong:
                wrong.status, wrong.headers, wrong.body = error.status, error.headers, error.body
                raise
        if not is_same_host(before, target):
            request = request.without_credentials()
        elif target.credentials is None:
            target = target._replace(credentials=before.credentials)


def _dial(
    target: Target, context: ssl.SSLContext | None, proxy: bool | str | None, config: Config
) -> Any:
    """A socket over which the server's WebSocket can be opened."""
    if target.socket_path is not None:
        return dial_unix(target.socket_path)
    through = find_proxy(target, proxy)
    if through is None:
        sock = dial(target.host, target.port)
    else:
        sock = dial_through(through, target, config)
    if target.secure:
        sock = start_tls(sock, context or trusting_context(), target.host)
    return sock


def shake_hands(
    transport: Transport, target: Target, request: Request, remote_address: Any = None
) -> WebSocket:
    """Performs the opening handshake over ``transport``, and blocks until it is done. If it fails,
    the transport is closed.

    Raises:
        HandshakeError: the server refuses, or its response is invalid.
        OSError: the connection is lost.
    """
    config = request.config
    key = new_key()
    try:
        head = client_request(
            target.authority,
            target.target,
            key,
            request.subprotocols,
            make_offer(config),
            request.headers_for(target),
        )
        reader = exchange(transport, head, config)
        try:
            if reader.status == 101 and reader.version != "1.1":  # RFC 6455, section 4.2.2
                raise HandshakeError(f"The response is HTTP/{reader.version}, not HTTP/1.1.", 101)
            subprotocol, agreed = check_response(
                reader.status,
                _joined(reader.headers),
                key,
                request.subprotocols,
                config,
            )
        except HandshakeError as error:
            raise explain(error, reader, target.place) from None
    except ConnectionResetError as error:
        if not (transport.received or target.secure or target.socket_path):
            error.args = (f"{error}; if this port is for TLS, use wss://",)
        transport.close()
        raise
    except BaseException:
        transport.close()
        raise
    transport.received = transport.sent = 0  # that was HTTP
    socket = request.socket_class(
        transport,
        config,
        client=True,
        deflate=None if agreed is None else Deflate(agreed, config, client=True),
        early=reader.rest,
        subprotocol=subprotocol,
        remote_address=remote_address,
    )
    socket.response = Response(reader.status, Headers(reader.headers))
    start_pulse(socket, transport.hub, config)
    close_if_forgotten(socket, transport)
    return socket


def _joined(headers: list[tuple[str, str]]) -> dict[str, str]:
    """The headers by their names in lower case; a repeated one is joined with commas."""
    joined: dict[str, str] = {}
    for name, value in headers:
        key = name.lower()
        joined[key] = f"{joined[key]}, {value}" if key in joined else value
    return joined
