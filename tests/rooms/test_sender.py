"""``greenws.Sender``: what reaches rooms from processes that have none."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis.connection
from gevent import socket as gevent_socket

from greenws import BrokerUnavailable, Sender
from greenws.rooms import json_id
from greenws.rooms.presence import Presence
from greenws.rooms.redis import requests

from ..support.cutting_proxy import CuttingProxy
from ..support.limits import again_after_standstill, limit, wait_until
from ..support.processes import free_port
from ..support.redis_server import RedisServer
from ..support.redis_workers import Worker, until_published_has_arrived
from ..support.require import require, require_program
from ..support.threads import in_thread
from ..support.wire import CLOSE


@pytest.fixture(scope="module")
def running() -> Iterator[RedisServer]:
    require_program("redis-server")
    server = RedisServer()
    yield server
    server.close()


@pytest.fixture
def server(running: RedisServer) -> RedisServer:
    running.call("FLUSHALL")
    return running


@pytest.fixture
def make(server: RedisServer) -> Iterator[Callable[..., Sender]]:
    made: list[Sender] = []

    def make(port: int | None = None, **options: Any) -> Sender:
        url = f"redis://127.0.0.1:{port or server.port}/0"
        made.append(Sender(url, **{"timeout": limit(), **options}))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture
def worker(server: RedisServer, pair: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Worker]:
    monkeypatch.setattr(redis.connection, "socket", gevent_socket)
    worker = Worker(pair, url=server.url)
    yield worker
    worker.stop()


def texts(server: RedisServer, room: str = "r") -> list[str]:
    """What the log of a room holds."""
    entries = server.call("XRANGE", f"greenws:room:{room}", "-", "+")
    found = [dict(zip(fields[::2], fields[1::2], strict=True)) for _, fields in map(_pair, entries)]
    return [fields[b"d"].decode() for fields in found if fields[b"k"] in (b"text", b"bytes")]


def _pair(entry: Any) -> tuple[Any, list[Any]]:
    id_, fields = entry
    flat = (
        [part for pair in fields.items() for part in pair] if isinstance(fields, dict) else fields
    )
    return id_, flat


def run_script(source: str, *arguments: str, **env: str) -> str:
    """Runs a plain Python program; its output."""
    done = subprocess.run(
        [sys.executable, "-c", source, *arguments],
        env={**{k: v for k, v in os.environ.items() if "COVERAGE" not in k}, **env},
        capture_output=True,
        text=True,
        timeout=limit(20),
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout


# -- to the members of rooms


def test_members_receive_what_is_sent_in_order(worker, make):
    ann, room = worker.join(), make()["r"]

    def send() -> None:
        room.send("text")
        room.send({"a": "é"})
        for number in range(50):
            room.send(str(number))

    in_thread(send)
    assert ann.hear(52) == ["text", '{"a":"é"}', *map(str, range(50))]
    worker.send("of a server")
    assert ann.hear(1) == ["of a server"]
    assert in_thread(room.history, 2) == ["49", "of a server"]


def test_binary_messages_stay_binary(make, server):
    room = make()["r"]
    room.send(b"\xff")
    room.send(bytearray(b"ab"))
    assert room.history() == [b"\xff", b"ab"]


def test_a_page_that_is_rendered_elsewhere_misses_nothing(worker, make):
    room = make()["r"]
    empty = in_thread(lambda: room.position)
    worker.send("first")
    worker.rooms.flush()
    position = in_thread(lambda: room.position)
    in_thread(room.send, "meanwhile")
    assert worker.join(since=position).hear(1) == ["meanwhile"]
    assert worker.join(since=empty).hear(2) == ["first", "meanwhile"]


def test_the_members_of_all_processes_are_seen_once_each(worker, make):
    worker.join(name="Ann")
    worker.join(name="Bob", presence_key="bob")
    worker.join(name="Bob", presence_key="bob")
    room = make()["r"]
    wait_until(lambda: worker.is_idle)
    found = in_thread(lambda: room.members)
    assert sorted(each.info["name"] for each in found) == ["Ann", "Bob"]
    assert Presence("bob", {"name": "Bob"}) in found
    assert in_thread(len, room) == 2


def test_members_are_disconnected_after_what_was_sent_before(worker, make):
    ann, bob = worker.join(presence_key="ann"), worker.join(presence_key="bob")
    until_published_has_arrived(worker)
    room = make()["r"]
    in_thread(room.send, "last")
    in_thread(room.disconnect, 4001, "you are out", "bob")
    assert bob.hear(1) == ["last"]
    assert bob.peer.read_frame() == (True, CLOSE, b"\x0f\xa1you are out")
    in_thread(room.send, "on")
    assert ann.hear(2) == ["last", "on"]
    in_thread(room.disconnect)
    assert ann.peer.read_frame()[1] == CLOSE


def test_the_stamp_of_the_servers_counts(make):
    room = make(stamp=json_id)["r"]
    with pytest.raises(ValueError, match="JSON object"):
        room.send("no object")
    room.send({"a": 1})
    make()["r"].send("no object, from elsewhere")
    (found,) = room.history()
    assert json.loads(found)["a"] == 1 and json.loads(found)["id"] <= room.position


@pytest.fixture(autouse=True)
def skipped(request: Any, error_log: Any) -> Iterator[None]:
    yield
    if request.node.name == "test_the_stamp_of_the_servers_counts":
        assert "was skipped" in error_log.take()[0].getMessage()


def test_a_log_is_trimmed_as_the_options_say(server, make):
    room = make(history=10)["r"]
    for number in range(300):
        room.send(str(number))
    assert len(texts(server)) < 250 and texts(server)[-1] == "299"


# -- what goes wrong


@pytest.mark.parametrize("part", ["requests_to_cut", "answers_to_cut"])
def test_a_cut_connection_neither_loses_nor_repeats_a_message(server, make, part):
    with CuttingProxy(server.port, b"marked") as proxy:
        room = make(proxy.port)["r"]
        for number in range(10):
            setattr(proxy, part, number % 3)
            in_thread(room.send, f"marked {number}")
    assert proxy.cuts == 9
    assert texts(server) == [f"marked {number}" for number in range(10)]


@again_after_standstill(0.05)
def test_a_send_that_was_given_up_never_comes_after_later_ones(server, make):
    server.call("FLUSHALL")
    room = make(timeout=1.0)["r"]  # a connection that took a tenth of it is made again
    room.send("one")
    server.send_signal(signal.SIGSTOP)
    try:
        with pytest.raises(BrokerUnavailable, match="may have the message all the same"):
            in_thread(room.send, "two")
    finally:
        server.send_signal(signal.SIGCONT)
    room.send("three")
    assert texts(server) in (["one", "two", "three"], ["one", "three"])


def test_a_room_whose_key_is_no_log_is_reported(server, make):
    server.call("SET", "greenws:room:r", "x")
    with pytest.raises(BrokerUnavailable, match="messages of the room 'r': WRONGTYPE"):
        make()["r"].send("x")


def test_a_redis_that_is_full_refuses_messages_and_gives_history(server, make):
    room = make()["r"]
    room.send("kept")
    server.call("CONFIG", "SET", "maxmemory", "1")
    try:
        with pytest.raises(BrokerUnavailable, match="Redis refuses: .*OOM|maxmemory"):
            room.send("x")
        assert room.history() == room.history(2**70) == ["kept"]
    finally:
        server.call("CONFIG", "SET", "maxmemory", "0")


def test_what_redis_refuses_besides_a_message_is_logged_once(server, error_log, monkeypatch):
    monkeypatch.setattr(requests, "_UNPUBLISHED_RATE", 1e9)
    rights = ["~*", "&*", "+@all", "-publish", "-expire"]
    server.call("ACL", "SETUSER", "mute", "on", ">secret", *rights)
    with Sender(f"redis://mute:secret@127.0.0.1:{server.port}") as sender:
        for room in "rstr":  # each a new log, whose expiry is put off, and one from just before
            sender[room].send("x")
        published, trimmed = (each.getMessage() for each in error_log.take())
        assert "does not publish" in published
        assert "does not trim" in trimmed and "EXPIRE" in trimmed
        server.call("ACL", "SETUSER", "mute", "+publish")
        sender["r"].send("x")
        server.call("ACL", "SETUSER", "mute", "-publish")
        sender["r"].send("x")
        (again,) = error_log.take()
        assert "does not publish" in again.getMessage()


def test_a_sender_to_no_cluster_or_to_one_that_is_down_says_so(server):
    with Sender(f"redis+cluster://127.0.0.1:{server.port}", timeout=limit(2)) as sender:
        with pytest.raises(BrokerUnavailable, match="is not a node of a cluster: write redis://"):
            sender["r"].send("x")
    with Sender(f"redis+cluster://127.0.0.1:{free_port()}", timeout=0.1) as sender:
        with pytest.raises(BrokerUnavailable, match="Redis is out of reach"):
            sender["r"].history()


def test_a_closed_sender_says_so(make):
    with make() as sender:
        sender["r"].send("x")
    with pytest.raises(BrokerUnavailable, match="this sender was closed"):
        sender["r"].send("y")


@pytest.mark.parametrize(
    ("url", "options", "error", "match"),
    [
        (None, {}, TypeError, "url must be that of a Redis"),
        ("http://localhost", {}, ValueError, "redis://"),
        ("", {}, ValueError, r"begins with redis://.* not '' \(Rooms\(None\)"),
        ("redis://localhost?foo=1", {}, ValueError, "foo"),
        ("redis://localhost/lobby", {}, ValueError, "the database must be a number"),
        ("redis://localhost", {"timeout": 0}, ValueError, "timeout"),
        ("redis://localhost", {"history": 0}, ValueError, "history"),
        ("redis://localhost", {"stamp": "x"}, TypeError, "stamp is a function"),
    ],
)
def test_what_makes_no_sender_is_refused_at_once(url, options, error, match):
    with pytest.raises(error, match=match):
        Sender(url, **options)


def test_what_no_room_takes_is_refused_before_redis_is_asked():
    with Sender("redis://127.0.0.1:1") as sender:
        with pytest.raises(TypeError, match="room name"):
            sender[3]  # type: ignore[index]
        with pytest.raises(TypeError, match="not int"):
            sender["r"].send(7)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="1006"):
            sender["r"].disconnect(1006)
        assert sender["r"].history(0) == []


# -- in other programs


PLAIN = """
import sys
import greenws
from greenws.rooms import json_id
with greenws.Sender(sys.argv[1], stamp=json_id) as sender:
    room = sender["r"]
    room.send({"a": 1})
    assert len(room.history()) == 1 and room.position and room.members == []
    room.disconnect(4001)
found = [name for name in sys.modules if name.split(".")[0] in ("gevent", "greenlet")]
assert not found, found
import socket
assert socket.socket.__module__ == "socket"
"""


def test_a_plain_script_sends_without_gevent(server):
    run_script(PLAIN, server.url)
    assert texts(server) == ['{"a":1}']


THREADS = """
import sys, threading, greenws
with greenws.Sender(sys.argv[1], timeout=30) as sender:
    def send(name):
        for number in range(100):
            sender["r"].send(f"{name} {number}")
    threads = [threading.Thread(target=send, args=(name,)) for name in "abcdefgh"]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
"""


def test_threads_may_share_a_sender(server):
    run_script(THREADS, server.url)
    found = texts(server)
    assert len(found) == 800
    for name in "abcdefgh":
        assert [each for each in found if each[0] == name] == [f"{name} {n}" for n in range(100)]


FORKS = """
import os, sys, threading, time, greenws
sender = greenws.Sender(sys.argv[1], timeout=20)
room = sender["r"]
room.send("parent 0")
sender._callers[0]._lock.acquire()  # as by another thread, in the midst of a call
children = []
for child in range(3):
    pid = os.fork()
    if not pid:
        for number in range(20):
            room.send(f"child{child} {number}")
        os._exit(0)
    children.append(pid)
sender._callers[0]._lock.release()
for number in range(1, 20):
    room.send(f"parent {number}")
assert [os.waitpid(pid, 0)[1] for pid in children] == [0, 0, 0]
room.send("parent 20")
sender.close()
"""


def test_forked_processes_send_over_connections_of_their_own(server):
    run_script(FORKS, server.url)
    found = texts(server)
    for name, count in {"parent": 21, "child0": 20, "child1": 20, "child2": 20}.items():
        own = [each for each in found if each.startswith(f"{name} ")]
        assert own == [f"{name} {number}" for number in range(count)]


def test_a_sender_leaves_nothing_in_redis_for_long(server):
    with Sender(server.url, timeout=2) as sender:
        sender["r"].send("hello")
        key = f"greenws:from:{sender._origin}"
    assert 2 < server.call("TTL", key) <= 62


def test_a_management_command_of_django_sends(server, tmp_path):
    require(importlib.util.find_spec("django"), "Django")
    commands = tmp_path / "tell" / "management" / "commands"
    commands.mkdir(parents=True)
    for folder in (commands, commands.parent, commands.parent.parent):
        (folder / "__init__.py").touch()
    (tmp_path / "settings.py").write_text('SECRET_KEY = "x"\nINSTALLED_APPS = ["tell"]\n')
    (commands / "tell.py").write_text(
        "import sys\n"
        "from django.core.management.base import BaseCommand\n"
        "from greenws import Sender\n"
        "class Command(BaseCommand):\n"
        "    def add_arguments(self, parser):\n"
        "        parser.add_argument('url')\n"
        "    def handle(self, url, **options):\n"
        "        with Sender(url) as sender:\n"
        "            sender['r'].send('from django')\n"
        "        self.stdout.write(str('gevent' in sys.modules))\n"
    )
    source = "import sys; from django.core.management import execute_from_command_line as e; "
    source += "e(['manage.py', 'tell', sys.argv[1]])"
    path = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[2])])
    output = run_script(source, server.url, DJANGO_SETTINGS_MODULE="settings", PYTHONPATH=path)
    assert re.fullmatch("False\n", output)
    assert texts(server) == ["from django"]
