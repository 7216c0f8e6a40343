"""run_server.py's options, and the lines that it prints."""

from __future__ import annotations

import argparse
import errno
import sys
from collections.abc import Sequence

from gevent import ssl

from greenws import Rooms

LOG_LEVELS = ("debug", "info", "warning", "error", "critical")


def port_number(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) <= 65535):
        raise argparse.ArgumentTypeError(f"{text!r} is not a port (0 to 65535)")
    return int(text)


def worker_count(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= 1000):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of processes (1 to 1000)")
    return int(text)


def parse_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Serve the greenws demo: echo and chat.")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    parser.add_argument(
        "--port", type=port_number, default=8181, help="port, 0 for any free one (%(default)s)"
    )
    parser.add_argument(
        "--workers", type=worker_count, help="serve with that many processes, kept by gunicorn"
    )
    parser.add_argument(
        "--redis", metavar="URL", help="share the rooms through a Redis, such as redis://localhost"
    )
    parser.add_argument("--certfile", help="TLS certificate chain (PEM), for https and wss")
    parser.add_argument("--keyfile", help="the certificate's private key (PEM)")
    parser.add_argument(
        "--log-level", choices=LOG_LEVELS, default="info", help="what to log (%(default)s)"
    )
    options = parser.parse_args(arguments)
    if bool(options.certfile) != bool(options.keyfile):
        parser.error("--certfile and --keyfile go together: give both, or neither")
    if options.redis is not None:
        try:
            Rooms(options.redis).close()
        except (ImportError, ValueError) as error:
            parser.error(f"cannot use --redis {options.redis!r}: {error}")
    options.tls = None
    if options.certfile:
        options.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            for path in (options.certfile, options.keyfile):
                open(path, "rb").close()  # unlike load_cert_chain's, its error names the file
            options.tls.load_cert_chain(options.certfile, options.keyfile)
        except OSError as error:
            parser.error(f"cannot use {options.certfile} with {options.keyfile}: {error}")
    return options


def cannot_listen(options: argparse.Namespace, error: OSError) -> int:
    """Says so; the exit code."""
    host = f"[{options.host}]" if ":" in options.host else options.host
    reason = "the port is taken" if error.errno == errno.EADDRINUSE else error.strerror
    print(f"cannot listen on {host}:{options.port}: {reason}", file=sys.stderr)
    return 1
