"""The bytes of one HTTP connection: request heads with a deadline, strictly parsed bodies.

``HttpStream`` replaces pywsgi's buffered file, and ``RequestBody`` is ``wsgi.input``. They rely on
these properties of pywsgi's ``Input``: it reads through ``rfile.read`` and ``rfile.readline``, or
through ``_chunked_read``; ``_discard`` is called after each response, ``_send_100_continue`` before
the first read; and ``_InvalidClientInput`` is logged in one line, and answered with 400. Here that
error is also a ``BadRequest``, so that a framework whose view reads the body answers 400 too.
"""

from __future__ import annotations

import contextlib
import errno
import ssl
import sys
import time
from math import inf
from typing import Any

import gevent
from gevent import pywsgi
from werkzeug.exceptions import BadRequest

from ..config import Config
from ..exceptions import RequestError
from ..hub.sockets import OwnedSocket, is_inherited
from ..hub.transport import Transport
from ..hub.turns import end_turn_if_due
from .head import RequestHead, find_head, parse_chunk_size, parse_head, parse_trailer

__all__ = ["HttpStream", "RequestBody"]

_pywsgi: Any = pywsgi  # its type stubs lack what a subclass needs
_InvalidClientInput = _pywsgi._InvalidClientInput

_RECEIVE_SIZE = 16384  # bytes; more than nearly every head has
_MAX_CHUNK_LINE = 1024  # bytes; a chunk size and its extensions, which are ignored
_LINGER_TIMEOUT = 2.0  # seconds
# The part of a body that the application left unread is read up to these limits; beyond them, the
# connection ends.
_DISCARD_SIZE = 1 << 16  # bytes
_DISCARD_TIMEOUT = 2.0  # seconds


class _InvalidBody(_pywsgi._InvalidClientInput, BadRequest):  # type: ignore[misc]
    """The client sent a malformed body, not all of it, or not in time."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)  # that of OSError, which does not call HTTPException's
        self.description = reason
        self.response = None


class _Raw:
    """Stands for the ``raw`` of a buffered reader; programs take the socket from its ``_sock``."""

    __slots__ = ("_stream",)

    def __init__(self, stream: HttpStream) -> None:
        self._stream = stream

    @property
    def _sock(self) -> Any:
        stream = self._stream
        stream.is_taken = True
        stream.stop_watching()
        return stream._sock


class HttpStream:
    """Reads requests from ``sock``, a gevent socket, through a buffer.

    ``data``: bytes that were read from the socket before.
    """

    __slots__ = (
        "_body_bytes",
        "_body_deadline",
        "_buffer",
        "_sock",
        "_waited",
        "closed",
        "config",
        "is_taken",
    )

    def __init__(self, sock: Any, config: Config, data: bytes = b"") -> None:
        self.config = config
        self.closed = False
        self.is_taken = False
        self._sock = sock
        self._buffer = data
        self._waited = 0.0  # seconds, for the body of the current request
        self._body_bytes = 0  # received for that body
        self._body_deadline = inf

    @property
    def raw(self) -> _Raw:
        """For programs that speak WebSocket themselves, such as simple-websocket. ``is_taken``:
        such a program has taken the socket."""
        return _Raw(self)

    def wait_for_request(self, deadline: float | None) -> bool:
        """Blocks until a request begins; False at ``deadline``, or if the peer leaves.

        Raises:
            OSError: the connection is lost.
        """
        if not self._buffer:
            try:
                self._buffer = self._receive(deadline)
            except TimeoutError:
                return False
        return bool(self._buffer)

    def read_head(self, deadline: float | None = None) -> RequestHead | None:
        """Blocks until the next head is complete, and returns it; None if the peer closes instead.

        ``deadline`` (``time.monotonic()``) is for the whole head; if it is None,
        ``handshake_timeout`` starts now.

        Raises:
            RequestError: the head is invalid, or (408) not complete in time.
            OSError: the connection is lost.
        """
        end_turn_if_due(is_slow=True)  # the previous request may have been slow
        config = self.config
        data: bytes | bytearray = self._buffer.removeprefix(b"\r\n")  # RFC 9112, section 2.2
        seen = 0
        size = find_head(data, 0, config) if data else -1
        if size < 0 and deadline is None and config.handshake_timeout is not None:
            deadline = time.monotonic() + config.handshake_timeout
        while size < 0:
            try:
                received = self._receive(deadline)
            except TimeoutError:
                self._buffer = b""
                if not data or config.handshake_timeout is None:  # TCP's own
                    return None
                raise RequestError(
                    f"Incomplete request after {config.handshake_timeout:g} s (handshake_timeout).",
                    408,
                ) from None
            if not received:
                self._buffer = b""
                return None
            if len(data) < 2:  # nothing yet, or half of an empty line
                data = (data + received).removeprefix(b"\r\n")
            else:
                if isinstance(data, bytes):
                    data = bytearray(data)
                seen = len(data)
                data += received
            size = find_head(data, seen, config) if data else -1
        if size == len(data):
            self._buffer = b""
            return parse_head(bytes(data), config)
        self._buffer = bytes(data[size:])
        return parse_head(bytes(data[:size]), config)

    def _receive(self, deadline: float | None) -> bytes:
        """Receives once, and blocks for that until ``deadline``; empty at the end of the stream."""
        sock = self._sock
        if type(sock) is OwnedSocket:
            there = sock.receive(_RECEIVE_SIZE, inf if deadline is None else deadline)
            if there is None:
                raise TimeoutError
            return there
        if deadline is None:
            data: bytes = sock.recv(_RECEIVE_SIZE)
            return data
        before = sock.gettimeout()
        sock.settimeout(max(0.0, deadline - time.monotonic()))
        try:
            data = sock.recv(_RECEIVE_SIZE)
        except (BlockingIOError, ssl.SSLWantReadError):  # the deadline had already passed
            raise TimeoutError from None
        finally:
            sock.settimeout(before)
        return data

    def begin_body(self) -> None:
        """Called before the body of a request is read."""
        self._waited = 0.0
        self._body_bytes = 0
        self._body_deadline = inf

    def hurry(self, seconds: float) -> None:
        """Bounds the time for the rest of the body, whether it is waited for or not."""
        self._body_deadline = time.monotonic() + seconds

    def _fill(self) -> bool:
        """Receives more of a body; False at the end of the stream."""
        end_turn_if_due()
        config = self.config
        timeout = inf if config.body_timeout is None else config.body_timeout
        reason = f"no data of the body within {timeout:g} s (body_timeout)"
        if config.min_body_rate is not None and timeout != inf:
            # Only the time spent waiting counts, not that which the application takes.
            left = timeout + self._body_bytes / config.min_body_rate - self._waited
            if left < timeout:
                timeout = max(0.0, left)
                reason = f"the body arrives at less than {config.min_body_rate} bytes a second"
                reason += " (min_body_rate)"
        began = time.monotonic()
        timeout = min(timeout, self._body_deadline - began)
        try:
            if timeout < 0:  # nobody is told: the response was sent
                raise TimeoutError
            data = self._receive(None if timeout == inf else began + timeout)
        except TimeoutError:
            raise _InvalidBody(reason) from None
        self._waited += time.monotonic() - began
        self._body_bytes += len(data)
        self._buffer = self._buffer + data if self._buffer else data
        return bool(data)

    def read(self, size: int = -1) -> bytes:
        """Reads ``size`` bytes, or fewer at the end of the stream; -1 reads all of it."""
        end_turn_if_due()
        parts = []
        left = float("inf") if size is None or size < 0 else size
        while left > 0:
            if not self._buffer and not self._fill():
                break
            part = self._buffer if len(self._buffer) <= left else self._buffer[: int(left)]
            self._buffer = self._buffer[len(part) :]
            left -= len(part)
            parts.append(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def readline(self, limit: int = -1) -> bytes:
        """Reads up to and including the next LF, at most ``limit`` bytes."""
        end_turn_if_due()
        left = sys.maxsize if limit is None or limit < 0 else limit
        parts = []
        while left > 0 and (self._buffer or self._fill()):
            end = self._buffer.find(b"\n", 0, left) + 1
            part = self._buffer[: end or left]
            self._buffer = self._buffer[len(part) :]
            left -= len(part)
            parts.append(part)
            if end:
                break
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def peek(self, size: int = 0) -> bytes:
        """The buffered bytes; they stay in the buffer."""
        return self._buffer

    def read_ahead(self, limit: int) -> bool | None:
        """Receives what has arrived into the buffer, without blocking; False at the end of the
        stream, None if the buffer holds more than ``limit`` bytes.

        Raises:
            OSError: the connection is lost.
        """
        if len(self._buffer) > limit:
            return None
        try:
            data = self._receive(0.0)
        except TimeoutError:
            return True
        self._buffer += data
        return bool(data)

    @property
    def has_input(self) -> bool:
        """Whether bytes are buffered."""
        return bool(self._buffer)

    def take(self) -> bytes:
        """The buffered bytes; they are removed from the buffer."""
        data, self._buffer = self._buffer, b""
        return data

    def linger(self) -> None:
        """Ends our half of the stream, and drops input until the peer has ended its half, for at
        most two seconds.

        Closing with unread input would send a reset, which could destroy a response in flight.
        """
        self._buffer = b""
        if is_inherited(self._sock):
            return
        self.stop_watching()
        transport = Transport(self._sock, gevent.get_hub(), borrowed=True)
        with contextlib.suppress(OSError):  # the system may not let it be watched
            transport.finish(time.monotonic() + _LINGER_TIMEOUT)

    def stop_watching(self) -> None:
        """Leaves the socket's input to another reader."""
        if type(self._sock) is OwnedSocket:
            self._sock.stop_watching()

    def close(self) -> None:
        """Marks the stream as closed. Does not close the socket, which belongs to the server."""
        self.closed = True


class RequestBody(_pywsgi.Input):  # type: ignore[misc]
    """``wsgi.input``: the body of a request, with a Content-Length or in chunks."""

    chunk_length: int
    position: int
    _chunked_input_error: bool

    def __init__(self, stream: HttpStream, head: RequestHead, sock: Any) -> None:
        super().__init__(stream, head.content_length, sock, head.chunked)
        self._stream = stream
        stream.begin_body()

    @property
    def raw(self) -> _Raw:
        """:attr:`HttpStream.raw`, for programs that look for it in ``wsgi.input``."""
        return self._stream.raw

    @property
    def ends_the_connection(self) -> bool:
        """Whether the start of the next request cannot be known: a chunk was malformed, or the
        client still waits to send its body until a 100 response, which it will not get (RFC 9110,
        section 10.1.1)."""
        return self._chunked_input_error or (self.socket is not None and self._has_body)

    @property
    def is_read(self) -> bool:
        """Whether all of the body has been received."""
        if self.chunked_input:
            return self.chunk_length == 0
        return not self.content_length or self.position >= self.content_length

    @property
    def _has_body(self) -> bool:
        return bool(self.chunked_input or self.content_length)

    def drop(self) -> None:
        """Leaves the body unread. The connection must be closed."""
        self._chunked_input_error = True

    def _discard(self) -> None:
        """Reads what the application left of the body, if it is short and arrives soon; otherwise
        the connection ends."""
        if not (self.chunked_input or self.content_length) or self.ends_the_connection:
            return
        if not self.chunked_input and self.content_length - self.position > _DISCARD_SIZE:
            self.drop()
            return
        self._stream.hurry(_DISCARD_TIMEOUT)
        try:
            if len(self.read(_DISCARD_SIZE)) == _DISCARD_SIZE and self.read(1):
                self.drop()
        except OSError:  # late, malformed or cut off; the response was sent all the same
            self.drop()

    def _send_100_continue(self) -> None:
        """Blocks for at most ``write_timeout``, since a client that pipelines requests and reads
        nothing does not read a 100 response either."""
        sock = self.socket
        if sock is None or not self.send_100_continue_enabled:
            return
        timeout = sock.gettimeout()
        sock.settimeout(self._stream.config.write_timeout)
        try:
            super()._send_100_continue()
        except TimeoutError:
            self.drop()
            raise ConnectionResetError(errno.ECONNRESET, "the client does not read") from None
        finally:
            sock.settimeout(timeout)

    def _do_read(self, length: int | None = None, use_readline: bool = False) -> bytes:
        try:
            data: bytes = super()._do_read(length, use_readline)
            return data
        except OSError as error:
            self._chunked_input_error = True
            if error.errno is not None or isinstance(error, _InvalidClientInput):
                raise
            raise _InvalidBody(str(error)) from None  # the client ended the stream early

    def _chunked_read(self, length: int | None = None, use_readline: bool = False) -> bytes:
        self._send_100_continue()
        if self._chunked_input_error:
            raise _InvalidBody("the body was malformed")
        parts = []
        left = float("inf") if length is None else length
        try:
            while left > 0 and self.chunk_length != 0:
                if self.chunk_length < 0:
                    self._open_chunk()
                    continue
                most = int(min(left, self.chunk_length - self.position))
                data = self._stream.readline(most) if use_readline else self._stream.read(most)
                if len(data) < most and not (use_readline and data.endswith(b"\n")):
                    raise _InvalidBody("the stream ended inside a chunk")
                parts.append(data)
                left -= len(data)
                self.position += len(data)
                if self.position == self.chunk_length:
                    if self._stream.read(2) != b"\r\n":
                        raise _InvalidBody("a chunk is longer than its size")
                    self.chunk_length = -1
                if use_readline and data.endswith(b"\n"):
                    break
        except RequestError as error:
            self._chunked_input_error = True
            raise _InvalidBody(str(error)) from None
        except BaseException:
            self._chunked_input_error = True
            raise
        return b"".join(parts)

    def _open_chunk(self) -> None:
        """Reads the size of the next chunk, and the trailers after the last one."""
        size = parse_chunk_size(self._stream.readline(_MAX_CHUNK_LINE))
        if size == 0:
            self._drop_trailers()
        self.position = 0
        self.chunk_length = size

    def _drop_trailers(self) -> None:
        config = self._stream.config
        room = config.max_header_size or 1 << 30
        count = config.max_headers or 1 << 30
        while parse_trailer(line := self._stream.readline(min(room, 8192))):
            room -= len(line)
            count -= 1
            if room <= 0 or count <= 0:
                raise RequestError("Too many trailers.", 431)
