"""One socket on one hub: receiving, sending through an outbox, and closing without a reset.

Only ``receive``, ``wait_for_room`` and ``finish`` block, and they block only the calling greenlet.
Everything else is non-blocking and never switches. Only ``_flush`` and the first attempt of a send
write to the socket; what the kernel does not take goes to the outbox. So frames cannot interleave,
and killing a greenlet in a send never leaves half a frame.

To keep the path of a message short, all sockets of a hub share the receive buffer and the cork. A
receive that returned less than the buffer holds has drained the socket, so the next one waits first
instead of making a system call that would block. The timer stays armed between reads; if it fires
early, it is set again.
"""

from __future__ import annotations

import _socket
import contextlib
import socket as native
import ssl
import time
from typing import Any

from gevent import getcurrent
from gevent import socket as gevent_socket
from gevent.event import Event
from gevent.hub import Hub

from . import forks, syscalls, tls
from .delivery import Delivery
from .polling import READABLE, TlsMemory, Waiter
from .sockets import OwnedSSLSocket
from .turns import SECONDS

__all__ = [
    "Accepted",
    "FOREVER",
    "POLL",
    "TCP_FAMILIES",
    "TIMED_OUT",
    "Transport",
    "accept",
    "has_tls_in_memory",
    "no_delay",
]

# Deadlines are times of time.monotonic(), or one of these.
# (Names with an underscore are C numbers in the compiled form.)
FOREVER = _FOREVER = float("inf")
POLL = _POLL = 0.0

TIMED_OUT = _TIMED_OUT = -1

_CORK_LIMIT = 1 << 16  # bytes to hold back at most
_COPY_LIMIT = 1 << 14  # bytes; larger pieces enter the outbox without a copy
_MAX_ANSWERS = 1 << 14  # bytes of OpenSSL's own answers that a peer may leave unread
_TLS_RECORD = 1 << 14  # bytes
_MAX_LATE = 1 << 21  # bytes that may be received after a deadline
_STALL_CHECKS = 4  # in one write_timeout

_READABLE = READABLE
_DEADLINE = 2  # another cause to wake the reader

_INHERITED = "the connection belongs to the parent process"

forks.load()

_BLOCKED = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


TCP_FAMILIES = (native.AF_INET, native.AF_INET6)


def no_delay(sock: Any) -> None:
    """Switches Nagle's algorithm off: with a peer's delayed acknowledgements it delays a small
    write by 40 ms. We write what belongs together at once anyway."""
    if sock.family in TCP_FAMILIES:
        try:
            sock.setsockopt(native.IPPROTO_TCP, native.TCP_NODELAY, 1)
        except OSError:
            pass  # the peer is gone already


def has_tls_in_memory() -> bool:
    """Whether TLS costs one system call for a read and one for a write here; see ``tls.py``."""
    return bool(tls.available())


class Accepted:
    """An accepted TCP connection: a non-blocking descriptor without a socket object. It has the
    methods of a socket that a :class:`Transport` needs, and :meth:`detach` for making a socket of
    it."""

    def __init__(self, fileno: int, family: int) -> None:
        self.number = fileno  # -1 when it is closed or given away
        self.family = family

    @property
    def type(self) -> int:
        return native.SOCK_STREAM

    @property
    def proto(self) -> int:
        return 0

    def fileno(self) -> int:
        return self.number

    def gettimeout(self) -> None:
        """None: a socket made of it after :meth:`detach` blocks, like any new socket."""

    def settimeout(self, timeout: float | None) -> None:
        """Does nothing. Its system calls never block."""

    def getsockopt(self, *args: int) -> Any:
        sock = _socket.socket(self.family, native.SOCK_STREAM, 0, self.number)
        try:
            return sock.getsockopt(*args)
        finally:
            sock.detach()

    def shutdown(self, how: int) -> None:
        """Ends our half of the stream, whatever ``how`` says."""
        syscalls.shut_down(self.number)

    def detach(self) -> int:
        """Gives the descriptor away."""
        number, self.number = self.number, -1
        return number

    def close(self) -> None:
        """Closes the descriptor. Idempotent."""
        if self.number >= 0:
            syscalls.close(self.detach())

    def __del__(self) -> None:
        self.close()


def accept(listener: int, family: int) -> tuple[Accepted, Any] | None:
    """Accepts a connection of a TCP ``listener``, a descriptor; returns it and the peer's address.
    None if there is none.

    Raises:
        OSError: for example, EMFILE.
    """
    accepted = syscalls.accept(listener)
    return None if accepted is None else (Accepted(accepted[0], family), accepted[1])


class Transport(Waiter):
    """The byte stream under one WebSocket.

    ``sock`` is a connected socket, gevent's or native, TLS or not. The transport closes it, unless
    it is ``borrowed`` from a server that closes it itself: then the transport only shuts it down,
    so that nothing more that the server writes is sent. ``high_water`` and ``write_timeout`` are
    ``write_high_water`` and ``write_timeout`` of :class:`greenws.Config`.
    """

    def __init__(
        self,
        sock: Any,
        hub: Hub,
        high_water: int | None = None,
        write_timeout: float | None = None,
        borrowed: bool = False,
    ) -> None:
        self._begin(hub, sock.fileno())
        self._borrowed = borrowed
        self._timeout: float | None = None
        is_bare = type(sock) is Accepted
        if not is_bare:
            no_delay(sock)
            self._timeout = sock.gettimeout()
            sock.settimeout(0.0)
        self.received = 0  # bytes
        self.sent = 0  # bytes, including those in the outbox
        self.closed = False
        self.failure = ""  # why nothing can be written anymore
        self.on_close: Any = None  # called once, before the descriptor is closed
        self._sock = sock
        self._tls = not is_bare and hasattr(sock, "pending")
        # The object inside an SSLSocket, gevent's or Python's, that calls OpenSSL.
        self._ssl: Any = getattr(sock, "_sslobj", None) if self._tls else None
        # A plain gevent socket is a Python wrapper around this one.
        self._raw: Any = sock if self._tls or is_bare else getattr(sock, "_sock", sock)
        plain = not self._tls and isinstance(self._raw, _socket.socket)
        self._direct = is_bare or (plain and syscalls.AVAILABLE)
        self._engine = 0  # see tls.py; as long as _ssl is kept
        self._may_attach = self._ssl is not None
        self._answers = 0  # bytes of OpenSSL's own in the outbox
        # read state
        self.buffer = self.poller.receive_buffer.data
        self._input_drained = True  # the kernel has nothing more until the next event
        if self._ssl is not None and self._ssl.pending():  # of a partly read record
            self._input_drained = False
        self._tls_end: str | None = None  # why no more can be decrypted
        self._receiving = False  # a receive has ended its turn, and will go on
        self._deadline = _FOREVER
        self._late_deadline = _FOREVER  # the last deadline after which receive() polled
        self._late_end = 0  # the value of `received` that ends this
        self._timer: Any = None
        # write state
        self.backlog = 0  # bytes in the outbox
        self.pending_reply = b""  # what reply() sends when there is room
        self.on_outbox_empty: Any = None  # called once by the hub, also if the connection is lost
        self._outbox: list[bytes | bytearray | memoryview] | None = None
        self._high_water = _FOREVER if high_water is None else high_water
        self._room: Event | None = None
        self._write_watcher: Any = None
        self._writing = False
        self._write_timeout = write_timeout
        self._progress = 0.0
        self._stall_timer: Any = None
        self._unacknowledged = -1  # bytes, when the stall timer last fired
        self._finishing = False
        self._shut = False

    def drop_socket(self) -> None:
        """Frees the socket objects of gevent and Python, if nothing needs them, and keeps only the
        descriptor and OpenSSL's part of a TLS connection. For a transport that is never
        detached."""
        if self._engine and not self._borrowed and type(self._sock) is OwnedSSLSocket:
            family = self._sock.family
            self._sock = self._raw = Accepted(self._sock.detach(), family)
            self._direct = True  # what comes after the end of TLS is not decrypted

    def set_limits(self, high_water: int | None, write_timeout: float | None) -> None:
        """Replaces the limits of the outbox."""
        self._high_water = _FOREVER if high_water is None else high_water
        self._write_timeout = write_timeout

    # -- reading

    def receive(self, deadline: float) -> int:
        """Blocks until input has been received into ``buffer``; returns the number of bytes.

        0 at the end of the stream, TIMED_OUT if ``deadline`` passes first. The bytes must be taken
        out of ``buffer`` before anything can switch.
        """
        if deadline == _POLL:
            return self.poll()
        while not self.closed:
            if self._input_drained:
                in_time = self._wait_readable(deadline)
            else:
                in_time = self._take_step(deadline)
            if not in_time:
                return self.poll() if self._may_poll_late() else _TIMED_OUT
            deadline = self._deadline  # advance_deadline() may have moved it
            size = self.poll()
            if size != _TIMED_OUT:
                return size
        return 0

    def _may_poll_late(self) -> bool:
        """Whether to receive once more after the deadline: input that came in time counts, even if
        this greenlet ran late. Until there is no more, and not without end."""
        if self._late_deadline != self._deadline:
            self._late_deadline = self._deadline
            self._late_end = self.received + _MAX_LATE
            return True
        return not self._input_drained and self.received < self._late_end

    def poll(self) -> int:
        """Like :meth:`receive`, without waiting: TIMED_OUT if there is no input."""
        if self.closed:
            return 0
        if self.process != forks.process():
            self.disown()
            return 0
        receive_buffer = self.poller.receive_buffer
        if receive_buffer.borrower is not None:
            receive_buffer.reclaim()
        if self._engine or self._may_attach and self._attach():
            return self._poll_engine()
        try:
            if self._direct:
                size = syscalls.receive(self.fileno, self.buffer)
            elif self._ssl is not None:
                size = self._ssl.read(len(self.buffer), self.buffer)
            else:
                size = self._raw.recv_into(self.buffer)
        except (BlockingIOError, ssl.SSLWantReadError):
            size = _TIMED_OUT
        except ssl.SSLWantWriteError:  # TLS itself has to send something first
            self._input_drained = False  # input may be left, and its event is used up
            if getcurrent() is not self.hub:
                gevent_socket.wait_write(self.fileno)
            return _TIMED_OUT
        except ssl.SSLEOFError:  # no close_notify; a WebSocket ends with a Close frame anyway
            size = 0
        except OSError as error:
            self._fail(f"connection lost: {error}")
            return 0
        if size == _TIMED_OUT:
            self._input_drained = True
            self.hung_up = False
        else:
            self.received += size
            # After a hang-up no event follows, so read until the end of the stream.
            self._input_drained = size < len(self.buffer) and not self.hung_up
            if self._tls and self._input_drained:
                self._input_drained = self._is_tls_drained()
        return size

    def _attach(self) -> bool:
        """Takes TLS over from Python's SSL object, if that is possible."""
        if self._outbox:  # the object may have to repeat a write; try again at the next read
            return False
        self._may_attach = False
        self._engine = tls.attach(self._ssl)
        if not self._engine:
            return False
        if self.poller.tls is None:
            self.poller.tls = TlsMemory()
        return True

    def _poll_engine(self) -> int:
        """:meth:`poll`, with an engine."""
        memory = self.poller.tls
        if self._tls_end is not None:
            return 0
        received = 0
        try:
            if self.received or not self._ssl.pending():  # left from before the engine
                received = syscalls.receive(self.fileno, memory.sealed)
                if received == 0:
                    self._input_drained = not self.hung_up
                    return 0
                if received == _TIMED_OUT:
                    self._input_drained = True
                    self.hung_up = False
                    return _TIMED_OUT
            size = tls.decrypt(
                self._engine, memory.sealed, received, self.buffer, memory.out, memory.ends
            )
        except OSError as error:
            self._fail(f"connection lost: {error}")
            return 0
        # After a hang-up no event follows, so read until the end of the stream.
        self._input_drained = 0 < received < len(memory.sealed) and not self.hung_up
        answers = tls.replies()
        if answers:
            self._answer(bytes(memory.out[:answers]))
        if memory.ends:
            self._tls_end = memory.ends.pop()
            self._input_drained = False
            if self._tls_end:
                self._fail(f"connection lost: {self._tls_end}")
            elif size == 0:
                return 0
        if size == 0:
            return 0 if self._tls_end is not None else _TIMED_OUT
        self.received += size
        return size

    def _is_tls_drained(self) -> bool:
        """Whether OpenSSL, which returns one record at a time, and the kernel have no more input.
        This check is cheaper than the exception of a read that would block."""
        return (
            self._ssl is not None and not self._ssl.pending() and not syscalls.readable(self.fileno)
        )

    def has_input(self) -> bool:
        """Whether the kernel has input, or the end of the stream, that was not received yet."""
        return self.process == forks.process() and syscalls.readable(self.fileno)

    def _take_step(self, deadline: float) -> bool:
        """Lets others run if the turn is over, although there is input; False at the deadline,
        which input without end must not extend."""
        self._deadline = deadline
        turns = self.poller.turns
        turns.steps -= 1
        if turns.steps <= 0 and turns.is_over(self.hub):
            self._receiving = True
            try:
                turns.end(self.hub)
            finally:
                self._receiving = False
        return self._deadline == _FOREVER or time.monotonic() < self._deadline

    def _wait_readable(self, deadline: float) -> bool:
        """Blocks this greenlet until the socket is readable; False at the deadline."""
        self._deadline = deadline
        if deadline != _FOREVER:
            delay = deadline - time.monotonic()
            if delay <= 0:
                return False
            if deadline < self.timer_due:
                self._start_timer(delay, deadline)
        return self.wait() == _READABLE

    def advance_deadline(self, deadline: float) -> None:
        """Gives a waiting receive an earlier deadline."""
        if deadline < self._deadline and (self.greenlet is not None or self._receiving):
            self._deadline = deadline
            if deadline < self.timer_due:
                self._start_timer(max(0.0, deadline - time.monotonic()), deadline)

    def _start_timer(self, delay: float, due: float) -> None:
        if self._timer is not None:
            self._timer.close()
        self._timer = self.hub.loop.timer(delay)
        self._timer.start(self._on_timer)
        self.timer_due = due

    def _on_timer(self) -> None:
        self.timer_due = _FOREVER
        if self.process != forks.process():
            return
        if self.greenlet is None or self._deadline == _FOREVER:
            return
        delay = self._deadline - time.monotonic()
        if delay > 0:
            self._start_timer(delay, self._deadline)
        else:
            self.wake(_DEADLINE)

    # -- writing

    def reserve(self, size: int) -> int:
        """Makes this socket the owner of the hub's cork; returns the position in it for the next
        ``size`` bytes, which :meth:`commit` sends. -1 if they do not fit."""
        cork = self.poller.cork
        if self.process != forks.process():
            self.disown()
        elif cork.owner is not self:
            cork.flush()
        elif cork.size + size > _CORK_LIMIT:
            self.flush()
        if size > _CORK_LIMIT or self.failure:
            return -1
        cork.owner = self
        return cork.size

    def commit(self, end: int, hold: bool) -> None:
        """Sends what was written into the cork, which ends at ``end``; with ``hold``, holds it back
        until more follows, or until the hub gets control."""
        cork = self.poller.cork
        first = cork.size == 0
        cork.size = end
        if not hold:
            self._flush_cork()
        elif first:
            cork.flush_soon()

    def flush(self) -> None:
        """Sends what is held back, and as much of the outbox as the kernel takes."""
        if self.poller.cork.owner is self:
            self._flush_cork()
        elif self._outbox:
            self._flush_unless_writing()

    def _flush_cork(self) -> None:
        cork = self.poller.cork
        size = cork.size
        cork.size = 0
        cork.owner = None
        if self.process != forks.process():
            self.disown()
        if self.failure or not size:
            return
        self.sent += size
        if self._engine and not self._outbox:
            self._encrypt_and_send(cork.data, size)
            return
        if self._outbox or not self._direct and size > _TLS_RECORD:
            self._append(bytes(cork.data[:size]))
            self._flush_unless_writing()
            return
        try:
            if self._direct:
                sent = syscalls.send_prefix(self.fileno, cork.data, size)
            else:
                sent = self._write(memoryview(cork.data)[:size])
        except OSError as error:
            self._fail(f"connection lost: {error}")
            return
        if sent != size:
            self._append(bytes(cork.data[max(sent, 0) : size]))
            self._start_writing()

    def send(self, data: bytes) -> None:
        """Sends ``data``; what the kernel does not take goes to the outbox."""
        if self.poller.cork.owner is self:
            self._flush_cork()
        if self.process != forks.process():
            self.disown()
        if self.failure:
            return
        self.sent += len(data)
        if self._engine and not self._outbox and len(data) <= _CORK_LIMIT:
            self._encrypt_and_send(data, len(data))
            return
        if not self._direct or self._outbox:
            self._append(data)
            self._flush_unless_writing()
            return
        try:
            sent = syscalls.send(self.fileno, data)
        except OSError as error:
            self._fail(f"connection lost: {error}")
            return
        if sent != len(data):
            self._append(memoryview(data)[max(sent, 0) :])
            self._start_writing()

    def send_large(self, header: bytes, payload: bytes | memoryview) -> None:
        """Like :meth:`send`, for a payload too large to copy."""
        if self.poller.cork.owner is self:
            self._flush_cork()
        if self.process != forks.process():
            self.disown()
        if self.failure:
            return
        self.sent += len(header) + len(payload)
        sent = 0
        if self._engine and not self._outbox:
            first = header + bytes(payload[: _CORK_LIMIT - len(header)])
            self._encrypt_and_send(first, len(first))
            if self.failure:
                return
            sent = len(first)
        elif not self._outbox and not self._tls:
            try:
                if self._direct:
                    sent = max(0, syscalls.send_both(self.fileno, header, payload))
                else:
                    sent = self._raw.sendmsg((header, payload))
            except BlockingIOError:
                pass
            except OSError as error:
                self._fail(f"connection lost: {error}")
                return
        if sent < len(header):
            self._append(header[sent:])
            sent = len(header)
        rest = memoryview(payload)[sent - len(header) :]
        if rest:
            # The caller may change a mutable object as soon as its send returns, and even a
            # read-only view may be of a mutable object.
            self._append(rest if isinstance(payload, bytes) else memoryview(bytes(rest)))
        if self._outbox:
            self._flush_unless_writing()

    def _encrypt_and_send(self, data: bytes | bytearray, size: int) -> None:
        """Sends the first ``size`` bytes of ``data``, which fit into the cork. The outbox is
        empty."""
        out = self.poller.tls.out
        try:
            encrypted = tls.encrypt(self._engine, data, size, out)
            if encrypted < 0:
                answers = bytes(out[: tls.replies()])
                self._append(bytes(data[:size]))
                self._answer(answers)
                self._start_writing()
                return
            sent = syscalls.send_prefix(self.fileno, out, encrypted)
        except OSError as error:
            self._fail(f"connection lost: {error}")
            return
        if sent != encrypted:
            self._keep_encrypted(bytes(out[max(sent, 0) : encrypted]))
            self._start_writing()

    def _keep_encrypted(self, records: bytes) -> None:
        """Puts encrypted records into the outbox, before all that is not encrypted yet. Their type
        marks them: nothing else in the outbox is ``bytes``."""
        if self._outbox is None:
            self._outbox = []
        outbox = self._outbox
        place = 0
        while place < len(outbox) and type(outbox[place]) is bytes:
            place += 1
        outbox.insert(place, records)
        self.backlog += len(records)

    def _encrypt_next(self) -> bool:
        """Encrypts the first bytes in the outbox, in place; False if that must wait."""
        outbox = self._outbox
        assert outbox is not None
        head = outbox[0]
        size = min(len(head), _CORK_LIMIT)
        out = self.poller.tls.out
        encrypted = tls.encrypt(self._engine, head, size, out)
        if encrypted < 0:
            records = bytes(out[: tls.replies()])
            if records:
                self._keep_encrypted(records)
                return True
            return False
        self._drop_first(size)
        self._keep_encrypted(bytes(out[:encrypted]))
        return True

    def _answer(self, records: bytes) -> None:
        """Sends what OpenSSL itself wrote: an alert, or the answer to a KeyUpdate."""
        if self.failure or not records:
            return
        self._keep_encrypted(records)
        self._answers += len(records)
        self._flush_unless_writing()
        if not self._outbox:
            self._answers = 0
        elif self._answers > _MAX_ANSWERS:
            self._fail("the peer does not read what its TLS asks for")

    def reply(self, data: bytes) -> None:
        """Like :meth:`send`; but while the outbox is full, only the latest reply is kept."""
        if self.backlog > self._high_water:
            self.pending_reply = data
        else:
            self.send(data)

    def hold(self, data: bytes) -> None:
        """Holds ``data`` back until more follows, or until the hub gets control."""
        position = self.reserve(len(data))
        if position < 0:
            self.send(data)
        else:
            end = position + len(data)
            self.poller.cork.data[position:end] = data
            self.commit(end, True)

    def wait_for_room(self) -> None:
        """Blocks while the outbox holds more than ``high_water`` bytes."""
        while self.backlog > self._high_water and not self.failure:
            if self._room is None:
                self._room = Event()
            self._room.wait()

    def _write(self, data: bytes | bytearray | memoryview) -> int:
        """Writes to the socket; returns how many bytes it took. For TLS, at most one record."""
        try:
            if self._ssl is not None and not self._engine:
                return int(self._ssl.write(data))
            if self._direct or self._engine:
                return max(0, syscalls.send_view(self.fileno, data))
            return int(self._raw.send(data))
        except _BLOCKED:
            return 0

    def _append(self, data: bytes | memoryview) -> None:
        size = len(data)
        self.backlog += size
        if self._outbox is None:
            self._outbox = []
        if size > _COPY_LIMIT:
            self._outbox.append(memoryview(data))
            return
        if self._outbox:
            tail = self._outbox[-1]
            if isinstance(tail, bytearray) and len(tail) < _CORK_LIMIT:
                tail += data
                return
        self._outbox.append(bytearray(data))

    def _drop_first(self, size: int) -> None:
        """Removes ``size`` bytes of the first piece from the outbox."""
        outbox = self._outbox
        assert outbox is not None
        head = outbox[0]
        self.backlog -= size
        if size == len(head):
            del outbox[0]
        elif isinstance(head, bytearray):
            del head[:size]
        else:
            outbox[0] = head[size:]

    def _flush_unless_writing(self) -> None:
        if not self._writing:
            self._flush()

    def _flush(self) -> None:
        if self.process != forks.process():
            self.disown()
            return
        outbox = self._outbox or []
        begin = 0.0
        while outbox:
            try:
                if self._engine and type(outbox[0]) is not bytes and not self._encrypt_next():
                    break
                head = outbox[0]
                # Python's object demands that an interrupted write is repeated with the same bytes.
                if self._tls and not self._engine and len(head) > _TLS_RECORD:
                    sent = self._write(head[:_TLS_RECORD])
                else:
                    sent = self._write(head)
            except OSError as error:
                self._fail(f"connection lost: {error}")
                return
            if sent == 0:
                break
            self._progress = time.monotonic()
            begin = begin or self._progress
            self._drop_first(sent)
            if self._progress - begin > SECONDS:  # the hub goes on after the next poll
                break
        if not outbox:
            self._outbox = None
            self._answers = 0
        if self.pending_reply and self.backlog <= self._high_water:
            self.sent += len(self.pending_reply)
            self._append(self.pending_reply)
            self.pending_reply = b""
        if self._outbox:
            self._start_writing()
        elif self._writing:
            self._stop_writing()
        if self._finishing and not self._outbox:
            self._shut_down()
        if self._room is not None and self.backlog <= self._high_water:
            self._make_room()
        if self.on_outbox_empty is not None and not self._outbox:
            self._call_on_outbox_empty()

    def _call_on_outbox_empty(self) -> None:
        callback, self.on_outbox_empty = self.on_outbox_empty, None
        self.hub.loop.run_callback(callback)

    def _make_room(self) -> None:
        if self._room is not None:
            room, self._room = self._room, None
            room.set()

    def _start_writing(self) -> None:
        """Makes the hub flush the outbox whenever the socket is writable."""
        if self._writing:
            return
        self._writing = True
        self.poller.writers.add(self)
        self._progress = time.monotonic()
        if self._write_watcher is None:
            self._write_watcher = self.hub.loop.io(self.fileno, 2)
        self._write_watcher.start(self._flush)
        if self._write_timeout is not None:
            self._unacknowledged = syscalls.unacknowledged(self.fileno)
            self._start_stall_timer(self._write_timeout / _STALL_CHECKS)

    def _start_stall_timer(self, delay: float) -> None:
        if self._stall_timer is not None:
            self._stall_timer.close()
        self._stall_timer = self.hub.loop.timer(delay)
        self._stall_timer.start(self._on_stall)

    def _on_stall(self) -> None:
        if self.process != forks.process():
            return
        assert self._write_timeout is not None
        # The kernel takes more only when a third of its buffer is free, which may be megabytes.
        now = time.monotonic()
        before, self._unacknowledged = self._unacknowledged, syscalls.unacknowledged(self.fileno)
        if 0 <= self._unacknowledged < before:
            self._progress = now
        delay = self._progress + self._write_timeout - now
        if delay > 0:
            self._start_stall_timer(min(delay, self._write_timeout / _STALL_CHECKS))
        else:
            did = "read" if self._unacknowledged < 0 else "acknowledged"
            self._fail(f"the peer {did} nothing for {self._write_timeout:g} s (write_timeout)")
            self.close()

    def undelivered(self) -> int:
        """Bytes that the peer has not acknowledged, in the outbox and in the kernel; -1 if that is
        unknown."""
        size = -1 if self.closed else syscalls.unacknowledged(self.fileno)
        return size if size < 0 else size + self.backlog

    def has_acknowledged(self, position: int) -> bool | None:
        """Whether the peer's TCP has acknowledged some of what was sent after the first
        ``position`` bytes; None if that is unknown, as over a Unix socket."""
        size = self.undelivered() if self._sock.family in TCP_FAMILIES else -1
        return None if size < 0 else self.sent - size > position

    def watch_delivery(self) -> Delivery | None:
        """Watches the delivery of what is in the kernel now; None if nothing is."""
        if syscalls.unacknowledged(self.fileno) <= 0:
            return None
        return Delivery(self._sock, self.fileno)

    def _stop_writing(self) -> None:
        self._writing = False
        self.poller.writers.discard(self)
        self._write_watcher.stop()
        if self._stall_timer is not None:
            self._stall_timer.close()
            self._stall_timer = None

    def _fail(self, reason: str) -> None:
        """Gives up writing. What the peer has sent can still be read."""
        if not self.failure:
            self.failure = reason
        self._outbox = None
        self.pending_reply = b""
        self.backlog = 0
        if self._writing:
            self._stop_writing()
        self._make_room()
        if self.on_outbox_empty is not None:
            self._call_on_outbox_empty()

    # -- closing

    def finish_writing(self) -> None:
        """Ends our half of the stream as soon as the outbox is empty."""
        self._finishing = True
        self.flush()
        if not self._outbox:
            self._shut_down()

    def _shut_down(self) -> None:
        if self._shut or self.closed or self.process != forks.process():
            return
        self._shut = True
        if not self.failure:
            self.failure = "the connection was closed for writing"
        if self._engine:
            out = self.poller.tls.out
            size = tls.end(self._engine, out)
            with contextlib.suppress(OSError):
                syscalls.send_prefix(self.fileno, out, size)
            self._detach()
        elif self._tls:
            with contextlib.suppress(OSError, ValueError):  # sends close_notify; does not wait
                self._sock.unwrap()
            self._ssl = None  # later input is not decrypted, as in any SSLSocket after a shutdown
        try:
            self._sock.shutdown(native.SHUT_WR)
        except OSError:
            pass  # the peer is already gone

    def finish(self, deadline: float) -> None:
        """Ends our half of the stream, blocks until the peer has ended its half, and closes.

        Closing with unread input would send a reset, which could destroy a Close that the peer has
        not read yet (RFC 6455, section 7.1.1).
        """
        try:
            self.finish_writing()
            while self.receive(deadline) > 0:
                pass
        finally:
            self.close()

    def _detach(self) -> None:
        """Gives TLS back to Python's SSL object."""
        self._may_attach = False
        if self._engine:
            engine, self._engine = self._engine, 0
            tls.detach(engine, self.fileno)

    def _close_watchers(self) -> None:
        for watcher in (self._write_watcher, self._timer, self._stall_timer):
            if watcher is not None:
                watcher.close()
        self._writing = False
        self._write_watcher = self._timer = self._stall_timer = None

    def detach(self) -> Any:
        """Gives up the socket, in its original state, and returns it. The transport is unusable
        afterwards."""
        self._borrowed = True
        self._shut = True
        self.unwatch()
        if self._writing:
            self._stop_writing()
        self._outbox = None
        self.backlog = 0
        self._close_watchers()
        self._detach()
        self._sock.settimeout(self._timeout)
        sock, self._sock = self._sock, None
        self._ssl = None
        return sock

    def close(self, reason: str = "the connection was closed") -> None:
        """Closes the socket, and wakes the greenlets that wait for it. Idempotent."""
        if self.closed:
            return
        inherited = self.process != forks.process()
        if inherited:
            reason = _INHERITED
            self.on_outbox_empty = self._room = None  # waiting greenlets are the parent's
        self.closed = True
        self._fail(reason)
        if self.on_close is not None:
            callback, self.on_close = self.on_close, None
            callback()
        self.unwatch(not self._borrowed)
        self._close_watchers()
        if self._borrowed:
            self._detach()
        self._engine = 0
        self._may_attach = False
        self._ssl = None  # it is large
        if self._borrowed and inherited:
            pass
        elif self._borrowed:
            with contextlib.suppress(OSError):
                self._sock.shutdown(native.SHUT_RDWR)
                self._sock.settimeout(self._timeout)
        else:
            self._sock.close()
        if self.greenlet is not None:
            self.wake_soon()

    def disown(self) -> None:
        """In a forked child: closes the child's descriptor, and leaves the connection alone."""
        self.close()
