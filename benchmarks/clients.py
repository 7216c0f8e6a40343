#!/usr/bin/env python3
"""Compares WebSocket clients: the CPU time that each spends for a request and its reply.

One server in C (echo.c) on one core echoes; one client at a time runs on another. Each connection
sends 32 bytes and waits for them to come back, again and again. greenws alternates with its rivals,
and what is compared is the median of the rounds.

  python benchmarks/clients.py --connections 1,100 --rounds 5 --seconds 2
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
MESSAGE = bytes(range(32))
CHECKED = 16  # messages between two readings of the clock
WARM_UP = 0.3  # seconds


class Meter:
    """Counts the messages of all connections, from the end of the warm-up to the end."""

    def __init__(self, seconds: float) -> None:
        now = time.perf_counter()
        self._begin = now + WARM_UP
        self._end = now + WARM_UP + seconds
        self.began = 0.0
        self._cpu = 0.0
        self.messages = 0

    def is_over(self, messages: int) -> bool:
        """Told of ``messages`` more."""
        now = time.perf_counter()
        if self.began:
            self.messages += messages
        elif now >= self._begin:
            self.began = now
            self._cpu = cpu()
        return now >= self._end and self.messages > 0

    def result(self) -> dict[str, float]:
        seconds = time.perf_counter() - self.began
        return {
            "cpu": (cpu() - self._cpu) / self.messages * 1e6,
            "rate": self.messages / seconds,
        }


def cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


# -- the clients


def run_greenws(url: str, connections: int, seconds: float) -> dict[str, float]:
    import gevent

    import greenws

    config = greenws.Config(deflate=False)
    sockets = [greenws.connect(url, config=config, proxy=None) for _ in range(connections)]
    meter = Meter(seconds)

    def converse(socket: Any) -> None:
        while True:
            for _ in range(CHECKED):
                socket.send(MESSAGE)
                socket.receive()
            if meter.is_over(CHECKED):
                return

    gevent.joinall([gevent.spawn(converse, socket) for socket in sockets], raise_error=True)
    return meter.result()


def run_threads(
    open_socket: Callable[[], Any],
    converse: Callable[[Any], None],
    connections: int,
    seconds: float,
) -> dict[str, float]:
    """A thread for each connection."""
    sockets = [open_socket() for _ in range(connections)]
    meter = Meter(seconds)

    def work(socket: Any) -> None:
        while True:
            for _ in range(CHECKED):
                converse(socket)
            if meter.is_over(CHECKED):
                return

    threads = [threading.Thread(target=work, args=(socket,)) for socket in sockets]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return meter.result()


def run_websockets_sync(url: str, connections: int, seconds: float) -> dict[str, float]:
    from websockets.sync.client import connect

    def converse(socket: Any) -> None:
        socket.send(MESSAGE)
        socket.recv()

    return run_threads(
        lambda: connect(url, compression=None, proxy=None), converse, connections, seconds
    )


def run_websocket_client(url: str, connections: int, seconds: float) -> dict[str, float]:
    import websocket

    def converse(socket: Any) -> None:
        socket.send_binary(MESSAGE)
        socket.recv()

    return run_threads(lambda: websocket.create_connection(url), converse, connections, seconds)


def run_websockets_asyncio(url: str, connections: int, seconds: float) -> dict[str, float]:
    import uvloop
    from websockets.asyncio.client import connect

    async def main() -> dict[str, float]:
        sockets = [await connect(url, compression=None, proxy=None) for _ in range(connections)]
        meter = Meter(seconds)

        async def converse(socket: Any) -> None:
            while True:
                for _ in range(CHECKED):
                    await socket.send(MESSAGE)
                    await socket.recv()
                if meter.is_over(CHECKED):
                    return

        await asyncio.gather(*map(converse, sockets))
        return meter.result()

    return uvloop.run(main())


def run_aiohttp(url: str, connections: int, seconds: float) -> dict[str, float]:
    import aiohttp
    import uvloop

    async def main() -> dict[str, float]:
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector) as session:
            sockets = [await session.ws_connect(url) for _ in range(connections)]
            meter = Meter(seconds)

            async def converse(socket: Any) -> None:
                while True:
                    for _ in range(CHECKED):
                        await socket.send_bytes(MESSAGE)
                        await socket.receive()
                    if meter.is_over(CHECKED):
                        return

            await asyncio.gather(*map(converse, sockets))
            return meter.result()

    return uvloop.run(main())


def run_picows(url: str, connections: int, seconds: float) -> dict[str, float]:
    import uvloop
    from picows import WSListener, WSMsgType, ws_connect

    async def main() -> dict[str, float]:
        over = asyncio.get_running_loop().create_future()
        left = connections

        class Client(WSListener):
            count = 0

            def on_ws_frame(self, transport: Any, frame: Any) -> None:
                nonlocal left
                frame.get_payload_as_bytes()
                self.count += 1
                if self.count % CHECKED == 0 and meter.is_over(CHECKED):
                    left -= 1
                    if left == 0:
                        over.set_result(None)
                    return
                transport.send(WSMsgType.BINARY, MESSAGE)

        transports = [(await ws_connect(Client, url))[0] for _ in range(connections)]
        meter = Meter(seconds)
        for transport in transports:
            transport.send(WSMsgType.BINARY, MESSAGE)
        await over
        return meter.result()

    return uvloop.run(main())


CLIENTS: dict[str, tuple[Callable[..., dict[str, float]], str]] = {
    "greenws": (run_greenws, "greenws"),
    "picows": (run_picows, "picows"),
    "aiohttp": (run_aiohttp, "aiohttp"),
    "websockets-asyncio": (run_websockets_asyncio, "websockets"),
    "websocket-client": (run_websocket_client, "websocket"),
    "websockets-sync": (run_websockets_sync, "websockets"),
}
"""What runs it, and the package that must be installed."""


# -- measuring


def build_server(folder: Path) -> Path:
    target = folder / "echo"
    compiler = os.environ.get("CC", "cc").split()
    command = [*compiler, "-O2", "-std=gnu11", "-o", str(target), str(HERE / "echo.c")]
    subprocess.run(command, check=True)
    return target


def pin(core: int) -> None:
    if core in os.sched_getaffinity(0):
        os.sched_setaffinity(0, {core})


def measure(name: str, url: str, connections: int, seconds: float, core: int) -> dict[str, float]:
    """In a process of its own."""
    command = [sys.executable, __file__, "--run", name, "--url", url]
    command += ["--connections", str(connections), "--seconds", str(seconds)]
    env = {**os.environ, "PYTHONPATH": str(HERE.parent)}
    done = subprocess.run(
        command,
        env=env,
        capture_output=True,
        text=True,
        timeout=60 + 10 * seconds,
        preexec_fn=lambda: pin(core),
    )
    if done.returncode:
        sys.exit(f"{name} failed:\n{done.stderr}")
    result: dict[str, float] = json.loads(done.stdout)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--connections", default="1,100", help="how many at once; separated by ,")
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--against", default=",".join(CLIENTS), help="clients; separated by ,")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--run", choices=CLIENTS, help=argparse.SUPPRESS)
    parser.add_argument("--url", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        run = CLIENTS[options.run][0]
        print(json.dumps(run(options.url, int(options.connections), options.seconds)))
        return
    rivals = [name for name in options.against.split(",") if name != "greenws"]
    for name in list(rivals):
        if importlib.util.find_spec(CLIENTS[name][1]) is None:
            print(f"{name}: not installed")
            rivals.remove(name)
    figures = []
    with tempfile.TemporaryDirectory() as folder:
        server = subprocess.Popen(
            [str(build_server(Path(folder)))],
            stdout=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: pin(0),
        )
        try:
            assert server.stdout is not None
            url = f"ws://127.0.0.1:{server.stdout.readline().split()[1]}/"
            for connections in map(int, options.connections.split(",")):
                print(f"\n32 bytes, {connections} connection{'s' * (connections > 1)}")
                print(f"{'client':20}{'µs CPU':>8}{'/ ours':>8}{'messages/s':>12}")
                for name in ["greenws", *rivals]:
                    pairs = []
                    for _ in range(options.rounds):
                        ours = measure("greenws", url, connections, options.seconds, 1)
                        theirs = (
                            measure(name, url, connections, options.seconds, 1)
                            if name != "greenws"
                            else ours
                        )
                        pairs.append((ours, theirs))
                    median = statistics.median(theirs["cpu"] for _, theirs in pairs)
                    ratio = statistics.median(b["cpu"] / a["cpu"] for a, b in pairs)
                    rate = statistics.median(theirs["rate"] for _, theirs in pairs)
                    print(f"{name:20}{median:8.2f}{ratio:8.2f}{rate:12,.0f}", flush=True)
                    figures.append(
                        {
                            "connections": connections,
                            "client": name,
                            "cpu": median,
                            "ratio": ratio,
                            "rate": rate,
                        }
                    )
        finally:
            server.kill()
            server.wait()
            if server.stdout is not None:
                server.stdout.close()
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
