"""TLS records in memory, and system calls of our own around them (in the compiled form).

Python's SSL objects read and write the socket themselves: two system calls for each record that
they read, one more to learn that there is no other, and one for each record that they write. So the
compiled form has OpenSSL read from the hub's buffer, and write into it: one ``recv`` takes all that
has arrived, one ``send`` takes all that must leave. Python still does the handshake, and all that
comes before the first read of a :class:`~.transport.Transport`.

An *engine* is the address of the SSL structure of OpenSSL in one of Python's SSL objects; the user
of an engine must keep that object alive. ``attach`` returns 0, and Python's SSL object is used, in
the pure form, where Python's OpenSSL cannot be reached, and where the kernel encrypts (kTLS), since
OpenSSL does not have the keys then.
"""

from __future__ import annotations

import _ssl
from typing import Any

__all__ = [
    "LIBRARY",
    "attach",
    "available",
    "decrypt",
    "detach",
    "encrypt",
    "end",
    "make_object",
    "replies",
]

LIBRARY: str | None = getattr(_ssl, "__file__", None)
"""The file of the module that loads OpenSSL; None if it is part of the Python executable."""


def make_object() -> Any:
    """An SSL object of Python's, in which the C code looks for the address of its SSL structure."""
    module: Any = _ssl
    context = module._SSLContext(module.PROTOCOL_TLS_CLIENT)
    return context._wrap_bio(module.MemoryBIO(), module.MemoryBIO(), False, "greenws.invalid")


def available() -> bool:
    """Whether Python's OpenSSL can be reached."""
    return False


def attach(ssl_object: Any) -> int:
    """Takes an SSL object of Python's over, after its handshake; returns its engine, or 0."""
    return 0


def detach(engine: int, fileno: int) -> None:
    """Gives the SSL object back to Python, which reads and writes the socket ``fileno`` again."""
    raise NotImplementedError


def decrypt(
    engine: int, sealed: bytearray, size: int, buffer: bytearray, out: bytearray, ends: list[str]
) -> int:
    """Decrypts the first ``size`` bytes of ``sealed`` into ``buffer``; returns the number of bytes
    there. OpenSSL keeps an incomplete record. OpenSSL's own answers are written to ``out``, and
    :func:`replies` returns their size. At the end of TLS, the reason is added to ``ends``: an
    error, or an empty string for a close_notify."""
    raise NotImplementedError


def replies() -> int:
    """Bytes in ``out`` after :func:`decrypt`: an alert, or the answer to a KeyUpdate."""
    raise NotImplementedError


def encrypt(engine: int, data: bytes | bytearray | memoryview, size: int, out: bytearray) -> int:
    """Encrypts the first ``size`` bytes of ``data`` into ``out``; returns the size there. -1 if TLS
    must read before it can encrypt, as during a renegotiation of TLS 1.2.

    Raises:
        ConnectionError: TLS has ended, or failed.
    """
    raise NotImplementedError


def end(engine: int, out: bytearray) -> int:
    """Writes a close_notify to ``out``; returns its size."""
    raise NotImplementedError
