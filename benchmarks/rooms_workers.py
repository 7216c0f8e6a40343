"""What rooms cost, and promise, where several processes share a Redis; each process a real one.

    python benchmarks/rooms_workers.py [CASE...]

CPU time is that of the workers, without the clients' and Redis's.
"""

# ruff: noqa: E402 - what follows is imported patched
from __future__ import annotations

from gevent import monkey

monkey.patch_all()

import contextlib
import json
import os
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import gevent
import redis
from gevent import socket as gevent_socket
from gevent.server import StreamServer
from rooms import redis_server

import greenws

sys.path.append(str(Path(__file__).parents[1]))

from tests.support.redis_cluster import RedisCluster
from tests.support.redis_server import RedisServer

ITEM = json.dumps({"text": "x" * 50})
WORKER = Path(__file__).parent / "servers" / "rooms_worker.py"
TICK = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")
UNLIMITED = greenws.Config(max_message_size=None, ping_interval=None, deflate=False)


class Worker:
    def __init__(self, url: str, **options: Any) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(WORKER), url, json.dumps(options)],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("listening "):
                self.address = f"ws://127.0.0.1:{line.split()[1]}"
                break
        self._control = self.connect("/control")

    def connect(self, path: str) -> greenws.WebSocket:
        return greenws.connect(self.address + path, config=UNLIMITED, open_timeout=60)

    def join(self, room: str, query: str = "") -> greenws.WebSocket:
        """A client, which knows that it is a member."""
        found = self.connect(f"/room/{room}?{query}")
        while "joined" not in json.loads(found.receive()):
            pass
        return found

    def do(self, command: str, argument: Any = None) -> float:
        """Seconds of the longest stop meanwhile, where that is watched."""
        self._control.send(json.dumps([command, argument]))
        stop: float = json.loads(self._control.receive())["stop"]
        return stop

    def cpu(self) -> float:
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICK

    def memory(self, peak: bool = False) -> int:
        """Bytes that it has, or had most."""
        text = Path(f"/proc/{self._process.pid}/status").read_text()
        return int(text.partition("VmHWM:" if peak else "VmRSS:")[2].split()[0]) * 1024

    def settle(self) -> None:
        """Waits until it has nothing to do."""
        used = -1.0
        while self.cpu() > used:
            used = self.cpu()
            gevent.sleep(0.5)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()


@contextlib.contextmanager
def workers(count: int, url: str, **options: Any) -> Iterator[list[Worker]]:
    made: list[Worker] = []
    try:
        for _ in range(count):
            made.append(Worker(url, **options))
        yield made
    finally:
        for each in made:
            each.kill()


class Link:
    """A TCP proxy to a Redis, that can be cut."""

    def __init__(self, url: str) -> None:
        self.target = ("127.0.0.1", int(url.rpartition(":")[2].partition("/")[0]))
        self.is_cut = False
        self._open: set[Any] = set()
        self._server = StreamServer(("127.0.0.1", 0), self._serve)
        self._server.start()
        self.url = f"redis://127.0.0.1:{self._server.server_port}/0"

    def _serve(self, client: Any, address: Any) -> None:
        with contextlib.suppress(OSError), client:
            if self.is_cut:
                return
            with gevent_socket.create_connection(self.target) as server:
                self._open |= {client, server}
                back = gevent.spawn(self._pass, server, client)
                self._pass(client, server)
                back.join()
                self._open -= {client, server}

    def _pass(self, source: Any, target: Any) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 18):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)

    def cut(self) -> None:
        self.is_cut = True
        for each in self._open:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)


def drain(client: greenws.WebSocket) -> None:
    with contextlib.suppress(greenws.ConnectionClosed):
        for _ in client:
            pass


# -- cases


def come_back(url: str, count: int) -> float:
    """ms a member, when so many connect at once to another worker, where nothing was sent; each
    is told of the others."""
    with workers(2, url) as (old, new):
        first = old.join("r")
        first.send(ITEM)
        since = json.loads(first.receive())["id"]
        spectator = new.join("other")
        new.settle()
        before = new.cpu()
        clients = [
            gevent.spawn(lambda: drain(new.connect(f"/room/r?watch=1&since={since}")))
            for _ in range(count)
        ]
        gevent.sleep(1)
        new.settle()
        used = new.cpu() - before
        gevent.killall(clients)
        spectator.close()
    return used / count * 1e3


def message(url: str, rooms: int, count: int = 10_000, window: int = 200) -> float:
    """us of CPU of both workers a message, from a member of one to a member of each, where so many
    rooms are open in both. It sends 200 before it waits for the answers."""
    with workers(2, url) as both:
        for each in both:
            each.do("open", rooms - 1)
        here, there = both[0].join("r"), both[1].join("r")
        for each in both:
            each.settle()
        before = sum(each.cpu() for each in both)
        for _ in range(count // window):
            for _ in range(window):
                here.send(ITEM)
            for each in (here, there):
                for _ in range(window):
                    each.receive()
        used = sum(each.cpu() for each in both) - before
        here.close()
        there.close()
    return used / count * 1e6


def untold(url: str) -> float:
    """Members, of 20 that stay, to whom messages are missing without a gap: 50,000 in a burst, in a
    room that keeps 100, while their worker's connections to Redis are cut for 3 s."""
    link = Link(url)
    with workers(1, url, history=100) as (old,), workers(1, link.url, history=100) as (new,):
        heard: list[list[Any]] = [[] for _ in range(20)]

        def listen(client: greenws.WebSocket, into: list[Any]) -> None:
            with contextlib.suppress(greenws.ConnectionClosed):
                for text in client:
                    found = json.loads(text)
                    into.append("gap" if "gap" in found else found.get("n"))

        clients = [new.join("r") for _ in heard]
        for client, into in zip(clients, heard, strict=True):
            gevent.spawn(listen, client, into)
        old.do("send", ["r", 10, 20])
        gevent.sleep(0.5)
        link.cut()
        began = time.monotonic()
        old.do("send", ["r", 50_000, 20])
        gevent.sleep(max(0.0, began + 3 - time.monotonic()))
        link.is_cut = False
        gevent.sleep(3)
        old.do("send", ["r", 10, 20])
        new.do("settle")
        wrong = 0
        for each in heard:
            assert each[:10] == list(range(10)), each[:10]
            rest = [(-1, False)]
            for found in each[10:]:
                last, is_told = rest[-1]
                if found == "gap":
                    rest[-1] = (last, True)
                elif found is not None:
                    restarted = found == 0 and last > 0
                    if not restarted and found != last + 1 and not is_told:
                        wrong += 1
                        break
                    rest.append((found, False))
            else:
                wrong += each[-10:] != list(range(10))
        for client in clients:
            client._abandon(1001)
    return wrong


def unread(url: str) -> float:
    """MB a client, of 20 that ask for a log of 10,000 messages of 1 kB and do not read."""
    with workers(1, url) as (only,):
        only.do("send", ["r", 10_000, 1000])
        only.join("warm", "since=0-0")._abandon(1001)
        before = only.memory()
        clients = [only.connect("/room/r?since=0-0") for _ in range(20)]
        gevent.sleep(1)
        only.settle()
        used = only.memory() - before
        for each in clients:
            each._abandon(1001)
    return used / 20 / 1e6


def behind(url: str) -> tuple[float, float]:
    """MB, and ms of the longest stop, of a worker that is behind by 300 messages of 1 MB."""
    link = Link(url)
    options = {"history_bytes": 2**30}
    with workers(1, url, **options) as (old,), workers(1, link.url, **options) as (new,):
        member = new.join("r")
        reading = gevent.spawn(drain, member)
        old.do("send", ["r", 1, 1_000_000])
        gevent.sleep(1)
        before = new.memory()
        link.cut()
        for _ in range(30):
            old.do("send", ["r", 10, 1_000_000])
        new.do("watch")
        link.is_cut = False
        gevent.sleep(5)
        new.settle()
        stop = new.do("settle")
        used = new.memory(peak=True) - before
        reading.kill()
        member._abandon(1001)
    return used / 1e6, stop * 1e3


def after_death(url: str) -> float:
    """s until those who stay are told that 50 members of a worker that was killed are gone;
    presence_timeout is 3 s."""
    with workers(2, url, presence_timeout=3.0) as (staying, dying):
        watcher = staying.join("r", "watch=1")
        clients = [dying.join("r") for _ in range(50)]
        here: set[str] = set()
        while len(here) < 50:
            here.add(json.loads(watcher.receive(60))["join"])
        dying.kill()
        began = time.monotonic()
        while here:
            here.discard(json.loads(watcher.receive(60))["leave"])
        took = time.monotonic() - began
        for each in [watcher, *clients]:
            each._abandon(1001)
    return took


class Rate(NamedTuple):
    """Messages/s; s of CPU of Redis, in all its servers, that a message takes, and those that they
    take in a second in which nobody says anything."""

    messages: float
    cost: float
    idle: float


def rate(
    url: str, servers: list[str], rooms: list[str], count: int = 5000, window: int = 100
) -> Rate:
    """From a member in one worker to a member in each of two, in all rooms at once."""

    def talk(here: greenws.WebSocket, there: greenws.WebSocket) -> None:
        for _ in range(count // window):
            for _ in range(window):
                here.send(ITEM)
            for each in (here, there):
                for _ in range(window):
                    each.receive()

    with workers(2, url) as both:
        pairs = [(both[0].join(room), both[1].join(room)) for room in rooms]
        for each in both:
            each.settle()
        before, began = redis_cpu(servers), time.monotonic()
        gevent.sleep(2)
        idle = (redis_cpu(servers) - before) / (time.monotonic() - began)
        before, began = redis_cpu(servers), time.monotonic()
        gevent.joinall([gevent.spawn(talk, *pair) for pair in pairs], raise_error=True)
        took, used = time.monotonic() - began, redis_cpu(servers) - before
        for pair in pairs:
            for client in pair:
                client._abandon(1001)
    messages = count * len(rooms)
    return Rate(messages / took, (used - idle * took) / messages, idle)


def redis_cpu(servers: list[str]) -> float:
    """Seconds that these have used."""
    used = 0.0
    for url in servers:
        with redis.Redis.from_url(url) as client:
            found: Any = client.info("cpu")
        used += found["used_cpu_user"] + found["used_cpu_sys"]
    return used


def cluster(url: str) -> tuple[float, float, float, float]:
    """Three masters of a cluster against one Redis. Times the rate of three rooms, all on this
    machine; times what masters on machines of their own could carry; us of CPU of Redis a message,
    of one Redis and of the cluster. What a server can carry is what is left of a second beside what
    it does in silence (nodes of a cluster ask each other whether they live), by what a message
    takes. That is compared where each master has as many rooms as the one Redis, as it would have
    under a load that they can just carry: the more arrives at once, the less a message takes. The
    better of three each. All keep a file of what they were told, as a node of RedisCluster does."""
    single, masters = RedisServer(), RedisCluster(with_replicas=False)
    servers = [each.url for each in masters.masters]
    one, three, nine = [], [], []
    try:
        rooms = masters.rooms(3)
        for _ in range(3):
            one.append(rate(single.url, [single.url], rooms[:3]))
            three.append(rate(masters.url, servers, rooms[:3]))
            nine.append(rate(masters.url, servers, rooms, 2000))
    finally:
        single.close()
        masters.close()
    costs = [min(each.cost for each in some) for some in (one, nine)]
    idle = [min(each.idle for each in some) for some in (one, nine)]
    carried = (1 - idle[0]) / costs[0], (len(servers) - idle[1]) / costs[1]
    rates = [max(each.messages for each in some) for some in (one, three)]
    return rates[1] / rates[0], carried[1] / carried[0], costs[0] * 1e6, costs[1] * 1e6


def failover(url: str) -> tuple[float, float]:
    """s for which nobody heard the other worker when the master became a replica, which keeps its
    connections; and messages that somebody did not hear once and in order."""
    servers = [RedisServer("--repl-diskless-sync-delay", "0") for _ in range(2)]
    old, new = servers
    new.call("REPLICAOF", "127.0.0.1", old.port)
    while new.call("ROLE")[3] != b"connected":
        gevent.sleep(0.05)
    link = Link(old.url)
    heard: list[list[tuple[float, int, int]]] = [[], []]
    sent = [0, 0]
    is_over = False

    def listen(client: greenws.WebSocket, into: list[tuple[float, int, int]]) -> None:
        with contextlib.suppress(greenws.ConnectionClosed):
            for text in client:
                found = json.loads(text)
                if "from" in found:
                    into.append((time.monotonic(), found["from"], found["n"]))

    def talk(client: greenws.WebSocket, number: int) -> None:
        while not is_over:
            client.send(json.dumps({"from": number, "n": sent[number]}))
            sent[number] += 1
            gevent.sleep(0.005)

    try:
        with workers(2, link.url) as both:
            clients = [each.join("r") for each in both]
            for client, into in zip(clients, heard, strict=True):
                gevent.spawn(listen, client, into)
            talking = [gevent.spawn(talk, client, n) for n, client in enumerate(clients)]
            gevent.sleep(1)
            old.call("FAILOVER")
            while old.call("ROLE")[0] != b"slave":
                gevent.sleep(0.005)
            link.target = ("127.0.0.1", new.port)
            gevent.sleep(6)
            is_over = True
            gevent.joinall(talking)
            gevent.sleep(1)
            for client in clients:
                client._abandon(1001)
    finally:
        for each in servers:
            each.close()
    silences, wrong = [], 0
    for here, into in enumerate(heard):
        times = [at for at, number, _ in into if number != here]
        silences.append(max(later - at for at, later in zip(times, times[1:], strict=False)))
        for number in range(2):
            numbers = [n for _, each, n in into if each == number]
            wrong += numbers != list(range(sent[number]))
    return max(silences), float(wrong)


CASES: dict[str, tuple[Callable[[str], Any], str, str]] = {
    "come-150": (lambda url: come_back(url, 150), "150 come back at once", "2.5 ms a member"),
    "come-600": (lambda url: come_back(url, 600), "600 come back at once", "2.5 ms a member"),
    "message-1": (lambda url: message(url, 1), "a message, 1 room open", "60 us"),
    "message-3000": (lambda url: message(url, 3000), "a message, 3,000 rooms open", "65 us"),
    "untold": (untold, "members not told of a gap", "0 of 20"),
    "unread": (unread, "since=0-0, not read", "0.5 MB a client"),
    "behind": (behind, "300 MB behind", "64 MB, 50 ms"),
    "cluster": (cluster, "three masters against one Redis", "0.9 times, 2.5 times; us, us"),
    "failover": (failover, "master became a replica", "3 s, 0 wrong"),
    "death": (after_death, "told of a dead worker's members", "5 s"),
}


def main() -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, 20_000), most))
    chosen = sys.argv[1:] or list(CASES)
    for name in chosen:
        measure, what, bar = CASES[name]
        with redis_server() as (url, _):
            found = measure(url)
        figures = found if isinstance(found, tuple) else (found,)
        shown = ", ".join(f"{each:.2f}" for each in figures)
        print(f"{what:34} {shown:>22}   bar: {bar}", flush=True)


if __name__ == "__main__":
    main()
