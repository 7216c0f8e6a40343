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

__all__ = ["Request", "connect", "open_socket", "shake_hands"]

_MAX_REDIRECTS = 10
_SHOWN_PATH = 200  # characters
_REDIRECTS = (301, 302, 303, 307, 308)
_USER_AGENT = f"Python/{sys.version_info[0]}.{sys.version_info[1]} greenws"

# To another host go only these of the caller's headers: any other may be a credential.
_HARMLESS = frozenset({"accept-language", "origin", "user-agent"})


class Request:
    """What a client asks for, whatever its connection."""

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


@explains(
    "greenws.connect('ws://host/path')",
    {
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
    },
)
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
    A plain thread gets a hub of its own, which ends with it.

    ``url``: ``ws://``, ``wss://``, or ``ws+unix:///run/app.sock:/path`` for a Unix socket. A user
    and password in it become an Authorization header (RFC 7617). ``headers``: a mapping, or pairs
    if a name repeats. ``origin``: for servers that ask for one, as of a browser. ``ssl_context``:
    Python's or gevent's; without it, what the system trusts is trusted. ``proxy``: True for that of
    the environment (``https_proxy``, ``http_proxy``, ``all_proxy``, but for the hosts in
    ``no_proxy``); ``"http://user:password@host:port"`` or ``"socks5://host:port"`` (needs
    ``greenws-wsgi[socks]``); None for none. ``open_timeout``: seconds for everything until the
    socket is open; None for no limit. ``config``: limits, keepalive and compression, as of a
    server.

    Up to 10 redirects are followed, never from TLS to a connection without. To another host go no
    credentials: of ``headers`` only User-Agent, Accept-Language and Origin.

    Raises:
        HandshakeError: the server or the proxy refuses, or its response is invalid; with
            ``status``, ``headers`` and ``body``.
        TimeoutError: the socket is not open within ``open_timeout``.
        OSError: nobody is there: ConnectionRefusedError, socket.gaierror,
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
    """:func:`connect`, for a request that is known."""
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
                if redirects:  # often to a page that asks for a login
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
                raise HandshakeError(f"The response is of HTTP/{reader.version}, not 1.1.", 101)
            subprotocol, agreed = check_response(
                reader.status,
                _joined(reader.headers),
                key,
                request.subprotocols,
                config,
            )
        except HandshakeError as error:
            raise explain(error, reader, target.place) from None
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
