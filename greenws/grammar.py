"""Grammar that the headers of HTTP and of the opening handshake share (RFC 9110, section 5.6)."""

from __future__ import annotations

__all__ = ["TOKEN"]

TOKEN = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
"""A regular expression for a token (RFC 9110, section 5.6.2): a method, a header's name, a
subprotocol, an extension and its parameters."""
