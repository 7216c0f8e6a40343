"""``python -m greenws disconnect``: members of rooms from a shell."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis.connection
from gevent import socket as gevent_socket

from greenws.__main__ import main

from ..support.paths import ROOT
from ..support.processes import environ_without_coverage
from ..support.redis_server import RedisServer
from ..support.redis_workers import Worker, until_all_is_read
from ..support.require import require_program
from ..support.threads import in_thread
from ..support.wire import CLOSE


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    require_program("redis-server")
    server = RedisServer()
    yield server
    server.close()


@pytest.fixture
def worker(server: RedisServer, pair: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Worker]:
    monkeypatch.setattr(redis.connection, "socket", gevent_socket)
    worker = Worker(pair, url=server.url, prefix="mine:")
    yield worker
    worker.stop()


@pytest.fixture
def disconnect(server: RedisServer) -> Callable[..., int]:
    def call(*arguments: str, url: str = server.url) -> int:
        try:
            return int(in_thread(main, ["disconnect", url, *arguments]))
        except SystemExit as end:
            return int(end.code or 0)

    return call


def test_members_are_closed_after_what_was_sent_before(worker, disconnect):
    ann, bob = worker.join(presence_key="ann"), worker.join()
    worker.send("last")
    until_all_is_read(worker)
    arguments = ["--prefix", "mine:", "--code", "4001", "--reason", "signed out, é"]
    assert disconnect("r", "--member", "ann", *arguments) == 0
    assert ann.hear(1) == bob.hear(1) == ["last"]
    assert ann.peer.read_frame() == (True, CLOSE, b"\x0f\xa1" + "signed out, é".encode())
    assert bob.hears_no_more()
    assert disconnect("--prefix", "mine:", "r") == 0
    assert bob.peer.read_frame() == (True, CLOSE, b"\x03\xf0")


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["r", "--code", "1006"], "close code 1006 may not be sent"),
        (["r", "--code", "soon"], "invalid int value"),
        (["r", "--reason", "x" * 124], "at most 123 bytes"),
        (["r", "--member", ""], "member is ''"),
        (["r", "--timeout", "0"], "timeout must be"),
        ([], "ROOM"),
    ],
)
def test_wrong_arguments_are_reported_with_the_usage(disconnect, capsys, arguments, error):
    assert disconnect(*arguments) == 2
    text = capsys.readouterr().err
    assert text.startswith("usage: python -m greenws disconnect") and error in text


def test_a_redis_that_is_down_is_reported_in_one_line(disconnect, capsys):
    assert disconnect("r", "--timeout", "0.2", url="redis://127.0.0.1:1") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("greenws disconnect: Redis is out of reach: ")


_CHECK = """
import sys
from greenws.__main__ import main
assert main(["disconnect", sys.argv[1], "r"]) == 0
assert not [name for name in sys.modules if name.split(".")[0] in ("gevent", "greenlet")]
"""


def test_no_gevent_is_imported(server):
    command = [sys.executable, "-c", _CHECK, server.url]
    done = subprocess.run(
        command, env=environ_without_coverage(), capture_output=True, text=True, cwd=ROOT
    )
    assert (done.returncode, done.stderr) == (0, "")
