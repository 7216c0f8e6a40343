"""The origin check: which pages may open a WebSocket (RFC 6455, section 10.2).

A browser lets any page connect to any server, with the user's cookies, and sends the page's origin
in ``Origin``. A client without that header is not a browser, and could send any value.
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

_LOOPBACK = ("localhost", "127.0.0.1", "[::1]", "0.0.0.0")

_PORTS = {"http": "80", "https": "443", "ws": "80", "wss": "443"}


def check_origin(environ: Mapping[str, Any], allowed: Sequence[str]) -> None:
    """Checks the ``Origin`` of a request against ``allowed``, which is ``allowed_origins`` of
    :class:`greenws.Config`.

    Raises:
        HandshakeError: 403; the message names the option that would allow the origin.
    """
    origin = environ.get("HTTP_ORIGIN")
    if origin is None or any(_matches(origin, pattern, environ) for pattern in allowed):
        return
    if origin == "file://":  # from Chromium's web views; other browsers send "null"
        raise HandshakeError(
            f"The origin {ascii(origin)} is that of a page from a file, such as Electron's or "
            "Cordova's. Load the page over HTTP; only allowed_origins='*' would allow it.",
            403,
            reason="origin",
        )
    if origin != "null" and not _ORIGIN.fullmatch(origin):
        raise HandshakeError(
            f"The Origin header is {ascii(origin)}, which is not an origin: scheme://host[:port], "
            "without a path. Only allowed_origins='*' would allow it; the client should send its "
            "origin, or no such header.",
            403,
            reason="origin",
        )
    host = environ.get("HTTP_HOST", "")
    raise HandshakeError(
        f"The origin {ascii(origin)} is not allowed for the host {ascii(host)}. "
        + _explain(origin, host, environ.get("wsgi.url_scheme") == "https")
        + f"To allow it, set allowed_origins={[*allowed, origin]} on the WebSocketHandler or in "
        "the server's Config.",
        403,
        reason="origin",
    )


def _explain(origin: str, host: str, secure: bool) -> str:
    """The probable cause, if it can be guessed."""
    if origin == "null":
        return (
            "A page from a file (file://) or in a sandboxed frame has this origin: open the page "
            "over HTTP, for instance from this server (greenws.StaticFiles). "
        )
    name, port = _split(origin.partition("://")[2])
    own_name, own_port = _split(host)
    if name == own_name and secure and not origin.startswith("https:"):
        return "The page came over HTTP, and this request over TLS: open the page over HTTPS. "
    if name in _LOOPBACK and own_name in _LOOPBACK:
        if name != own_name and port == own_port:
            return (
                f"For browsers {name} and {own_name} are two sites: open the page at {own_name}, "
                f"or connect to {name}. "
            )
        return "The page came from another port, such as that of a development server. "
    return "Behind a proxy that changes Host, set trusted_proxies. "


def _split(authority: str) -> tuple[str, str]:
    port = _PORT.search(authority)
    return (authority[: port.start()], port[0]) if port else (authority, "")


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
        return _normalize(origin) == _normalize(pattern)
    scheme, _, host = _normalize(pattern).partition("://*")
    other_scheme, _, other_host = _normalize(origin).partition("://")
    return scheme == other_scheme and other_host.endswith(host) and len(other_host) > len(host)


def _is_same(origin: str, environ: Mapping[str, Any]) -> bool:
    """Whether a page comes from the host that the request names.

    If the request came over TLS, so must the page. The reverse is allowed, because a proxy may
    terminate TLS without telling us.
    """
    scheme = origin.lower().partition("://")[0]
    host = environ.get("HTTP_HOST")
    if scheme not in ("http", "https") or not host:
        return False
    if environ.get("wsgi.url_scheme") == "https" and scheme != "https":
        return False
    return _normalize(origin) == _normalize(f"{scheme}://{host}")


def _normalize(origin: str) -> str:
    """``origin`` in lower case and with its port; anything else, such as ``null``, unchanged."""
    origin = origin.lower()
    try:
        parts = urlsplit(origin)
        port = str(parts.port or _PORTS.get(parts.scheme, ""))
    except ValueError:
        return origin
    if not parts.netloc or parts.path or parts.query or parts.fragment or "@" in parts.netloc:
        return origin
    return f"{parts.scheme}://{parts.hostname}:{port}"
