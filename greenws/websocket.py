"""``WebSocket``: the blocking calls, for a greenlet that reads and writes as if it were alone.

There is no reader greenlet and no queue: a read pulls from the protocol, and the protocol is fed by
whichever greenlet waits for the socket. Only one can. It is the *leader*; others that need
something from the wire (``ping()`` for its pong, ``close()`` for the peer's Close, a reader while
one of those leads) follow it, and take over when it leaves. What a leader meets that is not its own
goes to the inbox, and the next read finds it there first.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import gevent
from gevent.event import Event
from gevent.hub import Hub
from gevent.monkey import get_original

from .config import Config
from .exceptions import ConcurrentReadError, ConnectionClosed, GreenwsError
from .hub import switching
from .hub.transport import FOREVER, POLL, Transport
from .opcodes import CloseCode, OpcodeType
from .protocol.connection import CLOSED, MAX_HEADER, OPEN, Connection, Ping
from .protocol.deflate import Deflate
from .protocol.shared import SharedMessage
from .rate_limit import RateLimit

if TYPE_CHECKING:
    from werkzeug import Request

__all__ = ["NO_TIMEOUT", "Message", "Traffic", "WebSocket", "offer_to_all"]

NO_TIMEOUT = -1
"""For ``read_timeout_seconds``: wait for ever. ``None`` means the same."""

_SMALL = 1 << 14  # bytes up to which a payload is joined to its header
_ENTRY = 64  # bytes that an entry of the inbox costs beside its payload, at least
_LOOK_EVERY = 2  # ticks, half seconds, after which a send looks at the input
_MAX_HANDED = 64  # calls from other threads that wait for the session's hub

# C numbers where this is compiled
_FOREVER = FOREVER
_POLL = POLL
_OPEN = OPEN
_CLOSED = CLOSED
_MAX_HEADER = MAX_HEADER
_TEXT = 1
_BINARY = 2
_CLOSE = 8
_PONG = 10
_NOTHING = -1

_OPCODES = {int(opcode): opcode for opcode in OpcodeType}
_QUIET = (CloseCode.NORMAL, CloseCode.GOING_AWAY, CloseCode.NO_STATUS_RECEIVED)

_logger = logging.getLogger("greenws.websocket")

switching.load()

_sleep = get_original("time", "sleep")


class Message(NamedTuple):
    """What a read brought.

    ``data``: str from ``read_string_message()``, bytes from ``read_bytes_message()``; None if there
    is nothing (``opcode`` INVALID: timed out, or the connection is over), or if a binary frame read
    as a string is not UTF-8. ``final``: False for a fragment that another follows.
    """

    data: Any
    opcode: OpcodeType
    final: bool


class Traffic(NamedTuple):
    """Whole messages, and bytes of frames (before TLS), since the opening handshake."""

    messages_in: int
    bytes_in: int
    messages_out: int
    bytes_out: int


class _Unset:
    def __repr__(self) -> str:
        return "read_timeout_seconds"


_UNSET = _Unset()


class WebSocket:
    """One WebSocket connection (RFC 6455), server or client.

    Any number of greenlets may send. One may read at a time; a second gets ConcurrentReadError.
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
        """Seconds that a read may take as a whole; NO_TIMEOUT (-1) or None: for ever."""
        self.subprotocol = subprotocol
        self.request = request
        self.remote_address = remote_address
        self._transport = transport
        self._connection = Connection(config, client, deflate)
        self._max_inbox = _FOREVER if config.max_message_size is None else config.max_message_size
        self._close_timeout = config.close_timeout
        self._close_deadline = _FOREVER
        self._thread = switching.thread()
        self._corking = corking
        self.pulse: Any = None
        """Its :class:`greenws.keepalive.Pulse`, where it has one."""
        self.record: Any = None
        """Its :class:`greenws.stats.SessionRecord`, as long as that has not ended."""
        # read state
        self._reading = False
        self._leading = False
        self._followers: Event | None = None
        self._inbox: deque[tuple[Any, int, bool]] | None = None
        self._inbox_size = 0
        self._looked = 0
        # write state
        self._sender: Any = None  # the greenlet whose fragmented message is open
        self._sent: Event | None = None  # set when it is finished
        self._to_tell: list[Callable[[], object]] | None = None  # those of when_ready()
        # calls from other threads
        self._handed: list[tuple[Any, Any, tuple[Any, ...]]] = []
        self._couriers: dict[Any, Any] = {}
        self._carried = 0
        if early:
            self._connection.feed(bytearray(early), len(early))
            transport.received += len(early)
        transport.lies_near(self, self._connection, *self._connection.parts)
        if config.max_message_rate is not None:
            self._connection.limiter = RateLimit(config.max_message_rate)

    # -- reading

    def read_string_message(self) -> Message:
        """The next fragment as ``Message(str, opcode, final)``; blocks until it is there.

        ``Message(None, INVALID, True)`` after ``read_timeout_seconds`` (nothing is lost:
        ``is_connected`` is still True, and the next read goes on), or when the connection is over.
        ``Message(None, BINARY, final)`` for a binary frame that is not UTF-8. A pong comes as
        ``Message(payload, PONG, True)`` if it answers ``send_ping()``.

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
        """Like :meth:`read_string_message`, with bytes. Text comes as UTF-8, cut between
        characters."""
        opcode = self._read_fragment()
        data = self._take_data()
        if isinstance(data, str):
            data = data.encode()
        return Message(data, _OPCODES[opcode], self._connection.final)

    def receive(self, timeout: float | None | _Unset = _UNSET) -> str | bytes:
        """The next whole message: str for text, bytes for binary.

        ``timeout`` in seconds bounds the whole call; None waits for ever, 0 takes only what is
        there, and without it ``read_timeout_seconds`` holds. In the middle of a message of which
        fragments were read, it gives the rest.

        Raises:
            TimeoutError: nothing is lost, the next read goes on from there.
            ConnectionClosed: the connection is over; with its ``code`` and ``reason``.
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
            raise self._no_message(event, seconds, iterating)
        data: str | bytes = self._take_data()
        return data

    def _no_message(self, event: int, seconds: float | None, iterating: bool) -> Exception:
        """What a read raises. (Beside it, less of the stack is kept while a session waits.)"""
        if event == _NOTHING:
            return TimeoutError(f"no message within {seconds} s")
        error = self._connection.closed_error()
        return StopIteration() if iterating and error.code in _QUIET else error

    def _receive_rest(
        self, event: int, deadline: float, seconds: float | None, iterating: bool
    ) -> str | bytes:
        """Joins the fragments of a message whose first is at hand."""
        parts = [(self._take_data(), event, False)]
        try:
            while True:
                event = self._next_fragment(deadline)
                if event == _NOTHING or event == _CLOSE:
                    raise self._no_message(event, seconds, iterating)
                if event == _PONG:
                    continue
                final = self._connection.final
                parts.append((self._take_data(), event, final))
                if final:
                    pieces = [part[0] for part in parts]
                    parts = []
                    return "".join(pieces) if isinstance(pieces[0], str) else b"".join(pieces)
        finally:
            for part in reversed(parts):  # timed out, killed: the next read begins where this did
                self._put_back(part)

    def __iter__(self) -> Iterator[str | bytes]:
        """Whole messages, as :meth:`receive` gives them, until the connection is closed.

        Ends quietly if the peer closed with 1000, 1001 or no code at all (1005, a browser's plain
        ``close()``), and raises ConnectionClosed otherwise; TimeoutError after
        ``read_timeout_seconds``.
        """
        return self

    def __next__(self) -> str | bytes:
        return self._receive(self.read_timeout_seconds, True)

    def _read_fragment(self) -> int:
        """The opcode of the next fragment, which :meth:`_take_data` gives; INVALID if there is
        none."""
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
        if self._reading:
            raise ConcurrentReadError(
                "another greenlet is reading this socket; only one may read at a time"
            )
        if switching.thread() != self._thread:
            self._check_thread("read")
        self._reading = True

    def _next_fragment(self, deadline: float) -> int:
        """A fragment or pong, in the protocol's ``data`` and ``final``; INVALID at the deadline,
        CLOSE when the connection is over."""
        connection = self._connection
        while True:
            if self._inbox:
                data, event, final = self._inbox.popleft()
                self._inbox_size -= len(data) + _ENTRY
                connection.data = data
                connection.final = final
                return event
            event = connection.next_event()
            if connection.replies:
                self._send_replies()
            if event == _NOTHING:
                if not self._pump(deadline):
                    return _NOTHING
            else:
                if event == _CLOSE:
                    self._transport.finish_writing()
                return event

    def _pump(self, deadline: float) -> bool:
        """Blocks until the protocol was fed, by this greenlet or by another; False at the deadline.

        Nothing may switch between its return and the next call of ``next_event()``.
        """
        if self._leading:
            return self._follow(deadline)
        transport = self._transport
        transport.flush()
        self._connection.keep()
        if transport.poller.borrower is self._connection:
            transport.poller.borrower = None
        self._leading = True
        try:
            size = transport.receive(min(deadline, self._close_deadline))
        finally:
            self._leading = False
            if self._followers is not None:
                self._wake_followers()
        if size > 0:
            self._looked = transport.poller.ticks
            self._feed(size)
        elif size == 0:
            self._connection.feed_eof(transport.failure)
        elif self._close_deadline <= deadline:
            transport.close("the peer did not answer Close (close_timeout)")
            self._connection.feed_eof(transport.failure)
        else:
            return False
        return True

    def _feed(self, size: int) -> None:
        poller = self._transport.poller
        self._connection.feed(poller.buffer, size)
        poller.borrower = self._connection

    def _follow(self, deadline: float) -> bool:
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

    def _absorb(self) -> None:
        """Takes what the protocol has, for a greenlet that does not read: the inbox keeps it."""
        connection = self._connection
        while self._inbox_size <= self._max_inbox:
            event = connection.next_event()
            if connection.replies:
                self._send_replies()
            if event == _CLOSE:
                self._transport.finish_writing()
            if event == _CLOSE or event == _NOTHING:
                break
            data = self._take_data()
            if self._inbox is None:
                self._inbox = deque()
            self._inbox.append((data, event, connection.final))
            self._inbox_size += len(data) + _ENTRY
        self._wake_followers()

    def _put_back(self, fragment: tuple[Any, int, bool]) -> None:
        if self._inbox is None:
            self._inbox = deque()
        self._inbox.appendleft(fragment)
        self._inbox_size += len(fragment[0]) + _ENTRY

    # -- sending

    def send(
        self, data: str | bytes | bytearray | memoryview, *, compress: bool | None = None
    ) -> None:
        """Sends a whole message: text for str, binary for anything bytes-like.

        It is compressed if the peer agreed to that and it has ``deflate_threshold`` bytes or more.
        ``compress=True``: whatever its size; False: never, as for a secret that stands beside text
        which somebody else chose.

        Blocks only while the peer reads so slowly that more than ``write_high_water`` bytes wait
        for it, or while another greenlet's fragmented message is open.

        Raises:
            ConnectionClosed: the connection is over, or the peer read nothing for
                ``write_timeout``.
            TypeError: ``data`` is neither.
            RuntimeError: this greenlet has begun a fragmented message and not finished it.
        """
        if isinstance(data, str):
            self._send_data(_TEXT, data.encode(), True, True, compress)
        else:
            self._send_data(_BINARY, _flat(data), True, True, compress)

    def send_string_message(
        self, string: str, final: bool = True, *, compress: bool | None = None
    ) -> None:
        """Sends text, or a fragment of it: ``final=False`` opens a message, later calls continue
        it, and ``final=True`` ends it. ``compress`` as in :meth:`send`; the first fragment decides.
        Raises like :meth:`send`."""
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
        """Sends bytes, or a fragment of them, as :meth:`send_string_message` sends text."""
        if isinstance(data, str):
            raise TypeError("send_binary_message() takes a bytes-like object, not str")
        self._send_data(_BINARY, _flat(data), final, False, compress)

    def send_ping(self, data: bytes | str = b"") -> None:
        """Sends a ping (at most 125 bytes). The reader gets its pong as a message.

        Raises:
            ConnectionClosed: the connection is over.
            ValueError: ``data`` is too long.
        """
        payload = _control_payload(data)
        if self._elsewhere():
            self._hand_over(self.send_ping, payload)
        else:
            self._put_control(self._connection.ping(payload, True)[1])

    def send_pong(self, data: bytes | str = b"") -> None:
        """Sends a pong that nobody asked for (RFC 6455, section 5.5.3). Raises like
        :meth:`send_ping`."""
        payload = _control_payload(data)
        if self._elsewhere():
            self._hand_over(self.send_pong, payload)
        else:
            self._put_control(self._connection.pong(payload))

    def ping(self, timeout: float | None = None) -> float:
        """Pings the peer, blocks until it answers, and returns the seconds that took.

        Another greenlet may read meanwhile; if none does, what arrives is kept for the next read.

        Raises:
            TimeoutError: no answer within ``timeout`` seconds (None: no limit), or more than
                ``max_message_size`` bytes of messages stand unread before it.
            ConnectionClosed: the connection is over.
        """
        self._check_thread("ping")
        deadline = _deadline(timeout)
        ping, frame = self._connection.ping(os.urandom(8), False)
        began = time.monotonic()
        self._put(frame)
        self._transport.flush()
        while True:
            self._absorb()
            if ping.answered:
                return time.monotonic() - began
            if self._connection.state == _CLOSED:
                raise self._connection.closed_error()
            if self._inbox_size > self._max_inbox and not self._reading:
                raise TimeoutError("too many unread messages stand before the pong; read them")
            if not self._pump(deadline):
                raise TimeoutError(f"no pong within {timeout} s")

    def offer(self, message: SharedMessage) -> bool:
        """Sends a whole message if that takes no waiting. False: offer it again, as
        :meth:`when_ready` says.

        That is so while the outbox is not empty, while a fragmented message is open, and in other
        threads than the session's. A connection that is over takes everything, and forgets it.
        """
        return self._offer(message)

    def _offer(self, message: SharedMessage) -> bool:
        connection = self._connection
        transport = self._transport
        if connection.state != _OPEN or transport.failure:
            return True
        if self._sender is not None or transport.backlog or self._elsewhere():
            return False
        connection.messages_out += 1
        transport.send(message.frame(connection))
        return True

    def when_ready(self, callback: Callable[[], object]) -> None:
        """Has the session's hub call ``callback`` once, when an :meth:`offer` is worth another try.
        May be called from any thread; ``callback`` must not block."""
        if self._elsewhere():
            self.call_in_hub(self.when_ready, callback)
            return
        if self._to_tell is None:
            self._to_tell = []
            self._transport.drained = self._tell_ready
            if self._sender is None and not self._transport.backlog:
                self._transport.hub.loop.run_callback(self._tell_ready)
        self._to_tell.append(callback)

    def _tell_ready(self) -> None:
        callbacks, self._to_tell = self._to_tell, None
        for callback in callbacks or ():
            callback()

    def _send_data(
        self, opcode: int, payload: Any, final: bool, whole: bool, compress: bool | None
    ) -> None:
        if switching.thread() != self._thread:
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
        if connection.deflate is not None:
            opcode, payload = connection.compress(opcode, final, payload, compress)
        transport = self._transport
        size = len(payload)
        if size > _SMALL and not connection.client:
            transport.send_large(connection.header(opcode, final, size), payload)
        elif connection.client or transport.backlog:
            self._put(connection.encode(opcode, final, payload))
        else:
            position = transport.cork(_MAX_HEADER + size)
            if position >= 0:
                data = payload if isinstance(payload, bytes) else bytes(payload)
                end = connection.write(transport.poller.cork, position, opcode, final, data)
                transport.commit(end, self._corking and connection.has_frame())
        if transport.backlog:
            transport.wait_for_room()
        if transport.failure:
            raise self._lost()
        if transport.poller.ticks - self._looked > _LOOK_EVERY and not self._leading:
            self._look()

    def _put(self, frame: bytes) -> None:
        """Sends a frame, or holds it back while the reader has more frames to handle anyway."""
        if self._corking and self._connection.has_frame():
            self._transport.hold(frame)
        else:
            self._transport.send(frame)

    def _put_control(self, frame: bytes) -> None:
        self._put(frame)
        if self._transport.failure:
            raise self._lost()

    def _send_replies(self) -> None:
        connection = self._connection
        replies = connection.replies
        if connection.state == _OPEN and self._transport.backlog:
            self._transport.reply(replies[-1] if len(replies) == 1 else b"".join(replies))
        else:
            self._transport.late = b""  # nothing may stand behind a Close
            self._put(b"".join(replies))
        replies.clear()

    def _wait_turn(self, sender: Any, whole: bool) -> None:
        """Until the fragmented message that another greenlet has begun is finished."""
        if self._connection.state != _OPEN:
            raise self._connection.closed_error()
        while self._sender is not None and self._sender is not sender:
            if self._sender.dead:
                raise RuntimeError(
                    "a greenlet began a fragmented message and ended before its last fragment; "
                    "nothing can be sent behind it: close the socket"
                )
            if self._sent is None:
                self._sent = Event()
            self._sent.wait(1.0)
            if self._connection.state != _OPEN:
                raise self._connection.closed_error()
            if self._transport.failure:
                raise self._lost()
        if self._sender is not None and whole:
            raise RuntimeError(
                "a fragmented message is open; send its last fragment with final=True first"
            )

    def _finish_message(self) -> None:
        self._sender = None
        if self._sent is not None:
            sent, self._sent = self._sent, None
            sent.set()
        if self._to_tell is not None:  # later, for the last fragment has not been sent yet
            self._transport.hub.loop.run_callback(self._tell_ready)

    def _look(self) -> None:
        """A handler that only sends answers pings and learns of a Close as well."""
        transport = self._transport
        self._looked = transport.poller.ticks
        if self._inbox_size > self._max_inbox:
            return
        size = transport.poll()
        if size > 0:
            self._feed(size)
        elif size == 0:
            self._connection.feed_eof(transport.failure)
        self._absorb()

    def look(self) -> None:
        """Takes what has arrived, where nobody waits for it: pings are answered, a Close is noted,
        messages are kept for the next read. Does not block."""
        if not self._leading and not self._transport.closed:
            self._look()

    def has_unread_input(self) -> bool:
        """Whether something of the peer's stands in the kernel, for us to take."""
        return not self._transport.closed and self._transport.has_input()

    def send_heartbeat(self, ping: Ping) -> None:
        """Sends a ping whose answer nobody waits for."""
        try:
            frame = self._connection.send_ping(ping)
        except ConnectionClosed:  # the end has come, behind what nobody has read yet
            return
        self._transport.send(frame)

    @property
    def has_backlog(self) -> bool:
        """Whether the peer has yet to read what was sent before."""
        return bool(self._transport.backlog)

    def lose(self, why: str) -> None:
        """Ends the connection as one that was lost (1006): no Close, no wait."""
        self._transport.close(why)
        if not self._leading:
            self._connection.feed_eof(why)
            self._absorb()

    def _lost(self) -> ConnectionClosed:
        """Nothing can be written. Perhaps the peer has said why, and it was not read yet."""
        connection = self._connection
        if not self._leading:
            if self._transport.closed:
                connection.feed_eof(self._transport.failure)
                self._absorb()
            else:
                self._look()
        # What the peer sent before may still be unread: its end is for the next read to find.
        error = connection.closed_error()
        if error.code == CloseCode.ABNORMAL:
            error = ConnectionClosed(error.code, self._transport.failure)
        return error

    # -- closing

    def close(self, code: int = 1000, reason: str = "") -> None:
        """The closing handshake (RFC 6455, section 7.1.2): sends Close, waits for the peer's, and
        closes TCP. Idempotent.

        Waits at most ``close_timeout``. A greenlet that reads meanwhile goes on until the peer's
        Close; otherwise, what the peer still sends is dropped.

        Raises:
            ValueError: ``code`` may not be sent (1000 to 1014 but for 1004 to 1006 and 1010, and
                3000 to 4999, may), or ``reason`` is longer than 123 bytes in UTF-8.
        """
        if self._elsewhere():
            self._hand_over(self.start_closing, code, reason)
            return
        if self._handed or self._couriers:  # what other threads have sent by now goes first
            self._take_over()
            gevent.joinall(list(self._couriers.values()), timeout=self._close_timeout)
        self.start_closing(code, reason)
        transport = self._transport
        if transport.closed:
            return
        try:
            connection = self._connection
            while connection.state != _CLOSED:
                if self._reading:
                    self._absorb()
                else:
                    self._discard()
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

    def start_closing(self, code: int = 1000, reason: str = "") -> None:
        """The first half of :meth:`close`: sends Close and does not wait. A read finishes it. May
        be called from any thread."""
        if self._elsewhere():
            self.call_in_hub(self.start_closing, code, reason)
            return
        frame = self._connection.close(code, reason)
        if self._close_deadline == _FOREVER and self._close_timeout is not None:
            self._close_deadline = time.monotonic() + self._close_timeout
            self._transport.hasten(self._close_deadline)
        if frame:
            self._transport.late = b""
            self._transport.send(frame)

    def abandon(self, code: int) -> None:
        """Ends the connection at once: sends Close and waits for nothing."""
        self.start_closing(code)
        self._transport.finish_writing()
        self._transport.close()
        self._connection.feed_eof()
        self._discard()

    def _discard(self) -> None:
        connection = self._connection
        event = 0
        while event != _NOTHING and event != _CLOSE:
            event = connection.next_event()
        if connection.replies:
            self._send_replies()
        self._inbox = None
        self._inbox_size = 0

    @property
    def is_connected(self) -> bool:
        """True until a Close was sent or received, or the connection was lost."""
        return self._connection.state == _OPEN and not self._transport.failure

    @property
    def close_code(self) -> int | None:
        """The code that ended the connection (RFC 6455, section 7.1.5): the peer's; or ours, if the
        peer broke the protocol; 1005 for a Close without a code, 1006 for a connection lost
        without a Close. None while it is not over."""
        return self._connection.close_code or None

    @property
    def close_reason(self) -> str | None:
        """The reason beside :attr:`close_code`, and for 1006 what is known of the loss; empty if
        there is none."""
        return self._connection.close_reason if self._connection.close_code else None

    @property
    def latency(self) -> float | None:
        """Seconds that the peer took to answer the last keepalive ping; None before the first
        answer."""
        return None if self.pulse is None else self.pulse.latency

    @property
    def traffic(self) -> Traffic:
        """What has gone over the connection."""
        connection, transport = self._connection, self._transport
        return Traffic(
            connection.messages_in, transport.received, connection.messages_out, transport.sent
        )

    @property
    def closed_by(self) -> str:
        """Who closed first: ``"us"``, ``"peer"``; ``"nobody"`` if the connection was lost. Empty
        while it is open."""
        connection = self._connection
        if connection.closed_here:
            return "us"
        if connection.state == _CLOSED and connection.close_code != CloseCode.ABNORMAL:
            return "peer"
        return "nobody" if connection.state == _CLOSED or self._transport.failure else ""

    def __repr__(self) -> str:
        code = self._connection.close_code or ""
        state = "open" if self.is_connected else f"closed {code}".strip()
        return f"<{type(self).__name__} {self.remote_address} {state}>"

    # -- other threads

    def is_elsewhere(self) -> bool:
        """Whether another thread runs than the session's."""
        return self._elsewhere()

    def call_in_hub(self, call: Callable[..., object], *args: Any) -> None:
        """Has the session's hub make ``call``, which must not block. For any thread."""
        with contextlib.suppress(AttributeError):  # the session has ended, and its hub with it
            self._transport.hub.loop.run_callback_threadsafe(call, *args)

    def _elsewhere(self) -> bool:
        return switching.thread() != self._thread

    def _check_thread(self, what: str) -> None:
        if self._elsewhere():
            raise RuntimeError(f"only the thread of the session may {what}; others may send")

    def _hand_over(self, call: Any, *args: Any) -> None:
        """Lets the hub of the session make ``call``, behind those handed over before.

        Waits only while the session does not keep up.
        """
        if not self.is_connected:
            raise self._connection.closed_error()
        self._handed.append((switching.current(), call, args))
        try:
            self._transport.hub.loop.run_callback_threadsafe(self._take_over)
        except AttributeError:  # the session has ended meanwhile, and its hub with it
            raise self._connection.closed_error() from None
        sleep = gevent.sleep if isinstance(switching.current().parent, Hub) else _sleep
        while len(self._handed) + self._carried > _MAX_HANDED and self.is_connected:
            sleep(0.01)

    def _take_over(self) -> None:
        """Gives each sender a greenlet of its own: one that waits must not hold up the others."""
        while self._handed:
            sender, call, args = self._handed.pop(0)
            courier: Any = self._couriers.get(sender)
            if courier is None:
                calls: deque[Any] = deque()
                courier = gevent.Greenlet(self._make_calls, sender, calls)
                courier.calls = calls
                self._couriers[sender] = courier
                courier.start()
            courier.calls.append((call, args))
            self._carried += 1

    def _make_calls(self, sender: Any, calls: Any) -> None:
        try:
            while calls:
                call, args = calls.popleft()
                self._carried -= 1
                try:
                    call(*args)
                except (GreenwsError, RuntimeError, ValueError) as error:
                    _logger.debug("a send from another thread failed: %s", error)
        finally:
            self._carried -= len(calls)
            del self._couriers[sender]


def offer_to_all(
    sockets: dict[Any, WebSocket], message: SharedMessage, exclude: object
) -> tuple[int, list[Any]]:
    """:meth:`WebSocket.offer` to many, but for ``exclude``: how many took the message, and the keys
    of the others."""
    taken = 0
    refused = []
    for key, socket in sockets.items():
        if socket is exclude:
            continue
        if socket._offer(message):
            taken += 1
        else:
            refused.append(key)
    return taken, refused


def _deadline(seconds: float | None) -> float:
    if seconds is None or seconds == -1:  # NO_TIMEOUT
        return _FOREVER
    if seconds == 0:
        return _POLL
    if not seconds > 0:
        raise ValueError(f"a timeout is a number of seconds, 0 or more, or None; not {seconds!r}")
    return time.monotonic() + seconds


def _flat(data: Any) -> bytes | memoryview:
    """A bytes-like object, byte by byte."""
    if type(data) is bytes:  # a subclass is copied
        return data
    try:
        view = memoryview(data)
    except TypeError:
        raise TypeError(
            f"a message is str or a bytes-like object, not {type(data).__name__}"
        ) from None
    return view.cast("B") if view.c_contiguous else view.tobytes()


def _control_payload(data: bytes | str) -> bytes:
    payload = data.encode() if isinstance(data, str) else bytes(_flat(data))
    if len(payload) > 125:
        raise ValueError(f"a ping or pong holds at most 125 bytes, not {len(payload)}")
    return payload
