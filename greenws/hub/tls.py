"""TLS records in memory, and system calls of our own around them (in the compiled form).

Python's SSL objects read and write the socket themselves: two system calls for each record that
they read, one more to learn that there is no other, and one for each record that they write. So the
compiled form has OpenSSL read from the hub's buffer, and write into it: one ``recv`` takes all that
has arrived, one ``send`` all that is to leave. The handshake, and whatever comes before the first
read of a :class:`~.transport.Transport`, is Python's as ever.

An *engine* is the address of OpenSSL's SSL in one of Python's SSL objects, which whoever uses it
keeps alive. ``attach`` gives 0 where there is none: in the pure form, where Python's OpenSSL cannot
be reached, and where the kernel encrypts (kTLS), since then the keys are no longer OpenSSL's. Then
Python's SSL object is used.
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
"""The file of the module that has loaded OpenSSL; None where it is a part of the program."""


def make_object() -> Any:
    """An SSL object of Python's, by which it is found out where its SSL is."""
    module: Any = _ssl
    context = module._SSLContext(module.PROTOCOL_TLS_CLIENT)
    return context._wrap_bio(module.MemoryBIO(), module.MemoryBIO(), False, "greenws.invalid")


def available() -> bool:
    """Whether Python's OpenSSL can be reached."""
    return False


def attach(ssl_object: Any) -> int:
    """Takes over an SSL object of Python's whose handshake is done; returns its engine, or 0."""
    return 0


def detach(engine: int, fileno: int) -> None:
    """Gives the SSL object back to Python, which reads and writes the socket ``fileno`` again."""
    raise NotImplementedError


def decrypt(
    engine: int, sealed: bytearray, size: int, buffer: bytearray, out: bytearray, ends: list[str]
) -> int:
    """Decrypts the first ``size`` bytes of ``sealed`` into ``buffer``; returns how many there are.
    What is left of an incomplete record stays in OpenSSL. ``out`` gets what OpenSSL answers
    itself, and :func:`replies` tells how much. After the end of TLS, ``ends`` gets the reason: an
    error, or an empty string for a close_notify."""
    raise NotImplementedError


def replies() -> int:
    """Bytes in ``out`` after :func:`decrypt`: an alert, or the answer to a KeyUpdate."""
    raise NotImplementedError


def encrypt(engine: int, data: bytes | bytearray | memoryview, size: int, out: bytearray) -> int:
    """Encrypts the first ``size`` bytes of ``data`` into ``out``; returns the size there. -1 if
    nothing can be encrypted before something was read, as while TLS 1.2 negotiates anew.

    Raises:
        ConnectionError: TLS has ended, or failed.
    """
    raise NotImplementedError


def end(engine: int, out: bytearray) -> int:
    """Writes a close_notify to ``out``; returns its size."""
    raise NotImplementedError
