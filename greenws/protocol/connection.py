"""The state machine of one connection, for both roles: bytes in, fragments and replies out.

It uses no socket, clock or greenlet, and it is *pulled*: ``feed()`` lends it bytes, and each
``next_event()`` returns one event, in order of arrival. So everything before an error is delivered,
and nothing is parsed before the handler asks for it. Pings and Closes are answered here: the owner
of the socket sends what is in ``replies``.

    OPEN ──── close() ────> CLOSING ── peer's Close ──> CLOSED
      └── peer's Close (answered), protocol error (Close sent), end of stream ──┘
"""

from __future__ import annotations

import os
from typing import Any

from ..checks import check_close, check_sendable
from ..config import Config
from ..exceptions import ConnectionClosed, InvalidPayload, PolicyViolation, ProtocolError
from ..opcodes import MAX_REASON, CloseCode, is_receivable
from .deflate import Deflate
from .frames import (
    MAX_HEADER,
    FrameParser,
    Masks,
    encode_frame,
    encode_header,
    write_frame,
    write_masked_frame,
)
from .masking import apply_mask
from .messages import FragmentAssembler

__all__ = ["CLOSED", "CLOSING", "MAX_HEADER", "OPEN", "Connection", "Ping"]

# States. (Names with an underscore are C numbers in the compiled form.)
OPEN = _OPEN = 0
CLOSING = _CLOSING = 1  # our Close was sent, the peer's has not arrived
CLOSED = _CLOSED = 2

# Events are opcodes; plain numbers, because they are compared for every frame.
_CONTINUATION = 0
_CLOSE = 8
_PING = 9
_PONG = 10
_NOTHING = -1

_NO_STATUS_RECEIVED = int(CloseCode.NO_STATUS_RECEIVED)  # the enumeration's look-up is slow
_RSV1 = 0x40  # combined with an opcode: the message is compressed

_MAX_CONTROL_FRAMES = 64  # handled by one next_event(), so that others can run in between
_MAX_PINGS = 256  # unanswered; older ones are forgotten

_masks = Masks()


def _drop_masks() -> None:
    _masks.drop()  # in a function: Cython gives a bound method of a C class the wrong type


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_drop_masks)


class Ping:
    """A ping that was sent. ``wanted``: whether its pong is delivered as an event."""

    def __init__(self, payload: bytes, wanted: bool) -> None:
        self.payload = payload
        self.wanted = wanted
        self.answered = False

    def answer(self) -> None:
        """Called when its pong has arrived."""
        self.answered = True


class Connection:
    """One end of a WebSocket connection, after its opening handshake.

    ``deflate``: permessage-deflate, if that was negotiated.
    """

    def __init__(
        self, config: Config, client: bool = False, deflate: Deflate | None = None
    ) -> None:
        self.client = client
        self.state = _OPEN
        self.close_code = 0  # 0 until the state is CLOSED
        self.close_reason = ""
        # read state
        self._parser = FrameParser(not client, deflate is not None)
        self._assembler = FragmentAssembler(config, deflate)
        self._in_payload = False
        self._eof = False
        self._eof_reason = ""
        self.closed_here = False  # whether we sent Close first
        self.data: str | bytes | None = None
        self.final = True
        self.limiter: Any = None  # its take() returns whether one more message or ping is allowed
        self.messages_in = 0  # complete messages
        # write state
        self.deflate = deflate
        self.messages_out = 0
        self.replies: list[bytes] = []
        self.sending = 0  # the opcode of our unfinished fragmented message
        self._pings: list[Ping] | None = None
        self._sent_code = 0
        self._sent_reason = ""

    # -- input

    def feed(self, data: bytearray, size: int) -> None:
        """Lends the first ``size`` bytes of ``data``, until ``next_event()`` returns INVALID or
        CLOSE, or ``keep()`` is called."""
        if self.state != _CLOSED:
            self._parser.feed(data, size)

    def feed_eof(self, reason: str = "") -> None:
        """Marks the end of the byte stream. Without a Close in what was fed, the close code is 1006
        (section 7.1.5), with ``reason``."""
        if not self._eof:
            self._eof_reason = reason
        self._eof = True

    def next_event(self) -> int:
        """The opcode of the next event; INVALID (-1) if more bytes are needed.

        CONTINUATION, TEXT, BINARY: a fragment, in ``data`` and ``final``. PONG: the answer to a
        ``wanted`` ping, with its payload in ``data``. CLOSE: the connection is closed; every later
        call returns CLOSE too.
        PING: 64 control frames were handled; call it again, for there may be more input.
        """
        parser = self._parser
        if parser.position == parser.end and not self._in_payload and self.state != _CLOSED:
            event = _NOTHING  # nothing is left
        else:
            try:
                event = self._next_event()
            except ProtocolError as error:
                self._fail(error)
                event = _CLOSE
        if event == _NOTHING:
            if self._eof:
                self._close(CloseCode.ABNORMAL, self._eof_reason)
                event = _CLOSE
            parser.keep()
        if event == _NOTHING or event == _CLOSE:
            self.data = None
            self.final = True
        return event

    def keep(self) -> None:
        """Copies the lent bytes that are still needed."""
        self._parser.keep()

    def has_frame(self) -> bool:
        """Whether another whole frame has been fed."""
        return self._parser.position != self._parser.end and self._parser.has_frame()

    def is_in_data(self) -> bool:
        """Whether a data frame has begun, and its end is still missing."""
        return self._in_payload and self._parser.opcode < 8

    def _next_event(self) -> int:
        parser = self._parser
        taken = 0
        while self.state != _CLOSED:
            if not self._in_payload:
                if not parser.next_header():
                    return _NOTHING
                if parser.opcode < 8:
                    self._assembler.begin(
                        parser.opcode, parser.final, parser.length, parser.compressed
                    )
                self._in_payload = True
            complete = parser.has_payload()
            opcode = parser.opcode
            if opcode < 8:
                if not complete:
                    if self._assembler.gradual:
                        self._assembler.add(parser.take())
                    else:
                        parser.gather()
                    return _NOTHING
                self._in_payload = False
                self.data = self._assembler.end(parser.take())
                self.final = parser.final
                if parser.final:
                    self.messages_in += 1
                    if self.limiter is not None:
                        self._check_rate()
                return opcode
            if not complete:
                return _NOTHING
            self._in_payload = False
            payload = parser.take()
            if opcode == _PING:
                if self.limiter is not None:
                    self._check_rate()
                if self.state == _OPEN:
                    self.replies.append(self._frame(_PONG, payload))
            elif opcode == _CLOSE:
                self._receive_close(payload)
            elif self._answers(payload):
                self.data = payload
                self.final = True
                return _PONG
            taken += 1
            if taken == _MAX_CONTROL_FRAMES and self.state != _CLOSED:
                self.data = None
                self.final = True
                return _PING
        return _CLOSE

    def _answers(self, payload: bytes) -> bool:
        """Handles a pong; returns whether it answers a ``wanted`` ping.

        A peer may answer only the latest of several pings (section 5.5.3), so a pong answers the
        earlier pings too. An unsolicited pong is ignored.
        """
        if self._pings is None or payload not in [ping.payload for ping in self._pings]:
            return False
        while True:
            ping = self._pings.pop(0)
            ping.answer()
            if ping.payload == payload:
                if not self._pings:
                    self._pings = None
                return ping.wanted

    def _check_rate(self) -> None:
        if not self.limiter.take():
            raise PolicyViolation(str(self.limiter))

    def _receive_close(self, payload: bytes) -> None:
        code, reason = _NO_STATUS_RECEIVED, ""
        if len(payload) == 1:
            raise ProtocolError("a Close body must be empty or at least 2 bytes long")
        if payload:
            code = payload[0] << 8 | payload[1]
            if not is_receivable(code):
                raise ProtocolError(f"close code {code} is not allowed")
            try:
                reason = payload[2:].decode()
            except UnicodeDecodeError:
                raise InvalidPayload("close reason is not UTF-8") from None
        if self.state == _OPEN:
            # Section 5.5.1: the answer repeats the peer's code. And its reason, which is what
            # browsers show as event.reason.
            self.replies.append(self._frame(_CLOSE, payload))
        self._close(code, reason)

    def _fail(self, error: ProtocolError) -> None:
        """Section 7.1.7: sends the peer a Close with the reason, and ignores whatever follows."""
        reason = str(error)
        if self.state == _OPEN:
            self.closed_here = True
            self.replies.append(self._frame(_CLOSE, _close_body(error.close_code, reason)))
        self._close(error.close_code, reason)

    def _close(self, code: int, reason: str) -> None:
        self.state = _CLOSED
        self.close_code = int(code)
        self.close_reason = reason
        self._pings = None
        self._parser.drop()
        self._assembler.drop()

    # -- output

    def begin_message(self, opcode: int, final: bool) -> int:
        """The opcode for the next data frame: CONTINUATION if our fragmented message is unfinished.

        Raises:
            ConnectionClosed: a Close was sent or received.
            RuntimeError: the unfinished message is of the other type.
        """
        if self.state != _OPEN or self._eof:
            raise self.closed_error()
        if self.sending == 0:
            if final:
                self.messages_out += 1
            else:
                self.sending = opcode
            return opcode
        if self.sending != opcode:
            raise RuntimeError(
                "a fragmented message of the other type (text or binary) is unfinished; "
                "send its last fragment with final=True first"
            )
        if final:
            self.messages_out += 1
            self.sending = 0
        return _CONTINUATION

    def compress(
        self, opcode: int, final: bool, payload: bytes | memoryview, wanted: bool | None
    ) -> tuple[int, bytes | memoryview]:
        """The opcode and payload to pass to ``encode()``, on a connection with ``deflate``: with
        RSV1 (RFC 7692, section 6) and compressed, or unchanged. ``opcode`` is that of
        ``begin_message()``."""
        assert self.deflate is not None
        first = opcode != _CONTINUATION
        compressed = self.deflate.compress(payload, first, final, wanted)
        if compressed is None:
            return opcode, payload
        return (opcode | _RSV1 if first else opcode), compressed

    def encode(self, opcode: int, final: bool, payload: bytes | memoryview) -> bytes:
        """A whole data frame. ``opcode`` is that of ``begin_message()`` or ``compress()``."""
        if self.client:
            return encode_frame(opcode, final, payload, _masks.take())
        return encode_header(opcode, final, len(payload)) + payload

    def write(
        self, buffer: bytearray, position: int, opcode: int, final: bool, payload: bytes
    ) -> int:
        """Writes a data frame into ``buffer``, which must have room for MAX_HEADER bytes and
        ``payload``; returns the position of its end. ``payload``: less than 64 KiB."""
        if self.client:
            return write_masked_frame(buffer, position, opcode, final, payload, _masks)
        return write_frame(buffer, position, opcode, final, payload)

    def divide(
        self, opcode: int, final: bool, payload: bytes | memoryview
    ) -> tuple[bytes, bytes | memoryview]:
        """The header and the payload of a data frame that is too large to copy. A client's payload
        is copied once, to mask it."""
        mask = b""
        if self.client:
            mask = _masks.take()
            payload = apply_mask(payload, mask)
        return encode_header(opcode, final, len(payload), mask), payload

    def ping(self, payload: bytes, wanted: bool) -> tuple[Ping, bytes]:
        """A new ping, and its frame to send.

        Raises:
            ConnectionClosed: a Close was sent or received.
            ValueError: ``payload`` is longer than 125 bytes.
        """
        frame = self._control(_PING, payload)
        ping = Ping(payload, wanted)
        self._record(ping)
        return ping, frame

    def send_ping(self, ping: Ping) -> bytes:
        """The frame of a ``ping`` that the caller made. Raises what :meth:`ping` raises."""
        frame = self._control(_PING, ping.payload)
        self._record(ping)
        return frame

    def _record(self, ping: Ping) -> None:
        if self._pings is None:
            self._pings = []
        elif len(self._pings) == _MAX_PINGS:
            del self._pings[0]
        self._pings.append(ping)

    def pong(self, payload: bytes) -> bytes:
        """The frame of a pong, solicited or not. Raises what :meth:`ping` raises."""
        return self._control(_PONG, payload)

    def close(self, code: int, reason: str) -> bytes:
        """The frame of our Close; empty if a Close was already sent or received.

        ``code`` 1005 means a Close without a body.

        Raises:
            TypeError: ``code`` is not an int, or ``reason`` not a str.
            ValueError: ``code`` may not be sent, or ``reason`` is longer than 123 bytes.
        """
        self.check_close(code, reason)
        if self.state != _OPEN:
            return b""
        reason = str.__str__(reason)  # a plain str, even for a member of a StrEnum
        body = b"" if code == _NO_STATUS_RECEIVED else _close_body(code, reason)
        self.state = _CLOSING
        self.closed_here = True
        self._sent_code = int(code)
        self._sent_reason = reason
        return self._frame(_CLOSE, body)

    def check_close(self, code: int, reason: str) -> None:
        """Raises the TypeError or ValueError of :meth:`close`."""
        if type(code) is int and code == 1000 and reason == "":  # how most sessions end
            return
        check_close(code, reason)
        if code == _NO_STATUS_RECEIVED:
            if reason:
                raise ValueError("a Close without a code (1005) cannot have a reason")
            return
        check_sendable(code, reason, self.client)

    def closed_error(self) -> ConnectionClosed:
        """What a send or ``receive()`` raises on a closed connection."""
        if self.state == _CLOSED:
            return ConnectionClosed(self.close_code, self.close_reason)
        if self.state == _CLOSING:
            return ConnectionClosed(self._sent_code, self._sent_reason)
        return ConnectionClosed(CloseCode.ABNORMAL)

    def first_close(self) -> tuple[int, str]:
        """The code and reason of the first Close on a closed connection, ours or the peer's; if the
        connection was lost, ``close_code`` and its reason. Some clients answer any Close with
        1000."""
        if self._sent_code and self.close_code not in (0, CloseCode.ABNORMAL):
            return self._sent_code, self._sent_reason
        return self.close_code, self.close_reason

    def _control(self, opcode: int, payload: bytes) -> bytes:
        if self.state != _OPEN or self._eof:
            raise self.closed_error()
        if len(payload) > 125:
            raise ValueError(f"ping or pong payload must be at most 125 bytes, not {len(payload)}")
        return self._frame(opcode, payload)

    def _frame(self, opcode: int, payload: bytes) -> bytes:
        return encode_frame(opcode, True, payload, _masks.take() if self.client else b"")


def _close_body(code: int, reason: str) -> bytes:
    body = reason.encode()[:MAX_REASON]
    # A cut inside a code point would not be UTF-8.
    return code.to_bytes(2, "big") + body.decode("utf-8", "ignore").encode()
