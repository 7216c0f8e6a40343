"""gevent-websocket's ``WebSocket`` over a :class:`greenws.WebSocket`.

It has the methods, return values and errors of ``geventwebsocket.websocket.WebSocket``, of which it
is a subclass; greenws's codec does the work. It does not reproduce what no program can rely on:
lenient frames, frames torn when two greenlets send, a Close sent by the garbage collector.
"""

from __future__ import annotations

import sys
from typing import Any

from gevent import getcurrent
from gevent._hub_local import get_hub_if_exists
from geventwebsocket.exceptions import ProtocolError, WebSocketError
from geventwebsocket.utf8validator import Utf8Validator
from geventwebsocket.websocket import (
    MSG_ALREADY_CLOSED,
    MSG_CLOSED,
    MSG_SOCKET_DEAD,
    Header,
)
from geventwebsocket.websocket import WebSocket as _Original
from werkzeug.exceptions import HTTPException

from ..exceptions import ConnectionClosed, HandshakeError
from ..opcodes import NORMAL_ENDS, CloseCode, is_sendable
from ..protocol.origin import check_origin
from ..session import REQUEST_ATTRIBUTE
from ..upgrade import Upgrade, refusal_response
from ..websocket import WebSocket

__all__ = ["GeventWebSocket"]

_READS_OF_A_LOOP = 3  # of ``closed``, by one line of code


class _Refused(HandshakeError, HTTPException):
    """A refusal that Flask answers with its status, too, and does not log as an error."""

    response = None

    def __init__(self, error: HandshakeError) -> None:
        HandshakeError.__init__(self, str(error), error.status, error.headers, error.reason)
        self.args = error.args
        self.hint = error.hint
        self.code = error.status
        self.description = str(error)

    __str__ = HandshakeError.__str__

    def get_response(self, environ: Any = None, scope: Any = None) -> Any:
        return refusal_response(self)


class GeventWebSocket(_Original):  # type: ignore[misc]
    """``environ["wsgi.websocket"]``: accepts its upgrade by itself when it is first used.

    Reading ``version``, ``path``, ``origin``, ``protocol`` or ``closed`` is not a use, with one
    exception: ``while not ws.closed: gevent.sleep(0.1)``, by which an application waits for the end
    while another greenlet sends. So ``closed`` accepts when the same line of code reads it for the
    third time, in the greenlet that runs the application, if the hub has run before each of the
    repetitions, and ``start_response()`` has not been called.
    """

    def __init__(self, upgrade: Upgrade, environ: dict[str, Any], handler: Any) -> None:
        # The original's __init__ would take the socket and its reader.
        self._upgrade = upgrade
        self._closed = False
        # How often each line of code has read ``closed``, and _hub_runs at its last reading.
        self._reads: dict[Any, tuple[int, int]] = {}
        self._hub_runs = 0  # counted only from one reading of ``closed`` to the next
        self._awaits_hub = False
        self.environ = environ
        self.handler = handler
        self.stream = None
        self.raw_read = self.raw_write = None
        self.utf8validator = Utf8Validator()

    def __del__(self) -> None:
        """The original sends Close here; greenws ends sessions without the garbage collector."""

    def accept(self) -> WebSocket:
        """Accepts the upgrade, unless that was done; returns the :class:`greenws.WebSocket`
        underneath.

        Raises:
            HandshakeError: the server's ``allowed_origins`` do not include the client's, or its
                offer is malformed. If the application lets it escape, the client gets 403 or 400.
        """
        if self._upgrade.socket is None:
            try:
                self._upgrade.follow(self.environ)
                allowed = self._upgrade.config.allowed_origins
                if allowed is not None:
                    check_origin(self.environ, allowed)
            except HandshakeError as error:
                raise _Refused(error) from None
            self._upgrade.accept(self._choose_protocol())
        socket = self._upgrade.socket
        assert socket is not None
        return socket

    @property
    def accepted(self) -> WebSocket | None:
        """The :class:`greenws.WebSocket` underneath; None until something accepts the upgrade."""
        return self._upgrade.socket

    @property
    def closed(self) -> bool:
        """Whether the socket was closed, or the peer is gone.

        Raises:
            HandshakeError: read in a loop before the first use, it accepts as :meth:`accept` does.
        """
        is_pending = self._upgrade.socket is None and not self._closed
        if is_pending and self._is_read_in_a_loop():
            self.accept()
        return self._is_closed()

    def _is_read_in_a_loop(self) -> bool:
        # The server sets the attribute in the greenlet that runs the application.
        if getattr(getcurrent(), REQUEST_ATTRIBUTE, None) is not self._upgrade:
            return False
        hub: Any = get_hub_if_exists()
        if hub is None or self.handler.status is not None:
            return False
        if not self._awaits_hub:
            self._awaits_hub = True
            hub.loop.run_callback(self._on_hub)
        frame = sys._getframe(2)
        line = (frame.f_code, frame.f_lineno)
        count, counted_at = self._reads.get(line, (0, -1))
        if counted_at != self._hub_runs:
            count += 1
            self._reads[line] = count, self._hub_runs
        return count >= _READS_OF_A_LOOP

    def _on_hub(self) -> None:
        self._awaits_hub = False
        self._hub_runs += 1

    def _is_closed(self) -> bool:
        socket = self._upgrade.socket
        return self._closed or (socket is not None and not socket.is_connected)

    def _choose_protocol(self) -> str | None:
        """What the application's ``app_protocol(path)`` names, if the client offers it."""
        choose = getattr(self.handler.application, "app_protocol", None)
        wanted = choose(self.path) if choose is not None else None
        return wanted if wanted in self._upgrade.offer.protocols else None

    def receive(self) -> str | bytearray | None:
        """The next message: str for text, bytearray for binary, None when the peer is gone.

        Raises:
            WebSocketError: the socket was closed before.
        """
        self._check_open()
        try:
            message = self.accept().receive(timeout=None)
        except ConnectionClosed as error:
            self._closed = True
            if error.code not in NORMAL_ENDS:
                self.current_app.on_close(MSG_CLOSED)
            return None
        return bytearray(message) if isinstance(message, bytes) else message

    read_message = receive

    def read_frame(self) -> tuple[Header, bytes]:
        """The next frame of a message, as the original's header and its payload.

        Raises:
            WebSocketError: the connection is over.
        """
        data, opcode, final = self.accept().read_bytes_message()
        if data is None:
            raise WebSocketError(MSG_CLOSED)
        return Header(fin=final, opcode=int(opcode), length=len(data)), data

    def send(self, message: Any, binary: bool | None = None) -> None:
        """Sends a message: text for str, binary otherwise, or as ``binary`` says.

        Raises:
            WebSocketError: the connection is over.
        """
        if binary is None:
            binary = not isinstance(message, str)
        try:
            self.send_frame(message, self.OPCODE_BINARY if binary else self.OPCODE_TEXT)
        except WebSocketError:
            self.current_app.on_close(MSG_SOCKET_DEAD)
            raise WebSocketError(MSG_SOCKET_DEAD) from None

    def send_frame(self, message: Any, opcode: int) -> None:
        """Sends one frame. Raises WebSocketError if the connection is over."""
        self._check_open()
        socket = self.accept()
        try:
            if opcode == self.OPCODE_TEXT:
                socket.send(_as_text(message))
            elif opcode == self.OPCODE_BINARY:
                socket.send(message if isinstance(message, (bytes, bytearray)) else bytes(message))
            elif opcode == self.OPCODE_PING:
                socket.send_ping(_as_text(message))
            elif opcode == self.OPCODE_PONG:
                socket.send_pong(message)
            elif opcode == self.OPCODE_CLOSE:
                self.close(CloseCode.NORMAL, message)
            else:
                raise ProtocolError(f"cannot send a frame with opcode {opcode}")
        except ConnectionClosed:
            raise WebSocketError(MSG_SOCKET_DEAD) from None

    def close(self, code: int = 1000, message: str | bytes | None = b"") -> None:
        """Sends Close and does not wait; the connection ends with the session."""
        if self._is_closed():
            self.current_app.on_close(MSG_ALREADY_CLOSED)
        self._closed = True
        reason = _as_text(message or "").encode()[:123].decode("utf-8", "ignore")
        self.accept().start_closing(code if is_sendable(code) else CloseCode.NORMAL, reason)
        self.logger.debug("Closed WebSocket")

    def _check_open(self) -> None:
        if self._is_closed():
            self.current_app.on_close(MSG_ALREADY_CLOSED)
            raise WebSocketError(MSG_ALREADY_CLOSED)


def _as_text(message: Any) -> str:
    if isinstance(message, (bytes, bytearray)):
        return message.decode()
    return message if isinstance(message, str) else str(message or "")
