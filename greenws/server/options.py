"""Checks the options of ``WebSocketServer``: gevent takes unknown ones for options of TLS."""

from __future__ import annotations

import os
import re
import ssl
from dataclasses import fields
from typing import Any

import gevent.ssl

from ..checks import suggest
from ..config import Config
from ..hub.sockets import OwnedSSLSocket
from ..session import WebSocketHandler
from .handler import UpgradeHandler

__all__ = [
    "SERVER_OPTIONS",
    "check_config",
    "check_listener",
    "check_options",
    "load_authorities",
    "load_certificates",
    "prepare_tls",
]

_OF_CONTEXT = ("certfile", "keyfile", "ca_certs", "cert_reqs", "ciphers", "ssl_version")

SERVER_OPTIONS = frozenset(
    {
        # of gevent's WSGIServer
        "backlog",
        "spawn",
        "log",
        "error_log",
        "handler_class",
        "environ",
        # of gevent-websocket's
        "debug",
        "pre_start_hook",
        # of TLS
        *_OF_CONTEXT,
        "ssl_context",
        "server_side",
        "do_handshake_on_connect",
        "suppress_ragged_eofs",
    }
)

_ADVICE = {
    "host": "the address is the first argument: WebSocketServer((host, port), app)",
    "port": "the address is the first argument: WebSocketServer((host, port), app)",
    "address": "the address is the first argument: WebSocketServer((host, port), app)",
    "app": "the application is the second argument: WebSocketServer((host, port), app)",
    "workers": "a server is one process; for several, run "
    "'gunicorn -k greenws.gunicorn.Worker -w 4 module:app'",
    "threads": "each connection has a greenlet; there are no threads",
    "threaded": "each connection has a greenlet; there are no threads",
    "ssl": "TLS is certfile= and keyfile=, or ssl_context=",
    "cert": "TLS is certfile= and keyfile=, or ssl_context=",
    "reload": "for reloading while you develop, use 'flask run --debug' or 'gunicorn --reload'",
    "use_reloader": "for reloading while you develop, use 'flask run --debug' or "
    "'gunicorn --reload'",
}


def check_config(config: Any) -> Config:
    """
    Raises:
        TypeError: it is not a ``Config``.
    """
    if config is None:
        return Config()
    if isinstance(config, Config):
        return config
    if isinstance(config, dict):
        given = ", ".join(f"{name}={value!r}" for name, value in config.items())
        raise TypeError(f"config must be a greenws.Config, not a dict: config=Config({given})")
    raise TypeError(
        f"config must be a greenws.Config, such as Config(ping_interval=30), not {config!r}"
    )


def check_listener(listener: Any) -> None:
    """Checks an address as far as that is possible without binding it.

    Raises:
        TypeError: it is not an address, or has parts of wrong types.
        ValueError: the port is out of range, or missing in a str.
    """
    example = "an address is (host, port), such as ('127.0.0.1', 8181)"
    if callable(listener):
        raise TypeError(f"{example}; the application is the second argument, not {listener!r}")
    if isinstance(listener, str):
        if not re.fullmatch(r"([^/]*:)?[0-9]+", listener):
            raise ValueError(
                f"{example}, or 'host:port', not {listener!r}; for a Unix socket, give a "
                "gevent.socket.socket(AF_UNIX) after its bind() and listen()"
            )
        return
    port = listener
    if isinstance(listener, tuple):
        if len(listener) not in (2, 4) or not isinstance(listener[0], str):
            raise TypeError(f"{example}, not {listener!r}")
        if listener[0].startswith("["):
            raise ValueError(f"a host has no brackets in an address: '::1', not {listener[0]!r}")
        port = listener[1]
    elif hasattr(listener, "accept"):
        return
    if isinstance(port, bool) or not isinstance(port, int):
        raise TypeError(f"{example}, with the port as an int, not {listener!r}")
    if not 0 <= port <= 65535:
        raise ValueError(f"{example}, with a port up to 65535, not {listener!r}")


def _check_values(options: dict[str, Any]) -> None:
    """
    Raises:
        TypeError: an option of gevent's server has a value that would fail at the first client.
    """
    backlog, spawn = options.get("backlog"), options.get("spawn")
    handler_class = options.get("handler_class")
    if backlog is not None and (isinstance(backlog, bool) or not isinstance(backlog, int)):
        raise TypeError(f"backlog must be a whole number, not {backlog!r}")
    if backlog is not None and not 0 <= backlog < 1 << 31:
        raise ValueError(f"backlog must be a number of connections, 0 or more, not {backlog!r}")
    if (environ := options.get("environ")) is not None:
        try:
            dict(environ)
        except (TypeError, ValueError):
            raise TypeError(
                f"environ must be a dict, which is added to each request's environ, not {environ!r}"
            ) from None
    hook = options.get("pre_start_hook")
    if hook is not None and not callable(hook):
        raise TypeError(f"pre_start_hook must be a function of the handler, not {hook!r}")
    if spawn is not None and not _can_spawn(spawn):
        raise TypeError(
            "spawn must be a number, a Pool, a function such as gevent.spawn, or 'default', not "
            f"{spawn!r}"
        )
    if handler_class is not None:
        _check_handler_class(handler_class)
    for name in ("log", "error_log"):
        log = options.get(name)
        if log not in (None, "default") and not hasattr(log, "write") and not hasattr(log, "log"):
            raise TypeError(f"{name} must be a logger or an open file, not {log!r}")


def _can_spawn(spawn: Any) -> bool:
    """Whether gevent's server can do anything with ``spawn`` that serves a client."""
    if isinstance(spawn, int):
        return not isinstance(spawn, bool) and spawn > 0
    return spawn == "default" or hasattr(spawn, "spawn") or callable(spawn)


def _check_handler_class(given: Any) -> None:
    """
    Raises:
        TypeError: it is not a class, or not a subclass of ``UpgradeHandler``.
    """
    if isinstance(given, type) and issubclass(given, UpgradeHandler):
        return
    if isinstance(given, WebSocketHandler) or given is WebSocketHandler:
        hint = "a WebSocketHandler is an application: WebSocketServer(address, handler)"
    elif isinstance(given, type):
        hint = "other classes cannot open sessions. Leave it out, or derive yours from that class"
    else:
        hint = "set what it needs as attributes of a subclass"
    raise TypeError(
        f"handler_class must be a class, greenws.UpgradeHandler or a subclass of it, not {given!r};"
        f" {hint}"
    )


def check_options(options: dict[str, Any]) -> None:
    """
    Raises:
        TypeError: an option does not exist, or belongs to ``Config``, or its value has the wrong
            type.
    """
    of_config = {field.name for field in fields(Config)}
    for name, value in options.items():
        if name in SERVER_OPTIONS:
            continue
        if name in of_config:
            raise TypeError(
                f"{name} is an option of Config: "
                f"WebSocketServer(address, app, config=Config({name}={value!r}))"
            )
        text = f"WebSocketServer has no option {name!r}"
        if name in _ADVICE:
            raise TypeError(f"{text}: {_ADVICE[name]}")
        meant = suggest(name, {*SERVER_OPTIONS, *of_config, "config", "trusted_proxies"})
        if meant in of_config:
            raise TypeError(f"{text}; did you mean config=Config({meant}={value!r})?")
        if meant is not None:
            raise TypeError(f"{text}; did you mean {meant!r}?")
        raise TypeError(
            f"{text}. Limits and timeouts are options of greenws.Config: config=Config(...); the "
            f"server's are config, trusted_proxies, {', '.join(sorted(SERVER_OPTIONS))}"
        )
    _check_values(options)


def load_certificates(context: ssl.SSLContext, certfile: str, keyfile: str | None) -> None:
    """``context.load_cert_chain()``, with errors that name the files.

    Raises:
        OSError: a file cannot be read; the two do not match, or the key is encrypted
            (``ssl.SSLError``).
    """
    _check_files(certfile=certfile, keyfile=keyfile)
    try:
        context.load_cert_chain(certfile, keyfile, _refuse_password)
    except ssl.SSLError as error:
        files = certfile if keyfile is None else f"{certfile} and {keyfile}"
        hint = ""
        if keyfile is None and not isinstance(error, _EncryptedKey):
            hint = " (without keyfile, it must hold the key, too)"
        raise ssl.SSLError(error.errno, f"cannot use {files}: {error.strerror}{hint}") from None


class _EncryptedKey(ssl.SSLError):
    """The key needs a password."""


def _refuse_password() -> str:
    """Called for an encrypted key. OpenSSL would ask for the password on the terminal, which blocks
    the process, and fails in a service.

    Raises:
        ssl.SSLError: always.
    """
    raise _EncryptedKey(
        ssl.SSL_ERROR_SSL,
        "the key is encrypted; decrypt it (openssl pkey), or give ssl_context (in gunicorn.conf.py "
        "a function that returns it), a context whose load_cert_chain() got the password",
    )


def load_authorities(context: ssl.SSLContext, ca_certs: str) -> None:
    """``context.load_verify_locations()``, with errors that name the file.

    Raises:
        OSError: it cannot be read, or holds no certificate (``ssl.SSLError``).
    """
    _check_files(ca_certs=ca_certs)
    try:
        context.load_verify_locations(ca_certs)
    except ssl.SSLError as error:
        raise ssl.SSLError(
            error.errno, f"cannot use ca_certs {ca_certs} as a PEM file: {error.strerror}"
        ) from None


def _check_files(**paths: Any) -> None:
    """
    Raises:
        OSError: one of them cannot be read; the errors of ``ssl`` do not name the file.
        TypeError: one is not a path. (A number would be a descriptor.)
    """
    for name, path in paths.items():
        if path is None:
            continue
        if not isinstance(path, (str, bytes, os.PathLike)):
            raise TypeError(f"{name} must be the path of a file, not {path!r}")
        open(path, "rb").close()


def prepare_tls(options: dict[str, Any]) -> Any:
    """Replaces the options of TLS (``certfile``, ``keyfile``...) with a context, which has our ALPN
    protocol; returns it, or None without TLS.

    Raises:
        OSError: see :func:`load_certificates`.
        TypeError: options contradict each other.
    """
    for name in (*_OF_CONTEXT, "ssl_context"):  # None counts as not given
        if options.get(name, 0) is None:
            del options[name]
    given = {name: options.pop(name) for name in _OF_CONTEXT if name in options}
    context = options.get("ssl_context")
    if given and context is not None:
        raise TypeError(
            f"give either ssl_context or {', '.join(given)}: the context has its own certificate"
        )
    if context is None:
        if not given and not options.keys() & {"server_side", "do_handshake_on_connect"}:
            return None
        if "certfile" not in given:
            raise TypeError(
                f"{', '.join(given) or 'TLS'} needs certfile=, the file of the certificate chain"
            )
        context = options["ssl_context"] = _make_context(given)
    if not isinstance(context, gevent.ssl.SSLContext):
        if isinstance(context, (str, tuple, list)):  # as Flask and werkzeug take them
            raise TypeError(
                f"ssl_context must be a gevent.ssl.SSLContext, not {context!r}: write "
                "certfile='cert.pem', keyfile='key.pem'"
            )
        raise TypeError(
            f"ssl_context must be a gevent.ssl.SSLContext, not {context!r}: "
            "with one of Python's own, each handshake would block all greenlets"
        )
    context.set_alpn_protocols(["http/1.1"])
    if context.sslsocket_class is gevent.ssl.SSLSocket:
        context.sslsocket_class = OwnedSSLSocket
    return context


def _make_context(given: dict[str, Any]) -> Any:
    for name, example in (("cert_reqs", "ssl.CERT_REQUIRED"), ("ssl_version", "ssl.PROTOCOL_TLS")):
        if not isinstance(given.get(name, 0), int):
            raise TypeError(f"{name} must be a constant such as {example}, not {given[name]!r}")
    if given.get("cert_reqs") == ssl.CERT_REQUIRED and "ca_certs" not in given:
        raise TypeError(
            "cert_reqs=ssl.CERT_REQUIRED needs ca_certs=, the file of the authorities that sign "
            "the clients' certificates: without it no client can connect"
        )
    context = gevent.ssl.SSLContext(given.get("ssl_version", ssl.PROTOCOL_TLS_SERVER))
    load_certificates(context, given["certfile"], given.get("keyfile"))
    if "ca_certs" in given:
        load_authorities(context, given["ca_certs"])
    if "cert_reqs" in given:
        context.verify_mode = given["cert_reqs"]
    if "ciphers" in given:
        try:
            context.set_ciphers(given["ciphers"])
        except ssl.SSLError:
            raise ValueError(
                f"ciphers must be names that OpenSSL knows, not {given['ciphers']!r}"
            ) from None
    return context
