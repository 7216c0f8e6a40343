"""The options of run_server.py, and the lines that it prints."""

from __future__ import annotations

import argparse
import errno
from collections.abc import Sequence

from gevent import ssl

from greenws import Rooms
from greenws.server.options import load_certificates

LOG_LEVELS = ("debug", "info", "warning", "error", "critical")


def parse_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options. A wrong one ends the program."""
    parser = argparse.ArgumentParser(
        description="Serve the greenws demo: an echo service, chat rooms, live figures."
    )
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default: %(default)s)"
    )
    parser.add_argument(
        "--port",
        type=port_number,
        default=8181,
        help="port to listen on, 0 for any free one (default: %(default)s)",
    )
    parser.add_argument(
        "--workers",
        metavar="N",
        type=worker_count,
        help="serve with N processes under gunicorn (default: one process, without gunicorn)",
    )
    parser.add_argument(
        "--redis",
        metavar="URL",
        help="share the rooms with other processes through Redis, e.g. redis://localhost",
    )
    parser.add_argument("--certfile", help="TLS certificate chain (PEM), for https and wss")
    parser.add_argument("--keyfile", help="private key of the certificate (PEM)")
    parser.add_argument(
        "--log-level",
        choices=LOG_LEVELS,
        default="info",
        help="lowest level to log (default: %(default)s)",
    )
    options = parser.parse_args(arguments)
    if bool(options.certfile) != bool(options.keyfile):
        parser.error("--certfile and --keyfile must be given together")
    if options.redis is not None:
        try:
            Rooms(options.redis).close()
        except (ImportError, ValueError) as error:
            parser.error(f"cannot use --redis {options.redis!r}: {error}")
    if options.certfile:
        try:
            load_certificates(
                ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), options.certfile, options.keyfile
            )
        except OSError as error:
            parser.error(f"cannot use {options.certfile} with {options.keyfile}: {error}")
    return options


def port_number(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) <= 65535):
        raise argparse.ArgumentTypeError(f"{text!r} is not a port number (0 to 65535)")
    return int(text)


def worker_count(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= 1000):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of processes (1 to 1000)")
    return int(text)


def in_url(host: str) -> str:
    """The host as a URL has it: an IPv6 address in brackets."""
    return f"[{host}]" if ":" in host else host


def start_line(options: argparse.Namespace, host: str, port: int) -> str:
    scheme = "https" if options.certfile else "http"
    return f"greenws demo on {scheme}://{in_url(host)}:{port}/  (press Ctrl-C to stop)"


def listen_error(options: argparse.Namespace, error: OSError) -> str:
    in_use = error.errno == errno.EADDRINUSE
    reason = "the port is already in use" if in_use else error.strerror
    return f"cannot listen on {in_url(options.host)}:{options.port}: {reason}"
