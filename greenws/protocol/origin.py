"""Which pages may open a WebSocket here: the ``Origin`` header (RFC 6455, section 10.2).

A browser lets any page connect anywhere, with the cookies of its user, and says in ``Origin`` which
page it was. Whoever sends none is no browser, and could send whatever it liked.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from ..exceptions import HandshakeError

__all__ = ["check_host", "check_origin"]

_ORIGIN = re.compile(
    r"[a-z][a-z0-9+.-]*://(?:\[[0-9a-f:.]+\]|[a-z0-9._~-]+)(?::[0-9]{1,5})?", re.IGNORECASE
)
_PORT = re.compile(r":[0-9]*\Z")

_PORTS = {"http": "80", "https": "443", "ws": "80", "wss": "443"}


def check_origin(environ: Mapping[str, Any], allowed: Sequence[str]) -> None:
    """Checks the ``Origin`` of a request against ``allowed``, as :class:`greenws.Config` has it.

    Raises:
        HandshakeError: 403, with the option that would allow it.
    """
    origin = environ.get("HTTP_ORIGIN")
    if origin is None or any(_matches(origin, pattern, environ) for pattern in allowed):
        return
    raise HandshakeError(
        f"The origin {ascii(origin)} is not allowed for the host "
        f"{ascii(environ.get('HTTP_HOST', ''))}; allowed_origins=[{ascii(origin)}], on the "
        "WebSocketHandler or in the Config of the server, would allow it. (Behind a proxy that "
        "changes Host: trusted_proxies.)",
        403,
        reason="origin",
    )


def check_host(environ: Mapping[str, Any], allowed: Sequence[str] | None) -> None:
    """Checks the ``Host`` of a request against ``allowed``, the ``allowed_hosts`` of a
    :class:`greenws.Config`.

    Raises:
        HandshakeError: 421, with the option that would allow it.
    """
    if allowed is None:
        return
    host = environ.get("HTTP_HOST", "").lower()
    name = _PORT.sub("", host)
    for pattern in allowed:
        found = host if _PORT.search(pattern) else name
        if found == pattern or (pattern.startswith("*.") and found.endswith(pattern[1:])):
            return
    raise HandshakeError(
        f"The host {ascii(host)} is not allowed; allowed_hosts=[{ascii(host)}] would allow it.",
        421,
        reason="host",
    )


def _matches(origin: str, pattern: str, environ: Mapping[str, Any]) -> bool:
    if pattern == "*":
        return True
    if pattern == "null":
        return origin == "null"
    if not _ORIGIN.fullmatch(origin):  # RFC 6454, section 7.1
        return False
    if pattern == "self":
        return _is_same(origin, environ)
    if "://*." not in pattern:
        return _normal(origin) == _normal(pattern)
    scheme, _, host = _normal(pattern).partition("://*")
    other_scheme, _, other_host = _normal(origin).partition("://")
    return scheme == other_scheme and other_host.endswith(host) and len(other_host) > len(host)


def _is_same(origin: str, environ: Mapping[str, Any]) -> bool:
    """Whether a page is from the host that the request names.

    Where the request came by TLS, so must the page have. The other way round, a proxy may do TLS
    for this server without saying so.
    """
    scheme = origin.lower().partition("://")[0]
    host = environ.get("HTTP_HOST")
    if scheme not in ("http", "https") or not host:
        return False
    if environ.get("wsgi.url_scheme") == "https" and scheme != "https":
        return False
    return _normal(origin) == _normal(f"{scheme}://{host}")


def _normal(origin: str) -> str:
    """In lower case, with the port; what is no origin, as it is."""
    origin = origin.lower()
    try:
        parts = urlsplit(origin)
        port = str(parts.port or _PORTS.get(parts.scheme, ""))
    except ValueError:
        return origin
    if not parts.netloc or parts.path or parts.query or parts.fragment or "@" in parts.netloc:
        return origin
    return f"{parts.scheme}://{parts.hostname}:{port}"
