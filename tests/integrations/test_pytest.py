"""The pytest plugin, in a run of pytest as of a program that has greenws installed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap

import pytest

from ..support.limits import limit

PROGRAM = """
import gevent
from greenws import Routes

routes = Routes()

@routes.websocket("/echo")
def echo(request, socket):
    for message in socket:
        socket.send(message)

@routes.websocket("/fails")
def fails(request, socket):
    for message in socket:
        raise LookupError("of the handler")

@routes.websocket("/spawns")
def spawns(request, socket):
    def pump():
        gevent.sleep(100)
    gevent.spawn(pump)
    for message in socket:
        socket.send(message)
"""

TESTS = """
import time
import unittest

import pytest

from greenws import WebSocketServer, testing
from program import routes

def test_passes(websocket):
    socket = websocket(routes, "/echo")
    socket.send("hi")
    assert socket.receive() == "hi"

def test_two_and_a_with(websocket):
    with websocket(routes, "/echo") as one:
        two = websocket(routes, "/echo")
        two.send("hi")
        assert two.receive() == "hi"
    assert not one.is_connected

@pytest.fixture
def member(websocket):
    socket = websocket(routes, "/fails")
    yield socket
    socket.close()

def test_handler_fails(member):
    member.send("hi")

def test_handler_fails_first(websocket):
    socket = websocket(routes, "/fails")
    socket.send("hi")
    socket.receive()

def test_fails_alone(websocket):
    websocket(routes, "/echo")
    assert 1 == 2

def test_waits_too_long(websocket):
    assert websocket(routes, "/echo", timeout=0.02).read_string_message().data == "hi"

def test_leaves_a_session():
    testing.connect(routes, "/echo")

def test_leaves_a_greenlet(websocket):
    socket = websocket(routes, "/spawns")
    socket.send("hi")
    socket.receive()

def test_leaves_a_clock():
    testing.clock().__enter__()

def test_after_a_clock():
    assert time.monotonic.__name__ == "monotonic"

def test_leaves_a_pair():
    testing.pair()

@pytest.mark.greenws_leftovers
def test_leaves_a_session_on_purpose():
    testing.connect(routes, "/echo")

@pytest.fixture(scope="module")
def bot():
    with testing.connect(routes, "/echo") as socket:
        yield socket

def test_uses_a_wider_fixture(bot):
    bot.send("hi")
    assert bot.receive() == "hi"

def test_uses_it_again(bot):
    bot.send("hi")
    assert bot.receive() == "hi"

@pytest.fixture
def closed_by_its_fixture():
    sockets = []
    yield sockets
    for socket in sockets:
        socket.close()

def test_leaves_it_to_a_fixture(closed_by_its_fixture):
    closed_by_its_fixture.append(testing.connect(routes, "/echo"))

class TestOfUnittest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.socket = testing.connect(routes, "/echo")
        cls.addClassCleanup(cls.socket.close)

    def test_passes(self):
        socket = testing.connect(routes, "/echo")
        self.addCleanup(socket.close)
        socket.send("hi")
        self.assertEqual(socket.receive(), "hi")

    def test_leaves_one(self):
        testing.connect(routes, "/echo")

kept = []

def test_leaves_a_connection_of_a_server():
    import greenws
    server = WebSocketServer(("127.0.0.1", 0), routes, log=None)
    server.start()
    kept.append(greenws.connect(f"ws://127.0.0.1:{server.server_port}/echo"))
    server.stop(timeout=0)
"""

PASS = {
    "test_passes",
    "test_two_and_a_with",
    "test_after_a_clock",
    "test_leaves_a_pair",
    "test_leaves_a_session_on_purpose",
    "test_uses_a_wider_fixture",
    "test_uses_it_again",
    "test_leaves_it_to_a_fixture",
}
FAIL = {
    "test_handler_fails",
    "test_handler_fails_first",
    "test_fails_alone",
    "test_waits_too_long",
}
LEAVE = {
    "test_leaves_a_session",
    "test_leaves_a_greenlet",
    "test_leaves_a_clock",
    "test_leaves_one",
    "test_leaves_a_connection_of_a_server",
}


def run(folder, *arguments):
    # Where coverage is measured, it would bring gevent along.
    env = {name: value for name, value in os.environ.items() if "COV" not in name}
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-rA", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        env=env,
        timeout=limit(30),
    ).stdout


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    folder = tmp_path_factory.mktemp("project")
    (folder / "program.py").write_text(PROGRAM)
    (folder / "test_program.py").write_text(TESTS)
    return run(folder, "-n", "1")


def outcomes(output, word):
    return {name.rpartition("::")[2] for name in re.findall(rf"^{word} (\S+)", output, re.M)}


def test_what_passes_what_fails_and_what_leaves_something_open(output):
    assert outcomes(output, "FAILED") == FAIL, output
    assert outcomes(output, "ERROR") == LEAVE, output
    assert outcomes(output, "PASSED") >= PASS, output


def test_a_failure_of_the_handler_shows_its_line_and_none_of_greenws(output):
    failures = re.split(r"^_{5,} (\S+) _{5,}$", output, flags=re.M)
    shown = failures[failures.index("test_handler_fails") + 1]
    assert 'raise LookupError("of the handler")' in shown
    assert "program.py:15: LookupError" in shown
    assert not re.search(r"greenws/\S+\.py:\d", shown), shown  # nor the path of a checkout


def test_a_wait_that_times_out_shows_both_sides(output):
    assert re.search(r"E +no message within 0.02 s\nE +handler: waits at \S+program.py:9", output)


def test_what_is_left_is_named_with_its_line(output):
    assert re.search(
        r"the session /echo, opened at \S+test_program.py:\d+\n  handler: wait", output
    )
    assert re.search(r"a greenlet: <Greenlet at \w+: pump>\n  waits at \S+program.py:20", output)
    assert "a clock that stops time" in output
    assert "an open connection: <WebSocket" in output


def test_a_wider_fixture_that_a_test_asks_for_after_it_has_imported_greenws(tmp_path):
    (tmp_path / "test_late.py").write_text(
        textwrap.dedent(
            """
            import pytest

            def app(environ, start_response):
                environ["wsgi.websocket"].receive()

            @pytest.fixture(scope="module")
            def bot():
                from greenws import testing
                with testing.connect(app) as socket:
                    yield socket

            def test_late(request):
                import greenws.testing
                greenws.WebSocket
                assert request.getfixturevalue("bot").is_connected

            def test_later(bot):
                assert bot.is_connected
            """
        )
    )
    assert "2 passed" in run(tmp_path)


def test_nothing_is_imported_before_the_fixture_is_used(tmp_path):
    (tmp_path / "test_nothing.py").write_text(
        textwrap.dedent(
            """
            import sys

            def test_first():
                assert not {"gevent", "greenlet", "greenws.testing"} & set(sys.modules)

            def test_second(websocket):
                assert "gevent" in sys.modules
            """
        )
    )
    assert "2 passed" in run(tmp_path)
