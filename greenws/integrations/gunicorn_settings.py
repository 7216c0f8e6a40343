"""gunicorn's settings for HTTP under ``greenws.gunicorn.Worker``.

The worker reads requests with greenws's parser, not gunicorn's. So each setting of gunicorn's
parser is translated to an option of greenws's Config, applied to the environ of a request, or
refused by name when a worker starts.
"""

from __future__ import annotations

import dataclasses
import functools
import ipaddress
import os
import socket
import ssl
import sys
import time
from typing import Any

import gevent
import gevent.ssl
from gevent.monkey import get_original
from gunicorn.sock import ssl_context

from ..config import Config
from ..exceptions import RequestError
from ..http.head import RequestHead
from ..server.options import load_authorities, load_certificates

__all__ = [
    "Forwarding",
    "ProxiedAddress",
    "config_of",
    "conf_of",
    "read_proxy_header",
    "refused",
    "tls_context_of",
    "trust_of",
]

_STRICT = "greenws's parser is strict (RFC 9112)"
_HTTP_1 = "greenws speaks HTTP/1.1 only"
_REFUSED = {  # unless they have their default
    "permit_obsolete_folding": _STRICT,
    "permit_unconventional_http_method": _STRICT,
    "permit_unconventional_http_version": _STRICT,
    "casefold_http_method": _STRICT,
    "strip_header_spaces": _STRICT,
    "header_map": "it would let a client forge what a proxy sets",  # "dangerous"
    "protocol": _HTTP_1,
    "http_protocols": _HTTP_1,
    "http2_cleartext": _HTTP_1,
}
_HOOKS = ("pre_request", "post_request")  # they expect a request of gunicorn's parser

_V2_SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
_MAX_V1 = 107  # bytes, including CR LF
_POLL = 0.002  # seconds between two reads of a header that arrives in pieces


def refused(cfg: Any) -> list[str]:
    """An error text for each setting that cannot be honoured."""
    problems = []
    for name, why in _REFUSED.items():
        setting = cfg.settings.get(name)  # not every version has them all
        if setting is None or setting.get() in (type(setting)().get(), "refuse"):
            continue
        problems.append(f"{name} = {setting.get()!r} cannot be honoured: {why}; leave it out")
    for name in _HOOKS:
        setting = cfg.settings.get(name)
        if setting is not None and setting.get() is not type(setting).default:
            problems.append(
                f"{name} cannot be honoured: requests are not read by gunicorn's parser; use "
                "middleware around the application"
            )
    return problems


def conf_of(cfg: Any) -> tuple[Config | None, int | None]:
    """``greenws_config`` and ``trusted_proxies`` of gunicorn's configuration file.

    Raises:
        TypeError: one of them is of another type.
    """
    location = cfg.config or ""
    name = location.removeprefix("python:") if location.startswith("python:") else "__config__"
    names = vars(sys.modules[name]) if name in sys.modules else {}
    for other, value in names.items():
        if isinstance(value, Config) and other != "greenws_config":
            raise TypeError(f"{other} is a Config: call it greenws_config in {location}")
    config, hops = names.get("greenws_config"), names.get("trusted_proxies")
    if config is not None and not isinstance(config, Config):
        raise TypeError(f"greenws_config must be a greenws.Config, not {config!r}")
    if hops is not None and (isinstance(hops, bool) or not isinstance(hops, int) or hops < 0):
        raise TypeError(f"trusted_proxies must be a number of proxies, not {hops!r}")
    return config, hops


def config_of(cfg: Any, config: Config) -> Config:
    """``config`` with gunicorn's settings in place of options that have their defaults."""
    limits: dict[str, Any] = {
        "keep_alive_timeout": max(cfg.keepalive, 0.001),
        "max_request_line": cfg.limit_request_line or None,
        "max_headers": cfg.limit_request_fields if cfg.limit_request_fields > 0 else None,
    }
    if cfg.worker_connections > (Config.max_connections or 0):
        limits["max_connections"] = cfg.worker_connections
    size = cfg.limit_request_field_size
    if size <= 0:
        limits["max_header_size"] = None
    elif size > (Config.max_header_size or 0):
        limits["max_header_size"] = 2 * size
    largest = cfg.settings.get("websocket_max_message_size")  # since gunicorn 26.3
    if largest is not None and largest.get() != type(largest).default:  # 16 MiB, for its own worker
        limits["max_message_size"] = largest.get() or None
    default = Config()
    return dataclasses.replace(
        config,
        **{
            name: value
            for name, value in limits.items()
            if getattr(config, name) == getattr(default, name)
        },
    )


def tls_context_of(cfg: Any) -> Any:
    """The context that gunicorn makes from its settings, with gevent's class: gunicorn makes it in
    the master, which is not monkey-patched.

    Raises:
        OSError: ``certfile``, ``keyfile`` or ``ca_certs`` cannot be read, or they do not match
            (``ssl.SSLError``).
        TypeError: the context is of a class that gevent cannot use.
    """
    if not _has_hook(cfg):
        _check_files(cfg)
    context = ssl_context(cfg)
    # Not a name of this module: gevent warns of modules that have what it patches.
    if type(context) is get_original("ssl", "SSLContext"):
        context.__class__ = gevent.ssl.SSLContext
        context.sni_callback = context.sni_callback  # gevent's setter wraps it
    if not isinstance(context, gevent.ssl.SSLContext):
        raise TypeError(f"ssl_context must return a gevent.ssl.SSLContext, not {context!r}")
    return context


def _has_hook(cfg: Any) -> bool:
    return cfg.ssl_context is not cfg.settings["ssl_context"].default


def _check_files(cfg: Any) -> None:
    """The errors of ``ssl`` do not name the files; for an encrypted key it asks for the password on
    the terminal.

    Raises:
        OSError: one of gunicorn's files for TLS cannot be read, or they do not match.
        TypeError: one of them is missing.
    """
    if cfg.keyfile and not cfg.certfile:
        raise TypeError("keyfile needs certfile, the file of the certificate chain")
    if cfg.certfile:
        check = gevent.ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        load_certificates(check, cfg.certfile, cfg.keyfile)
        if cfg.ca_certs:
            load_authorities(check, cfg.ca_certs)


class ProxiedAddress(tuple[str, int]):
    """The address of a client from a PROXY header."""

    peer: Any
    """The address of the proxy."""
    environ: dict[str, str]

    def __new__(cls, client: tuple[str, int], peer: Any, environ: dict[str, str]) -> ProxiedAddress:
        self = super().__new__(cls, client)
        self.peer = peer
        self.environ = environ
        return self


class Forwarding:
    """Applies the settings of gunicorn's parser to an environ: ``forwarded_allow_ips``,
    ``secure_scheme_headers``, ``forwarder_headers``, ``header_map``, ``limit_request_field_size``
    and ``SCRIPT_NAME``. Sets ``RAW_URI``, as all of gunicorn's workers do."""

    def __init__(self, cfg: Any) -> None:
        self._trusts = trust_of(cfg.forwarded_allow_ips)
        self._scheme_headers = [
            (f"HTTP_{name.upper().replace('-', '_')}", secure)
            for name, secure in cfg.secure_scheme_headers.items()
        ]
        self._scheme_names = [
            name.lower().replace("_", "-").encode() for name in cfg.secure_scheme_headers
        ]
        forwarders = {name.upper() for name in getattr(cfg, "forwarder_headers", ())}
        self._takes_script_name = bool(forwarders & {"SCRIPT_NAME", "*"})
        self._script_name = os.environ.get("SCRIPT_NAME", "")
        self._refuses_underscores = getattr(cfg, "header_map", "drop") == "refuse"
        self._max_field = cfg.limit_request_field_size

    def __call__(self, environ: dict[str, Any], address: Any, head: RequestHead) -> None:
        """
        Raises:
            RequestError: a field is too long (431), headers contradict each other (400), or the
                path does not begin with ``SCRIPT_NAME`` (500).
        """
        environ["RAW_URI"] = head.target
        if self._max_field > 0:
            room = self._max_field - 4  # the colon, a space and the end of the line
            for name, value in head.headers:
                if len(name) + len(value) > room:
                    raise RequestError("A header is too long (limit_request_field_size).", 431)
        peer = address
        if isinstance(address, ProxiedAddress):
            peer = address.peer
            environ.update(address.environ)
        is_trusted = not isinstance(peer, tuple) or self._trusts(str(peer[0]))
        script_name = self._script_name
        for name, value in head.headers:
            if b"_" not in name:
                continue
            if is_trusted and self._takes_script_name and name.lower() == b"script_name":
                script_name = value.decode("latin-1")
            elif self._refuses_underscores:
                raise RequestError("A header has an underscore in its name (header_map).")
        if is_trusted:
            self._set_scheme(environ)
        if script_name:
            path = environ["PATH_INFO"]
            if not path.startswith(script_name):
                raise RequestError("The path does not begin with SCRIPT_NAME.", 500)
            environ["SCRIPT_NAME"], environ["PATH_INFO"] = script_name, path[len(script_name) :]

    def leaves_unchanged(self, raw_head: bytes, address: Any) -> bool:
        """Whether it certainly refuses nothing in a request, and changes nothing in its environ
        except ``RAW_URI``."""
        if self._script_name or isinstance(address, ProxiedAddress) or b"_" in raw_head:
            return False
        if 0 < self._max_field < len(raw_head):
            return False
        head = raw_head.lower()
        return not any(name in head for name in self._scheme_names)

    def _set_scheme(self, environ: dict[str, Any]) -> None:
        schemes = {
            "https" if environ[key] == secure else "http"
            for key, secure in self._scheme_headers
            if key in environ
        }
        if len(schemes) > 1:
            raise RequestError("The headers for the scheme contradict each other.")
        if schemes:
            environ["wsgi.url_scheme"] = schemes.pop()


def trust_of(allowed: list[str]) -> Any:
    """A function that returns whether an address is ``allowed`` (``*``: all are)."""
    if "*" in allowed:
        return lambda address: True
    networks = [ipaddress.ip_network(each.strip(), strict=False) for each in allowed]

    @functools.lru_cache(64)
    def trusts(address: str) -> bool:
        try:
            parsed = ipaddress.ip_address(address)
        except ValueError:
            return False
        return any(parsed in network for network in networks)

    return trusts


def read_proxy_header(sock: Any, address: Any, mode: str, trusts: Any, timeout: float) -> Any:
    """Reads the PROXY header (haproxy's protocol, version 1 or 2, as ``mode`` says) of a connection
    from ``sock``, a gevent socket; returns the client's address, or ``address`` if there is none.

    Raises:
        ValueError: the header is malformed, or its sender is not trusted.
        OSError: the connection is lost, or the header is not complete within ``timeout`` seconds.
    """
    deadline = time.monotonic() + timeout
    while True:
        data = _peek(sock, deadline)
        has_v1 = mode in ("v1", "auto") and data[:6] == b"PROXY "[: len(data)]
        has_v2 = mode in ("v2", "auto") and data[:12] == _V2_SIGNATURE[: len(data)]
        if not (has_v1 or has_v2):
            return address
        size = _size_of_v2(data) if has_v2 else data.find(b"\r\n") + 2
        if has_v1 and size < 2 and len(data) > _MAX_V1:
            raise ValueError("the PROXY header has no end")
        if size >= 2:
            break
        if isinstance(address, tuple) and not trusts(str(address[0])):
            return address  # not HTTP either: the parser will refuse it
        if time.monotonic() > deadline:
            raise TimeoutError(f"no whole PROXY header within {timeout:g} s")
        gevent.sleep(_POLL)  # for the rest of a header that arrives in pieces
    if isinstance(address, tuple) and not trusts(str(address[0])):
        raise ValueError(f"a PROXY header from {address[0]}, which proxy_allow_ips does not name")
    header = b""
    while len(header) < size:
        sock.settimeout(max(0.001, deadline - time.monotonic()))
        piece = sock.recv(size - len(header))
        if not piece:
            raise ConnectionResetError("the connection ended in a PROXY header")
        header += piece
    sock.settimeout(None)
    client = _parse_v2(header) if has_v2 else _parse_v1(header)
    if client is None:
        return address
    protocol, source, port, proxy, proxy_port = client
    environ = {"PROXY_PROTOCOL": protocol, "PROXY_ADDR": proxy, "PROXY_PORT": str(proxy_port)}
    return ProxiedAddress((source, port), address, environ)


def _peek(sock: Any, deadline: float) -> bytes:
    sock.settimeout(max(0.001, deadline - time.monotonic()))
    try:
        data: bytes = sock.recv(_MAX_V1 + 1, socket.MSG_PEEK)
    finally:
        sock.settimeout(None)
    if not data:
        raise ConnectionResetError("the connection ended before a request")
    return data


def _size_of_v2(data: bytes) -> int:
    return 16 + int.from_bytes(data[14:16], "big") if len(data) >= 16 else 0


def _parse_v1(header: bytes) -> tuple[str, str, int, str, int] | None:
    parts = header[:-2].decode("latin-1").split(" ")
    if parts[1] == "UNKNOWN":
        return None
    if len(parts) != 6 or parts[1] not in ("TCP4", "TCP6"):
        raise ValueError(f"malformed PROXY header {header!r}")
    version = 4 if parts[1] == "TCP4" else 6
    for text in parts[2:4]:
        if ipaddress.ip_address(text).version != version:
            raise ValueError(f"malformed PROXY header {header!r}")
    ports = [int(text) for text in parts[4:] if text.isascii() and text.isdigit()]
    if len(ports) != 2 or max(ports) > 65535:
        raise ValueError(f"malformed PROXY header {header!r}")
    return parts[1], parts[2], ports[0], parts[3], ports[1]


def _parse_v2(header: bytes) -> tuple[str, str, int, str, int] | None:
    version, command = header[12] >> 4, header[12] & 15
    family, transport = header[13] >> 4, header[13] & 15
    if version != 2 or command not in (0, 1):
        raise ValueError("malformed PROXY header: unknown version or command")
    if command == 0 or family == 0:  # LOCAL: the proxy itself; UNSPEC: unknown
        return None
    size = {1: 4, 2: 16}.get(family)
    body = header[16:]
    if size is None or transport != 1 or len(body) < 2 * size + 4:
        raise ValueError("malformed PROXY header: not TCP over IPv4 or IPv6")
    source, proxy = (str(ipaddress.ip_address(body[at : at + size])) for at in (0, size))
    ports = body[2 * size : 2 * size + 4]
    protocol = "TCP4" if family == 1 else "TCP6"
    return (
        protocol,
        source,
        int.from_bytes(ports[:2], "big"),
        proxy,
        int.from_bytes(ports[2:], "big"),
    )
