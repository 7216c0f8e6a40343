#!/usr/bin/env python3
"""The memory of an idle connection: plain, in a room, over TLS, with compression, under Flask, and
as ``wsgi.websocket``.

    python benchmarks/memory.py
    python benchmarks/memory.py --kinds plain,tls --connections 5000
    python benchmarks/memory.py --kinds plain,flask --connections 5000 --collector
    python benchmarks/memory.py --against ../before --python ~/.pyenv/versions/3.13.0/bin/python

For each kind a server is started. 50 connections are opened first, for what is allocated once, and
then the others; each sends a message, and waits for its echo. The figure is the growth of the
server's resident memory meanwhile, divided by the number of the others. A checkout to compare with
is run by its own .venv, if it has one. ``--python``: a Python that has greenws's requirements.
``--collector`` also prints how many objects the garbage collector visits, and how long a full
collection takes, before and after the others are opened.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import IO

ROOT = Path(__file__).resolve().parent.parent
FIRST = 50  # connections
KINDS = {
    "plain": "",
    "room": "a member of a room of all",
    "tls": "TLS 1.3",
    "tls-1.2": "",
    "deflate": "compression, without context takeover, used once",
    "deflate-takeover": "compression with context takeover in both directions, used once",
    "flask": "under a Flask view",
    "wsgi.websocket": "as gevent-websocket's applications have it",
}

SERVER = """
import gc, signal, ssl, sys, time
import gevent.ssl
from greenws import Config, Rooms, Routes, WebSocketServer

_, root, kind, certificate = sys.argv
options = {}
limits = {"ping_interval": None, "deflate_threshold": 0, "deflate": False}
if kind.startswith("tls"):
    options["ssl_context"] = context = gevent.ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    if kind == "tls-1.2":
        context.maximum_version = ssl.TLSVersion.TLSv1_2
if kind.startswith("deflate"):
    takeover = kind == "deflate-takeover"
    limits.update(deflate=True, deflate_takeover=takeover, deflate_peer_takeover=takeover)
application = routes = Routes()
rooms = Rooms()

def echo(request, socket):
    for message in socket:
        socket.send(message)

def member(request, socket):
    with rooms["all"].join(socket):
        echo(request, socket)

def environ_socket(environ, start_response):
    socket = environ["wsgi.websocket"]
    while (message := socket.receive()) is not None:
        socket.send(message)
    return []

if kind == "flask":
    from flask import Flask
    from greenws.integrations.flask import Sock
    application = Flask(__name__)
    sock = Sock(application)

    @sock.route("/")
    def view(socket):
        for message in socket:
            socket.send(message)
elif kind == "wsgi.websocket":
    application = environ_socket
else:
    routes.websocket("/")(member if kind == "room" else echo)

import greenws.websocket
assert greenws.__file__.startswith(root), greenws.__file__
server = WebSocketServer(
    ("127.0.0.1", 0), application, log=None, config=Config(**limits), backlog=8192, **options
)
server.start()
def collect():
    gc.collect()
    started = time.perf_counter()
    gc.collect()
    print(len(gc.get_objects()), time.perf_counter() - started, flush=True)

gevent.signal_handler(signal.SIGUSR1, collect)
form = "compiled" if greenws.websocket.__file__.endswith(".so") else "pure"
print(server.server_port, form, flush=True)
server.serve_forever()
"""

CLIENTS = """
import ssl, sys
import gevent, gevent.pool
from greenws import Config, connect

_, kind, port, first, number = sys.argv
context = None
if kind.startswith("tls"):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
takeover = kind == "deflate-takeover"
config = Config(ping_interval=None, deflate=kind.startswith("deflate"), deflate_threshold=0,
                deflate_takeover=takeover, deflate_peer_takeover=takeover)
url = f"{'wss' if context else 'ws'}://127.0.0.1:{port}/"
message = "an idle connection has said something before it fell silent"
sockets = []

def open_one(_):
    socket = connect(url, ssl_context=context, proxy=None, open_timeout=60, config=config)
    socket.send(message)
    assert socket.receive(timeout=60) == message
    sockets.append(socket)

for count in (first, number):
    pool = gevent.pool.Pool(32)
    for _ in pool.imap_unordered(open_one, range(int(count))):
        pass
    print(flush=True)
    sys.stdin.readline()
"""


def resident(pid: int) -> int:
    """Bytes."""
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def python_of(checkout: Path) -> str:
    own = checkout / ".venv" / "bin" / "python"
    return str(own) if own.exists() else sys.executable


def line_of(output: IO[str] | None) -> str:
    assert output is not None
    line = output.readline()
    if not line:
        raise SystemExit("a process did not start")
    return line


def collection(server: subprocess.Popen[str]) -> tuple[int, float]:
    """The objects that a full collection visits, and its seconds."""
    server.send_signal(signal.SIGUSR1)
    objects, seconds = line_of(server.stdout).split()
    return int(objects), float(seconds)


def measure(
    python: str, checkout: Path, kind: str, number: int, certificate: Path, collector: bool
) -> float:
    """Bytes for each connection. ``collector``: prints what the garbage collector takes."""
    environ = {**os.environ, "PYTHONPATH": str(checkout), "PYTHONHASHSEED": "0"}
    server = subprocess.Popen(
        [python, "-c", SERVER, str(checkout), kind, str(certificate)],
        stdout=subprocess.PIPE,
        text=True,
        env=environ,
        cwd=checkout,
    )
    clients = None
    try:
        port, form = line_of(server.stdout).split()
        if form != "compiled" and not environ.get("GREENWS_PURE_PYTHON"):
            raise SystemExit(f"{checkout}: not compiled for {python}; run pip install -e . there")
        clients = subprocess.Popen(
            [python_of(ROOT), "-c", CLIENTS, kind, port, str(FIRST), str(number)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        assert clients.stdin is not None
        line_of(clients.stdout)
        before = resident(server.pid)
        collected = [collection(server)] if collector else []
        clients.stdin.write("\n")
        clients.stdin.flush()
        line_of(clients.stdout)
        after = resident(server.pid)
        if collector:
            collected.append(collection(server))
            (objects, first), (more, last) = collected
            print(
                f"{kind:18} {objects:,} objects and {(more - objects) / number:.0f} for each; "
                f"a collection takes {first * 1000:.0f} ms, then {last * 1000:.0f} ms",
                flush=True,
            )
        return (after - before) / number
    finally:
        for process in (clients, server):
            if process is not None:
                process.kill()
                process.wait()


def make_certificate(folder: Path) -> Path:
    path = folder / "certificate.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    command += ["-nodes", "-days", "2", "-subj", "/CN=127.0.0.1", "-keyout", str(path)]
    made = subprocess.run([*command, "-out", "-"], check=True, capture_output=True, text=True)
    with path.open("a") as file:
        file.write(made.stdout)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kinds", default=",".join(KINDS), help=f"all of {', '.join(KINDS)}")
    parser.add_argument("--connections", type=int, default=1000, help="1000")
    parser.add_argument("--rounds", type=int, default=1, help="1; the least of them counts")
    parser.add_argument(
        "--against", type=Path, metavar="DIRECTORY", help="another checkout of greenws, compiled"
    )
    parser.add_argument("--collector", action="store_true", help="what a collection takes, too")
    parser.add_argument("--python", metavar="PATH", help="what runs the server")
    options = parser.parse_args()
    kinds = options.kinds.split(",")
    unknown = set(kinds) - set(KINDS)
    if unknown:
        raise SystemExit(f"unknown kind {', '.join(unknown)}; choose from: {', '.join(KINDS)}")
    checkouts = [ROOT] + ([options.against.resolve()] if options.against else [])
    with tempfile.TemporaryDirectory() as folder:
        certificate = make_certificate(Path(folder))
        for kind in kinds:
            for checkout in checkouts:
                python = options.python or python_of(checkout)
                least = min(
                    measure(
                        python, checkout, kind, options.connections, certificate, options.collector
                    )
                    for _ in range(options.rounds)
                )
                where = f" ({checkout})" if len(checkouts) > 1 else ""
                print(f"{kind:18} {least / 1000:8.1f} kB  {KINDS[kind]}{where}", flush=True)


if __name__ == "__main__":
    main()
