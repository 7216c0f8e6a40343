"""``UpgradeHandler``: the HTTP handler whose requests may become WebSockets.

The upgrade is lazy. A handshake that no application could accept is refused here; any other goes to
the application with a pending ``Upgrade`` in its environ, and nothing is sent until somebody
accepts. From then on nothing of HTTP is written to or read from that connection, whatever the
application returns or raises.
"""

from __future__ import annotations

import contextlib
import socket as native
import time
from http.client import HTTPMessage
from typing import Any

from gevent import getcurrent, pywsgi
from gevent.pywsgi import WSGIHandler
from geventwebsocket.handler import Client

from ..config import Config
from ..exceptions import HandshakeError, RequestError
from ..http.head import RequestHead, error_response
from ..http.stream import HttpStream, RequestBody
from ..hub.polling import current_process
from ..hub.sockets import adopt, is_inherited
from ..hub.transport import FOREVER, no_delay
from ..opcodes import CloseCode
from ..protocol.handshake import Offer, is_upgrade, parse_offer, read_choices
from ..rate_limit import RateLimit
from ..refusals import log_answer, log_refusal
from ..session import EXITS, REQUEST_ATTRIBUTE, end_session, is_normal_end, log_failure
from ..surroundings import framework_of
from ..upgrade import ENVIRON_KEY, refusal_response
from .environ import make_environ, remote_address
from .gevent_websocket import GeventWebSocket
from .host import ForeignHost, host_of
from .opening import Opening, ServerUpgrade
from .response import ResponseHandler, to_bytes

__all__ = ["UpgradeHandler"]

_NoopLog: Any = getattr(pywsgi, "_NoopLog", None)  # the log of a server with ``log=None``
_UNLESS_LOGS_FAIL = contextlib.suppress(OSError, ValueError)  # the disk is full, the file closed
_unwritable = RateLimit(1 / 60, burst=1)


class UpgradeHandler(ResponseHandler):
    """A ``handler_class`` for ``gevent.pywsgi.WSGIServer``, in gevent-websocket's place.

    A subclass may override the methods of pywsgi's handler, except those that greenws never calls:
    ``read_request()``, ``read_requestline()``, ``MessageClass``, and ``handle_error()`` for a
    session, whose error is logged. A session of a plain ``Routes`` or ``WebSocketHandler`` has no
    HTTP handler at all, unless the server's ``handler_class`` is a subclass.
    ``tests/integrations/test_pywsgi_suite.py`` lists the differences from pywsgi.
    """

    eager = False
    """Whether to accept before the application is called, as gevent-websocket does: for an
    application that waits for something else before it uses its socket."""

    config = Config()
    """The limits of sessions on a server that is not a :class:`WebSocketServer`."""

    websocket: Any = None
    """The object in ``environ["wsgi.websocket"]``, as in gevent-websocket's handler."""
    client_address: Any
    socket: Any
    _upgrade: _HandlerUpgrade | None = None
    _head: RequestHead | None = None
    _headers: Any = None
    _deadline: float | None = None
    _opening: Opening | None = None
    _late_status = ""
    """The status that an application gave start_response() after it had accepted the upgrade."""

    def __init__(self, sock: Any, address: Any, server: Any, rfile: Any = None) -> None:
        self._process = current_process()
        self._host = host_of(server, self.config)
        config = self._host.config
        no_delay(sock)
        if isinstance(self._host, ForeignHost):
            adopt(sock)
        super().__init__(sock, address, server, rfile or HttpStream(sock, config))
        if config.handshake_timeout is not None:
            self._deadline = time.monotonic() + config.handshake_timeout

    def _handle_from(self, opening: Opening) -> None:
        """:meth:`handle` for a connection whose first request ``opening`` has begun to read."""
        self._opening = opening
        self._deadline = None if opening.deadline == FOREVER else opening.deadline
        self.handle()

    # -- reading requests, in place of pywsgi's own parser

    def handle_one_request(self) -> bool | None:
        """Reads a request and answers it; True if another may follow on this connection."""
        try:
            return self._handle_one_request()
        finally:
            if self._process != current_process():  # pywsgi would read the rest of the input
                self.socket = None

    def _handle_one_request(self) -> bool | None:
        if self.rfile.closed:
            return None
        self.response_length = 0
        try:
            head = self._read_head()
            if head is None:
                return None
            self._begin_request(head)
        except RequestError as error:
            self._refuse_request(error)
            return None
        except OSError:
            return None
        self.application = self.server.application
        if self._opening is not None and self._opening.application is not None:
            self.application = self._opening.application
        self.handle_one_response()
        self._opening = None
        if self.socket is None or self.rfile.closed:
            return None
        if (
            self._upgrade is not None and self.is_upgraded
        ):  # the program has taken the socket, so its input is not ours
            self.socket = None
            return None
        if self.wsgi_input.ends_the_connection:
            self.rfile.linger()
            return None
        return None if self.close_connection else True

    def _begin_request(self, head: RequestHead) -> None:
        self._head = head
        self._headers = None
        self.command, self.path, self.request_version = head.method, head.target, head.version
        self.requestline = head.line
        self.content_length = head.content_length
        self.close_connection = not head.keep_alive or self._host.is_stopping
        self.environ = self.get_environ()

    def _read_head(self) -> RequestHead | None:
        deadline, self._deadline = self._deadline, None
        opening = self._opening
        if opening is not None and opening.error is not None:
            raise opening.error
        if opening is not None and opening.head is not None:
            return opening.head
        if deadline is None and not self._wait_for_request():
            return None
        head: RequestHead | None = self.rfile.read_head(deadline)
        return head

    def _wait_for_request(self) -> bool:
        """Waits for the next request; the connection may be closed then, to make room."""
        timeout = self._host.config.keep_alive_timeout
        idle = self._host.admission.idle
        idle[self] = None
        try:
            began: bool = self.rfile.wait_for_request(
                None if timeout is None else time.monotonic() + timeout
            )
            return began
        finally:
            idle.pop(self, None)

    def _end_idle(self) -> None:
        """Ends the connection, on which no request has begun."""
        if not is_inherited(self.socket):
            with contextlib.suppress(OSError):
                # The native socket: a shutdown of TLS would make the waiting read raise ValueError.
                self.socket._sock.shutdown(native.SHUT_RDWR)

    def _refuse_request(self, error: RequestError) -> None:
        if not error.is_logged:
            self.log_error("%s", f"(from {self.client_address}) {error.status}: {str(error)!r}")
        try:
            self._send_slowly(memoryview(error_response(error)))
        except OSError:
            return
        self.rfile.linger()

    def get_environ(self) -> dict[str, Any]:
        """The environ of the request, as pywsgi builds it."""
        head = self._head
        assert head is not None
        environ = self._opening.environ if self._opening is not None else None
        if environ is None:
            environ = make_environ(self._host, self.client_address, head)
        expects = (
            head.version != "HTTP/1.0"  # RFC 9110, section 10.1.1
            and environ.get("HTTP_EXPECT", "").lower() == "100-continue"
        )
        body = RequestBody(self.rfile, head, self.socket if expects else None)
        self.wsgi_input = environ["wsgi.input"] = body
        return environ

    @property
    def remote_address(self) -> Any:
        """The client's address; with port 0 if trusted proxies report it."""
        return remote_address(self.environ or {}, self.client_address)

    def handle_one_response(self) -> None:
        admission = self._host.admission
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
        """The request's headers in pywsgi's form, for subclasses."""
        if self._headers is None:
            self._headers = HTTPMessage()
            for name, value in self._head.headers if self._head is not None else ():
                self._headers[name.decode("ascii")] = value.decode("latin-1")
        return self._headers

    # -- upgrading

    def run_application(self) -> None:
        if self._opening is None and "HTTP_UPGRADE" not in self.environ:
            WSGIHandler.run_application(self)
            return
        try:
            upgrade = self._find_upgrade()
        except HandshakeError as error:
            self._count_refusal(error.reason)
            log_refusal(self.environ, error)
            self._refuse(error)
            return
        if upgrade is not None:
            self._run_upgrade(upgrade)
            return
        refusal_reason = self._opening.refusal_reason if self._opening is not None else ""
        if refusal_reason:  # its response is to be sent
            self._count_refusal(refusal_reason)
            self._end_http()
        try:
            WSGIHandler.run_application(self)
        finally:  # the client may have left before the response
            if refusal_reason == "application" and self.status is not None:
                log_answer(self.environ, self._orig_status, self.application)

    def _find_upgrade(self) -> _HandlerUpgrade | None:
        offer = self._find_offer()
        return None if offer is None else _HandlerUpgrade(offer, self)

    def _find_offer(self) -> Offer | None:
        """The handshake in the request; None if it is not an upgrade, or was answered already.

        Raises:
            HandshakeError: no application could accept it.
        """
        opening = self._opening
        if opening is not None and opening.environ is not None:
            if opening.refused is not None:
                raise opening.refused
            # Only the upgrade keeps the offer, and drops it when it is answered.
            offer, opening.offer = opening.offer, None
            return offer
        hook = self._host.pre_start_hook
        if not is_upgrade(self.environ) or (hook and hook(self)):
            return None
        return parse_offer(self.environ)

    def _end_http(self) -> None:
        """Reads no more requests: what follows a handshake may be meant for a WebSocket."""
        self.close_connection = True
        self.wsgi_input.drop()

    def _run_upgrade(self, upgrade: _HandlerUpgrade) -> None:
        self._upgrade = upgrade
        self._end_http()
        self.websocket = GeventWebSocket(upgrade, self.environ, self)
        self.environ[ENVIRON_KEY] = upgrade
        self.environ["wsgi.websocket"] = self.websocket
        self.environ["wsgi.websocket_version"] = "13"
        clients = self._host.clients
        key = self._client_key
        client = clients[key] = Client(self.client_address, self.websocket)
        try:
            self._call_application(upgrade)
        except HandshakeError as error:
            upgrade.refusal_reason = error.reason
            log_refusal(self.environ, error)
            self._refuse(error)
        finally:
            if clients.get(key) is client:  # a proxy may report one address for two connections
                del clients[key]
            # The socket refers to its request, and that to the environ: a cycle.
            self.environ.pop(ENVIRON_KEY, None)
            upgrade.forget()
            self.environ["wsgi.websocket"] = None
            self.websocket.environ = None
            self.websocket = None
            if self.rfile.is_taken:
                upgrade.release()
            elif upgrade.socket is None:
                self._upgrade = None
                if not upgrade.refusal_reason and self.status is not None:
                    log_answer(self.environ, self._orig_status, self.application)
                self._count_refusal(upgrade.refusal_reason or "application")
                upgrade.release()

    def _call_application(self, upgrade: _HandlerUpgrade) -> None:
        prevented = getattr(self, "prevent_wsgi_call", False)
        if self.eager or prevented:
            self.websocket.accept()
        escaped: BaseException | None = None
        try:
            if not prevented:
                setattr(getcurrent(), REQUEST_ATTRIBUTE, upgrade)
                WSGIHandler.run_application(self)
        except BaseException as error:
            if not self.is_upgraded:
                raise
            escaped = error
        finally:
            with contextlib.suppress(AttributeError):
                delattr(getcurrent(), REQUEST_ATTRIBUTE)
        if not self.is_upgraded and self.status is None:
            # An application of gevent-websocket's may return without using the socket.
            self.websocket.accept()
        if not self.is_upgraded:
            return
        has_failed = not is_normal_end(escaped) or self._late_status.startswith("5")
        if self.rfile.is_taken and has_failed and not is_inherited(self.socket):
            with contextlib.suppress(OSError):  # the program may have another descriptor of it
                self.socket.shutdown(native.SHUT_RDWR)
        try:
            socket = upgrade.socket
            if socket is not None and socket._record is not None:
                if escaped is None and has_failed:
                    socket.start_closing(CloseCode.INTERNAL_ERROR)  # a framework caught the error
                end_session(socket, escaped)
            elif isinstance(escaped, EXITS):
                raise escaped
            elif not is_normal_end(escaped):  # the session has ended, and nothing handled the error
                assert escaped is not None
                if not upgrade.take_error(escaped):
                    log_failure(self.environ["PATH_INFO"], self.remote_address, escaped)
        finally:
            escaped = None

    def _count_refusal(self, reason: str) -> None:
        if self._host.stats is not None:
            self._host.stats.refused[reason] += 1

    def _refuse(self, error: HandshakeError) -> None:
        self._end_http()
        self.application = refusal_response(error)
        WSGIHandler.run_application(self)

    @property
    def _client_key(self) -> Any:
        # Clients of a Unix socket have no address.
        return self.client_address or id(self)

    @property
    def active_client(self) -> Client:
        return self._host.clients[self._client_key]

    @property
    def is_upgraded(self) -> bool:
        """Whether the current request has become a WebSocket: ours, or that of a program that has
        taken the socket itself."""
        upgrade = self._upgrade
        return upgrade is not None and (upgrade.socket is not None or self.rfile.is_taken)

    @property
    def _is_beside_the_socket(self) -> bool:
        """Whether to ignore what the application returns: it has accepted an upgrade, or did not
        begin an HTTP response to one."""
        return self.is_upgraded or (self._upgrade is not None and self.status is None)

    def start_response(self, status: str, headers: Any, exc_info: Any = None) -> Any:
        if self._upgrade is None:
            return ResponseHandler.start_response(self, status, headers, exc_info)
        if self.is_upgraded:
            self._late_status = status
            return self.write
        if (
            self._upgrade is not None
            and self._upgrade.unused_handler
            and status[:1] == "2"
            and "werkzeug.request" not in self.environ  # Flask runs a handler that is returned
        ):
            self._upgrade.unused_handler = False  # the error page may come through here
            raise RuntimeError(
                f"{self.path!r} made a WebSocketHandler, but its framework ignores what a view "
                "returns, and answers "
                f"{status}: call the handler with (environ, start_response), or mount it; "
                "docs/howto/frameworks.md shows how"
            )
        if (
            self._upgrade is not None
            and status[:1] == "2"
            and any(name.lower() == "content-length" and value == "0" for name, value in headers)
            and framework_of(self.application) == "Falcon"
        ):
            raise RuntimeError(
                f"{self.path!r} answers a WebSocket handshake with an empty {status}: Falcon "
                "ignores what a responder returns. Call the WebSocketHandler in it; "
                "docs/howto/frameworks.md shows how"
            )
        return super().start_response(status, headers, exc_info)

    def write(self, data: bytes) -> None:
        if self._upgrade is not None and self._is_beside_the_socket:
            return
        if type(data) is not bytes and self.code not in (204, 304):
            data = to_bytes(data) if data else b""  # pywsgi's 400 has a body of an empty str
        if self.headers_sent or not self.status or self.code in (204, 304):
            super().write(data)
        else:
            self._write_with_headers(data)

    def process_result(self) -> None:
        if (
            self._upgrade is not None
            and self._is_beside_the_socket
            and not hasattr(self.result, "__iter__")
        ):
            return
        super().process_result()

    def log_request(self) -> None:
        is_seen = (
            type(self.server.log) is not _NoopLog
            or type(self).format_request is not UpgradeHandler.format_request
        )
        if is_seen and not self.is_upgraded:
            line = self.format_request() + "\n"
            try:
                if self.server.log is not None:  # standard error of a process that has none
                    self.server.log.write(line)
            except (OSError, ValueError) as error:
                if _unwritable.take():
                    self.log_error("%s", f"cannot write the access log: {error}")

    def log_error(self, msg: str, *args: Any) -> None:
        # pywsgi prints what it cannot log to standard error, which may be what is full.
        with _UNLESS_LOGS_FAIL:
            super().log_error(msg, *args)

    def _log_error(self, t: Any, v: Any, tb: Any) -> None:
        with _UNLESS_LOGS_FAIL:
            super()._log_error(t, v, tb)


class _HandlerUpgrade(ServerUpgrade):
    """The upgrade of the current request of an ``UpgradeHandler``."""

    def __init__(self, offer: Offer, handler: UpgradeHandler) -> None:
        super().__init__(offer, handler._host, handler.environ, handler.path)
        self._handler: Any = handler  # None once the request is over
        self._choices = _choices(handler.environ)
        self._client = _client(handler.environ)
        self._address: Any = None

    def follow(self, environ: dict[str, Any]) -> None:
        choices, client = _choices(environ), _client(environ)
        if choices != self._choices:
            self._choices = choices
            self.offer = read_choices(self.offer.key, environ)
        if client != self._client and client[0]:
            port = client[1] if client[1] != self._client[1] else None
            self._address = (client[0], int(port) if port and str(port).isdigit() else 0)
        super().follow(environ)

    def forget(self) -> None:
        self._handler = None

    def _take_socket(self) -> tuple[Any, bytes, bool]:
        handler = self._handler
        if handler.headers_sent:
            raise RuntimeError("the application has begun an HTTP response; too late to upgrade")
        if is_inherited(handler.socket):
            raise RuntimeError("the connection belongs to the parent process")
        handler.rfile.stop_watching()
        early = handler.rfile.take()
        handler.rfile.close()
        handler.close_connection = True
        return handler.socket, early, False

    def _remote_address(self) -> Any:
        return self._address or self._handler.remote_address


def _choices(environ: dict[str, Any]) -> tuple[Any, Any]:
    return (
        environ.get("HTTP_SEC_WEBSOCKET_PROTOCOL"),
        environ.get("HTTP_SEC_WEBSOCKET_EXTENSIONS"),
    )


def _client(environ: dict[str, Any]) -> tuple[Any, Any]:
    return environ.get("REMOTE_ADDR"), environ.get("REMOTE_PORT")
