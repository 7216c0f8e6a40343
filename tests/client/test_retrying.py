"""``reconnect()``: when it comes back, how long it waits, and when it gives up."""

from __future__ import annotations

import email.utils
import re
import ssl
import time
from unittest import mock

import gevent
import pytest
from gevent import socket as gevent_socket

import greenws
from greenws import Config, ConnectionClosed, HandshakeError
from greenws.client.retrying import _Backoff, is_permanent

from ..support.limits import limit, wait_until
from ..support.raw_server import raw_server
from ..support.wire import TEXT, close_frame, frame

QUICK = {"min_delay": 0.001, "max_delay": 0.002, "proxy": None}


class Server:
    """Plays the next of its steps for each connection, and the last one for all others."""

    def __init__(self, *steps):
        self.steps = list(steps)
        self.seen = []

    def __call__(self, connection):
        step = self.steps.pop(0) if len(self.steps) > 1 else self.steps[0]
        step(connection)
        self.seen.append((connection.head, connection))


def greet(code=1000):
    def step(connection):
        connection.accept(early=frame(TEXT, b"hi", mask=None) + close_frame(code, mask=None))
        connection.hold()

    return step


def cut(connection):
    connection.accept(early=frame(TEXT, b"hi", mask=None))
    connection.reset()


def refuse(status, *lines):
    return lambda connection: connection.refuse(status, *lines)


def test_a_loop_comes_back_however_a_connection_ended():
    errors = []
    received = []
    with raw_server(Server(greet(1000), greet(1011), cut, greet(4000), greet())) as server:
        for socket in greenws.reconnect(
            server.url, on_error=lambda error, delay: errors.append(error.code), **QUICK
        ):
            with socket:
                for message in socket:
                    received.append(message)
            if len(received) == 5:
                break
    assert received == ["hi"] * 5
    assert errors == [1000, 1011, 1006, 4000]


def test_another_error_leaves_the_loop_and_closes_the_socket():
    with raw_server(Server(greet())) as server:
        sockets = []
        with pytest.raises(KeyError):
            for socket in greenws.reconnect(server.url, **QUICK):
                with socket:
                    sockets.append(socket)
                    raise KeyError
        assert not sockets[0].is_connected
        assert server.connections == 1


def test_the_close_of_another_socket_leaves_the_loop():
    with raw_server(Server(lambda connection: (connection.accept(), connection.hold()))) as server:
        with pytest.raises(ConnectionClosed):
            for socket in greenws.reconnect(server.url, config=Config(close_timeout=0.01), **QUICK):
                with socket:
                    raise ConnectionClosed(1000)


def test_a_socket_without_a_with_is_closed_before_the_next_one():
    with raw_server(Server(greet())) as server:
        sockets = []
        for socket in greenws.reconnect(server.url, **QUICK):
            assert not any(each.is_connected for each in sockets)
            sockets.append(socket)
            if len(sockets) == 3:
                break
        assert not any(each.is_connected for each in sockets)


def test_a_server_that_cannot_be_reached_is_tried_again():
    errors = []

    def note(error, delay):
        errors.append(error)
        if len(errors) == 3:
            raise RuntimeError("enough")

    with gevent_socket.socket() as unused, pytest.raises(RuntimeError, match="enough"):
        unused.bind(("127.0.0.1", 0))  # and does not listen
        port = unused.getsockname()[1]
        for _ in greenws.reconnect(f"ws://127.0.0.1:{port}/", on_error=note, **QUICK):
            raise AssertionError
    assert [type(error) for error in errors] == [ConnectionRefusedError] * 3


def test_without_a_function_for_errors_they_are_logged(caplog):
    busy = Server(refuse("503 Busy"), greet())
    with raw_server(busy) as server, caplog.at_level("INFO", "greenws.client"):
        count = 0
        for socket in greenws.reconnect(server.url, **QUICK):
            with socket:
                list(socket)
            count += 1
            if count == 2:
                break
    lines = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert [level for level, _ in lines] == ["WARNING", "INFO"]
    assert re.fullmatch(r"ws://.* responded with status 503; trying again in 0\.0 s", lines[0][1])
    assert re.fullmatch(r"connection closed: .*; connecting again in 0\.0 s", lines[1][1])


def test_a_server_that_restarts_is_tried_again():
    steps = [refuse("503 Later"), refuse("429 Slow"), lambda connection: None, greet()]
    with raw_server(Server(*steps)) as server:
        for socket in greenws.reconnect(server.url, **QUICK):
            with socket:
                assert socket.receive(limit()) == "hi"
            break
        assert server.connections == 4


@pytest.mark.parametrize("status", ["401 Unauthorized", "403 Forbidden", "404 Not Found"])
def test_a_refusal_that_cannot_get_better_is_raised(status):
    with raw_server(Server(greet(), refuse(status))) as server:
        received = []
        with pytest.raises(HandshakeError, match=status[:3]):
            for socket in greenws.reconnect(server.url, **QUICK):
                with socket:
                    received += socket
        assert received == ["hi"]
        assert server.connections == 2


def test_it_never_gives_up_if_give_up_says_so():
    with raw_server(Server(refuse("404 No"), refuse("404 No"), greet())) as server:
        for socket in greenws.reconnect(server.url, give_up=lambda error: False, **QUICK):
            with socket:
                break
        assert server.connections == 3


def test_a_certificate_that_is_not_trusted_is_raised(certificates, hub_errors):
    with raw_server(Server(greet()), ssl_context=certificates[0]) as server:
        with pytest.raises(ssl.SSLCertVerificationError):
            for _ in greenws.reconnect(server.url, **QUICK):
                raise AssertionError
        wait_until(hub_errors.take)  # the server's


@pytest.mark.parametrize(
    ("error", "permanent"),
    [
        (HandshakeError("", 0), False),
        (HandshakeError("", 101), True),
        (HandshakeError("", 302), True),
        (HandshakeError("", 400), True),
        (HandshakeError("", 407), True),
        (HandshakeError("", 408), False),
        (HandshakeError("", 500), False),
        (HandshakeError("", 501), True),
        (HandshakeError("", 504), False),
        (HandshakeError("", 511), True),
        (HandshakeError("", 521), False),
        (HandshakeError("", 530), False),
        (ConnectionRefusedError(), False),
        (TimeoutError(), False),
        (gevent_socket.gaierror(), False),
        (ssl.SSLError(), False),
        (ssl.SSLCertVerificationError(), True),
    ],
)
def test_what_is_permanent(error, permanent):
    assert is_permanent(error) == permanent


def test_the_url_and_the_headers_may_change():
    with raw_server(Server(greet(), refuse("503 No"), greet())) as server:
        numbers = iter(range(10))
        for socket in greenws.reconnect(
            lambda: f"{server.url}/?since={next(numbers)}",
            headers=lambda: {"X-Token": str(next(numbers))},
            **QUICK,
        ):
            with socket:
                list(socket)
            if server.connections == 3:
                break
        heads = [head for head, _ in server.handle.seen]
        assert [head[0].split()[1] for head in heads] == ["/?since=1", "/?since=3", "/?since=5"]
        assert "X-Token: 4" in heads[2]


async def in_asyncio(error, delay):
    pass


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"min_delay": 0}, ValueError, "min_delay"),
        ({"min_delay": 2, "max_delay": 1}, ValueError, "must not be above"),
        ({"max_delay": "1"}, TypeError, "max_delay"),
        ({"on_error": 3}, TypeError, r"on_error is a function \(error, delay\), not 3"),
        ({"on_error": lambda error: 1}, TypeError, r"on_error is called with \(error, delay\)"),
        ({"on_error": in_asyncio}, TypeError, "'async def'"),
        ({"give_up": False}, TypeError, r"give_up is a function \(error\), not False"),
        ({"give_up": lambda: True}, TypeError, r"give_up is called with \(error\)"),
        ({"timeout": 3}, TypeError, "'timeout'; write open_timeout="),
        ({"max_retries": 3}, TypeError, "'max_retries'; write give_up="),
        ({"nothing": 3}, TypeError, r"write greenws.reconnect\('ws://host/path'\)"),
    ],
)
def test_an_invalid_argument_is_an_error_at_once(options, error, says):
    with pytest.raises(error, match=says):
        greenws.reconnect("ws://h/", **options)


@pytest.mark.parametrize("function", [print, [].append, lambda *args: None, mock.Mock()])
def test_any_function_that_takes_the_arguments_will_do(function):
    greenws.reconnect("ws://h/", give_up=function).close()


def test_an_invalid_url_is_not_tried_again():
    with pytest.raises(ValueError):
        next(greenws.reconnect("http://h/", **QUICK))


# -- the pause


def pauses(backoff, count):
    found = []
    for _ in range(count):
        backoff.fail(0.0)
        found.append(backoff.delay())
    return found


def test_a_pause_doubles_up_to_the_longest():
    found = pauses(_Backoff(1.0, 20.0), 100)
    for pause, longest in zip(found, [1, 2, 4, 8, 16, *[20] * 95], strict=True):
        assert longest / 2 <= pause <= longest


def test_pauses_differ():
    assert len({pauses(_Backoff(1.0, 20.0), 1)[0] for _ in range(100)}) == 100


def test_a_connection_that_lasted_makes_the_pause_short_again(monkeypatch):
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    backoff = _Backoff(1.0, 60.0)
    pauses(backoff, 4)
    backoff.begin()
    now += 7.9
    backoff.end()
    assert 8 <= backoff.delay() <= 16  # it was dropped soon: that was the fifth failure
    backoff.begin()
    now += 16.1
    backoff.end()
    assert 0.5 <= backoff.delay() <= 1


@pytest.fixture
def timezone_of_new_york(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "EST+5EDT,M3.2.0,M11.1.0")
        time.tzset()
        yield
    time.tzset()


@pytest.mark.usefixtures("timezone_of_new_york")
@pytest.mark.parametrize("form", ["seconds", "date", "date of asctime"])
def test_a_server_that_asks_for_a_pause_gets_it(form):
    asked, due = "3", 0
    if form != "seconds":
        due = int(time.time()) + 4
        is_usual = form == "date"
        asked = (
            email.utils.formatdate(due, usegmt=True) if is_usual else time.asctime(time.gmtime(due))
        )
    delays = []

    def note(error, delay):
        delays.append(delay)
        raise StopAsyncIteration

    with raw_server(Server(refuse("503 Later", f"Retry-After: {asked}"))) as server:
        with pytest.raises(StopAsyncIteration):
            next(greenws.reconnect(server.url, on_error=note, **QUICK))
    assert (due - time.time() if due else 3) <= delays[0] <= 4.6


@pytest.mark.parametrize(
    ("asked", "least", "most"),
    [("soon", 0, 0.01), ("-5", 0, 0.01), ("", 0, 0.01), ("9" * 400, 86_400, 86_401)],
)
def test_a_pause_that_makes_no_sense_is_bounded(asked, least, most):
    delays = []

    def note(error, delay):
        delays.append(delay)
        raise StopAsyncIteration

    with raw_server(Server(refuse("503 Later", f"Retry-After: {asked}"))) as server:
        with pytest.raises(StopAsyncIteration):
            next(greenws.reconnect(server.url, on_error=note, **QUICK))
    assert least <= delays[0] <= most


def test_a_loop_that_waits_can_be_killed():
    with raw_server(Server(refuse("503 Later", "Retry-After: 100"))) as server:

        def loop():
            for _ in greenws.reconnect(server.url, **QUICK):
                raise AssertionError

        waiting = gevent.spawn(loop)
        with gevent.Timeout(limit()):
            while server.connections < 1:
                gevent.sleep(0.001)
        waiting.kill(timeout=limit())
        assert waiting.dead
