#!/usr/bin/env python3
"""The instructions that a server executes for each message or handshake, and the memory of an idle
connection.

Unlike CPU time, instructions hardly depend on what else the machine does, so changes of less than
1 % are visible. Valgrind counts those of a server that echoes messages from load.c, in two runs
with different numbers of messages; what both have in common (start, handshakes, end) cancels out.

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
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from run import LOAD, ROOT, build_load

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


_HANDSHAKE_SECONDS = 8.0  # of the longer run


class Run(NamedTuple):
    instructions: int
    done: int  # messages, or handshakes


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


def count(checkout: Path, options: argparse.Namespace, messages: int) -> Run:
    """One run of a server under callgrind that echoes ``messages`` messages, or a few more."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "callgrind.out"
        wrapper = ["valgrind", "--quiet", "--tool=callgrind", f"--callgrind-out-file={out}"]
        with server(checkout, options, *wrapper) as (process, port):
            command = [str(LOAD), "--port", str(port), "--warmup", "0", "--timeout", "60"]
            if options.handshakes:
                command += ["--mode", "handshake", "--connections", "16"]
                command += ["--duration", str(messages / options.messages * _HANDSHAKE_SECONDS)]
            else:
                command += ["--connections", str(options.connections)]
                command += ["--size", str(options.size), "--inflight", str(options.inflight)]
                command += ["--min-messages", str(messages), "--duration", "0.5"]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            process.send_signal(signal.SIGTERM)
            assert process.stdout is not None
            echoed, sessions = map(int, process.stdout.read().split())
            process.wait()
        summary = re.search(r"^(?:summary|totals): (\d+)", out.read_text(), re.MULTILINE)
        assert summary is not None
        return Run(int(summary[1]), sessions if options.handshakes else echoed)


def per_message(checkout: Path, options: argparse.Namespace) -> float:
    """Instructions for each message, or handshake."""
    short = count(checkout, options, options.messages // 8)
    long = count(checkout, options, options.messages)
    return (long.instructions - short.instructions) / (long.done - short.done)


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
    parser.add_argument("--size", type=int, default=32, help="32; bytes of a message")
    parser.add_argument("--messages", type=int, default=16000, help="16000; in the longer run")
    parser.add_argument("--rounds", type=int, default=3, help="3; the least of them counts")
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
            instructions[path].append(per_message(path, options))
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
