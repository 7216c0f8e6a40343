"""The URL of a WebSocket (RFC 6455, section 3), and where a redirect leads."""

from __future__ import annotations

import base64
import ipaddress
import re
from typing import NamedTuple
from urllib.parse import SplitResult, quote, unquote, urljoin, urlsplit

from ..exceptions import HandshakeError

__all__ = [
    "Target",
    "basic_credentials",
    "is_same_host",
    "parse_url",
    "redirect",
    "split_host",
]

_PORTS = {"ws": 80, "wss": 443}
_SCHEMES = {"ws": "ws", "wss": "wss", "http": "ws", "https": "wss"}  # of a redirect
_NOT_ALLOWED = re.compile(r"[\x00-\x20\x7f]")  # urlsplit() would drop some of these
_SAFE = "!#$%&'()*+,/:;=?@[]~"  # what a path or query may hold unescaped
# Names whose labels the resolver can take (RFC 1035, section 2.3.4).
_HOST = re.compile(r"(?:[a-z0-9_-]{1,63}\.)*[a-z0-9_-]{1,63}\.?", re.IGNORECASE)


class Target(NamedTuple):
    """Where to connect, and what to ask for.

    ``target``: the path and query. ``socket_path``: the path of a Unix socket; ``host`` is
    ``localhost`` then. ``credentials``: the value of an Authorization header, from the URL.
    """

    secure: bool
    host: str
    port: int
    target: str
    socket_path: str | None = None
    credentials: str | None = None

    @property
    def authority(self) -> str:
        """The value of the Host header: without the port if that is the scheme's."""
        host = self.host.partition("%")[0]  # a zone is for this machine only
        if ":" in host:
            host = f"[{host}]"
        is_default = self.port == _PORTS[self.scheme]
        return host if is_default else f"{host}:{self.port}"

    @property
    def scheme(self) -> str:
        """``ws`` or ``wss``, also for a Unix socket."""
        return "wss" if self.secure else "ws"

    @property
    def place(self) -> str:
        """The name for messages: without path, query and password."""
        if self.socket_path is not None:
            return self.socket_path
        return f"{self.scheme}://{self.authority}"


def parse_url(url: str) -> Target:
    """Parses ``ws://``, ``wss://`` and ``ws+unix://``.

    Raises:
        TypeError: ``url`` is not a str.
        ValueError: ``url`` is not a valid URL of these schemes.
    """
    if not isinstance(url, str):
        raise TypeError(f"a URL must be a str, not {url!r}")
    if found := _NOT_ALLOWED.search(url):
        raise ValueError(f"a URL must not contain {found[0]!r}; percent-encode it")
    parts = urlsplit(url)
    if parts.scheme == "ws+unix":
        return _unix_target(parts)
    if parts.scheme not in _PORTS:
        shown = f", not {url[:40]!r}"
        if "@" in url:  # no password
            shown = f", not {parts.scheme + '://'!r}" if parts.netloc else ""
        raise ValueError(f"the URL must begin with ws://, wss:// or ws+unix://{shown}")
    if "#" in url:
        raise ValueError("the URL of a WebSocket has no fragment (#); percent-encode it as %23")
    host, port = split_host(parts, _PORTS[parts.scheme])
    credentials = None
    if parts.username is not None:
        credentials = basic_credentials(parts)
    return Target(parts.scheme == "wss", host, port, _request_target(parts), None, credentials)


def split_host(parts: SplitResult, default_port: int) -> tuple[str, int]:
    """The host, as the resolver accepts it, and the port.

    Raises:
        ValueError: one of them is invalid, or there is no host.
    """
    try:
        port = parts.port
    except ValueError:
        port = 0
    if port is None and not parts.netloc.endswith(":"):
        port = default_port
    if not port:
        raise ValueError(f"invalid port in {_without_user(parts)!r}")
    host = parts.hostname or ""
    literal = _without_user(parts)
    if literal.startswith("["):
        behind = literal.partition("]")[2]
        if behind and not behind.startswith(":"):  # urlsplit() drops it
            raise ValueError(f"invalid host {literal!r}")
        host = unquote(host)
        try:
            ipaddress.IPv6Address(host)
        except ValueError:
            raise ValueError(f"[{host}] is not an IPv6 address") from None
        return host, port
    host = unquote(host)
    if not host.isascii():
        try:
            host = host.encode("idna").decode("ascii")
        except UnicodeError as error:
            raise ValueError(f"invalid host {host!r}: {error}") from None
    if not _HOST.fullmatch(host):
        raise ValueError(f"invalid host {host!r}" if host else "the URL has no host")
    return host, port


def basic_credentials(parts: SplitResult) -> str:
    """The user and password of a URL, for a header (RFC 7617)."""
    user, password = unquote(parts.username or ""), unquote(parts.password or "")
    if ":" in user:
        raise ValueError("the user in a URL must not contain ':'")
    return f"Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}"


def _without_user(parts: SplitResult) -> str:
    return parts.netloc.rpartition("@")[2]


def _request_target(parts: SplitResult) -> str:
    target = quote(parts.path, _SAFE) or "/"
    return f"{target}?{quote(parts.query, _SAFE)}" if parts.query else target


def _unix_target(parts: SplitResult) -> Target:
    """``ws+unix:///run/app.sock:/chat`` or ``ws+unix://%2Frun%2Fapp.sock/chat``."""
    if parts.netloc:
        socket_path, target = unquote(parts.netloc), parts.path
    else:
        socket_path, _, target = parts.path.partition(":")
        socket_path = unquote(socket_path)
    if not socket_path.strip("/"):
        raise ValueError(
            "no socket in the URL; write ws+unix:///run/app.sock:/path, or "
            "ws+unix://%2Frun%2Fapp.sock/path"
        )
    if target and not target.startswith("/"):
        raise ValueError(f"the path after the socket must begin with '/', not {target!r}")
    if parts.fragment:
        raise ValueError("the URL of a WebSocket has no fragment (#); percent-encode it as %23")
    request_target = _request_target(parts._replace(path=target))
    return Target(False, "localhost", _PORTS["ws"], request_target, socket_path)


def redirect(current: Target, location: str) -> Target:
    """The target that ``location`` means, relative to ``current``. It has the credentials in
    ``location``, never those of ``current``.

    Raises:
        HandshakeError: it is invalid, or leads from TLS to a connection without.
    """
    base = f"http{'s' * current.secure}://{current.authority}{current.target}"
    # Some servers send UTF-8 and spaces unescaped; as in browsers, their bytes are escaped here.
    escaped = quote(location.strip(" \t").encode("latin-1", "replace"), _SAFE)
    try:
        parts = urlsplit(urljoin(base, escaped))._replace(fragment="")
        if parts.scheme not in _SCHEMES:
            raise ValueError(f"its scheme is {parts.scheme!r}")
        found = parse_url(parts._replace(scheme=_SCHEMES[parts.scheme]).geturl())
    except ValueError as error:
        raise HandshakeError(
            f"The server redirects to {location[:200]!r}: {error}.", reason="redirect"
        ) from None
    if current.secure and not found.secure:
        raise HandshakeError(
            f"The server redirects from wss:// to {found.place}, without TLS.", reason="redirect"
        )
    if current.socket_path is not None:
        if (found.host, found.port) != (current.host, current.port):
            raise HandshakeError(
                f"The server redirects from a Unix socket to {found.place}.", reason="redirect"
            )
        found = found._replace(socket_path=current.socket_path)
    return found


def is_same_host(one: Target, other: Target) -> bool:
    """Whether ``other`` may get the credentials for ``one``: they have the same origin, or
    ``other`` is the same host with TLS, both at their schemes' default ports."""
    if (one.host.lower(), one.socket_path) != (other.host.lower(), other.socket_path):
        return False
    if (one.port, one.secure) == (other.port, other.secure):
        return True
    return other.secure and (one.port, other.port) == (_PORTS["ws"], _PORTS["wss"])
