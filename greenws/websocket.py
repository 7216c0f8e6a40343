"""``WebSocket``: blocking calls, for a greenlet that reads and writes as if it were alone.

There is no reader greenlet and no queue. A read pulls events from the connection, and the greenlet
that waits for input feeds the connection. Only one greenlet at a time can wait: the *leader*.
Others that need input (``ping()`` for its pong, ``close()`` for the peer's Close, a read while one
of those leads) are *followers*, and one of them takes over when the leader leaves. Messages that a
leader receives for another greenlet go to the *inbox*; the next read takes from it first.
"""

from __future__ import annotations

import contextlib
import io
import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from sys import getsizeof
from typing import TYPE_CHECKING, Any, NamedTuple

from gevent.event import Event
from gevent.monkey import get_original

from .checks import check_number, wrong_message
from .config import Config
from .cross_thread import CrossThreadCalls
from .exceptions import ConcurrentReadError, ConnectionClosed
from .hub import forks, switching
from .hub.transport import FOREVER, POLL, Transport
from .hub.turns import SECONDS
from .opcodes import NORMAL_ENDS, CloseCode, OpcodeType
from .protocol.connection import CLOSED, MAX_HEADER, OPEN, Connection, Ping
from .protocol.deflate import Deflate
from .protocol.shared import SharedMessage
from .rate_limit import RateLimit
from .waiting import call_functions, functions

if TYPE_CHECKING:
    from werkzeug import Request

__all__ = [
    "NO_TIMEOUT",
    "Message",
    "Traffic",
    "WebSocket",
    "explain_missing_name",
    "hint_of",
    "offer_to_all",
]

NO_TIMEOUT = -1
"""For ``read_timeout_seconds``: no timeout. ``None`` means the same."""

_COPY_LIMIT = 1 << 14  # bytes; a larger payload is sent without a copy
_ENTRY_OVERHEAD = 96  # bytes that an inbox entry takes besides its data
_POLL_INPUT_TICKS = 2  # half seconds without a receive, after which a send polls the input

# C numbers in the compiled form
_FOREVER = FOREVER
_POLL = POLL
_OPEN = OPEN
_CLOSED = CLOSED
_MAX_HEADER = MAX_HEADER
_MAX_CLOSE = 256  # bytes of a Close frame, in a TLS record if need be
# Polls of one read: of control frames, which a peer may send without end, and of a large message.
# Python's SSL object returns one record (16 KiB) at a time.
_MAX_POLLS = 64
_MAX_MESSAGE_POLLS = 1024
_TEXT = 1
_BINARY = 2
_CLOSE = 8
_PING = 9
_PONG = 10
_NOTHING = -1
_STEP_BITS = 13  # in a large message, so many bytes count as a step, as a power of two

_before_wait = functions  # of before_wait()

_NO_ANSWER = "the peer did not answer Close (close_timeout)"

_FIRST_TIME = 1e9  # for close_at(): a time in 2001; smaller numbers must be delays
_LAST_TIME = 1e11  # seconds since 1970: in year 5138; larger numbers must be milliseconds

_OPCODES = {int(opcode): opcode for opcode in OpcodeType}

# Names of other libraries, and what to use here.
_INSTEAD = {
    "recv": "receive()",
    "read": "receive()",
    "read_message": "receive()",
    "receive_text": "receive(), which returns str for text",
    "receive_bytes": "receive(), which returns bytes for binary data",
    "receive_json": "json.loads(socket.receive())",
    "recv_json": "json.loads(socket.receive())",
    "iter_text": "'for message in socket'",
    "iter_json": "json.loads(message) in 'for message in socket'",
    "send_text": "send(text)",
    "send_str": "send(text)",
    "send_bytes": "send(data)",
    "send_json": "send(json.dumps(data))",
    "send_message": "send(data)",
    "write_message": "send(data)",
    "emit": "send(json.dumps(data))",
    "on": "'for message in socket'; there are no events",
    "accept": "it as it is: the handshake was accepted before the handler runs",
    "connected": "is_connected",
    "closed": "'not socket.is_connected'",
    "disconnect": "close()",
    "write": "send(data)",
    "sendall": "send(data)",
    "sendMessage": "send(data)",
    "send_binary": "send(data)",
    "open": "is_connected",
    "is_open": "is_connected",
    "is_closed": "'not socket.is_connected'",
    "readyState": "is_connected",
    "settimeout": "receive(timeout=...), or read_timeout_seconds",
    "wait_closed": "close(), which waits",
    "environ": "request.environ",
    "headers": "request.headers",
    "cookies": "request.cookies",
    "args": "request.args",
    "path": "request.path",
    "query": "request.args",
    "remote_addr": "remote_address",
    "join": "'with rooms[name].join(socket):' of greenws.Rooms",
    "broadcast": "the rooms of greenws: rooms[name].send(data)",
}

_new_calls_lock = get_original("_thread", "allocate_lock")()

switching.load()
forks.load()


class Message(NamedTuple):
    """What a read returns.

    ``data``: str from ``read_string_message()``, bytes from ``read_bytes_message()``. None if there
    is no message (``opcode`` is INVALID: the read timed out, or the connection is closed), or if
    ``read_string_message()`` got a binary frame that is not UTF-8. ``final``: False if another
    fragment of the message follows.
    """

    data: Any
    opcode: OpcodeType
    final: bool


class Traffic(NamedTuple):
    """Complete messages, and bytes of frames (without TLS), since the opening handshake."""

    messages_in: int
    bytes_in: int
    messages_out: int
    bytes_out: int


class _Unset:
    def __repr__(self) -> str:
        return "read_timeout_seconds"


_UNSET = _Unset()


class WebSocket:
    """One WebSocket connection (RFC 6455), as a server or a client.

    Any number of greenlets may send. Only one may read at a time; another gets ConcurrentReadError.
    """

    def __init__(
        self,
        transport: Transport,
        config: Config,
        *,
        client: bool = False,
        deflate: Deflate | None = None,
        early: bytes = b"",
        corking: bool = True,
        subprotocol: str | None = None,
        request: Request | None = None,
        remote_address: Any = None,
    ) -> None:
        self.read_timeout_seconds: float | None = NO_TIMEOUT
        """Seconds that a whole read may take; NO_TIMEOUT (-1) or None for no limit."""
        self.subprotocol = subprotocol
        """The subprotocol that was agreed on, or None (RFC 6455, section 1.9)."""
        self.request = request
        """The handshake's request; None on a client's socket."""
        self.response: Any = None
        """A client's socket has the server's :class:`greenws.client.Response` to its handshake."""
        self.remote_address = remote_address
        """The peer's address: ``(host, port)``, or another value for other kinds of sockets. Behind
        trusted proxies it is the client's, with port 0."""
        self._transport = transport
        self._connection = Connection(config, client, deflate)
        self._max_inbox = _FOREVER if config.max_message_size is None else config.max_message_size
        self._close_timeout = config.close_timeout
        self._close_deadline = _FOREVER
        self._undelivered = 0  # bytes, when that was last set
        self._thread_id = switching.thread_id()
        self._corking = corking
        self._pulse: Any = None
        """Its :class:`greenws.keepalive.Pulse`, if keepalive watches it."""
        self._record: Any = None
        """Its :class:`greenws.stats.SessionRecord`, until the session ends."""
        # read state
        self._reading = False
        self._leading = False
        self._prepared = False  # select() has called the functions of before_wait()
        self._followers: Event | None = None
        self._inbox: deque[tuple[Any, int, bool]] | None = None
        self._inbox_size = 0
        self._polled_at = 0
        # write state
        self._sender: Any = None  # the greenlet whose fragmented message is open
        self._message_finished: Event | None = None  # set when that message is finished
        self._ready_callbacks: list[Callable[[], object]] | None = None  # of when_ready()
        self._cross_thread_calls: CrossThreadCalls | None = None
        if early:
            self._connection.feed(bytearray(early), len(early))
            transport.received += len(early)
        self._transport.set_prefetch(
            self, self._connection, self._connection._parser, self._connection._assembler
        )
        if config.max_message_rate is not None:
            self._connection.limiter = RateLimit(config.max_message_rate)

    # -- reading

    def read_string_message(self) -> Message:
        """Blocks until the next fragment, and returns it as ``Message(str, opcode, final)``.

        Returns ``Message(None, INVALID, True)`` after ``read_timeout_seconds`` (nothing is lost:
        ``is_connected`` is still True, and the next read continues), or when the connection is
        closed. A binary frame that is not UTF-8 gives ``Message(None, BINARY, final)``. A pong that
        answers ``send_ping()`` gives ``Message(payload, PONG, True)``.

        Raises:
            ConcurrentReadError: another greenlet is reading.
        """
        opcode = self._read_fragment()
        data = self._take_data()
        if isinstance(data, bytes):
            try:
                data = data.decode()
            except UnicodeDecodeError:
                data = None
        return Message(data, _OPCODES[opcode], self._connection.final)

    def read_bytes_message(self) -> Message:
        """Like :meth:`read_string_message`, but returns bytes. Text is returned as UTF-8; a
        fragment of it never ends inside a character."""
        opcode = self._read_fragment()
        data = self._take_data()
        if isinstance(data, str):
            data = data.encode()
        return Message(data, _OPCODES[opcode], self._connection.final)

    def receive(self, timeout: float | None | _Unset = _UNSET) -> str | bytes:
        """Blocks until the next message is complete, and returns it: str for text, bytes for
        binary.

        ``timeout``: seconds for the whole call; None for no limit, 0 to return only what has
        already arrived; ``read_timeout_seconds`` if omitted. If some fragments of a message were
        read before, this returns the rest of it.

        Raises:
            TimeoutError: nothing is lost; the next read continues.
            ConnectionClosed: the connection is closed; has its ``code`` and ``reason``.
            ConcurrentReadError: another greenlet is reading.
        """
        seconds = self.read_timeout_seconds if isinstance(timeout, _Unset) else timeout
        return self._receive(seconds, False)

    def _receive(self, seconds: float | None, iterating: bool) -> str | bytes:
        self._begin_read()
        try:
            deadline = _deadline(seconds)
            event = self._next_fragment(deadline)
            while event == _PONG:
                event = self._next_fragment(deadline)
            if not self._connection.final:
                return self._receive_rest(event, deadline, seconds, iterating)
        finally:
            self._reading = False
        if event == _NOTHING or event == _CLOSE:
            raise self._read_error(event, seconds, iterating)
        data: str | bytes = self._take_data()
        return data

    def _read_error(self, event: int, seconds: float | None, iterating: bool) -> Exception:
        """What a read raises. (A method of its own, so that a waiting session keeps less stack.)"""
        if event == _NOTHING:
            return TimeoutError(f"no message within {seconds} s")
        if iterating and self._connection.close_code in NORMAL_ENDS:
            return StopIteration()
        return self._connection.closed_error()

    def _receive_rest(
        self, event: int, deadline: float, seconds: float | None, iterating: bool
    ) -> str | bytes:
        """Joins the fragments of a message, the first of which has been read."""
        first = event
        final = False
        data = self._take_data()
        # One object, since many small ones would take far more than max_message_size.
        joined: Any = io.StringIO() if isinstance(data, str) else io.BytesIO()
        joined.write(data)
        try:
            while not final:
                event = self._next_fragment(deadline)
                if event == _NOTHING or event == _CLOSE:
                    raise self._read_error(event, seconds, iterating)
                if event != _PONG:
                    final = self._connection.final
                    joined.write(self._take_data())
        finally:
            if not final:  # timed out or killed: the next read starts over
                self._return_to_inbox((joined.getvalue(), first, False))
        message: str | bytes = joined.getvalue()
        return message

    def __iter__(self) -> Iterator[str | bytes]:
        """Iterates over complete messages, as from :meth:`receive`, until the connection is closed.

        Ends without an error if the close code is 1000, 1001 or 1005 (no code, as from a browser's
        plain ``close()``); raises ConnectionClosed for other codes, and TimeoutError after
        ``read_timeout_seconds``.
        """
        return self

    def __next__(self) -> str | bytes:
        return self._receive(self.read_timeout_seconds, True)

    def _read_fragment(self) -> int:
        """The opcode of the next fragment, whose payload :meth:`_take_data` returns; INVALID if
        there is none."""
        self._begin_read()
        try:
            event = self._next_fragment(_deadline(self.read_timeout_seconds))
        finally:
            self._reading = False
        return _NOTHING if event == _CLOSE else event

    def _take_data(self) -> Any:
        data, self._connection.data = self._connection.data, None
        return data

    def _begin_read(self) -> None:
        if self._transport.process != forks.process():
            self._disown()
        if self._reading:
            raise ConcurrentReadError(
                "another greenlet is already reading this socket; only one may read at a time"
            )
        if switching.thread_id() != self._thread_id:
            self._check_thread("read")
        self._reading = True

    def _next_fragment(self, deadline: float) -> int:
        """Blocks until the next fragment or pong, and leaves it in ``data`` and ``final`` of the
        connection. INVALID at the deadline, CLOSE when the connection is closed."""
        connection = self._connection
        prepared = False
        polls = 0
        if self._transport.poller.turns.steps <= 0:
            self._check_turn()
        while True:
            if self._inbox:
                data, event, final = self._inbox.popleft()
                self._inbox_size -= getsizeof(data) + _ENTRY_OVERHEAD
                connection.data = data
                connection.final = final
                self._transport.poller.turns.steps -= 1
                return event
            event = connection.next_event()
            if connection.replies:
                self._send_replies()
            if event == _NOTHING:
                polls += 1
                if _before_wait and not prepared and not self._prepared and deadline != _POLL:
                    if self._may_poll(polls) and self._pump(_POLL):
                        continue
                    prepared = True
                    if self._call_before_wait():
                        continue
                if deadline == _POLL and not self._may_poll(polls):
                    return _NOTHING
                if not self._pump(deadline):
                    return _NOTHING
            elif event == _PING:
                self._take_step()
            else:
                if event == _CLOSE:
                    self._transport.finish_writing()
                self._transport.poller.turns.steps -= 1
                if connection.deflate is not None and connection.data is not None:
                    # A few bytes may have been inflated to the largest message.
                    self._transport.poller.turns.steps -= len(connection.data) >> _STEP_BITS
                return event

    def _may_poll(self, polls: int) -> bool:
        """Whether a read polls for the ``polls``-th time. A message that has arrived is read to its
        end."""
        if polls <= _MAX_POLLS:
            return True
        return polls <= _MAX_MESSAGE_POLLS and self._connection.is_in_data()

    def _call_before_wait(self) -> bool:
        """Calls the functions of :func:`greenws.before_wait`. True if input may have arrived during
        that."""
        received, state = self._transport.received, self._connection.state
        call_functions()
        return (
            self._transport.received != received
            or self._connection.state != state
            or bool(self._inbox)
        )

    def _prepare_wait(self) -> None:
        """Does what a read does before it waits: for a caller that has found nothing to read, and
        then waits in :meth:`_receive_prepared`."""
        self._begin_read()
        try:
            self._call_before_wait()
        finally:
            self._reading = False

    def _receive_prepared(self, timeout: float | None) -> str | bytes:
        """Like :meth:`receive` after :meth:`_prepare_wait`."""
        self._prepared = True
        try:
            return self._receive(timeout, False)
        finally:
            self._prepared = False

    def _take_step(self) -> None:
        self._transport.poller.turns.steps -= 1
        if self._transport.poller.turns.steps <= 0:
            self._check_turn()

    def _check_turn(self) -> None:
        """Lets others run if the turn is over."""
        turns = self._transport.poller.turns
        if turns.is_over(self._transport.hub):
            turns.end(self._transport.hub)

    def _pump(self, deadline: float) -> bool:
        """Blocks until this greenlet or the leader has fed the connection; False at the deadline.

        Nothing may switch between its return and the next ``next_event()``.
        """
        if self._leading:
            return self._follow(deadline)
        transport = self._transport
        transport.flush()
        self._connection.keep()
        receive_buffer = transport.poller.receive_buffer
        if receive_buffer.borrower is self._connection:
            receive_buffer.borrower = None
        self._leading = True
        try:
            size = transport.receive(min(deadline, self._close_deadline))
        finally:
            self._leading = False
            if self._followers is not None:
                self._wake_followers()
        if size > 0:
            self._polled_at = transport.poller.ticks
            self._feed(size)
        elif size == 0:
            self._connection.feed_eof(transport.failure)
        elif self._close_deadline <= deadline:
            if not self._extend_close():
                transport.close(_NO_ANSWER)
                self._connection.feed_eof(transport.failure)
        else:
            return False
        return True

    def _extend_close(self) -> bool:
        """Extends the deadline for a peer that is still reading what was sent before our Close.
        False if it has acknowledged nothing more of that, or all of it without an answer."""
        before, self._undelivered = self._undelivered, self._transport.undelivered()
        if self._close_timeout is None or not _MAX_CLOSE < self._undelivered < before:
            return False
        self._close_deadline = time.monotonic() + self._close_timeout
        return True

    def _feed(self, size: int) -> None:
        self._transport.poller.turns.steps -= size >> _STEP_BITS
        receive_buffer = self._transport.poller.receive_buffer
        self._connection.feed(receive_buffer.data, size)
        receive_buffer.borrower = self._connection

    def _follow(self, deadline: float) -> bool:
        """Blocks until the leader leaves; False at the deadline."""
        if self._followers is None:
            self._followers = Event()
        if deadline == _FOREVER:
            self._followers.wait()
            return True
        delay = deadline - time.monotonic()
        return delay > 0 and bool(self._followers.wait(delay))

    def _wake_followers(self) -> None:
        if self._followers is not None:
            followers, self._followers = self._followers, None
            followers.set()

    def _fill_inbox(self, end: float, may_switch: bool = False) -> None:
        """Moves the connection's events to the inbox, for the next read: until ``end``, or in
        turns if the caller may switch."""
        connection = self._connection
        count = 0
        while self._inbox_size <= self._max_inbox:
            event = connection.next_event()
            if connection.replies:
                self._send_replies()
            if event == _CLOSE:
                self._transport.finish_writing()
            if event == _CLOSE or event == _NOTHING:
                break
            if event != _PING:
                data = self._take_data()
                if self._inbox is None:
                    self._inbox = deque()
                self._inbox.append((data, event, connection.final))
                self._inbox_size += getsizeof(data) + _ENTRY_OVERHEAD
            count += 1
            if may_switch:
                self._take_step()
            elif (event == _PING or count % 32 == 0) and time.monotonic() > end:
                break
        self._wake_followers()

    def _return_to_inbox(self, fragment: tuple[Any, int, bool]) -> None:
        if self._inbox is None:
            self._inbox = deque()
        self._inbox.appendleft(fragment)
        self._inbox_size += getsizeof(fragment[0]) + _ENTRY_OVERHEAD

    # -- sending

    def send(
        self, data: str | bytes | bytearray | memoryview, *, compress: bool | None = None
    ) -> None:
        """Sends a complete message: text for str, binary for a bytes-like object.

        With permessage-deflate, it is compressed from ``deflate_threshold`` bytes on.
        ``compress=True`` compresses a message of any size. ``compress=False`` does not compress:
        use it for a secret in the same message as text that an attacker may choose.

        Blocks only while more than ``write_high_water`` bytes wait for the peer to read, or while
        another greenlet's fragmented message is unfinished. Lets other greenlets run if this one
        has run for 5 ms.

        Raises:
            ConnectionClosed: the connection is closed, or the peer has acknowledged nothing for
                ``write_timeout``.
            TypeError: ``data`` is neither str nor bytes-like.
            RuntimeError: this greenlet has an unfinished fragmented message.
        """
        if isinstance(data, str):
            self._send_data(_TEXT, data.encode(), True, True, compress)
        else:
            self._send_data(_BINARY, _flat(data), True, True, compress)

    def send_string_message(
        self, string: str, final: bool = True, *, compress: bool | None = None
    ) -> None:
        """Sends a text message or a fragment of one: ``final=False`` begins a message, later calls
        continue it, and ``final=True`` finishes it. ``compress``: as in :meth:`send`; that of the
        first fragment decides. Raises what :meth:`send` raises."""
        if not isinstance(string, str):
            raise TypeError(f"send_string_message() takes str, not {type(string).__name__}")
        self._send_data(_TEXT, string.encode(), final, False, compress)

    def send_binary_message(
        self,
        data: bytes | bytearray | memoryview,
        final: bool = True,
        *,
        compress: bool | None = None,
    ) -> None:
        """Like :meth:`send_string_message`, for a binary message."""
        if isinstance(data, str):
            raise TypeError("send_binary_message() takes a bytes-like object, not str")
        self._send_data(_BINARY, _flat(data), final, False, compress)

    def send_ping(self, data: bytes | str = b"") -> None:
        """Sends a ping with at most 125 bytes. A ``read_*_message()`` returns its pong.

        Raises:
            ConnectionClosed: the connection is closed.
            ValueError: ``data`` is longer than 125 bytes.
        """
        payload = _control_payload(data)
        if self._in_other_thread():
            self._hand_over(self.send_ping, payload)
        else:
            self._send_control(self._connection.ping(payload, True)[1])

    def send_pong(self, data: bytes | str = b"") -> None:
        """Sends an unsolicited pong (RFC 6455, section 5.5.3). Raises what :meth:`send_ping`
        raises."""
        payload = _control_payload(data)
        if self._in_other_thread():
            self._hand_over(self.send_pong, payload)
        else:
            self._send_control(self._connection.pong(payload))

    def ping(self, timeout: float | None = None) -> float:
        """Sends a ping, blocks until its pong, and returns the round trip in seconds.

        Another greenlet may be reading. If none is, messages that arrive are kept for the next
        read.

        Raises:
            TimeoutError: no pong within ``timeout`` seconds (None: no limit), or more than
                ``max_message_size`` bytes of unread messages arrived before it.
            ConnectionClosed: the connection is closed.
        """
        self._check_thread("ping")
        if self._is_inherited():
            self._disown()
        deadline = _deadline(timeout)
        ping, frame = self._connection.ping(os.urandom(8), False)
        began = time.monotonic()
        self._send_or_hold(frame)
        self._transport.flush()
        prepared = False
        polls = 0
        while True:
            self._fill_inbox(_FOREVER, True)
            if ping.answered:
                return time.monotonic() - began
            if self._connection.state == _CLOSED:
                raise self._connection.closed_error()
            if self._inbox_size > self._max_inbox and not self._reading:
                raise TimeoutError("too many unread messages before the pong; read them first")
            polls += 1
            if _before_wait and not prepared and deadline != _POLL:
                if self._may_poll(polls) and self._pump(_POLL):
                    continue
                prepared = True
                if self._call_before_wait():
                    continue
            if deadline == _POLL and not self._may_poll(polls) or not self._pump(deadline):
                raise TimeoutError(f"no pong within {timeout} s")

    def _offer(self, message: SharedMessage, hold: bool = False) -> bool:
        """Sends a complete message if that does not block; with ``hold``, together with what
        follows. If it returns False, use :meth:`_when_ready` and try again.

        Returns False while the outbox is not empty, while a fragmented message is unfinished, and
        in other threads than the session's. On a closed connection it returns True, and drops the
        message.
        """
        return self._offer_now(message, hold)

    def _offer_now(self, message: SharedMessage, hold: bool) -> bool:
        connection = self._connection
        transport = self._transport
        if connection.state != _OPEN or transport.failure or transport.process != forks.process():
            return True
        if self._sender is not None or transport.backlog or self._in_other_thread():
            return False
        connection.messages_out += message.count
        if hold:
            transport.hold(message.frame(connection))
        else:
            transport.send(message.frame(connection))
        return True

    def _when_ready(self, callback: Callable[[], object]) -> None:
        """Makes the session's hub call ``callback`` once, as soon as :meth:`_offer` may succeed.
        May be called from any thread. ``callback`` must not block."""
        if self._in_other_thread():
            self._call_in_hub(self._when_ready, callback)
            return
        if self._ready_callbacks is None:
            self._ready_callbacks = []
            self._transport.on_outbox_empty = self._call_ready_callbacks
            if self._sender is None and not self._transport.backlog:
                self._transport.hub.loop.run_callback(self._call_ready_callbacks)
        self._ready_callbacks.append(callback)

    def _call_ready_callbacks(self) -> None:
        callbacks, self._ready_callbacks = self._ready_callbacks, None
        for callback in callbacks or ():
            callback()

    def _send_data(
        self, opcode: int, payload: Any, final: bool, whole: bool, compress: bool | None
    ) -> None:
        if switching.thread_id() != self._thread_id:
            sender, payload = switching.current(), bytes(payload)
            self._hand_over(self._send_as, sender, opcode, payload, final, whole, compress)
        elif final and self._sender is None:
            self._send_frame(self._connection.begin_message(opcode, True), payload, True, compress)
        else:
            self._send_as(switching.current(), opcode, payload, final, whole, compress)

    def _send_as(
        self,
        sender: Any,
        opcode: int,
        payload: Any,
        final: bool,
        whole: bool,
        compress: bool | None,
    ) -> None:
        if self._is_inherited():
            self._disown()
        if self._sender is not None:
            self._wait_turn(sender, whole)
        opcode = self._connection.begin_message(opcode, final)
        if not final:
            self._sender = sender
        elif self._sender is not None:
            self._finish_message()
        self._send_frame(opcode, payload, final, compress)

    def _send_frame(self, opcode: int, payload: Any, final: bool, compress: bool | None) -> None:
        connection = self._connection
        transport = self._transport
        if connection.deflate is not None:
            transport.poller.turns.steps -= len(payload) >> _STEP_BITS
            opcode, payload = connection.compress(opcode, final, payload, compress)
        size = len(payload)
        if size > _COPY_LIMIT:
            header, payload = connection.divide(opcode, final, payload)
            transport.send_large(header, payload)
        elif transport.backlog:
            self._send_or_hold(connection.encode(opcode, final, payload))
        else:
            position = transport.reserve(_MAX_HEADER + size)
            if position >= 0:
                data = payload if isinstance(payload, bytes) else bytes(payload)
                end = connection.write(transport.poller.cork.data, position, opcode, final, data)
                transport.commit(end, self._corking and connection.has_frame())
        if transport.backlog:
            transport.wait_for_room()
        transport.poller.turns.steps -= 1
        if transport.poller.turns.steps <= 0:
            self._check_turn()
        if transport.failure:
            raise self._lost_error()
        if transport.poller.ticks - self._polled_at > _POLL_INPUT_TICKS and not self._leading:
            self._poll_input(time.monotonic() + SECONDS)

    def _send_or_hold(self, frame: bytes) -> None:
        """Sends a frame; holds it back if another whole frame has already been received, so that
        both answers leave together."""
        if self._corking and self._connection.has_frame():
            self._transport.hold(frame)
        else:
            self._transport.send(frame)

    def _send_control(self, frame: bytes) -> None:
        self._send_or_hold(frame)
        self._take_step()
        if self._transport.failure:
            raise self._lost_error()

    def _send_replies(self) -> None:
        connection = self._connection
        replies = connection.replies
        if connection.state == _OPEN and self._transport.backlog:
            self._transport.reply(replies[-1] if len(replies) == 1 else b"".join(replies))
        else:
            self._transport.pending_reply = b""  # nothing may follow a Close
            self._send_or_hold(b"".join(replies))
        replies.clear()

    def _wait_turn(self, sender: Any, whole: bool) -> None:
        """Blocks until another greenlet's fragmented message is finished."""
        if self._connection.state != _OPEN:
            raise self._connection.closed_error()
        while self._sender is not None and self._sender is not sender:
            calls = self._cross_thread_calls
            if self._sender.dead and (calls is None or not calls.is_waiting(self._sender)):
                raise RuntimeError(
                    "a greenlet ended before it sent the last fragment of its message; nothing "
                    "else can be sent: close the socket"
                )
            if self._message_finished is None:
                self._message_finished = Event()
            self._message_finished.wait(1.0)
            if self._connection.state != _OPEN:
                raise self._connection.closed_error()
            if self._transport.failure:
                raise self._lost_error()
        if self._sender is not None and whole:
            raise RuntimeError(
                "a fragmented message is unfinished; send its last fragment with final=True first"
            )

    def _finish_message(self) -> None:
        self._sender = None
        if self._message_finished is not None:
            sent, self._message_finished = self._message_finished, None
            sent.set()
        if self._ready_callbacks is not None:  # later: the last fragment has not been sent yet
            self._transport.hub.loop.run_callback(self._call_ready_callbacks)

    def _poll_input(self, end: float, may_switch: bool = False) -> None:
        """Receives without blocking, so that pings are answered and a Close is noticed even if the
        handler only sends. Stops at the time ``end``; the next call takes the rest."""
        transport = self._transport
        self._polled_at = transport.poller.ticks
        if self._inbox_size > self._max_inbox:
            return
        if end == _FOREVER or not self._connection.has_frame():
            size = transport.poll()
            if size > 0:
                self._feed(size)
            elif size == 0:
                self._connection.feed_eof(transport.failure)
        self._fill_inbox(end, may_switch)

    def _poll_unread(self) -> bool:
        """Receives what has arrived, without blocking, unless a greenlet is waiting for input.
        Pings are answered, a Close is noticed, messages go to the inbox. True if there was not time
        for all of it."""
        if self._leading or self._transport.closed:
            return False
        self._poll_input(time.monotonic() + SECONDS)
        return self._inbox_size <= self._max_inbox and self._connection.has_frame()

    def _pursue_close(self, now: float, margin: float) -> bool:
        """While our Close waits for the peer's: receives without blocking if no greenlet reads, and
        ends the connection ``margin`` seconds after a read would, by ``close_timeout``. False if
        there is nothing to wait for."""
        transport = self._transport
        if transport.closed or self._is_inherited() or self._connection.state == _OPEN:
            return False
        if self._connection.state == _CLOSED and self._close_deadline == _FOREVER:
            return False
        if not self._leading and self._connection.state != _CLOSED:
            self._poll_input(time.monotonic() + SECONDS)
        if now < self._close_deadline + margin:
            return True
        if self._connection.state != _CLOSED and self._extend_close():
            return True
        self._mark_lost(_NO_ANSWER)
        return False

    def _has_unread_input(self) -> bool:
        """Whether the kernel has input that we have not received."""
        return not self._transport.closed and self._transport.has_input()

    def _send_heartbeat(self, ping: Ping) -> None:
        """Sends a ping whose pong is not delivered to readers."""
        try:
            frame = self._connection.send_ping(ping)
        except ConnectionClosed:  # the stream has ended, but earlier messages are unread
            return
        self._transport.send(frame)

    @property
    def _has_backlog(self) -> bool:
        """Whether the outbox holds bytes that the kernel has not taken."""
        return bool(self._transport.backlog)

    def _mark_lost(self, reason: str) -> None:
        """Ends the connection as lost (1006), without a Close. Does not block."""
        self._transport.close(reason)
        if not self._leading:
            self._connection.feed_eof(reason)
            self._fill_inbox(time.monotonic() + SECONDS)

    def _lost_error(self) -> ConnectionClosed:
        """The error of a send that could not write. Polls the input first: the peer's Close may
        have arrived unread."""
        connection = self._connection
        if not self._leading:
            if self._transport.closed:
                connection.feed_eof(self._transport.failure)
                self._fill_inbox(_FOREVER, True)
            else:
                self._poll_input(_FOREVER, True)
        # Earlier messages may be unread, so the state is left for the next read to find.
        error = connection.closed_error()
        if error.code == CloseCode.ABNORMAL:
            error = ConnectionClosed(error.code, self._transport.failure)
        return error

    # -- closing

    def __enter__(self) -> WebSocket:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> bool | None:
        """Closes the connection: with 1000, or with 1011 if an exception escapes the block. For an
        exception that ends the greenlet or the program (KeyboardInterrupt), it does not wait for
        the peer."""
        if error is None or isinstance(error, ConnectionClosed):
            self.close()
        elif isinstance(error, Exception):
            explain_missing_name(error)
            self.close(CloseCode.INTERNAL_ERROR)
        else:
            self._abandon(CloseCode.GOING_AWAY)
        return None

    def close(self, code: int = 1000, reason: str = "") -> None:
        """Performs the closing handshake (RFC 6455, section 7.1.2): sends Close, waits for the
        peer's Close, and closes TCP. Idempotent.

        Blocks for at most ``close_timeout``. If another greenlet is reading, it gets messages until
        the peer's Close; otherwise messages that still arrive are dropped. If the calling greenlet
        is killed or times out during this call, the connection is closed, with 1006 if the peer's
        Close is missing. ``code`` 1005 sends a Close without a code.

        Raises:
            ValueError: ``code`` may not be sent (allowed are 1000 to 1003, 1007 to 1009, 1011 to
                1014 and 3000 to 4999), or ``reason`` is longer than 123 bytes in UTF-8.
            TypeError: ``code`` is not an int, or ``reason`` not a str.
        """
        if self._is_inherited():
            self._disown()
            return
        self._connection.check_close(code, reason)
        if self._in_other_thread():
            with contextlib.suppress(ConnectionClosed):
                self._hand_over(self.start_closing, code, reason)
            return
        if self._cross_thread_calls is not None:  # what other threads have sent goes first
            self._cross_thread_calls.finish(self._close_timeout)
        self.start_closing(code, reason)
        transport = self._transport
        if transport.closed:
            return
        connection = self._connection
        try:
            while connection.state != _CLOSED:
                if self._reading:
                    self._fill_inbox(_FOREVER, True)
                else:
                    self._discard_input(True)
                if connection.state != _CLOSED:
                    self._pump(_FOREVER)
            transport.finish_writing()
            while self._leading and self._follow(self._close_deadline):
                pass
            if not self._leading:
                self._leading = True
                try:
                    transport.finish(self._close_deadline)
                finally:
                    self._leading = False
                    self._wake_followers()
        finally:
            transport.close()
            if connection.state != _CLOSED and not self._reading:  # killed, or timed out
                connection.feed_eof()
                self._discard_input(False)
            if connection.client and self._pulse is not None:  # a server's session ends it
                self._pulse.stop()

    def start_closing(self, code: int = 1000, reason: str = "") -> None:
        """Sends Close, like :meth:`close`, but does not wait. A read finishes the handshake. May be
        called from any thread."""
        if self._is_inherited():
            self._disown()
            return
        if self._in_other_thread():
            self._call_in_hub(self.start_closing, code, reason)
            return
        frame = self._connection.close(code, reason)
        if self._close_deadline == _FOREVER and self._close_timeout is not None:
            self._close_deadline = time.monotonic() + self._close_timeout
            self._transport.advance_deadline(self._close_deadline)
            if self._connection.state != _CLOSED:  # otherwise the peer's Close came first
                self._undelivered = self._transport.undelivered()
        if frame:
            self._transport.pending_reply = b""
            self._transport.send(frame)

    def close_at(
        self, time: float | None, code: int = CloseCode.GOING_AWAY, reason: str = ""
    ) -> None:
        """Closes the socket with ``code`` and ``reason`` at ``time``: seconds since 1970, as from
        ``time.time()`` or in the ``exp`` of a JWT; at once if that time has passed. It is late by
        at most a tenth of a second, or 5 s if the clock jumps. The call does not block. Another
        call replaces it, for example when a client renews its token; None cancels it. If
        ``max_lifetime`` ends earlier, that counts. ``code`` 1005 sends a Close without a code.

        A read continues until the peer's Close, as after :meth:`start_closing`. A peer that does
        not answer is cut off after ``close_timeout``, with or without a reader. May be called from
        any thread. Does nothing on a closed socket.

        Raises:
            TypeError: ``time`` is neither a number nor None.
            ValueError: ``time`` is not a time, or is a delay (0 means at once), ``code`` may not be
                sent, or ``reason`` is longer than 123 bytes in UTF-8.
        """
        if time is not None:
            _check_time(time)
        self._connection.check_close(code, reason)
        if self._in_other_thread():
            self._call_in_hub(self.close_at, time, code, reason)
        elif self.is_connected:
            if self._pulse is None:
                raise RuntimeError("close_at() needs keepalive, and none watches this socket")
            self._pulse.close_at(time, code, reason)

    def _abandon(self, code: int) -> None:
        """Sends Close, and closes TCP without waiting for the peer's."""
        self.start_closing(code)
        self._transport.finish_writing()
        self._transport.close()
        self._connection.feed_eof()
        self._discard_input(False)

    def _discard_input(self, may_switch: bool) -> None:
        """Drops unread messages, and answers what must be answered."""
        connection = self._connection
        event = 0
        while event != _NOTHING and event != _CLOSE:
            event = connection.next_event()
            if may_switch and event != _NOTHING and event != _CLOSE:
                self._take_step()
        if connection.replies:
            self._send_replies()
        self._inbox = None
        self._inbox_size = 0

    def _is_inherited(self) -> bool:
        """Whether this process was forked from the owner of the connection. The socket is closed
        (1006) here then."""
        return self._transport.process != forks.process()

    def _disown(self) -> None:
        """In a forked child: closes the socket there. Whoever is using it is the parent's."""
        self._transport.disown()
        self._drop_users()

    def _end_with_hub(self, reason: str) -> None:
        """Ends the connection as lost (1006) before its hub is destroyed."""
        self._transport.close(reason)
        self._wake_followers()
        self._drop_users()

    def _drop_users(self) -> None:
        """Ends the stream, and forgets the greenlets that use it: they may never run again."""
        self._connection.feed_eof(self._transport.failure)
        self._reading = self._leading = False
        self._sender = self._followers = self._message_finished = None
        self._discard_input(False)

    @property
    def is_connected(self) -> bool:
        """True until a Close was sent or received, or the connection was lost."""
        return (
            self._connection.state == _OPEN
            and not self._transport.failure
            and not self._is_inherited()
        )

    @property
    def close_code(self) -> int | None:
        """The code that ended the connection (RFC 6455, section 7.1.5): that of the peer's Close,
        or ours if the peer violated the protocol; 1005 if its Close had no code, 1006 if the
        connection was lost without a Close. None while the connection is not closed."""
        return self._connection.close_code or None

    @property
    def close_reason(self) -> str | None:
        """The reason that came with :attr:`close_code`, or, for 1006, what is known about the loss.
        May be empty. None while the connection is not closed."""
        return self._connection.close_reason if self._connection.close_code else None

    @property
    def latency(self) -> float | None:
        """The round trip of the last keepalive ping in seconds; None before the first."""
        return None if self._pulse is None else self._pulse.latency

    @property
    def traffic(self) -> Traffic:
        """What was sent and received on this connection."""
        connection, transport = self._connection, self._transport
        return Traffic(
            connection.messages_in, transport.received, connection.messages_out, transport.sent
        )

    @property
    def closed_by(self) -> str:
        """Who closed first: ``"us"`` or ``"peer"``; ``"nobody"`` if the connection was lost. Empty
        while it is open."""
        connection = self._connection
        if connection.closed_here:
            return "us"
        if connection.state == _CLOSED and connection.close_code != CloseCode.ABNORMAL:
            return "peer"
        return "nobody" if connection.state == _CLOSED or self._transport.failure else ""

    def __repr__(self) -> str:
        if getattr(self, "_connection", None) is None:  # a subclass, in a test
            return f"<{type(self).__name__} that was never opened>"
        code = self._connection.close_code or ""
        state = "open" if self.is_connected else f"closed {code}".strip()
        return f"<{type(self).__name__} {self.remote_address} {state}>"

    # -- other threads

    def _is_in_other_thread(self) -> bool:
        """Whether the current thread is not the session's."""
        return self._in_other_thread()

    def _call_in_hub(self, call: Callable[..., object], *args: Any) -> None:
        """From any thread: has the session's hub make ``call``, which must not block."""
        # The session and its hub have ended.
        with contextlib.suppress(AttributeError, ValueError):
            self._transport.hub.loop.run_callback_threadsafe(call, *args)

    def _in_other_thread(self) -> bool:
        return switching.thread_id() != self._thread_id

    def _check_thread(self, action: str) -> None:
        if self._in_other_thread():
            raise RuntimeError(
                f"only the session's own thread may {action}; other threads may only send"
            )

    def _hand_over(self, call: Callable[..., object], *args: Any) -> None:
        """From another thread: has the session's hub make ``call``, after this caller's earlier
        calls. Blocks only while the session does not keep up."""
        if not self.is_connected:
            raise self._connection.closed_error()
        if self._cross_thread_calls is None:
            with _new_calls_lock:  # two threads must not make two
                if self._cross_thread_calls is None:
                    self._cross_thread_calls = CrossThreadCalls(self._transport.hub)
        if not self._cross_thread_calls.hand_over(self, call, args):
            raise self._connection.closed_error()


def offer_to_all(
    sockets: dict[Any, WebSocket], message: SharedMessage, exclude: object, hold: bool = False
) -> tuple[int, list[Any]]:
    """:meth:`WebSocket._offer` for all ``sockets`` except ``exclude``; returns how many took the
    message, and the keys of those that did not. ``hold``: others may follow before the hub runs,
    so that one system call sends them all, if there is one socket alone."""
    hold = hold and len(sockets) == 1  # several would take the cork from each other
    taken = 0
    refused = []
    for key, socket in sockets.items():
        if socket is exclude:
            continue
        if socket._offer_now(message, hold):
            taken += 1
        else:
            refused.append(key)
    return taken, refused


def hint_of(socket: WebSocket, name: str) -> str:
    """What to use instead of an attribute of other libraries' sockets; "" for other names."""
    instead = _INSTEAD.get(name)
    if instead is None:
        return ""
    return f"{type(socket).__name__!r} object has no attribute {name!r}; use {instead}"


def explain_missing_name(error: BaseException) -> None:
    """Adds its hint to an error that escaped a session or a ``with`` block. (A ``__getattr__``
    would give it at once, but Python would make a bound method for each call of each method.)"""
    if isinstance(error, AttributeError) and isinstance(error.obj, WebSocket):
        hint = hint_of(error.obj, error.name or "")
        if hint:
            error.args = (hint,)


def _deadline(seconds: float | None) -> float:
    if seconds is None or seconds == -1:  # NO_TIMEOUT
        return _FOREVER
    if seconds == 0:
        return _POLL
    if not (isinstance(seconds, (int, float)) and seconds > 0):
        check_number("timeout", seconds)
        raise ValueError(f"timeout must be 0 or more seconds, or None, not {seconds!r}")
    return time.monotonic() + seconds


def _check_time(time: Any) -> None:
    if isinstance(time, bool) or not isinstance(time, (int, float)):
        raise TypeError(
            "time must be a number of seconds since 1970, such as time.time() or the exp of a JWT "
            f"(of a datetime: its timestamp()), or None, not {time!r}"
        )
    if not -_LAST_TIME < time < _LAST_TIME:  # nan is not, either
        raise ValueError(f"time must be in seconds (not in ms) since 1970, not {time!r}")
    if 0 < time < _FIRST_TIME:
        raise ValueError(
            f"time is one of time.time(), not a delay: in {time!r} seconds is "
            f"close_at(time.time() + {time!r})"
        )


def _flat(data: Any) -> bytes | memoryview:
    """A bytes-like object as bytes, or as a memoryview of bytes."""
    if type(data) is bytes:  # a subclass is copied
        return data
    try:
        view = memoryview(data)
    except TypeError:
        raise wrong_message(data) from None
    return view.cast("B") if view.c_contiguous else view.tobytes()


def _control_payload(data: bytes | str) -> bytes:
    payload = data.encode() if isinstance(data, str) else bytes(_flat(data))
    if len(payload) > 125:
        raise ValueError(f"ping or pong payload must be at most 125 bytes, not {len(payload)}")
    return payload
