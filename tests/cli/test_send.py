"""``python -m greenws send``: to rooms from a shell."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from greenws import Sender
from greenws.__main__ import main

from ..support.limits import eventually, limit
from ..support.paths import ROOT
from ..support.processes import environ_without_coverage
from ..support.redis_server import RedisServer
from ..support.require import require_program


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


def said(server: RedisServer, room: str = "r") -> list[Any]:
    with Sender(server.url) as sender:
        return sender[room].history(1000)


@pytest.fixture
def send(server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    def call(*arguments: str, data: bytes = b"", url: str = server.url) -> int:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
        try:
            return main(["send", url, "r", *arguments])
        except SystemExit as end:
            return int(end.code or 0)

    return call


def test_a_message_is_sent(server, send):
    assert send("hello, é") == 0
    assert said(server) == ["hello, é"]


@pytest.mark.parametrize("dash", [(), ("-",)])
def test_each_line_of_the_input_is_a_message(server, send, dash):
    assert send(*dash, data="one\n\ntwo, é\r\nthree".encode()) == 0
    assert said(server) == ["one", "", "two, é", "three"]


def test_binary_sends_all_of_the_input_as_one_message(server, send):
    data = bytes(range(256)) * 10
    assert send("--binary", data=data) == 0
    assert send("text", "--binary") == 0
    assert said(server) == [data, b"text"]


def test_json_is_sent_as_it_is(server, send):
    assert send("--json", data=b'{"a": 1}\n[2]\n"x"\n') == 0
    assert said(server) == ['{"a": 1}', "[2]", '"x"']


def test_a_type_makes_objects(server, send):
    assert send("--type", "notice", "hello") == 0
    assert send("--type", "notice", "--json", '{"text": "é", "type": "other"}') == 0
    assert [json.loads(each) for each in said(server)] == [
        {"type": "notice", "text": "hello"},
        {"type": "notice", "text": "é"},
    ]


@pytest.mark.parametrize(
    ("arguments", "data", "error"),
    [
        (["--json"], b"1\nno\n", "line 2 is not JSON: 'no': .*; 1 sent before it"),
        (["--json", "NaN"], b"", "MESSAGE is not JSON: 'NaN': NaN is not a number in JSON"),
        (["--json", "--type", "t", "[1]"], b"", "MESSAGE is not a JSON object"),
        ([], b"1\n2\n\xff\n", "line 3 is not UTF-8; --binary .*; 2 sent before it"),
    ],
)
def test_bad_input_ends_it_with_one_line(send, capsys, arguments, data, error):
    assert send(*arguments, data=data) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("greenws send: ")
    assert re.search(error, line), line


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--binary", "--json", "x"], "not allowed with"),
        (["--binary", "--type", "t", "x"], "cannot be combined with --binary"),
        (["--timeout", "0", "x"], "timeout must be"),
        (["--timeout", "soon", "x"], "invalid float value"),
        (["--history", "0", "x"], "history must be"),
    ],
)
def test_wrong_arguments_are_reported_with_the_usage(send, capsys, arguments, error):
    assert send(*arguments) == 2
    text = capsys.readouterr().err
    assert text.startswith("usage: python -m greenws send") and error in text


def test_a_malformed_url_is_reported(send, capsys):
    assert send("x", url="http://localhost") == 2
    assert "redis://" in capsys.readouterr().err


def test_a_redis_that_is_down_is_reported_in_one_line(send, capsys):
    assert send("--timeout", "0.2", "x", url="redis://127.0.0.1:1") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("greenws send: Redis is out of reach: ")


def test_options_of_the_broker_are_taken(server, send):
    assert send("--prefix", "mine:", "--history", "5", "--max-age", "60", "x") == 0
    assert server.call("EXISTS", "mine:room:r") == 1


_COMMAND = [sys.executable, "-m", "greenws", "send"]
_CHECK = """
import sys
from greenws.__main__ import main
assert main(["send", sys.argv[1], "r", "hello"]) == 0
assert not [name for name in sys.modules if name.split(".")[0] in ("gevent", "greenlet")]
"""


def test_no_gevent_is_imported(server):
    command = [sys.executable, "-c", _CHECK, server.url]
    done = subprocess.run(
        command, env=environ_without_coverage(), capture_output=True, text=True, cwd=ROOT
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert said(server) == ["hello"]


def test_lines_are_sent_as_they_come(server):
    with subprocess.Popen([*_COMMAND, server.url, "r"], stdin=subprocess.PIPE, cwd=ROOT) as process:
        assert process.stdin is not None
        process.stdin.write(b"one\n")
        process.stdin.flush()
        eventually(lambda: said(server), ["one"], 20)
        assert process.poll() is None
        process.stdin.close()
        assert process.wait(limit(20)) == 0
