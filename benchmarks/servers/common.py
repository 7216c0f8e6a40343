"""Shared by the servers: their options, and the two lines of output that run.py waits for."""

from __future__ import annotations

import argparse
import json
import platform
import ssl
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import NoReturn

MAX_MESSAGE_SIZE = 16 << 20  # for the case with 1 MiB messages
HOST = "127.0.0.1"

# for the floods
SMALL = b"small"
PART = bytes(1 << 16)  # of a download
PARTS = 1 << 14
ROWS = [f'{{"row": {number}}}' for number in range(1000)] * 400

TICK = 0.02  # seconds between two messages of the ticker


def table(number: int) -> dict[str, float]:
    """What the ticker sends: 20 prices."""
    return {f"SYMBOL{row}": round(100 + row + number % 1000 / 1000, 3) for row in range(20)}


def parse_options(tls: bool = False) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--deflate", action="store_true", help="permessage-deflate")
    parser.add_argument("--redis", metavar="URL", help="connects the rooms of several processes")
    parser.add_argument("--workers", type=int, default=1, help="processes, each with its own port")
    parser.add_argument("--http", action="store_true", help="serve http_app.py")
    parser.add_argument("--patched", action="store_true", help="after gevent's monkey-patching")
    parser.add_argument("--ping-interval", type=float, metavar="SECONDS", help="keepalive")
    if tls:
        parser.add_argument("--certfile")
        parser.add_argument("--keyfile")
    return parser.parse_args()


def tls_context(options: argparse.Namespace) -> ssl.SSLContext | None:
    if not options.certfile:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(options.certfile, options.keyfile)
    return context


def lead_workers(count: int) -> NoReturn:
    """Starts this program ``count`` times, and announces the ports of all."""
    command = [sys.executable, *sys.argv, "--workers", "1"]
    workers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(count)]
    ports, versions = [], ""
    for worker in workers:
        assert worker.stdout is not None
        for line in worker.stdout:
            if line.startswith("versions "):
                versions = line
            elif line.startswith("listening "):
                ports.append(line.split()[1])
                break
    if len(ports) < count:
        sys.exit("Error: a worker did not start")
    print(versions, end="")
    print("listening", *ports, flush=True)
    for worker in workers:
        worker.wait()
    sys.exit()


def announce(port: int, *packages: str, **more: str) -> None:
    """Prints the versions, then that the server listens."""
    versions = dict(more)
    for name in packages:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "?"
    versions["Python"] = platform.python_version()
    print("versions", json.dumps(versions), flush=True)
    print("listening", port, flush=True)


def announce_and_serve(server: object, *packages: str, **more: str) -> None:
    """Starts a gevent server, announces its port, and serves."""
    server.start()  # type: ignore[attr-defined]
    announce(server.server_port, *packages, **more)  # type: ignore[attr-defined]
    try:
        server.serve_forever()  # type: ignore[attr-defined]
    except KeyboardInterrupt:
        sys.exit()
