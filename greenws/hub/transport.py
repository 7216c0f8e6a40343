"""One socket on one hub: receiving, the outbox, and closing without a reset.

Only ``receive``, ``wait_for_room`` and ``finish`` block, and only the greenlet that calls them.
Everything else is non-blocking and never switches. Nobody but ``_flush`` and the first attempt of a
send writes to the socket, and what the kernel did not take stands in the outbox: so frames cannot
interleave, and a greenlet that is killed in a send leaves a whole frame behind, never half of one.

What keeps the path of a message short: the receive buffer is shared by all sockets of a hub, and so
is the cork, in which frames are written before they are sent. A read that came back short has
drained the socket, so the next one waits at once instead of asking the kernel in vain. A timer
stays armed between reads, and is set again if it fires early.
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

from . import syscalls
from .polling import READABLE, Waiter

__all__ = ["FOREVER", "POLL", "TIMED_OUT", "Transport", "no_delay"]

# deadlines: times of time.monotonic(), or these
# (a name with an underscore is a C number where this is compiled)
FOREVER = _FOREVER = float("inf")
POLL = _POLL = 0.0

TIMED_OUT = _TIMED_OUT = -1

_CORK_LIMIT = 1 << 16  # bytes held back at most, while the reader still has frames to handle
_COPY_LIMIT = 1 << 14  # bytes up to which joining two buffers beats a second one
_TLS_RECORD = 1 << 14
_MAX_TURNS = 16  # receives in a row before the hub gets its turn

_READABLE = READABLE
_DEADLINE = 2  # what the reader is woken by, beside READABLE

_BLOCKED = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


_TCP = (native.AF_INET, native.AF_INET6)


def no_delay(sock: Any) -> None:
    """Switches Nagle's algorithm off: with a peer's delayed acknowledgements it holds a small write
    back for 40 ms. What belongs together leaves in one write anyway."""
    if sock.family in _TCP:
        with contextlib.suppress(OSError):  # the peer is gone already
            sock.setsockopt(native.IPPROTO_TCP, native.TCP_NODELAY, 1)


class Transport(Waiter):
    """The byte stream under one WebSocket.

    ``sock`` is a connected socket, gevent's or native, TLS or not. It is owned from here on, unless
    it is ``borrowed`` from a server that closes it itself: then it is given back shut down, so that
    whatever that server may still write goes nowhere. ``high_water`` and ``write_timeout`` are
    those of :class:`greenws.Config`.
    """

    def __init__(
        self,
        sock: Any,
        hub: Hub,
        high_water: int | None = None,
        write_timeout: float | None = None,
        borrowed: bool = False,
    ) -> None:
        super().__init__(hub, sock.fileno())
        self._borrowed = borrowed
        no_delay(sock)
        self._timeout: float | None = sock.gettimeout()
        sock.settimeout(0.0)
        self.received = 0  # bytes, as of now
        self.sent = 0  # bytes, what stands in the outbox included
        self.closed = False
        self.failure = ""  # why nothing can be written any more
        self._sock = sock
        self._tls = hasattr(sock, "pending")
        # What does the work in an SSLSocket of gevent's or Python's own.
        self._ssl: Any = getattr(sock, "_sslobj", None) if self._tls else None
        # gevent's socket of a plain connection is a shell in Python around the one that works.
        self._raw: Any = sock if self._tls else getattr(sock, "_sock", sock)
        plain = not self._tls and isinstance(self._raw, _socket.socket)
        self._direct = plain and syscalls.AVAILABLE
        # read state
        self.buffer = self.poller.buffer
        self._drained = True
        self._turns = 0
        self._deadline = _FOREVER
        self._last_chance = _FOREVER
        self._timer: Any = None
        self._timer_due = _FOREVER
        # write state
        self.backlog = 0  # bytes in the outbox
        self.late = b""  # the answer to send when there is room
        self.drained: Any = None  # has the hub call it once: when the outbox is empty, or lost
        self._outbox: list[bytearray | memoryview] | None = None
        self._high_water = _FOREVER if high_water is None else high_water
        self._room: Event | None = None
        self._write_watcher: Any = None
        self._writing = False
        self._write_timeout = write_timeout
        self._progress = 0.0
        self._stall_timer: Any = None
        self._finishing = False
        self._shut = False

    def limit(self, high_water: int | None, write_timeout: float | None) -> None:
        """Sets the limits of what stands in the outbox."""
        self._high_water = _FOREVER if high_water is None else high_water
        self._write_timeout = write_timeout

    # -- reading

    def receive(self, deadline: float) -> int:
        """Blocks until bytes stand in ``buffer``, and says how many: 0 at the end of the stream.

        TIMED_OUT if ``deadline`` passes first. The bytes must be taken out of ``buffer`` before
        anything can switch.
        """
        if deadline == _POLL:
            return self.poll()
        while not self.closed:
            if self._drained or self._turns >= _MAX_TURNS:
                if not self._drained:  # others' turn: there will be no other event
                    self.wake_soon()
                self._turns = 0
                if not self._wait_readable(deadline):
                    if self._last_chance == self._deadline:
                        return _TIMED_OUT
                    # What came in time counts, although this greenlet is late; once for a deadline.
                    self._last_chance = self._deadline
                    return self.poll()
                deadline = self._deadline  # hasten() may have moved it
            self._turns += 1
            size = self.poll()
            if size != _TIMED_OUT:
                return size
        return 0

    def poll(self) -> int:
        """:meth:`receive` without waiting: TIMED_OUT if nothing is there."""
        if self.closed:
            return 0
        poller = self.poller
        if poller.borrower is not None:
            poller.borrower.keep()
            poller.borrower = None
        try:
            if self._direct:
                size = syscalls.receive(self.fileno, poller.buffer)
            elif self._ssl is not None:
                size = self._ssl.read(len(poller.buffer), poller.buffer)
            else:
                size = self._raw.recv_into(poller.buffer)
        except (BlockingIOError, ssl.SSLWantReadError):
            size = _TIMED_OUT
        except ssl.SSLWantWriteError:  # TLS itself has something to say first
            self._drained = False  # nothing says that the kernel is empty, and the event is spent
            if getcurrent() is not self.hub:
                gevent_socket.wait_write(self.fileno)
            return _TIMED_OUT
        except ssl.SSLEOFError:  # without close_notify; a WebSocket has a Close of its own
            size = 0
        except OSError as error:
            self._fail(f"connection lost: {error}")
            return 0
        if size == _TIMED_OUT:
            self._drained = True
            self.ends = False
        else:
            self.received += size
            # Behind the end of the stream there is no other event to wait for.
            self._drained = size < len(poller.buffer) and not self.ends
            if self._tls and self._drained:
                self._drained = self._is_decrypted()
        return size

    def _is_decrypted(self) -> bool:
        """Whether TLS, which decrypts a record at a time, has nothing left, as far as one can ask.
        That is cheaper than the exception of a read in vain."""
        return (
            self._ssl is not None and not self._ssl.pending() and not syscalls.readable(self.fileno)
        )

    def has_input(self) -> bool:
        """Whether the kernel holds input, or the end of it, that nobody has received yet."""
        return syscalls.readable(self.fileno)

    def _wait_readable(self, deadline: float) -> bool:
        """Blocks this greenlet until the socket is readable; False at the deadline."""
        self._deadline = deadline
        if deadline != _FOREVER:
            delay = deadline - time.monotonic()
            if delay <= 0:
                return False
            if deadline < self._timer_due:
                self._start_timer(delay, deadline)
        return self.wait() == _READABLE

    def hasten(self, deadline: float) -> None:
        """Moves the deadline of a receive that is waiting forward."""
        if self.greenlet is not None and deadline < self._deadline:
            self._deadline = deadline
            if deadline < self._timer_due:
                self._start_timer(max(0.0, deadline - time.monotonic()), deadline)

    def _start_timer(self, delay: float, due: float) -> None:
        if self._timer is not None:
            self._timer.close()
        self._timer = self.hub.loop.timer(delay)
        self._timer.start(self._on_timer)
        self._timer_due = due

    def _on_timer(self) -> None:
        self._timer_due = _FOREVER
        if self.greenlet is None or self._deadline == _FOREVER:
            return
        delay = self._deadline - time.monotonic()
        if delay > 0:
            self._start_timer(delay, self._deadline)
        else:
            self.wake(_DEADLINE)

    # -- writing

    def cork(self, size: int) -> int:
        """Where in ``poller.cork`` the next ``size`` bytes are to be written, for :meth:`commit`;
        -1 if they do not fit."""
        poller = self.poller
        if poller.corked is not self:
            poller.uncork()
        elif poller.held + size > _CORK_LIMIT:
            self.flush()
        if size > _CORK_LIMIT or self.failure:
            return -1
        poller.corked = self
        return poller.held

    def commit(self, end: int, hold: bool) -> None:
        """Takes what was written into the cork up to ``end``; sends it, or holds it back until more
        follows, at the latest when the hub gets control."""
        poller = self.poller
        first = poller.held == 0
        poller.held = end
        if not hold:
            self.flush()
        elif first:
            poller.uncork_soon()

    def flush(self) -> None:
        """Sends what was held back, unless the hub is at it."""
        if self.poller.corked is self:
            self._flush_cork()
        elif self._outbox:
            self._flush_unless_writing()

    def _flush_cork(self) -> None:
        poller = self.poller
        size = poller.held
        poller.held = 0
        poller.corked = None
        if self.failure or not size:
            return
        self.sent += size
        if self._outbox or not self._direct and size > _TLS_RECORD:
            self._append(bytes(poller.cork[:size]))
            self._flush_unless_writing()
            return
        try:
            if self._direct:
                sent = syscalls.send_start(self.fileno, poller.cork, size)
            else:
                sent = self._write(memoryview(poller.cork)[:size])
        except OSError as error:
            self._fail(f"connection lost: {error}")
            return
        if sent != size:
            self._append(bytes(poller.cork[max(sent, 0) : size]))
            self._start_writing()

    def send(self, data: bytes) -> None:
        """Sends ``data``, or puts what the kernel does not take into the outbox."""
        if self.poller.corked is self:
            self._flush_cork()
        if self.failure:
            return
        self.sent += len(data)
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
        """:meth:`send` for a payload that is not worth a copy."""
        if self.poller.corked is self:
            self._flush_cork()
        if self.failure:
            return
        self.sent += len(header) + len(payload)
        sent = 0
        if not self._outbox and not self._tls:
            try:
                if self._direct and isinstance(payload, bytes):
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
            # The caller may change or resize what is mutable as soon as its send returns; a
            # read-only view may be one of something mutable.
            self._append(rest if isinstance(payload, bytes) else memoryview(bytes(rest)))
        if self._outbox:
            self._flush_unless_writing()

    def reply(self, data: bytes) -> None:
        """:meth:`send` for an answer that a later one may replace while the outbox is full."""
        if self.backlog > self._high_water:
            self.late = data
        else:
            self.send(data)

    def hold(self, data: bytes) -> None:
        """Corks ``data``: sends it with what follows, at the latest when the hub gets control."""
        position = self.cork(len(data))
        if position < 0:
            self.send(data)
        else:
            end = position + len(data)
            self.poller.cork[position:end] = data
            self.commit(end, True)

    def wait_for_room(self) -> None:
        """Blocks while more than ``high_water`` bytes stand in the outbox."""
        while self.backlog > self._high_water and not self.failure:
            if self._room is None:
                self._room = Event()
            self._room.wait()

    def _write(self, data: bytes | bytearray | memoryview) -> int:
        """How many bytes the socket takes now, of no more than a record if this is TLS."""
        try:
            if self._ssl is not None:
                return int(self._ssl.write(data))
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

    def _flush_unless_writing(self) -> None:
        if not self._writing:
            self._flush()

    def _flush(self) -> None:
        outbox = self._outbox or []
        while outbox:
            head = outbox[0]
            # An interrupted TLS write must be repeated with the same bytes, so they are cut alike.
            chunk = head[:_TLS_RECORD] if self._tls and len(head) > _TLS_RECORD else head
            try:
                sent = self._write(chunk)
            except OSError as error:
                self._fail(f"connection lost: {error}")
                return
            if sent == 0:
                break
            self._progress = time.monotonic()
            self.backlog -= sent
            if sent == len(head):
                del outbox[0]
            elif isinstance(head, bytearray):
                del head[:sent]
            else:
                outbox[0] = head[sent:]
        if not outbox:
            self._outbox = None
        if self.late and self.backlog <= self._high_water:
            self.sent += len(self.late)
            self._append(self.late)
            self.late = b""
        if self._outbox:
            self._start_writing()
        elif self._writing:
            self._stop_writing()
        if self._finishing and not self._outbox:
            self._shut_down()
        if self._room is not None and self.backlog <= self._high_water:
            self._make_room()
        if self.drained is not None and not self._outbox:
            self._tell_drained()

    def _tell_drained(self) -> None:
        drained, self.drained = self.drained, None
        self.hub.loop.run_callback(drained)

    def _make_room(self) -> None:
        if self._room is not None:
            room, self._room = self._room, None
            room.set()

    def _start_writing(self) -> None:
        """Lets the hub flush the outbox, whenever the kernel takes more."""
        if self._writing:
            return
        self._writing = True
        self._progress = time.monotonic()
        if self._write_watcher is None:
            self._write_watcher = self.hub.loop.io(self.fileno, 2)
        self._write_watcher.start(self._flush)
        if self._write_timeout is not None:
            self._start_stall_timer(self._write_timeout)

    def _start_stall_timer(self, delay: float) -> None:
        if self._stall_timer is not None:
            self._stall_timer.close()
        self._stall_timer = self.hub.loop.timer(delay)
        self._stall_timer.start(self._on_stall)

    def _on_stall(self) -> None:
        assert self._write_timeout is not None
        delay = self._progress + self._write_timeout - time.monotonic()
        if delay > 0:
            self._start_stall_timer(delay)
        else:
            self._fail(f"the peer read nothing for {self._write_timeout:g} s (write_timeout)")
            self.close()

    def _stop_writing(self) -> None:
        self._writing = False
        self._write_watcher.stop()
        if self._stall_timer is not None:
            self._stall_timer.close()
            self._stall_timer = None

    def _fail(self, why: str) -> None:
        """Nothing can be written any more; what the peer sent before may still be read."""
        if not self.failure:
            self.failure = why
        self._outbox = None
        self.late = b""
        self.backlog = 0
        if self._writing:
            self._stop_writing()
        self._make_room()
        if self.drained is not None:
            self._tell_drained()

    # -- the end

    def finish_writing(self) -> None:
        """Ends our half of the stream, behind what stands in the outbox."""
        self._finishing = True
        self.flush()
        if not self._outbox:
            self._shut_down()

    def _shut_down(self) -> None:
        if self._shut or self.closed:
            return
        self._shut = True
        if not self.failure:
            self.failure = "the stream was ended"
        if self._tls:
            with contextlib.suppress(OSError, ValueError):  # sends close_notify; waits for nothing
                self._sock.unwrap()
            self._ssl = None  # what still comes is not decrypted, as in a socket that was shut down
        try:
            self._sock.shutdown(native.SHUT_WR)
        except OSError:
            pass  # the peer is gone already

    def finish(self, deadline: float) -> None:
        """Ends our half, blocks until the peer has ended its own, and closes.

        Closing with bytes unread would send a reset, which may destroy the Close that the peer has
        not read yet (RFC 6455, section 7.1.1).
        """
        try:
            self.finish_writing()
            while self.receive(deadline) > 0:
                pass
        finally:
            self.close()

    def _close_watchers(self) -> None:
        for watcher in (self._write_watcher, self._timer, self._stall_timer):
            if watcher is not None:
                watcher.close()
        self._writing = False
        self._write_watcher = self._timer = self._stall_timer = None

    def detach(self) -> Any:
        """Gives the socket back, as it came; this transport is closed."""
        self._borrowed = True
        self._shut = True
        self.unwatch()
        self._close_watchers()
        self._sock.settimeout(self._timeout)
        sock, self._sock = self._sock, None
        self._ssl = None
        return sock

    def close(self, why: str = "the connection was closed") -> None:
        """Closes the socket, and wakes whoever waits for it. Idempotent."""
        if self.closed:
            return
        self.closed = True
        self._fail(why)
        self.unwatch()
        self._close_watchers()
        self._ssl = None  # which has much memory
        if self._borrowed:
            with contextlib.suppress(OSError):
                self._sock.shutdown(native.SHUT_RDWR)
                self._sock.settimeout(self._timeout)
        else:
            self._sock.close()
        if self.greenlet is not None:
            self.wake_soon()
