"""gevent's sockets, plain and TLS, with an owner: the process that made them.

A forked child shares the connections of its parent. There, a call on one of these sockets raises
ConnectionAbortedError, and a greenlet that was waiting for one does not wake: it is the parent's.
"""

from __future__ import annotations

import errno
import os
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import gevent
import gevent.socket
import gevent.ssl

from .polling import current_process
from .turns import end_turn_if_due

__all__ = ["OwnedSSLSocket", "OwnedSocket", "adopt", "is_inherited"]


def is_inherited(sock: Any) -> bool:
    """Whether ``sock`` is one of these, and belongs to the parent of this process."""
    return isinstance(sock, _Owned) and sock._process != current_process()


def adopt(sock: Any) -> None:
    """Gives ``sock``, which gevent has made, an owner: this process. A socket of any other class is
    left as it is."""
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
                errno.ECONNABORTED, "the connection belongs to the parent of this process"
            )

    def _wait(self, *args: Any, **options: Any) -> None:
        self._check()
        super()._wait(*args, **options)  # type: ignore[misc]
        while self._process != current_process():
            gevent.get_hub().switch()


class _Plain(_Owned):
    """What a socket does without TLS."""

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


class OwnedSocket(_Plain, gevent.socket.socket):
    """A connected TCP or Unix socket."""

    _sock: Any  # the native one

    def __init__(self, *args: Any, **options: Any) -> None:
        self._process = current_process()
        super().__init__(*args, **options)
        _sockets.add(self)

    def recv_now(self, size: int) -> bytes | None:
        """Receives without waiting; None if there is nothing."""
        if self._process != current_process():
            self._check()
        try:
            data: bytes = self._sock.recv(size)
        except BlockingIOError:
            return None
        return data

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
    """A TLS connection. Its handshake is slow, so each part of it may end a turn: thousands of
    clients may send theirs at once."""

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
    """In the child: its loop watches no socket of the parent's."""
    for sock in list(_sockets):
        for watcher in (sock._read_event, sock._write_event):
            if watcher is not None and sock._process != current_process():  # it is still open
                watcher.stop()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
