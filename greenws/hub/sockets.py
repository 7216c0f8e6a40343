"""gevent's sockets, plain and TLS, that belong to the process that made them.

A forked child shares the connections of its parent. In the child, a call on one of these sockets
raises ConnectionAbortedError, and a greenlet that was waiting for one does not wake.
"""

from __future__ import annotations

import errno
import os
import time
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import gevent
import gevent.socket
import gevent.ssl
from gevent.exceptions import ConcurrentObjectUseError

from .polling import READABLE, Waiter, current_process
from .turns import end_turn_if_due

__all__ = ["OwnedSSLSocket", "OwnedSocket", "adopt", "is_inherited"]

FOREVER = float("inf")  # a time of time.monotonic()
_DEADLINE = READABLE + 1  # another cause to wake a waiter


def is_inherited(sock: Any) -> bool:
    """Whether ``sock`` is one of these, and belongs to the parent process."""
    return isinstance(sock, _Owned) and sock._process != current_process()


def adopt(sock: Any) -> None:
    """Makes this process the owner of ``sock``, a socket of gevent's. A socket of any other class
    is left as it is."""
    if type(sock) is gevent.socket.socket:
        _adopters[sock] = current_process()
        sock.__class__ = _AdoptedSocket  # the layout of its objects has no room for the process
    elif type(sock) is gevent.ssl.SSLSocket:
        sock._process = current_process()  # type: ignore[attr-defined]
        sock.__class__ = OwnedSSLSocket
    else:
        return
    _sockets.add(sock)


class _Owned:
    """Checks the process before each call that reaches the kernel, and after each wait."""

    __slots__ = ()

    _process: int

    def _check(self) -> None:
        if self._process != current_process():
            raise ConnectionAbortedError(
                errno.ECONNABORTED, "the connection belongs to the parent process"
            )

    def _wait(self, *args: Any, **options: Any) -> None:
        self._check()
        super()._wait(*args, **options)  # type: ignore[misc]
        while self._process != current_process():
            gevent.get_hub().switch()


class _Plain(_Owned):
    """The calls of a socket without TLS."""

    __slots__ = ()

    def recv(self, *args: Any) -> bytes:
        self._check()
        data: bytes = super().recv(*args)  # type: ignore[misc]
        return data

    def recv_into(self, *args: Any) -> int:
        self._check()
        return int(super().recv_into(*args))  # type: ignore[misc]

    def send(self, *args: Any, **options: Any) -> int:
        self._check()
        return int(super().send(*args, **options))  # type: ignore[misc]

    def sendmsg(self, *args: Any) -> int:
        self._check()
        return int(super().sendmsg(*args))  # type: ignore[misc]

    def shutdown(self, how: int) -> None:
        self._check()
        super().shutdown(how)  # type: ignore[misc]


class _Input(Waiter):
    """Waits for a socket's input in its hub's poller.

    Like a transport, it knows when the kernel has nothing more, and saves a read that would block.
    Its timer stays armed between reads; if it fires early, it is set again.
    """

    def __init__(self, hub: Any, fileno: int) -> None:
        super().__init__(hub, fileno)
        self.is_drained = False  # the kernel has nothing more until the next event
        self._deadline = FOREVER
        self._timer: Any = None

    def wait_until(self, deadline: float) -> bool:
        """Blocks until the socket is readable; False at the deadline."""
        self._deadline = deadline
        if deadline != FOREVER:
            delay = deadline - time.monotonic()
            if delay <= 0:
                return False
            if deadline < self.timer_due:
                self._start_timer(delay)
        cause = self.wait()
        while self.process != current_process():
            self.hub.switch()  # never returns: the greenlet belongs to the parent
        return cause == READABLE

    def _start_timer(self, delay: float) -> None:
        if self._timer is not None:
            self._timer.close()
        self._timer = self.hub.loop.timer(delay)
        self._timer.start(self._on_timer)
        self.timer_due = self._deadline

    def _on_timer(self) -> None:
        self.timer_due = FOREVER
        if self.process != current_process() or self.greenlet is None or self._deadline == FOREVER:
            return
        delay = self._deadline - time.monotonic()
        if delay > 0:
            self._start_timer(delay)
        else:
            self.wake(_DEADLINE)

    def close(self, closing: bool) -> None:
        """Stops watching the socket, and wakes the greenlet that waits. ``closing``: the descriptor
        is closed, or will be at once."""
        self.unwatch(closing)
        if self._timer is not None:
            self._timer.close()
        if self.greenlet is not None:
            self.wake_soon()


class OwnedSocket(_Plain, gevent.socket.socket):
    """A connected TCP or Unix socket."""

    hub: Any
    _sock: Any  # the native one
    _input: _Input | None = None

    def __init__(self, *args: Any, **options: Any) -> None:
        self._process = current_process()
        super().__init__(*args, **options)
        _sockets.add(self)

    def receive(self, size: int, deadline: float = FOREVER) -> bytes | None:
        """Blocks until input has been received, and returns at most ``size`` bytes: empty at the
        end of the stream, None if ``deadline`` passes first. A ``deadline`` of 0 does not block.
        The socket's own timeout is ignored."""
        own = self._input
        if own is None:
            self._check()
            own = self._input = _Input(self.hub, self.fileno())
        is_last = deadline == 0.0
        while True:
            if self._process != current_process():
                self._check()
            if not own.is_drained or is_last:
                try:
                    data: bytes = self._sock.recv(size)
                except BlockingIOError:
                    own.is_drained = True
                    own.hung_up = False
                else:
                    # After a hang-up no event follows, so read until the end of the stream.
                    own.is_drained = len(data) < size and not own.hung_up
                    return data
            if is_last:
                return None
            if own.greenlet is not None:
                raise ConcurrentObjectUseError("This socket is already used by another greenlet")
            # Input that came in time counts, even if this greenlet ran late.
            is_last = not own.wait_until(deadline)
            own.is_drained = False
            if self._input is not own:
                raise OSError(errno.EBADF, "the socket was closed or taken by another greenlet")

    def stop_watching(self, closing: bool = False) -> None:
        """Leaves the input to another reader of the socket."""
        own, self._input = self._input, None
        if own is not None:
            own.close(closing)

    def close(self) -> None:
        self.stop_watching(closing=True)  # pywsgi has closed the socket inside
        super().close()

    def detach(self) -> int:
        self.stop_watching()
        return super().detach()

    def send_now(self, data: bytes | bytearray | memoryview, flags: int = 0) -> int:
        """Sends without waiting; returns how many bytes the kernel took."""
        if self._process != current_process():
            self._check()
        try:
            return int(self._sock.send(data, flags))
        except BlockingIOError:
            return 0


class _AdoptedSocket(_Plain, gevent.socket.socket):
    __slots__ = ()

    def __init__(self, *args: Any, **options: Any) -> None:  # a dup() of one
        super().__init__(*args, **options)
        _adopters[self] = current_process()
        _sockets.add(self)

    @property
    def _process(self) -> int:  # type: ignore[override]
        return _adopters.get(self, 0)


class OwnedSSLSocket(_Owned, gevent.ssl.SSLSocket):
    """A TLS connection. Handshakes are slow, and thousands of clients may begin theirs at once, so
    each step of a handshake may end the turn."""

    def do_handshake(self, block: bool = False) -> None:
        end_turn_if_due(is_slow=True)
        super().do_handshake()

    def _wait(self, *args: Any, **options: Any) -> None:
        super()._wait(*args, **options)
        end_turn_if_due(is_slow=True)

    def __init__(self, *args: Any, **options: Any) -> None:
        self._process = current_process()
        super().__init__(*args, **options)
        _sockets.add(self)

    def read(self, *args: Any, **options: Any) -> Any:
        self._check()
        return super().read(*args, **options)

    def write(self, data: Any) -> int:
        self._check()
        return int(super().write(data))

    def send(self, *args: Any, **options: Any) -> int:
        self._check()
        return int(super().send(*args, **options))

    def shutdown(self, how: int) -> None:
        self._check()
        super().shutdown(how)

    def unwrap(self) -> Any:
        self._check()
        return super().unwrap()


_sockets: WeakSet[Any] = WeakSet()
_adopters: WeakKeyDictionary[Any, int] = WeakKeyDictionary()


def _after_fork() -> None:
    """In the child: stops the watchers of the parent's sockets."""
    for sock in list(_sockets):
        for watcher in (sock._read_event, sock._write_event):
            if watcher is not None and sock._process != current_process():  # it is still open
                watcher.stop()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
