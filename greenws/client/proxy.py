"""Proxies: which one to use for a host, and how to connect through it.

HTTP CONNECT (RFC 9110, section 9.3.6) is our own, since the response is read like a server's; for
SOCKS it uses python-socks.
"""

from __future__ import annotations

import errno
import ipaddress
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

from ..config import Config
from ..exceptions import HandshakeError
from ..hub.transport import Transport
from .dialing import dial, start_tls, trusting_context
from .exchange import exchange, explain
from .threads import hub_of_thread
from .url import Target, basic_credentials, split_host

__all__ = ["Proxy", "dial_through", "find_proxy"]

_PORTS = {"http": 80, "https": 443, "socks5": 1080, "socks5h": 1080}

# The variables of the environment, without "_proxy", in their order.
_VARIABLES = {False: ("ws", "http", "all", "socks"), True: ("wss", "https", "all", "socks")}

_MAX_CREDENTIAL = 255  # bytes of a user or password for SOCKS5 (RFC 1929)

# Replies of SOCKS5 (RFC 1928, section 6).
_ERRNOS = {
    2: errno.EACCES,
    3: errno.ENETUNREACH,
    4: errno.EHOSTUNREACH,
    5: errno.ECONNREFUSED,
    6: errno.ETIMEDOUT,
}


class Proxy(NamedTuple):
    """``scheme``: http, https or socks5. ``credentials``: the value of a header; ``user`` and
    ``password``: those of SOCKS."""

    scheme: str
    host: str
    port: int
    credentials: str | None
    user: str | None
    password: str | None

    def __str__(self) -> str:
        """The URL without user and password."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"


def find_proxy(target: Target, proxy: bool | str | None) -> Proxy | None:
    """The proxy for ``target``: True stands for the environment's, None for none.

    Raises:
        TypeError: ``proxy`` is none of these.
        ValueError: it is not the URL of a proxy, or cannot be used for ``target``.
    """
    if isinstance(proxy, str):
        return _parse(proxy, "proxy", target)
    if proxy is not None and not isinstance(proxy, bool):
        raise TypeError(f"proxy must be True, None or a URL, not {proxy!r}")
    if not proxy or target.socket_path is not None:
        return None
    proxies = getproxies()
    for name in _VARIABLES[target.secure]:
        if proxies.get(name):
            if _is_bypassed(target, proxies.get("no", "")):
                return None
            return _parse(proxies[name], f"{name}_proxy", target)
    return None


def _is_bypassed(target: Target, no_proxy: str) -> bool:
    """Whether ``no_proxy`` has the host, its domain, or its network."""
    host = f"[{target.host}]" if ":" in target.host else target.host
    if proxy_bypass(f"{host}:{target.port}") or proxy_bypass(target.host):
        return True
    try:
        address = ipaddress.ip_address(target.host.partition("%")[0])
    except ValueError:
        return False
    for entry in no_proxy.split(","):
        try:
            if address in ipaddress.ip_network(entry.strip().strip("[]"), strict=False):
                return True
        except ValueError:  # a name
            continue
    return False


def _parse(url: str, name: str, target: Target) -> Proxy:
    if "://" not in url:
        url = f"http://{url}"
    parts = urlsplit(url)
    if parts.scheme not in _PORTS:
        raise ValueError(f"{name} must be http://, https:// or socks5://, not {parts.scheme}://")
    try:
        host, port = split_host(parts, _PORTS[parts.scheme])
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    scheme = "socks5" if parts.scheme == "socks5h" else parts.scheme
    if scheme == "https" and target.secure:
        raise ValueError(
            f"{name}: a proxy with TLS is for ws:// only, since TLS within TLS is not supported; "
            f"use an http:// or socks5:// proxy for {target.place}"
        )
    credentials = None if parts.username is None else basic_credentials(parts)
    user = None if parts.username is None else unquote(parts.username)
    password = None if user is None else unquote(parts.password or "")
    for what, text in (("user", user), ("password", password)):
        if scheme == "socks5" and len((text or "").encode()) > _MAX_CREDENTIAL:
            raise ValueError(f"{name}: its {what} is longer than {_MAX_CREDENTIAL} bytes")
    return Proxy(scheme, host, port, credentials, user, password)


def dial_through(proxy: Proxy, target: Target, config: Config) -> Any:
    """A socket that is connected to ``target`` by way of ``proxy``. The proxy resolves the name.

    Raises:
        HandshakeError: the proxy refuses.
        OSError: the proxy cannot be reached, or cannot reach ``target``.
    """
    try:
        sock = dial(proxy.host, proxy.port)
    except OSError as error:
        error.strerror = f"proxy: {error.strerror}"
        raise
    if proxy.scheme == "socks5":
        return _open_socks(proxy, target, sock)
    if proxy.scheme == "https":
        sock = start_tls(sock, trusting_context(), proxy.host)
    return _open_tunnel(proxy, target, config, sock)


def _open_tunnel(proxy: Proxy, target: Target, config: Config, sock: Any) -> Any:
    host = f"[{target.host}]" if ":" in target.host else target.host
    authority = f"{host}:{target.port}"
    lines = [f"CONNECT {authority} HTTP/1.1", f"Host: {authority}"]
    if proxy.credentials is not None:
        lines.append(f"Proxy-Authorization: {proxy.credentials}")
    request = ("\r\n".join(lines) + "\r\n\r\n").encode("ascii")
    transport = Transport(sock, hub_of_thread())
    try:
        try:
            reader = exchange(transport, request, config, is_tunnel=True)
        except HandshakeError as error:
            error.args = (f"Proxy {proxy}: {error}",)
            error.reason = "proxy"
            raise
        except ConnectionError as error:
            raise type(error)(f"Proxy {proxy}: {error}") from None
        if not 200 <= reader.status < 300:
            refused = HandshakeError(f"Proxy {proxy} responded with status {reader.status}")
            refused = explain(refused, reader, f"Proxy {proxy}")
            refused.reason = "proxy"
            raise refused
        if reader.rest:
            raise HandshakeError(
                f"Proxy {proxy} sent {reader.rest[:40]!r} after its response.", 0, reason="proxy"
            )
    except BaseException:
        transport.close()
        raise
    return transport.detach()


class _Connected:
    """Acts as a previous proxy for python-socks, so that it uses a connection that exists."""

    def __init__(self, sock: Any) -> None:
        self._sock = sock

    def connect(self, **options: Any) -> Any:
        return self._sock


def _open_socks(proxy: Proxy, target: Target, sock: Any) -> Any:
    try:
        try:
            from python_socks import ProxyError, ProxyType
            from python_socks.sync import Proxy as SocksProxy
        except ImportError:
            raise ValueError(
                f"proxy {proxy} needs the package python-socks: pip install 'greenws-wsgi[socks]'"
            ) from None
        before: Any = _Connected(sock)
        through = SocksProxy(
            ProxyType.SOCKS5,
            proxy.host,
            proxy.port,
            proxy.user,
            proxy.password,
            True,  # the proxy resolves names
            forward=before,
        )
        try:
            return through.connect(target.host.partition("%")[0], target.port)
        except ProxyError as error:
            message = f"Proxy {proxy} cannot connect to {target.place}: {error}"
            if error.error_code is not None:
                number = _ERRNOS.get(error.error_code, errno.EIO)
                raise OSError(number, message) from None
            status = 407 if "auth" in str(error).lower() else 0
            raise HandshakeError(message, status, reason="proxy") from None
    except BaseException:
        sock.close()
        raise
