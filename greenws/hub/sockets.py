"""gevent's sockets, plain and TLS, with an owner: the process that made them.

A forked child shares the connections of its parent. There, a call on one of these sockets raises
ConnectionAbortedError, and a greenlet that was waiting for one does not wake: it is the parent's.
"""

from __future__ import annotations

import errno
import os
from typing import Any
from weakref import WeakSet

import gevent
import gevent.socket
import gevent.ssl

from .polling import current_process

__all__ = ["OwnedSSLSocket", "OwnedSocket", "is_inherited"]


def is_inherited(sock: Any) -> bool:
    """Whether ``sock`` is one of these, and belongs to the parent of this process."""
    return isinstance(sock, _Owned) and sock._process != current_process()


class _Owned:
    """Checks the process before each call that reaches the kernel, and after each wait."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self._process = current_process()
        super().__init__(*args, **options)
        _sockets.add(self)

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


class OwnedSocket(_Owned, gevent.socket.socket):
    """A connected TCP or Unix socket."""

    _sock: Any  # the native one

    def recv(self, *args: Any) -> bytes:
        self._check()
        data: bytes = super().recv(*args)
        return data

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

    def recv_into(self, *args: Any) -> int:
        self._check()
        return int(super().recv_into(*args))

    def send(self, *args: Any, **options: Any) -> int:
        self._check()
        return int(super().send(*args, **options))

    def sendmsg(self, *args: Any) -> int:
        self._check()
        return int(super().sendmsg(*args))

    def shutdown(self, how: int) -> None:
        self._check()
        super().shutdown(how)


class OwnedSSLSocket(_Owned, gevent.ssl.SSLSocket):
    """A TLS connection."""

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


def _after_fork() -> None:
    """In the child: its loop watches no socket of the parent's."""
    for sock in list(_sockets):
        for watcher in (sock._read_event, sock._write_event):
            if watcher is not None and sock._process != current_process():  # it is still open
                watcher.stop()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
