"""Grammar that the headers of HTTP and of the opening handshake share (RFC 9110, section 5.6)."""

from __future__ import annotations

__all__ = ["TOKEN", "changing_all_but"]

TOKEN = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
"""A regular expression for a token (RFC 9110, section 5.6.2): a method, a header's name, a
subprotocol, an extension and its parameters."""


def changing_all_but(allowed: bytes) -> bytes:
    """A table for ``bytes.translate`` that changes every byte except those in ``allowed``: text
    consists of these if the table leaves it as it is. ``translate(None, allowed)`` would make a
    table of its own at each call, which takes longer than a short text."""
    return bytes(byte if byte in allowed else 255 - byte for byte in range(256))
