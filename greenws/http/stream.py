"""The bytes of one HTTP connection: heads with a deadline, bodies with strict chunks.

``HttpStream`` stands where pywsgi has a buffered file, and ``RequestBody`` is its ``wsgi.input``.
Of pywsgi this relies on ``Input``: that its reads go through ``rfile.read`` and ``rfile.readline``,
or through ``_chunked_read``; that ``_discard`` is called behind each response, and
``_send_100_continue`` before the first read; and that ``_InvalidClientInput`` is logged in one
line and answered with 400.
"""

from __future__ import annotations

import ssl
import time
from typing import Any

import gevent
from gevent import pywsgi

from ..config import Config
from ..exceptions import RequestError
from ..hub.transport import Transport
from ..hub.turns import end_turn_if_due
from .head import RequestHead, find_head, parse_chunk_size, parse_head, parse_trailer

__all__ = ["HttpStream", "RequestBody"]

_pywsgi: Any = pywsgi  # whose published types leave out what a subclass needs
_InvalidClientInput = _pywsgi._InvalidClientInput

_RECEIVE = 16384  # bytes; more than nearly every head, and than what a cheap allocation gives
_CHUNK_LINE = 1024  # bytes: a size, and extensions that nobody uses
_LINGER = 2.0  # seconds that a refused peer has for reading why


class HttpStream:
    """Reads requests from ``sock``, a gevent socket; what it has read ahead stays in it.

    ``data`` was read from it before.
    """

    __slots__ = ("_buffer", "_sock", "closed", "config")

    def __init__(self, sock: Any, config: Config, data: bytes = b"") -> None:
        self.config = config
        self.closed = False
        self._sock = sock
        self._buffer = data

    def read_head(self, deadline: float | None, idle_deadline: float | None) -> RequestHead | None:
        """Blocks until a whole head is there; None if the peer leaves instead.

        ``deadline`` (``time.monotonic()``) bounds all of it; where it is None,
        ``handshake_timeout`` counts from the first byte, and ``idle_deadline`` bounds the wait for
        that.

        Raises:
            RequestError: the head is refused, 408 if it is late.
            OSError: the connection is lost.
        """
        end_turn_if_due()
        config = self.config
        data: bytes | bytearray = self._buffer
        if data.startswith(b"\r\n"):  # a client may end its last body so (RFC 9112, 2.2)
            data = data[2:]
        seen = 0
        size = find_head(data, 0, config) if data else -1
        while size < 0:
            if data and deadline is None and config.handshake_timeout is not None:
                deadline = time.monotonic() + config.handshake_timeout
            try:
                received = self._receive(deadline if data or deadline else idle_deadline)
            except TimeoutError:
                self._buffer = b""
                if not data:
                    return None
                raise RequestError(
                    f"No whole request within {config.handshake_timeout:g} s (handshake_timeout).",
                    408,
                ) from None
            if not received:
                self._buffer = b""
                return None
            if not data:
                data = received.removeprefix(b"\r\n")
            else:
                if isinstance(data, bytes):
                    data = bytearray(data)
                seen = len(data)
                data += received
            size = find_head(data, seen, config) if data else -1
        self._buffer = bytes(data[size:])
        return parse_head(bytes(data[:size]), config)

    def _receive(self, deadline: float | None) -> bytes:
        """One receive, which waits until ``deadline``; empty at the end of the stream."""
        sock = self._sock
        if deadline is None:
            data: bytes = sock.recv(_RECEIVE)
            return data
        before = sock.gettimeout()
        sock.settimeout(max(0.0, deadline - time.monotonic()))
        try:
            data = sock.recv(_RECEIVE)
        except (BlockingIOError, ssl.SSLWantReadError):  # the deadline has passed before
            raise TimeoutError from None
        finally:
            sock.settimeout(before)
        return data

    def _fill(self) -> bool:
        """Receives more of a body; False at the end of the stream."""
        timeout = self.config.body_timeout
        end_turn_if_due()
        try:
            data = self._receive(None if timeout is None else time.monotonic() + timeout)
        except TimeoutError:
            raise _InvalidClientInput(
                f"no more of the body within {timeout:g} s (body_timeout)"
            ) from None
        self._buffer = self._buffer + data if self._buffer else data
        return bool(data)

    def read(self, size: int = -1) -> bytes:
        """``size`` bytes, or all until the end of the stream; fewer only at its end."""
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
        """Up to and with the next LF; at most ``limit`` bytes."""
        most = float("inf") if limit is None or limit < 0 else limit
        seen = 0
        while (end := self._buffer.find(b"\n", seen) + 1) == 0 and len(self._buffer) < most:
            seen = len(self._buffer)
            if not self._fill():
                break
        return self.read(int(min(end or len(self._buffer), most)))

    def peek(self, size: int = 0) -> bytes:
        """What was read ahead, without taking it."""
        return self._buffer

    def read_ahead(self, limit: int) -> bool | None:
        """Takes what has arrived into the buffer, without blocking; False at the end of the
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

    def take(self) -> bytes:
        """What was read ahead."""
        data, self._buffer = self._buffer, b""
        return data

    def linger(self) -> None:
        """Ends our half of the stream, and drops what the peer sends until it has ended its own,
        or for two seconds.

        Closing with bytes unread would send a reset, which may destroy the answer in flight.
        """
        self._buffer = b""
        transport = Transport(self._sock, gevent.get_hub(), borrowed=True)
        transport.finish(time.monotonic() + _LINGER)

    def close(self) -> None:
        """Reads nothing any more. The socket is not this object's."""
        self.closed = True


class RequestBody(_pywsgi.Input):  # type: ignore[misc]
    """``wsgi.input``: the body of a request, by its length or in chunks."""

    chunk_length: int
    position: int
    _chunked_input_error: bool

    def __init__(self, stream: HttpStream, head: RequestHead, sock: Any) -> None:
        super().__init__(stream, head.content_length, sock, head.chunked)
        self._stream = stream

    @property
    def ends_the_connection(self) -> bool:
        """Whether it is unknown where the next request would begin: a chunk was malformed, or the
        client still waits with its body for a 100, which will not come (RFC 9110, 10.1.1)."""
        return self._chunked_input_error or (self._has_body and self.socket is not None)

    @property
    def _has_body(self) -> bool:
        return bool(self.chunked_input or self.content_length)

    def drop(self) -> None:
        """Leaves the body where it is: the connection ends."""
        self._chunked_input_error = True

    def _discard(self) -> None:
        if not self.ends_the_connection:
            super()._discard()

    def _do_read(self, length: int | None = None, use_readline: bool = False) -> bytes:
        try:
            data: bytes = super()._do_read(length, use_readline)
            return data
        except OSError as error:
            self._chunked_input_error = True
            if error.errno is not None or isinstance(error, _InvalidClientInput):
                raise
            raise _InvalidClientInput(str(error)) from None  # the stream ended; not our error

    def _chunked_read(self, length: int | None = None, use_readline: bool = False) -> bytes:
        self._send_100_continue()
        if self._chunked_input_error:
            raise _InvalidClientInput("the body was malformed before")
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
                    raise _InvalidClientInput("the stream ended within a chunk")
                parts.append(data)
                left -= len(data)
                self.position += len(data)
                if self.position == self.chunk_length:
                    if self._stream.read(2) != b"\r\n":
                        raise _InvalidClientInput("a chunk is longer than its size")
                    self.chunk_length = -1
                if use_readline and data.endswith(b"\n"):
                    break
        except RequestError as error:
            self._chunked_input_error = True
            raise _InvalidClientInput(str(error)) from None
        except BaseException:
            self._chunked_input_error = True
            raise
        return b"".join(parts)

    def _open_chunk(self) -> None:
        """Reads the size of the next chunk, and the trailers behind the last."""
        size = parse_chunk_size(self._stream.readline(_CHUNK_LINE))
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
                raise RequestError("There are too many trailers behind the chunks.", 431)
