#!/usr/bin/env python3
"""The instructions that a server executes for each message or handshake, and the memory of an idle
connection.

Unlike CPU time, instructions hardly depend on what else the machine does. Valgrind counts those of
a server whose clients are in the same process (peers.c), all with a message under way at once and a
simulated clock, so that each run does the same: two of them differ by less than 0.3 %. So with
handshakes, of which 32 are under way.

    python benchmarks/instructions.py
    python benchmarks/instructions.py --against ../before --against ../other

A checkout to compare with is run by its own .venv, if it has one. Needs valgrind and a C compiler.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from run import HERE, LOAD, ROOT, build_load, is_current

# What both checkouts run: it uses nothing but greenws's public names. Without keepalive, because
# pings depend on time.
SERVER = """
import signal, sys
if sys.argv[2] == "patched":
    from gevent import monkey
    monkey.patch_all()
import gevent
import greenws, greenws.websocket
from greenws import Config, Routes, WebSocketServer

assert greenws.__file__.startswith(sys.argv[1]), greenws.__file__
routes = Routes()

@routes.websocket("/")
def echo(request, socket):
    for message in socket:
        socket.send(message)

server = WebSocketServer(("127.0.0.1", 0), routes, log=None, config=Config(ping_interval=None))
server.start()
form = "compiled" if greenws.websocket.__file__.endswith(".so") else "pure"
print(form, server.server_port, flush=True)
server.serve_forever()
print(server.stats.traffic.messages_in, server.stats.connections_total, flush=True)
"""

# A server and its clients. Only what happens between them is counted.
ECHOES = """
import ctypes, os, socket, struct, sys, tempfile
checkout, patched, library, *numbers = sys.argv[1:]
connections, size, inflight, rounds, first = map(int, numbers)
if patched == "patched":
    from gevent import monkey
    monkey.patch_all()
import gevent
from gevent.event import Event
from gevent.monkey import get_original
import greenws, greenws.websocket
from greenws import Config, Routes, WebSocketServer

assert greenws.__file__.startswith(checkout), greenws.__file__
routes = Routes()

@routes.websocket("/")
def echo(request, socket):
    for message in socket:
        socket.send(message)

path = tempfile.mktemp()
listener = gevent.socket.socket(socket.AF_UNIX)
listener.bind(path)
listener.listen(4096)
config = Config(ping_interval=None, max_connections=None)
server = WebSocketServer(listener, routes, log=None, config=config)
server.start()
clients = []
for _ in range(connections):
    client = get_original("socket", "socket")(socket.AF_UNIX)
    client.connect(path)
    client.sendall(
        b"GET / HTTP/1.1\\r\\nHost: localhost\\r\\n"
        b"Upgrade: websocket\\r\\nConnection: Upgrade\\r\\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\\r\\nSec-WebSocket-Version: 13\\r\\n\\r\\n"
    )
    gevent.socket.wait_read(client.fileno())
    assert client.recv(4096).startswith(b"HTTP/1.1 101")
    clients.append(client)
os.unlink(path)

lengths = struct.pack("!BBH", 0x82, 0x80 | 126, size) if size > 125 else bytes([0x82, 0x80 | size])
data = (lengths + bytes(4 + size)) * inflight
expected = ctypes.c_size_t((len(lengths) + size) * inflight)
exchange = ctypes.CDLL(library).exchange
numbers = (ctypes.c_int * connections)(*[client.fileno() for client in clients])
received = (ctypes.c_size_t * connections)()
done = 0
over = Event()
watcher = gevent.get_hub().loop.prepare()

def step():
    global done
    sent = ctypes.c_size_t(len(data) if done < rounds else 0)
    if exchange(numbers, received, connections, expected, data, sent, first):
        done += 1
    if done > rounds:
        watcher.stop()
        over.set()

watcher.start(step)
over.wait()
print("compiled" if greenws.websocket.__file__.endswith(".so") else "pure", flush=True)
os._exit(0)
"""

# The same, with clients that go through handshakes. With keepalive, as a server has it.
HANDSHAKES = """
import ctypes, os, sys
checkout, patched, library, *numbers = sys.argv[1:]
connections, first, last = map(int, numbers)
if patched == "patched":
    from gevent import monkey
    monkey.patch_all()
import gevent
from gevent.event import Event
import greenws, greenws.websocket
from greenws import Routes, WebSocketServer

assert greenws.__file__.startswith(checkout), greenws.__file__
routes = Routes()

@routes.websocket("/")
def echo(request, socket):
    for message in socket:
        socket.send(message)

server = WebSocketServer(("127.0.0.1", 0), routes, log=None)
server.start()
request = (
    b"GET / HTTP/1.1\\r\\nHost: 127.0.0.1:%d\\r\\n"
    b"Upgrade: websocket\\r\\nConnection: Upgrade\\r\\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\\r\\nSec-WebSocket-Version: 13\\r\\n\\r\\n"
) % server.server_port
handshakes = ctypes.CDLL(library).handshakes
clients = (ctypes.c_int * connections)(*[-1] * connections)
states = (ctypes.c_int * connections)()
over = Event()
watcher = gevent.get_hub().loop.idle()  # so the loop does not block

def step():
    arguments = (clients, states, connections, server.server_port, request, first, last)
    if handshakes(*arguments) == last:
        watcher.stop()
        over.set()

watcher.start(step)
over.wait()
assert server.stats.connections_total == last
print("compiled" if greenws.websocket.__file__.endswith(".so") else "pure", flush=True)
os._exit(0)
"""

_WARM = 20  # rounds of messages before those that count
_WARM_HANDSHAKES = 500
_HANDSHAKES = 3000  # that are counted; enough for a collection of the oldest generation
_HANDSHAKE_CLIENTS = 32  # at a time


def python_of(checkout: Path) -> str:
    """The Python that runs ``checkout``: that of its own virtual environment, if there is one."""
    own = checkout / ".venv" / "bin" / "python"
    return str(own) if own.exists() else sys.executable


@contextmanager
def server(
    checkout: Path, options: argparse.Namespace, *wrapper: str
) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A server of ``checkout``, and its port. ``wrapper``: the command that runs it."""
    environ = {**os.environ, "PYTHONPATH": str(checkout), "PYTHONHASHSEED": "0"}
    process = subprocess.Popen(
        [*wrapper, python_of(checkout), "-c", SERVER, str(checkout)]
        + ["patched" if options.patched else ""],
        stdout=subprocess.PIPE,
        text=True,
        env=environ,
        cwd=checkout,
    )
    try:
        assert process.stdout is not None
        words = process.stdout.readline().split()
        if len(words) != 2:
            raise SystemExit(f"{checkout}: the server did not start")
        if words[0] != "compiled" and not environ.get("GREENWS_PURE_PYTHON"):
            raise SystemExit(f"{checkout}: not compiled; run pip install -e . there")
        yield process, int(words[1])
    finally:
        process.kill()
        process.wait()


def build_peers() -> Path:
    """Compiles peers.c if it is newer than its library."""
    library = LOAD.with_name("peers")
    if not is_current(library):
        compiler = (os.environ.get("CC") or "cc").split()
        library.parent.mkdir(exist_ok=True)
        command = [*compiler, "-O2", "-shared", "-fPIC", "-o", str(library), str(HERE / "peers.c")]
        subprocess.run(command, check=True)
    return library


def instructions_in(out: Path) -> int:
    """The sum that callgrind has written."""
    summary = re.search(r"^(?:summary|totals): (\d+)", out.read_text(), re.MULTILINE)
    assert summary is not None
    return int(summary[1])


def count(checkout: Path, options: argparse.Namespace, program: str, *numbers: int) -> int:
    """The instructions of ``program``, a server with its clients, under callgrind."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "callgrind.out"
        command = ["valgrind", "--quiet", "--tool=callgrind", "--instr-atstart=no"]
        command += [f"--callgrind-out-file={out}", python_of(checkout), "-c", program]
        command += [str(checkout), "patched" if options.patched else "", str(build_peers())]
        environ = {**os.environ, "PYTHONPATH": str(checkout), "PYTHONHASHSEED": "0"}
        environ["LD_PRELOAD"] = str(build_peers())
        run = subprocess.run(
            [*command, *map(str, numbers)],
            stdout=subprocess.PIPE,
            text=True,
            env=environ,
            cwd=checkout,
            check=True,
            timeout=1200,
        )
        if run.stdout.split() != ["compiled"] and not environ.get("GREENWS_PURE_PYTHON"):
            raise SystemExit(f"{checkout}: not compiled; run pip install -e . there")
        return instructions_in(out)


def per_handshake(checkout: Path, options: argparse.Namespace) -> float:
    """Instructions for each handshake and its close."""
    last = _WARM_HANDSHAKES + _HANDSHAKES
    numbers = (_HANDSHAKE_CLIENTS, _WARM_HANDSHAKES, last)
    return count(checkout, options, HANDSHAKES, *numbers) / _HANDSHAKES


def per_message(checkout: Path, options: argparse.Namespace) -> float:
    """Instructions for each message."""
    a_round = options.connections * options.inflight
    rounds = max(1, options.messages // a_round)
    numbers = (options.connections, options.size, options.inflight, _WARM + rounds, _WARM)
    return count(checkout, options, ECHOES, *numbers) / (rounds * a_round)


def memory(checkout: Path, options: argparse.Namespace) -> float:
    """Bytes by which the server's resident memory grows for each idle connection."""

    def resident(pid: int) -> int:
        status = Path(f"/proc/{pid}/status").read_text()
        found = re.search(r"VmRSS:\s+(\d+) kB", status)
        assert found is not None
        return int(found[1]) * 1024

    def idle(port: int, number: int) -> subprocess.Popen[str]:
        command = [str(LOAD), "--port", str(port), "--mode", "idle", "--connections", str(number)]
        load = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert load.stdout is not None
        json.loads(load.stdout.readline())  # when each has echoed once
        return load

    with server(checkout, options) as (process, port):
        first = idle(port, 50)  # whatever is allocated once
        before = resident(process.pid)
        others = idle(port, options.idle)
        after = resident(process.pid)
        for load in (first, others):
            load.communicate()
    return (after - before) / options.idle


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--against",
        action="append",
        default=[],
        type=Path,
        metavar="DIRECTORY",
        help="another checkout of greenws, compiled; may be repeated",
    )
    parser.add_argument("--patched", action="store_true", help="after gevent's monkey.patch_all()")
    parser.add_argument(
        "--handshakes", action="store_true", help="count those of a handshake and its close"
    )
    parser.add_argument("--connections", type=int, default=100, help="100")
    parser.add_argument("--inflight", type=int, default=1, help="1; messages under way on each")
    parser.add_argument("--size", type=int, default=32, help="32; bytes of a message, to 65535")
    parser.add_argument("--messages", type=int, default=16000, help="16000; that are counted")
    parser.add_argument("--rounds", type=int, default=2, help="2; the least of them counts")
    parser.add_argument("--idle", type=int, default=2000, help="2000; idle connections; 0 for none")
    options = parser.parse_args()
    if not shutil.which("valgrind"):
        raise SystemExit("valgrind is not installed")
    build_load()
    checkouts = [ROOT, *(path.resolve() for path in options.against)]
    instructions: dict[Path, list[float]] = {path: [] for path in checkouts}
    resident: dict[Path, list[float]] = {path: [] for path in checkouts}
    for _ in range(options.rounds):  # in turns
        for path in checkouts:
            per = per_handshake if options.handshakes else per_message
            instructions[path].append(per(path, options))
            if options.idle:
                resident[path].append(memory(path, options))
    what = "handshake" if options.handshakes else "message"
    for path in checkouts:
        least = min(instructions[path])
        line = f"{path}: {least:,.0f} instructions per {what}"
        if path != ROOT:
            line += f" (here {min(instructions[ROOT]) / least - 1:+.2%})"
        line += f", rounds {', '.join(f'{value:,.0f}' for value in instructions[path])}"
        if options.idle:
            line += f"; {min(resident[path]):,.0f} bytes per idle connection"
            if path != ROOT:
                line += f" (here {min(resident[ROOT]) / min(resident[path]) - 1:+.2%})"
        print(line)


if __name__ == "__main__":
    main()
