"""Connecting a socket: names, addresses of both families, TLS. All of it blocks only the greenlet,
in programs that are patched and in those that are not.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import ssl
from collections import deque
from itertools import chain, zip_longest
from typing import Any

import gevent
from gevent import socket as gevent_socket
from gevent.queue import Empty, SimpleQueue

from ..hub.transport import no_delay

__all__ = ["dial", "dial_unix", "start_tls", "trusting_context"]

_STAGGER = 0.25  # seconds between two attempts (RFC 8305, section 5)


def dial(host: str, port: int) -> Any:
    """A TCP connection to ``host``. If it has several addresses, they are tried one after the
    other, IPv6 and IPv4 alternately, each 250 ms after the previous one or as soon as that has
    failed; the first that answers is used (Happy Eyeballs, RFC 8305).

    Raises:
        OSError: no address answers, or there is none.
    """
    addresses = _resolve(host, port)
    if len(addresses) == 1:
        return _connect(addresses[0], host)
    return _race(addresses, host, port)


def dial_unix(path: str) -> Any:
    """A connection to a Unix socket."""
    return _connect((gevent_socket.AF_UNIX, gevent_socket.SOCK_STREAM, 0, "", path), path)


def _resolve(host: str, port: int) -> list[Any]:
    """The addresses of ``host``, IPv6 and IPv4 alternately."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        pass
    else:
        if "%" not in host:  # an address needs no resolver and its threads
            is_4 = address.version == 4
            family = gevent_socket.AF_INET if is_4 else gevent_socket.AF_INET6
            sockaddr = (host, port) if is_4 else (host, port, 0, 0)
            return [(family, gevent_socket.SOCK_STREAM, 0, "", sockaddr)]
    try:
        found = gevent_socket.getaddrinfo(host, port, 0, gevent_socket.SOCK_STREAM)
    except gevent_socket.gaierror as error:
        raise type(error)(error.errno, f"cannot resolve {host}: {error.strerror}") from None
    first = [each for each in found if each[0] == found[0][0]]
    others = [each for each in found if each[0] != found[0][0]]
    return [each for each in chain(*zip_longest(first, others)) if each is not None]


def _connect(address: Any, name: str) -> Any:
    family, kind, protocol, _, sockaddr = address
    sock = gevent_socket.socket(family, kind, protocol)
    try:
        sock.connect(sockaddr)
    except OSError as error:
        sock.close()
        place = name if family == gevent_socket.AF_UNIX else f"{name} ({sockaddr[0]}):{sockaddr[1]}"
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise OSError(error.errno or errno.EIO, f"cannot connect to {place}: {reason}") from None
    except BaseException:
        sock.close()
        raise
    no_delay(sock)
    return sock


def _race(addresses: list[Any], host: str, port: int) -> Any:
    """The socket of the first address that answers."""
    waiting = deque(addresses)
    outcomes: SimpleQueue[Any] = SimpleQueue()
    attempts: list[Any] = []
    errors: list[OSError] = []
    winner = None
    try:
        while winner is None:
            if waiting:
                attempts.append(gevent.spawn(_attempt, waiting.popleft(), host, outcomes))
            try:
                outcome = outcomes.get(timeout=_STAGGER if waiting else None)
            except Empty:
                continue
            if not isinstance(outcome, OSError):
                winner = outcome
                return winner
            errors.append(outcome)
            if len(errors) == len(addresses):
                reasons = "; ".join(dict.fromkeys(error.strerror or "" for error in errors))
                raise OSError(errors[0].errno, reasons)
    finally:
        gevent.killall(attempts)
        while not outcomes.empty():
            outcome = outcomes.get()
            if not isinstance(outcome, OSError):
                outcome.close()


def _attempt(address: Any, host: str, outcomes: SimpleQueue[Any]) -> None:
    try:
        outcomes.put(_connect(address, host))
    except OSError as error:
        outcomes.put(error)


# -- TLS

# OpenSSL's errors for an answer in plain text, by version.
_NO_TLS = ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE")

_contexts: dict[tuple[str | None, ...], ssl.SSLContext] = {}


def trusting_context() -> ssl.SSLContext:
    """A context that trusts what the system trusts. Made once, since that takes 20 ms."""
    key = (os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR"))
    context = _contexts.get(key)
    if context is None:
        context = _contexts[key] = ssl.create_default_context()
        context.set_alpn_protocols(["http/1.1"])
    return context


def start_tls(sock: Any, context: ssl.SSLContext, host: str) -> Any:
    """The TLS connection over ``sock``, which it replaces. ``context`` is gevent's or Python's.

    Raises:
        ssl.SSLCertVerificationError: the certificate is not trusted, or not for ``host``.
        OSError: the handshake fails.
    """
    name = host.partition("%")[0].removesuffix(".")  # RFC 6066, section 3
    try:
        secured: Any = context.wrap_socket(
            sock, server_hostname=name, do_handshake_on_connect=False
        )
    except BaseException:
        sock.close()
        raise
    try:
        secured.settimeout(0.0)
        while True:
            try:
                secured.do_handshake()
                return secured
            except ssl.SSLWantReadError:
                gevent_socket.wait_read(secured.fileno())
            except ssl.SSLWantWriteError:
                gevent_socket.wait_write(secured.fileno())
    except ssl.SSLError as error:
        secured.close()
        hint = ""
        if error.reason in _NO_TLS:
            hint = "; it does not speak TLS on this port (ws:// instead of wss://?)"
        error.strerror = f"no TLS connection to {name}: {error.strerror or error}{hint}"
        raise
    except BaseException as error:
        secured.close()
        if isinstance(error, OSError):  # usually a reset
            error.strerror = f"no TLS connection to {name}: {error.strerror or error}"
        raise
