"""Many workers and a Redis, as in production: processes die, Redis restarts, nothing is missed."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import gevent
import pytest
import trustme
from gevent import socket as gevent_socket

from ...support.limits import limit, pace, stays, wait_until
from ...support.paths import ROOT
from ...support.processes import Process, children, free_port
from ...support.redis_server import RedisServer
from ...support.require import require_program
from ...support.wire import CLOSE, TEXT, Peer, frame


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    require_program("redis-server")
    server = RedisServer()
    yield server
    server.close()


def gunicorn(workers: int, url: str) -> Process:
    process = Process(
        *["-m", "gunicorn", "-k", "greenws.gunicorn.Worker", "--workers", str(workers)],
        *["--bind", "127.0.0.1:0", "--graceful-timeout", "3", "rooms_app:app"],
        REDIS_URL=url,
    )
    try:
        process.wait_for_port()
        wait_until(lambda: len(children(process.popen.pid)) == workers, 20)
    except BaseException:
        process.stop()
        raise
    return process


@pytest.fixture
def workers(server: RedisServer) -> Iterator[Process]:
    server.call("FLUSHALL")
    with gunicorn(3, server.url) as process:
        yield process


class Client:
    """Sends numbers, keeps what it receives, and comes back when its connection is lost."""

    def __init__(self, name: str, address: Any, room: str = "r") -> None:
        self.name = name
        self.address = address
        self.room = room
        self.heard: list[tuple[str, int]] = []
        self.phases: dict[tuple[str, int], str] = {}
        self.said = 0
        self.last = ""
        self.pid = 0  # of the worker that it is connected to
        self.returns = -1
        self.gaps = 0
        self.peer: Peer | None = None
        self.is_done = False
        self.life = gevent.spawn(self.live)

    def live(self) -> None:
        while not self.is_done:
            try:
                self.visit()
            except (OSError, EOFError, AssertionError):
                gevent.sleep(0.05)
            finally:
                if self.peer is not None:
                    self.peer.close()
                    self.peer = None

    def visit(self) -> None:
        since = f"?since={quote(self.last)}" if self.last else ""
        peer = Peer.open(self.address, f"/{self.room}{since}")
        peer.sock.settimeout(limit(20))
        while not self.is_done:
            _, opcode, payload = peer.read_frame()
            if opcode == CLOSE:
                self.peer = None
                peer.close()
                return
            message = json.loads(payload)
            self.last = message.get("id", self.last)
            self.gaps += "gap" in message
            if "pid" in message:
                self.pid = message["pid"]
                self.returns += 1
                self.peer = peer
            elif "name" in message:
                key = (message["name"], message["number"])
                self.heard.append(key)
                self.phases[key] = message["phase"]

    def say(self, phase: str) -> None:
        if self.peer is not None:
            message = {"name": self.name, "number": self.said, "phase": phase}
            try:
                self.peer.send(frame(TEXT, json.dumps(message).encode()))
            except OSError:
                return
            self.said += 1

    def end(self) -> None:
        self.is_done = True
        self.life.kill()


def talk(clients: list[Client], phase: str, seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for client in clients:
            client.say(phase)
        gevent.sleep(0.02)


def talk_through_an_outage(clients: list[Client], server: RedisServer) -> None:
    talk(clients, "it begins", 0.1)
    server.stop()
    talk(clients, "without Redis", 0.4)
    server.start()
    talk(clients, "Redis is back", 0.4)


def all_is_heard(clients: list[Client]) -> bool:
    spoken = sum(client.said for client in clients)
    return all(len(client.heard) == spoken for client in clients)


def is_connected(workers: Process) -> bool:
    """Whether each worker has lost Redis, and found it again."""
    lost = workers.output.count("lost connection to Redis")
    return lost >= 3 and workers.output.count("reconnected to Redis") == lost


def spread(address: Any, pids: list[int], each: int) -> list[Client]:
    """Clients of which every worker has ``each``: the kernel spreads them as it likes."""
    kept: list[Client] = []
    deadline = time.monotonic() + limit(20)
    while len(kept) < each * len(pids):
        assert time.monotonic() < deadline, "one of the workers gets no connection"
        more = [Client(f"client {time.monotonic_ns()}", address) for _ in range(4 * len(pids))]
        wait_until(lambda more=more: all(client.peer for client in more), 20)
        for client in more:
            if sum(client.pid == other.pid for other in kept) < each:
                kept.append(client)
            else:
                client.end()
    return kept


def test_every_survivor_has_every_message_once_and_in_order(workers, server):
    clients = spread(workers.address, children(workers.popen.pid), 3)
    never = Peer.open(workers.address, "/r")
    never.sock.setsockopt(gevent_socket.SOL_SOCKET, gevent_socket.SO_RCVBUF, 4096)
    try:
        talk(clients, "all is well", 0.3)
        wait_until(lambda: all_is_heard(clients), 20)  # or it might be delivered unlogged
        talk_through_an_outage(clients, server)
        # What the victim has not in the log yet would be lost with it.
        wait_until(lambda: all_is_heard(clients) and is_connected(workers), 20)

        victim = clients[0].pid
        lost = [client for client in clients if client.pid == victim]
        survivors = [client for client in clients if client.pid != victim]
        os.kill(victim, signal.SIGKILL)
        talk(clients, "one is dead", 0.4)
        wait_until(lambda: all(client.peer for client in clients), 20)
        talk(clients, "the end", 0.3)
        spoken = sum(client.said for client in survivors)
        names = {client.name for client in survivors}

        def all_have_all() -> bool:
            return all(
                sum(name in names for name, _ in client.heard) == spoken for client in clients
            ) and (len({frozenset(client.heard) for client in clients}) == 1)

        wait_until(all_have_all, 20)
        stays(all_have_all, 0.1)
        for client in clients:
            assert len(set(client.heard)) == len(client.heard)  # once
            for sender in clients:
                numbers = [number for name, number in client.heard if name == sender.name]
                assert numbers == sorted(numbers)
                if sender in survivors:
                    assert numbers == list(range(sender.said))
            assert client.gaps == 0
        for phase in ("all is well", "one is dead", "the end"):  # as long as Redis was there
            order = [
                [key for key in client.heard if client.phases[key] == phase] for client in clients
            ]
            assert order[0]
            assert all(each == order[0] for each in order)
        assert [client.returns for client in survivors] == [0] * 6
        assert [client.returns for client in lost] == [1] * 3
    finally:
        never.close()
        for client in clients:
            client.end()
    # The killed worker is mentioned; nothing else is.
    assert "Traceback" not in workers.output


def test_redis_over_tls_with_a_password(tmp_path):
    require_program("redis-server")
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    ca, cert, key = (str(tmp_path / name) for name in ("ca.pem", "cert.pem", "key.pem"))
    authority.cert_pem.write_to_path(ca)
    certificate.cert_chain_pems[0].write_to_path(cert)
    certificate.private_key_pem.write_to_path(key)
    port = free_port()
    server = RedisServer(
        *["--tls-port", str(port), "--tls-cert-file", cert, "--tls-key-file", key],
        *["--tls-ca-cert-file", ca, "--tls-auth-clients", "no"],
        *["--user", "greenws", "on", ">secret", "+@all", "~greenws:*", "&greenws:*"],
    )
    url = f"rediss://greenws:secret@127.0.0.1:{port}/0?ssl_ca_certs={ca}"
    with contextlib.closing(server), gunicorn(2, url) as process:
        clients = spread(process.address, children(process.popen.pid), 2)
        try:
            talk_through_an_outage(clients, server)
            said = sorted((client.name, n) for client in clients for n in range(client.said))
            wait_until(lambda: all(len(each.heard) >= len(said) for each in clients), 20)
            for client in clients:
                assert sorted(client.heard) == said
        finally:
            for client in clients:
                client.end()
    assert "Traceback" not in process.output


def test_a_member_is_in_the_room_of_all_workers(workers):
    clients = [Client(f"client {number}", workers.address) for number in range(6)]

    def counts() -> set[int]:
        found = set()
        for _ in range(4):
            with Peer.open(workers.address, "/members/r") as peer:
                found.add(len(json.loads(peer.read_frame()[2])))
        return found

    try:
        wait_until(lambda: counts() == {6}, 20)
    finally:
        for client in clients:
            client.end()
    wait_until(lambda: counts() == {0}, 20)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_restart_tells_the_sessions(server, number):
    """SIGHUP is gunicorn's reload: new workers come, the old ones end gracefully."""
    with gunicorn(2, server.url) as process:
        old = children(process.popen.pid)
        peers = [Peer.open(process.address, "/r") for _ in range(6)]
        for peer in peers:
            assert peer.read_frame()[1] == TEXT
        started = time.monotonic()
        process.popen.send_signal(number)
        for peer in peers:
            while (got := peer.read_frame())[1] != CLOSE:
                continue
            assert got[2][:2] == b"\x03\xe9"
            peer.send(frame(CLOSE, got[2]))
            assert peer.at_end()
            peer.close()
        if number == signal.SIGHUP:
            wait_until(lambda: not set(children(process.popen.pid)) & set(old), 20)
            with Peer.open(process.address, "/r") as peer:
                assert peer.read_frame()[1] == TEXT
        else:
            assert process.popen.wait(limit(20)) == 0
        assert time.monotonic() - started < pace(6)
        assert "Traceback" not in process.output


def test_the_chat_of_the_readme_becomes_many_workers_by_one_line(server, tmp_path):
    text = (ROOT / "README.md").read_text()
    code = text.split("```python\n")[2].split("```")[0]
    assert code.count("rooms = Rooms()") == 1 and 'Rooms("redis://localhost")' in code
    (tmp_path / "app.py").write_text(code.replace("Rooms()", f'Rooms("{server.url}")'))
    command = text.split("\ngunicorn ")[1].split(" -b")[0].split() + ["-w", "4", "app:app"]
    with Process("-m", "gunicorn", *command, "--bind", "127.0.0.1:0", cwd=tmp_path) as process:
        process.wait_for_port()
        wait_until(lambda: len(children(process.popen.pid)) == 4, 20)
        peers = [Peer.open(process.address, f"/chat/garden?name={n}") for n in range(12)]
        greetings: list[bytes] = []
        for number, peer in enumerate(peers):
            peer.send(frame(TEXT, b"hello from %d" % number))
            # Nobody says that all have joined; who has heard itself has.
            while not greetings or greetings[-1] != b"hello from %d" % number:
                greetings.append(peer.read_frame()[2])
        peers[0].send(frame(TEXT, b"the end"))
        for peer in peers:
            while peer.read_frame()[2] != b"the end":
                continue
            peer.close()


def test_without_monkey_patching_the_worker_says_what_to_do(server):
    """gunicorn's gthread worker patches nothing."""
    process = Process(
        *["-m", "gunicorn", "-k", "gthread", "--bind", "127.0.0.1:0", "rooms_app:app"],
        REDIS_URL=server.url,
    )
    with process:
        process.wait_for(r"redis-py would block every greenlet of this process")
        process.wait_for(r"monkey\.patch_all\(\)")
