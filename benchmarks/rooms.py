"""What rooms cost where it hurts: members that come back at once, missed messages, histories, large
rooms, a Redis that hangs.

    python benchmarks/rooms.py

Everything is in one process, members included, over socket pairs and a redis-server of its own; so
the figures leave out handshakes and the network. Times are CPU time, where not said otherwise.
"""

# ruff: noqa: E402 - what follows is imported patched
from __future__ import annotations

from gevent import monkey

monkey.patch_all()

import contextlib
import os
import resource
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import gevent
from gevent import socket as gevent_socket

import greenws
from greenws import Rooms, policies
from greenws.brokers.redis import RedisBroker
from greenws.hub.transport import Transport
from greenws.rooms import json_id

ITEM = '{"text": "%s"}' % ("x" * 50)


@contextlib.contextmanager
def redis_server() -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        server = subprocess.Popen(
            ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", ""]
            + ["--dir", folder],
            stdout=subprocess.DEVNULL,
        )
        try:
            while True:
                with contextlib.suppress(OSError):
                    socket.create_connection(("127.0.0.1", port)).close()
                    break
                time.sleep(0.01)
            yield f"redis://127.0.0.1:{port}/0", server
        finally:
            server.kill()
            server.wait()


class Clients:
    """Members, and the ends of their connections, which are read while somebody asks for that."""

    def __init__(self, count: int) -> None:
        self.sockets: list[greenws.WebSocket] = []
        self.ends: list[Any] = []
        for _ in range(count):
            ours, theirs = gevent_socket.socketpair()
            transport = Transport(ours, gevent.get_hub(), None, None)
            self.sockets.append(greenws.WebSocket(transport, greenws.Config()))
            self.ends.append(theirs)

    def read(self) -> None:
        def drain(end: Any) -> None:
            with contextlib.suppress(OSError):
                while end.recv(1 << 20):
                    pass

        for end in self.ends:
            gevent.spawn(drain, end)

    def close(self) -> None:
        for each in self.sockets:
            each._abandon(1001)
        for end in self.ends:
            end.close()
        gevent.sleep(0)


@contextlib.contextmanager
def clients(count: int) -> Iterator[Clients]:
    made = Clients(count)
    try:
        yield made
    finally:
        made.close()


def tell(kind: str, id_: str, info: dict[str, Any]) -> str:
    return ITEM


def come_back(url: str, count: int) -> float:
    """ms a member, when so many come to another process at once, where nobody spoke meanwhile; each
    is told of the others."""
    old, new = Rooms(url, stamp=json_id), Rooms(url, stamp=json_id)
    with clients(count + 1) as made, old["r"].join(made.sockets.pop()) as first:
        old["r"].send(ITEM, wait=True)
        gevent.sleep(0.2)
        since, inside = first.position, []

        def visit(each: greenws.WebSocket) -> None:
            with new["r"].join(each, since=since, presence=tell, name="x"):
                inside.append(each)
                gevent.sleep(60)

        began = time.process_time()
        visits = [gevent.spawn(visit, each) for each in made.sockets]
        while len(inside) < count:
            gevent.sleep(0.01)
        gevent.sleep(1)
        used = time.process_time() - began
        gevent.killall(visits)
    old.close(1)
    new.close(1)
    return used / count * 1e3


def missed(url: str) -> float:
    """ms a client, for 200 that missed 1,000 messages; their reading included."""
    rooms = Rooms(url, stamp=json_id)
    with clients(201) as made:
        made.read()
        with rooms["m"].join(made.sockets.pop()) as first:
            since = first.position
            for _ in range(1000):
                rooms["m"].send(ITEM)
            rooms.flush()
            gevent.sleep(0.5)

            def visit(each: greenws.WebSocket) -> None:
                with rooms["m"].join(each, since=since):
                    pass

            began = time.process_time()
            gevent.joinall([gevent.spawn(visit, each) for each in made.sockets])
            used = time.process_time() - began
    rooms.close(1)
    return used / 200 * 1e3


def history(url: str) -> float:
    """ms of wall-clock time for history(50) after 3,000 visits."""
    rooms = Rooms(url, stamp=json_id)
    for _ in range(60):
        rooms["h"].send(ITEM)
    for _ in range(30):
        with clients(100) as made, contextlib.ExitStack() as stack:
            for each in made.sockets:
                stack.enter_context(rooms["h"].join(each))
    rooms.flush()
    gevent.sleep(1)
    began = time.monotonic()
    assert len(rooms["h"].history(50)) == 50
    used = time.monotonic() - began
    rooms.close(1)
    return used * 1e3


def longest_stop(url: str) -> float:
    """ms of the longest stop of the process: a room of 3,000, 100 messages at once."""
    rooms, stops = Rooms(), []

    def watch() -> None:
        last = time.process_time()
        while True:
            gevent.sleep(1e-4)
            now = time.process_time()
            stops.append(now - last)
            last = now

    with clients(3000) as made, contextlib.ExitStack() as stack:
        for each in made.sockets:
            stack.enter_context(rooms["big"].join(each, policy=policies.drop_oldest()))
        watching = gevent.spawn(watch)
        gevent.sleep(0.05)
        stops.clear()
        gevent.joinall([gevent.spawn(rooms["big"].send, "x" * 64) for _ in range(100)])
        gevent.sleep(0.01)
        watching.kill()
    return max(stops) * 1e3


def slowest_join(url: str, server: subprocess.Popen[bytes]) -> float:
    """s of wall-clock time for the slowest of 8 joins while Redis hangs; timeout is 1 s."""
    rooms = Rooms(RedisBroker(url, timeout=1.0))
    with clients(9) as made, rooms["j"].join(made.sockets.pop()) as first:
        since, took = first.position, []
        gevent.sleep(0.5)

        def visit(number: int) -> None:
            began = time.monotonic()
            with rooms[f"j{number}"].join(made.sockets[number], since=since):
                took.append(time.monotonic() - began)

        server.send_signal(signal.SIGSTOP)
        try:
            gevent.joinall([gevent.spawn(visit, number) for number in range(8)])
        finally:
            server.send_signal(signal.SIGCONT)
        gevent.sleep(0.5)
    rooms.close(1)
    return max(took)


def main() -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, 20_000), most))
    with redis_server() as (url, server):
        cases: list[tuple[str, Callable[[], float], str]] = [
            ("150 come back at once", lambda: come_back(url, 150), "ms a member"),
            ("600 come back at once", lambda: come_back(url, 600), "ms a member"),
            ("1,000 messages missed by 200", lambda: missed(url), "ms a client"),
            ("history(50) after 3,000 visits", lambda: history(url), "ms"),
            ("room of 3,000, 100 messages", lambda: longest_stop(url), "ms, the longest stop"),
            ("joins while Redis hangs", lambda: slowest_join(url, server), "s, the slowest of 8"),
        ]
        for name, measure, unit in cases:
            print(f"{name:32} {measure():8.2f} {unit}", flush=True)
    os._exit(0)  # greenlets that still read are of no interest


if __name__ == "__main__":
    main()
