"""Programs of Flask-Sock and simple-websocket, which take the socket from the server themselves."""

from __future__ import annotations

import http.client
from collections.abc import Iterator

import pytest

from ..support.limits import eventually, limit
from ..support.processes import PROGRAMS, Process, connect, descriptors
from ..support.wire import TEXT, Peer, close_frame, frame


@pytest.fixture(scope="module", params=["WebSocketServer", "gunicorn"])
def program(request: pytest.FixtureRequest) -> Iterator[Process]:
    if request.param == "gunicorn":
        arguments = ["-m", "gunicorn", "--bind", "127.0.0.1:0", "-k", "greenws.gunicorn.Worker"]
        arguments += ["flask_sock_app:app"]
    else:
        arguments = [str(PROGRAMS / "flask_sock_app.py"), request.param]
    with Process(*arguments) as process:
        process.server = request.param  # type: ignore[attr-defined]
        yield process.wait_for_port()


def hello(process: Process) -> bytes:
    connection = http.client.HTTPConnection(*process.address, timeout=limit(20))
    try:
        connection.request("GET", "/hello")
        return connection.getresponse().read()
    finally:
        connection.close()


def test_messages_and_a_subprotocol(program):
    with connect(program.url("/echo/ada"), subprotocols=["chat"]) as client:
        assert client.recv(limit(20)) == "hello ada chat"
        for message in ("one", b"\x00two", "x" * 100_000):
            client.send(message)
            assert client.recv(limit(20)) == message
        client.send("bye")
        with pytest.raises(Exception, match="1000"):
            client.recv(limit(20))


def test_nothing_of_http_follows_the_end(program):
    for message in (frame(TEXT, b"bye"), close_frame(1000)):
        with Peer.open(program.address, "/echo/ada") as peer:
            assert peer.read_frame()[2] == b"hello ada None"
            peer.send(message)
            assert peer.read_frame()[1] == 8
            if message != close_frame(1000):
                peer.send(close_frame(1000))
            assert peer.at_end()
    assert hello(program) == b"hello"


def test_an_error_is_logged_once_and_no_page_is_sent(program):
    first = len(program.lines)
    with Peer.open(program.address, "/echo/ada") as peer:
        assert peer.read_frame()[2] == b"hello ada None"
        peer.send(frame(TEXT, b"fail"))
        assert peer.at_end()
    program.wait_for("LookupError: of the view", first)
    assert hello(program) == b"hello"
    assert program.output.count("LookupError: of the view") == 1


def test_a_view_without_an_upgrade_and_other_requests_are_as_before(program):
    with Peer.connect(program.address) as peer:
        assert peer.shake("/hello").status == 200
    with Peer.connect(program.address) as peer:
        assert peer.shake("/echo/ada", Upgrade=None, Connection=None).status == 400


def test_descriptors_come_back(program):
    if program.server == "gunicorn":
        return
    pid = program.popen.pid
    eventually(lambda: descriptors(pid).count("socket:[]"), 1)
    peers = [Peer.open(program.address, "/echo/ada") for _ in range(5)]
    for peer in peers:
        assert peer.read_frame()[2] == b"hello ada None"
        peer.close()
    eventually(lambda: descriptors(pid).count("socket:[]"), 1)
