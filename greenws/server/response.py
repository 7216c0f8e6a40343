"""Writing HTTP responses: framing, one write for a small response, and clients that do not read.

This replaces the writing half of pywsgi's handler. The body is framed as the application's headers
say and the request allows. Nothing is sent after the head of a response without a body, and never
more than ``Content-Length`` says, since a client would take it for the next response. A connection
whose client acknowledges nothing for ``write_timeout`` is closed.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import socket as native
import struct
import time
from http import HTTPStatus
from typing import Any
from wsgiref.handlers import format_date_time

import gevent
from gevent import getcurrent
from gevent.pywsgi import WSGIHandler
from geventwebsocket.handler import WebSocketHandler as _OriginalHandler

from ..grammar import TOKEN
from ..hub import syscalls
from ..hub.polling import current_process
from ..hub.sockets import OwnedSocket, is_inherited
from ..hub.transport import Transport
from ..hub.turns import end_turn_if_due
from .files import find_file
from .host import Host

__all__ = ["ResponseHandler"]

_is_status: Any = re.compile(rb"[1-9][0-9][0-9](?: [\t -~\x80-\xff]*)?").fullmatch
_is_token: Any = re.compile(TOKEN.encode()).fullmatch
_has_control_character: Any = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]").search
_TOKEN_CHARACTERS = bytes(each for each in range(256) if _is_token(bytes([each])))
_STATUSES = {
    line: line.encode("ascii") for line in (f"{each:d} {each.phrase}" for each in HTTPStatus)
}
_DECIDED = (b"connection", b"transfer-encoding")  # headers that the server may have to change
_PIECE = 1 << 18  # bytes of a large body that are copied at a time
_JOIN_LIMIT = 1 << 16  # bytes up to which a copy is cheaper than another system call
_SMALL_FILE = 1 << 15  # bytes up to which a file is read, and sent with the head in one write
_FILE_PIECE = 1 << 18  # bytes of a file that are sent at a time
_SLOW_PIECE = 1 << 14  # bytes of a file that are read when the kernel takes no more
# sendfile() does not work with this file, or the socket accepts no more at the moment.
_READ_INSTEAD = (errno.EAGAIN, errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOVERFLOW)
_MORE = getattr(native, "MSG_MORE", 0)
_READ_AHEAD = 1 << 16  # bytes that are read ahead while a response is being generated
_CHECK_INTERVAL = 0.1  # seconds between two checks of the client while nothing is sent
_FIRST_CHECK, _LAST_CHECK = 0.05, 5.0  # seconds between two checks of a half-closed connection
_KEEPALIVE = 5  # seconds between TCP's probes of a half-closed connection
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: closing sends a reset


class ResponseHandler(_OriginalHandler):  # type: ignore[misc]
    """The half of ``UpgradeHandler`` that writes responses."""

    _host: Host
    code: Any
    command: Any
    status: Any
    response_headers: Any
    _has_body = True  # whether the response may have one
    _left: int | None = None  # bytes of Content-Length that were not written yet
    _is_too_long = False
    _more = 0  # MSG_MORE while the head of a file is written
    _looked_at = 0.0
    _watch: Any = None  # the _ClientWatch of a generated body

    # -- what pywsgi and the application call

    def run_application(self) -> None:
        # For subclasses that go past gevent-websocket's handler, of which this is one, to pywsgi's:
        # super(WebSocketHandler, self).run_application()
        WSGIHandler.run_application(self)

    def start_response(self, status: str, headers: Any, exc_info: Any = None) -> Any:
        """PEP 3333's ``start_response``.

        Raises:
            AssertionError: the status or a header is malformed; ``Content-Length`` is repeated or
                is not a number.
        """
        if exc_info is None and self._start_plain(status, headers):
            return self.write
        write = WSGIHandler.start_response(self, status, headers, exc_info)
        if not _is_status(self.status):
            self.status = None
            raise self.ApplicationError(
                f"invalid response status: {status!r}; expected one such as '200 OK'"
            )
        lengths = []
        codings = []
        for header in self.response_headers:
            name, value = header
            if not _is_token(name) or _has_control_character(value):
                self.status = None
                raise self.ApplicationError(f"invalid response header: {(name, value)}")
            size = len(name)  # comparing sizes is faster than comparing strings
            if size == 14 and name.lower() == b"content-length":
                lengths.append(value)
            elif size == 10 and name.lower() == b"connection" and value.lower() == b"close":
                self.close_connection = True
            elif size == 17 and name.lower() == b"transfer-encoding":
                codings.append(header)
        for header in codings:
            # The server does the framing: an application that passes on another server's headers
            # does not pass on its chunks (PEP 3333, "Other HTTP Features").
            self.response_headers.remove(header)
        if len(lengths) > 1 or lengths and not lengths[0].isdigit():
            self.status = None
            raise self.ApplicationError(f"invalid Content-Length in the response: {lengths}")
        return write

    def _start_plain(self, status: Any, headers: Any) -> bool:
        """:meth:`start_response` in one pass, for the arguments of nearly all applications. False,
        with no change, if there is anything to refuse or to decide."""
        if type(status) is not str or type(headers) is not list:
            return False
        encoded = []
        length = date = None
        try:
            line = _STATUSES.get(status) or status.encode("latin-1")
            for name, value in headers:
                if type(name) is not str or type(value) is not str:
                    return False
                raw_name, raw_value = name.encode("latin-1"), value.encode("latin-1")
                size = len(raw_name)  # comparing sizes is faster than comparing strings
                if size == 0 or raw_name.translate(None, _TOKEN_CHARACTERS):
                    return False
                if not value.isprintable() and _has_control_character(raw_value):
                    return False
                if size == 14 and raw_name.lower() == b"content-length":
                    if length is not None or not raw_value.isdigit():
                        return False
                    length = value
                elif size == 4 and raw_name.lower() == b"date":
                    date = value
                elif size in (10, 17) and raw_name.lower() in _DECIDED:
                    return False
                encoded.append((raw_name, raw_value))
        except (TypeError, ValueError):  # not a pair, or not Latin-1
            return False
        if status not in _STATUSES and not _is_status(line) or self.request_version == "HTTP/1.0":
            return False
        code = int(line[:3])
        if code in (204, 304):
            return False
        self.status = line
        self._orig_status = status  # for pywsgi's log
        self.code = code
        self.response_headers = encoded
        self.provided_date = date
        self.provided_content_length = length
        return True

    def finalize_headers(self) -> None:
        """Decides how the body is framed (RFC 9112, section 6.3), and adds the headers for it."""
        headers = self.response_headers
        if self.provided_date is None:
            headers.append((b"Date", _date()))
        self.connection_upgraded = self.code == 101
        is_bodyless = self.code in (204, 304) or (100 <= self.code < 200 and self.code != 101)
        self._has_body = not is_bodyless and self.command != "HEAD"
        self._left = None
        self._is_too_long = False
        self.response_use_chunked = False
        if self.code < 200 and not self.connection_upgraded:
            self.close_connection = True  # the client still waits for the response
        if is_bodyless or self.connection_upgraded:
            pass
        elif self.provided_content_length is not None:
            self._left = int(self.provided_content_length)
        elif hasattr(self.result, "__len__"):
            self._left = sum(map(_size, self.result))
            if self._left or self._has_body:
                headers.append((b"Content-Length", b"%d" % self._left))
        elif self.request_version == "HTTP/1.0":  # the end of the connection ends the body
            self.close_connection = True
        else:
            self.response_use_chunked = True
            headers.append((b"Transfer-Encoding", b"chunked"))
        self._set_connection()

    def _set_connection(self) -> None:
        # Both are hop-by-hop headers, so the server sets them, not the application.
        options = []
        if self._host._ends_connections and not self.close_connection and not self._is_followed():
            self.close_connection = True  # tells a client, or a proxy, to send no more requests
        if self.code == 426:  # RFC 9110, section 15.5.22
            self.response_headers.append((b"Upgrade", b"websocket"))
            options.append(b"Upgrade")
        if self.close_connection or self.wsgi_input.ends_the_connection:
            options.append(b"close")
        if options:
            self.response_headers = [
                (name, value)
                for name, value in self.response_headers
                if name.lower() != b"connection" or value.lower() != b"keep-alive"
            ]
            if not any(name.lower() == b"connection" for name, _ in self.response_headers):
                self.response_headers.append((b"Connection", b", ".join(options)))

    def _is_followed(self) -> bool:
        """Whether the client has already sent another request, or may be sending the body of this
        one."""
        if not self.wsgi_input.is_read:
            return True
        with contextlib.suppress(OSError):
            self.rfile.read_ahead(0)
        return bool(self.rfile.has_input)

    def process_result(self) -> None:
        """Writes what the application returned."""
        result = self.result
        if isinstance(result, (list, tuple)):
            if len(result) > 1 and sum(map(_size, result)) <= _JOIN_LIMIT:
                result = (b"".join([part for part in result if len(part)]),)
            for data in result:
                if data:
                    self.write(data)
        elif not self._write_file():
            self._write_generated(iter(result))
        if self.status and not self.headers_sent:
            self.write(b"")
        self._end_body()

    def _write_file(self) -> bool:
        """Writes the file that the application returned, if it can be sent by ``sendfile`` or is
        small; otherwise writes nothing, and returns False."""
        sock = self.socket
        if type(sock) is not OwnedSocket or self.headers_sent or not self.status:
            return False
        if self.provided_content_length is None or not hasattr(os, "sendfile"):
            return False
        found = find_file(self.result)
        if found is None:
            return False
        fileno, offset = found
        length = int(self.provided_content_length)
        if length <= _SMALL_FILE and self.command != "HEAD":
            self.write(os.pread(fileno, length, offset))
            return True
        self._begin_file()
        if self._has_body and self._left is not None:
            self._send_file(fileno, offset)
        return True

    def _begin_file(self) -> None:
        """Writes the head; the kernel joins it with what follows."""
        self._more = _MORE if self.command != "HEAD" else 0
        try:
            self.write(b"")
        finally:
            self._more = 0

    def _send_file(self, fileno: int, offset: int) -> None:
        """Sends as much of the file as Content-Length says, from ``offset`` on."""
        assert self._left is not None
        sock = self.socket
        try:
            while self._left > 0:
                end_turn_if_due(is_slow=True)  # it may be read from a disk
                if is_inherited(sock):
                    raise ConnectionResetError(
                        errno.ECONNRESET, "the connection belongs to the parent process"
                    )
                try:
                    size = min(self._left, _FILE_PIECE)
                    sent = os.sendfile(sock.fileno(), fileno, offset, size)
                except OSError as error:
                    if error.errno not in _READ_INSTEAD:
                        raise
                    # A transport sends this piece: it waits, with a timeout if nobody reads.
                    data = os.pread(fileno, min(self._left, _SLOW_PIECE), offset)
                    sent = len(data)
                    if data:
                        self._send_slowly(memoryview(data))
                if sent == 0:  # the file has become shorter
                    break
                offset += sent
                self._left -= sent
                self.response_length += sent
        except BaseException as error:
            self._note_failure(error)
            raise

    def _write_generated(self, parts: Any) -> None:
        try:
            while True:
                if self._may_watch():
                    if self._watch is None:
                        self._watch = _ClientWatch(self)
                    self._watch.start()
                try:
                    data = next(parts)
                except StopIteration:
                    return
                finally:
                    if self._watch is not None:
                        self._watch.stop()
                if data:
                    self.write(data)
                else:
                    end_turn_if_due()
        finally:
            if self._watch is not None:
                self._watch.close()
                self._watch = None

    def _may_watch(self) -> bool:
        """Whether the server may read the client's input while the next part is generated: the
        application has no body to read, and no protocol of its own."""
        return (
            self.headers_sent
            and self._left != 0
            and not self.connection_upgraded
            and self.wsgi_input.is_read
        )

    # -- writing

    def _write_with_headers(self, data: bytes) -> None:
        self.finalize_headers()
        self.headers_sent = True
        head = bytearray(b"HTTP/1.1 ")
        head += self.status
        for name, value in self.response_headers:
            head += b"\r\n%b: %b" % (name, value)
        head += b"\r\n\r\n"
        body = self._frame(data)
        if len(body) <= _JOIN_LIMIT:
            head += body
            self._sendall(head)
        else:
            self._sendall(head)
            self._sendall(body)

    def _write(self, data: bytes) -> None:
        body = self._frame(data)
        if body:
            self._sendall(body)
            return
        end_turn_if_due()
        if not self._has_body:
            self._leave_if_alone()

    def _leave_if_alone(self) -> None:
        """Ends a response without a body if its client is gone. Nothing more is sent that could
        fail, and the application may generate parts without end. (A client that has only ended its
        half of the stream has the whole response, but may wait for the next one.)

        Raises:
            OSError: the client has ended its stream, or the connection is lost.
        """
        now = time.monotonic()
        if now < self._looked_at + _CHECK_INTERVAL:
            return
        self._looked_at = now
        if not self._may_watch() or self.rfile.read_ahead(_READ_AHEAD) is not False:
            return
        with contextlib.suppress(OSError):  # a Unix socket has no such options
            _probe_by_tcp(self.socket)
        if not self.rfile.has_input or syscalls.is_lost(self.socket.fileno()):
            error = ConnectionResetError(errno.ECONNRESET, "the client has ended its stream")
            self._note_failure(error)
            raise error

    def _frame(self, data: bytes) -> bytes | memoryview:
        """``data`` as it is sent in the body: a chunk, or as much as Content-Length leaves."""
        if not data or not self._has_body:
            return b""
        if self.response_use_chunked:
            return b"%x\r\n%b\r\n" % (len(data), data)
        if self._left is None:
            return data
        if len(data) > self._left:
            self._is_too_long = True
            data = memoryview(data)[: self._left]  # type: ignore[assignment]
        self._left -= len(data)
        return data

    def _end_body(self) -> None:
        if not self.headers_sent or not self._has_body:
            return
        if self.response_use_chunked:
            self._sendall(b"0\r\n\r\n")
        elif self._left or self._is_too_long:
            # The client would wait for the rest, or take what is too much for the next response.
            self.close_connection = True
            what = "longer" if self._is_too_long else f"{self._left} bytes shorter"
            self.log_error("%s", f"the body of {self.path!r} is {what} than its Content-Length")

    def _sendall(self, data: bytes | bytearray | memoryview) -> None:
        try:
            end_turn_if_due()
            sock = self.socket
            if type(sock) is OwnedSocket and sock._process == current_process():
                sent = sock.send_now(data, self._more)
            else:
                if is_inherited(sock):
                    raise ConnectionResetError(
                        errno.ECONNRESET, "the connection belongs to the parent process"
                    )
                sent = 0
                if not hasattr(sock, "pending"):  # TLS must repeat a write that was cut short
                    with contextlib.suppress(BlockingIOError):
                        sent = sock._sock.send(data)
            if sent < len(data):
                self._send_slowly(memoryview(data)[sent:])
        except BaseException as error:
            self._note_failure(error)
            raise
        self.response_length += len(data)

    def _note_failure(self, error: BaseException) -> None:
        """Notes that a write failed: part of the response may have been sent, so nothing may
        follow, not even an error page."""
        self.close_connection = True
        self.response_length += 1
        if isinstance(error, OSError):
            self.status = f"socket error: {error}"
            self.code = -abs(self.code)

    def _send_slowly(self, data: memoryview) -> None:
        """Blocks until the kernel has taken all of ``data``.

        Raises:
            ConnectionResetError: the connection is lost, or ``write_timeout`` has passed without
                progress.
        """
        is_watched = self._watch is not None and self._watch.is_active
        if is_watched:
            self._watch.stop()  # it must not send its zero in the middle of a chunk
        transport = Transport(
            self.socket, gevent.get_hub(), 0, self._host.config.write_timeout, borrowed=True
        )
        failure = ""
        try:
            for start in range(0, len(data), _PIECE):  # each is copied
                transport.send_large(b"", data[start : start + _PIECE])
                transport.wait_for_room()
                failure = transport.failure
                if failure:
                    break
            if transport.closed:  # the kernel must not keep data for a client that does not read
                self.log_error(
                    "%s", f"(from {self.client_address}) abandoned a response: {failure}"
                )
                self.socket.setsockopt(native.SOL_SOCKET, native.SO_LINGER, _RESET)
        finally:
            transport.detach()
            if is_watched:
                self._watch.start()
        if failure:
            raise ConnectionResetError(errno.ECONNRESET, failure)


def to_bytes(part: Any) -> bytes:
    """A part of a body as bytes: :func:`len` of a memoryview may count larger items.

    Raises:
        TypeError: it is not bytes-like.
    """
    try:
        return bytes(memoryview(part))
    except TypeError:
        raise TypeError(
            f"the body of a response must be bytes, not {type(part).__name__}"
        ) from None


def _size(part: Any) -> int:
    is_plain = type(part) is bytes or isinstance(part, str) and not part
    return len(part) if is_plain else len(to_bytes(part))


def _probe_by_tcp(sock: Any) -> None:
    """Makes TCP find out whether a client that ended its half of the stream is gone."""
    sock.setsockopt(native.SOL_SOCKET, native.SO_KEEPALIVE, 1)
    if hasattr(native, "TCP_KEEPIDLE"):
        sock.setsockopt(native.IPPROTO_TCP, native.TCP_KEEPIDLE, _KEEPALIVE)
        sock.setsockopt(native.IPPROTO_TCP, native.TCP_KEEPINTVL, _KEEPALIVE)


class _ClientWatch:
    """Notices that the client is gone while the application generates the next part of a body, and
    raises GreenletExit in the application, so that its ``finally`` runs.

    A client that has ended its half of the stream may still read. So in a chunked body the first
    digit of the next chunk's size, a zero, is sent early: if the client has closed its socket, it
    answers with a reset, and for one that reads it changes nothing. Without chunks, TCP's keepalive
    finds out.
    """

    def __init__(self, handler: ResponseHandler) -> None:
        self._handler = handler
        self._greenlet = getcurrent()
        self._process = current_process()
        self._sock: Any = handler.socket
        self._loop = gevent.get_hub().loop
        self._watcher = self._loop.io(self._sock.fileno(), 1)
        self._timer: Any = None
        self._delay = _FIRST_CHECK
        self._has_ended = False
        self.is_active = False

    def start(self) -> None:
        self.is_active = True
        if self._has_ended:
            self._check_later()
        else:
            self._watcher.start(self._on_readable)

    def stop(self) -> None:
        self.is_active = False
        self._watcher.stop()
        if self._timer is not None:
            self._timer.close()
            self._timer = None

    def close(self) -> None:
        self.stop()
        self._watcher.close()

    def _on_readable(self) -> None:
        if self._is_inherited():
            self.stop()
            return
        try:
            state = self._handler.rfile.read_ahead(_READ_AHEAD)
        except OSError:
            self._leave()
            return
        if state:
            return
        self._watcher.stop()
        if state is None:  # the client has sent more than is read ahead, so it is not gone
            return
        self._has_ended = True
        self._probe()
        self._check_later()

    def _probe(self) -> None:
        sock = self._sock
        with contextlib.suppress(OSError):
            handler = self._handler
            # A zero that the kernel does not take at once would have to be stored.
            if (
                handler.response_use_chunked
                and handler._has_body
                and syscalls.writable(sock.fileno())
            ):
                timeout = sock.gettimeout()
                sock.settimeout(0.0)
                try:
                    sock.send(b"0")
                finally:
                    sock.settimeout(timeout)
            _probe_by_tcp(sock)

    def _check_later(self) -> None:
        self._timer = self._loop.timer(self._delay)
        self._timer.start(self._check)
        self._delay = min(2 * self._delay, _LAST_CHECK)

    def _check(self) -> None:
        self._timer.close()
        self._timer = None
        if self._is_inherited():
            return
        if syscalls.is_lost(self._sock.fileno()):
            self._leave()
        else:
            self._check_later()

    def _is_inherited(self) -> bool:
        return self._process != current_process()

    def _leave(self) -> None:
        self._watcher.stop()
        self._handler.close_connection = True
        gevent.kill(self._greenlet)


_last_date = (0, b"")


def _date() -> bytes:
    """The value of the Date header."""
    global _last_date
    now = int(time.time())
    if _last_date[0] != now:
        _last_date = (now, format_date_time(now).encode("ascii"))
    return _last_date[1]
