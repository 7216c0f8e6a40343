"""``connect()``: an opening handshake with an application, through a test client.

The handshake runs inside a request of a werkzeug test client, which builds the environ as for any
other request, with its cookies, and keeps the cookies of the response.
"""

from __future__ import annotations

import http.client
import io
from collections.abc import Iterable, Mapping, Sequence
from http.cookies import SimpleCookie
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit, urlunsplit

import gevent
from gevent import socket as gevent_socket
from werkzeug.datastructures import Headers
from werkzeug.test import Client, TestResponse

from .. import checks
from ..client.exchange import Response
from ..config import Config
from ..exceptions import HandshakeError
from ..hub.transport import FOREVER, Transport
from ..protocol.deflate import Deflate, make_offer
from ..protocol.handshake import check_response, header_pairs, new_key
from . import frameworks
from .hosting import TestServer
from .sockets import Run, TestSocket, check_options, client_config
from .timers import RealTimeout

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment
    from typing_extensions import Never

__all__ = ["Refused", "connect"]

_SHOWN = 500  # characters of a response in the message of an error
_NOT_EXTRA = ("HTTP_", "CONTENT_", "REQUEST_", "RAW_", "wsgi.", "werkzeug.", "flask.")
_OF_THE_HEAD = {"PATH_INFO", "QUERY_STRING", "SERVER_PROTOCOL"}
_SCHEMES = {"http://": "http", "https://": "https", "ws://": "http", "wss://": "https"}
_SAFE = "/:@!$&'()*+,;=~-._"  # in a path (RFC 3986, section 3.3)


class Refused(HandshakeError):
    """The application answered the opening handshake with HTTP.

    ``response`` is its response, a ``werkzeug.test.TestResponse`` (Flask's, from a client of
    Flask's), and ``status_code`` its status.
    """

    def __init__(self, response: TestResponse) -> None:
        text = response.get_data()[:_SHOWN].decode("utf-8", "replace").strip()
        message = response.status
        if 300 <= response.status_code < 400:
            message += f", to {response.headers.get('Location')}"
        if text:
            message += f": {text}"
        super().__init__(message, response.status_code, list(response.headers), "status")
        self.response = response
        self.body = response.get_data()

    @property
    def status_code(self) -> int:
        """The HTTP status of the response."""
        return self.response.status_code


def connect(
    app: WSGIApplication,
    path: str = "/",
    *,
    client: Any = None,
    headers: Mapping[str, str] | Iterable[tuple[str, str]] | None = None,
    subprotocols: Sequence[str] | None = (),
    timeout: float | None = 5.0,
    config: Config | None = None,
    **unknown: Never,
) -> TestSocket:
    """Opens a session of ``app``, any WSGI application, and returns the client's end of it.

    No server, no port and no thread: the application runs in a greenlet, whenever the test waits.
    It gets what ``WebSocketServer(address, app, config=config)`` would give it.

    ``path`` may have a query. A whole URL, such as ``wss://example.com/chat``, gives the scheme and
    the host of the request, too. ``client``: a test client of Flask's, werkzeug's or Django's; its
    cookies are sent, and it keeps those that the response sets. ``headers`` are added to the
    handshake's own, or replace them. ``subprotocols``: those that the client offers. ``timeout``:
    seconds for any single wait; None for no limit, for debugging.

    Use it in a ``with``, which closes the connection at its end and waits for the session; or call
    ``close()``.

    Raises:
        Refused: the application answered with HTTP. If it failed (5xx), its error is the
            ``__cause__``, if known.
        TimeoutError: it has not answered within ``timeout``.
        TypeError, ValueError: an argument is not allowed.
        Exception: an exception that escaped the application.
    """
    __tracebackhide__ = True
    known = ("client", "headers", "subprotocols", "timeout", "config")
    checks.check_options(unknown, known)
    if not callable(app):
        raise TypeError(f"connect() takes a WSGI application, not {app!r}")
    if isinstance(subprotocols, str):
        raise TypeError(f"subprotocols is a list of names, such as [{subprotocols!r}]")
    if subprotocols is not None and not isinstance(subprotocols, Iterable):
        raise TypeError(f"subprotocols is a list of names, such as ['chat'], not {subprotocols!r}")
    offered = list(subprotocols or ())
    if not all(isinstance(name, str) for name in offered):
        raise TypeError(f"subprotocols is a list of names, such as ['chat'], not {offered!r}")
    if not isinstance(path, str) or not path.startswith(("/", "?", *_SCHEMES)):
        raise ValueError(f"path begins with '/', as in '/chat?room=1', not {path!r}")
    config = check_options(timeout, config)
    given = Headers(header_pairs(headers))
    handshake = _Handshake(app, path, given, offered, timeout, config)
    is_open = False
    try:
        response = handshake.through(client)
        if handshake.error is not None:
            raise handshake.error
        run = handshake.run
        if run.socket is not None:
            is_open = True
            return run.socket
        if run.is_propagated:
            run.raise_error()
        raise Refused(response) from (run.errors[0][0] if run.errors else None)
    finally:
        if not is_open:
            handshake.run.abort()
        del handshake


class _Handshake:
    """A WSGI application for a test client to call, in place of the one under test."""

    def __init__(
        self,
        app: WSGIApplication,
        path: str,
        headers: Headers,
        subprotocols: list[str],
        timeout: float | None,
        config: Config,
    ) -> None:
        self.run = Run(path, timeout)
        self.error: Exception | None = None
        self._app = app
        self._face: Any = app
        self._path = path
        self._origin = ""
        for prefix, scheme in _SCHEMES.items():
            if path.startswith(prefix):
                target = urlsplit(path)
                self._origin = f"{scheme}://{target.netloc}"
                self._path = urlunsplit(("", "", target.path or "/", target.query, ""))
        # Not sent by the client: it would replace them by its own, or join them with commas.
        self._cookies = headers.getlist("Cookie")
        headers.remove("Cookie")
        self._headers = headers
        self._subprotocols = subprotocols
        self._config = config
        self._limits = client_config(config)

    def __getattr__(self, name: str) -> Any:
        # Flask's client reads the application's settings.
        return getattr(self.__dict__["_face"], name)

    def through(self, client: Any) -> TestResponse:
        """Makes the handshake in a request of ``client``; returns the response."""
        if client is None:
            client = frameworks.client_of(self._app)
        if client is None:
            own = Client(self, use_cookies=False)
            origin = self._origin or f"http://{frameworks.default_host()}"
            return own.get(self._path, headers=self._headers, base_url=origin)
        if isinstance(client, Client):
            self._face = client.application
            client.application = self
            try:
                if self._origin and not frameworks.is_flasks(client):
                    return client.get(self._path, headers=self._headers, base_url=self._origin)
                # Flask's takes the root of the application from its settings.
                return client.get(self._origin + self._path, headers=self._headers)
            finally:
                client.application = self._face
        if isinstance(getattr(client, "cookies", None), SimpleCookie):
            return self._through_django(client)
        raise TypeError(
            f"client is a test client of Flask's, werkzeug's or Django's, not {client!r}"
        )

    def _through_django(self, client: Any) -> TestResponse:
        cookies = "; ".join(
            f"{name}={morsel.coded_value}" for name, morsel in client.cookies.items()
        )
        if cookies:
            self._cookies.append(cookies)
        own = Client(self, use_cookies=False)
        defaults = dict(getattr(client, "defaults", {}))
        response = own.get(
            self._path,
            headers=self._headers,
            base_url=self._origin or frameworks.origin_of(defaults),
            environ_base=defaults,
        )
        for cookie in response.headers.getlist("Set-Cookie"):
            client.cookies.load(cookie)
        return response

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        try:
            status, headers, body = self._perform(environ)
        except Exception as error:  # must not pass through the client's frames
            self.error = error
            status, headers, body = "500 Internal Server Error", [], b""
        start_response(status, headers)
        return [body]

    def _perform(self, environ: WSGIEnvironment) -> tuple[str, list[tuple[str, str]], bytes]:
        run = self.run
        ours, theirs = gevent_socket.socketpair()
        transport = Transport(ours, gevent.get_hub(), self._limits.write_high_water)
        run.extra = {
            key: value
            for key, value in environ.items()
            if not key.startswith(_NOT_EXTRA) and key not in _OF_THE_HEAD
        }
        run.extra["wsgi.url_scheme"] = environ["wsgi.url_scheme"]
        server = TestServer.of(self._app, self._config)
        server.serve(run, theirs, str(environ.get("REMOTE_ADDR", "127.0.0.1")))
        limit = RealTimeout(run.timeout)
        try:
            transport.send(self._head(environ))
            return self._read_response(transport, environ)
        except RealTimeout as expired:
            if expired is not limit:
                raise
            raise run.timed_out(
                f"no answer to the handshake of {run.what} within {run.timeout:g} s"
            ) from None
        finally:
            limit.close()
            if run.socket is None:
                transport.close()

    def _head(self, environ: WSGIEnvironment) -> bytes:
        """The head of the request, with what a handshake needs."""
        target = quote(environ["PATH_INFO"].encode("latin-1"), safe=_SAFE) or "/"
        if environ.get("QUERY_STRING"):
            target += f"?{environ['QUERY_STRING']}"
        headers = Headers([("Host", environ["HTTP_HOST"])])
        for key, value in environ.items():
            if key.startswith("HTTP_") and key != "HTTP_HOST":
                headers.add(key[5:].replace("_", "-").title(), value)
        cookies = [*headers.getlist("Cookie"), *self._cookies]
        if cookies:
            headers["Cookie"] = "; ".join(cookies)
        own = {
            "Upgrade": "websocket",
            "Connection": "Upgrade",
            "Sec-WebSocket-Key": new_key(),
            "Sec-WebSocket-Version": "13",
            "Sec-WebSocket-Protocol": ", ".join(self._subprotocols),
            "Sec-WebSocket-Extensions": make_offer(self._limits),
        }
        for name, value in own.items():
            if value and name not in headers:
                headers[name] = value
        self._key = headers["Sec-WebSocket-Key"]
        lines = [f"GET {target} HTTP/1.1", *(f"{name}: {value}" for name, value in headers), "", ""]
        return "\r\n".join(lines).encode("latin-1")

    def _read_response(
        self, transport: Transport, environ: WSGIEnvironment
    ) -> tuple[str, list[tuple[str, str]], bytes]:
        data = b""
        size = 1
        while size > 0:
            size = transport.receive(FOREVER)
            if size > 0:
                data += transport.buffer[:size]
            end = data.find(b"\r\n\r\n")
            if end < 0:
                continue
            if data.startswith(b"HTTP/1.1 101 "):
                return self._accept(transport, data[: end + 4], data[end + 4 :])
            response = _parse(data, size <= 0)
            if response is not None:
                return response
        raise ConnectionError(
            f"the application ended the connection before it had answered the handshake: {data!r}"
        )

    def _accept(
        self, transport: Transport, head: bytes, rest: bytes
    ) -> tuple[str, list[tuple[str, str]], bytes]:
        message = http.client.parse_headers(io.BytesIO(head.partition(b"\r\n")[2]))
        headers = message.items()
        lower = {name.lower(): value for name, value in headers}
        subprotocol, agreed = check_response(
            101, lower, self._key, self._subprotocols, self._limits
        )
        transport.received = transport.sent = 0  # that was HTTP
        self.run.socket = TestSocket._open(
            self.run,
            transport,
            self._limits,
            client=True,
            deflate=None if agreed is None else Deflate(agreed, self._limits, client=True),
            early=rest,
            subprotocol=subprotocol,
            remote_address=("127.0.0.1", 80),
        )
        self.run.socket.response = Response(101, Headers(headers))
        return "101 Switching Protocols", headers, b""


def _parse(data: bytes, is_all: bool) -> tuple[str, list[tuple[str, str]], bytes] | None:
    """The response in ``data``; None if it is incomplete."""
    response = http.client.HTTPResponse(_Bytes(data))  # type: ignore[arg-type]
    response.begin()
    if not is_all and response.length is None and not response.chunked:
        return None
    try:
        body = response.read()
    except http.client.IncompleteRead:
        if not is_all:
            return None
        raise
    headers = [each for each in response.getheaders() if each[0].lower() != "transfer-encoding"]
    return f"{response.status} {response.reason}", headers, body


class _Bytes:
    """Acts as a socket for http.client."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def makefile(self, mode: str) -> io.BytesIO:
        return io.BytesIO(self._data)
