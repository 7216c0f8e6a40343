"""How many may connect: in all, from one address, and behind a proxy."""

from __future__ import annotations

import logging
import os
import socket as native
from typing import Any

import gevent
import pytest

from greenws import Config, Routes, WebSocketServer
from greenws.hub.transport import accept
from greenws.server import server as server_module
from greenws.server.admission import Admission
from greenws.server.balance import Balance
from greenws.server.server import _BatchGreenlet

from ..support.limits import limit, stays, wait_until
from ..support.wire import CLOSE, TEXT, Peer, close_frame, frame


def test_what_entered_leaves_its_place_to_another():
    admission = Admission(Config(max_connections=2))
    assert [admission.enter("a"), admission.enter("b"), admission.enter("c")] == [
        "",
        "",
        "connections",
    ]
    admission.leave("a")
    assert admission.enter("c") == ""


def test_addresses_are_counted_apart_and_forgotten():
    admission = Admission(Config(max_connections_per_address=1))
    assert [admission.enter("a"), admission.enter("a"), admission.enter("b")] == [
        "",
        "address",
        "",
    ]
    assert admission.enter(None) == "" and admission.enter("") == ""  # unix sockets have none
    admission.leave("a")
    admission.leave("b")
    assert not admission._addresses  # private: it must not grow with every address ever seen
    assert admission.enter("a") == ""


def test_no_limit():
    admission = Admission(Config(max_connections=None))
    assert all(admission.enter("a") == "" for _ in range(20_000))


def test_all_waiters_are_woken_when_no_work_is_left():
    admission = Admission(Config())
    admission.begin_work()
    waiting = [gevent.spawn(admission.wait_until_quiet, timeout) for timeout in (None, 5)]
    impatient = gevent.spawn(admission.wait_until_quiet, 0.01)
    assert impatient.get(timeout=limit(2)) == 1
    admission.end_work()
    admission.begin_work()  # before anybody could look
    stays(lambda: not any(each.ready() for each in waiting))
    admission.end_work()
    assert [each.get(timeout=limit(2)) for each in waiting] == [0, 0]
    assert admission.wait_until_quiet(None) == 0
    assert not admission._waiting


@pytest.fixture
def routes():
    routes = Routes()

    @routes.websocket("/ws")
    def echo(request, socket):
        for message in socket:
            socket.send(message)

    return routes


def echoes(peer):
    peer.send(frame(TEXT, b"x"))
    return peer.read_frame() == (True, TEXT, b"x")


def turned_away(server, option, **headers):
    with Peer.connect(server.address) as peer:
        response = peer.shake("/ws", **headers)
        assert response.status == 503
        assert response.headers["connection"] == "close"
        assert option in response.body.decode()
        return peer.at_end()


def open_soon(server, **headers):
    """As soon as there is room."""

    def attempt():
        peer = Peer.connect(server.address)
        if peer.shake("/ws", **headers).status == 101:
            return peer
        peer.close()
        return None

    return wait_until(attempt)


def test_a_flood_of_connections_beyond_the_limit_takes_few_descriptors(serve, routes):
    server = serve(routes, config=Config(max_connections=1))
    with Peer.open(server.address, "/ws") as peer:
        before = len(os.listdir("/proc/self/fd"))
        others = [Peer.connect(server.address) for _ in range(160)]
        wait_until(lambda: server.stats.refused["connections"] == 160)
        assert all(other.read_response().status == 503 for other in others)
        assert len(os.listdir("/proc/self/fd")) - before <= 160 + 105
        assert echoes(peer)
        for other in others:
            other.close()


@pytest.mark.parametrize("option", ["max_connections", "max_connections_per_address"])
def test_one_connection_too_many_is_503_and_the_others_go_on(serve, routes, option, caplog):
    server = serve(routes, config=Config(**{option: 3}))
    peers = [Peer.open(server.address, "/ws") for _ in range(2)]
    peers.append(Peer.connect(server.address))  # one that says nothing counts too
    wait_until(lambda: server.admission.open == 3)
    with caplog.at_level(logging.WARNING, "greenws"):
        for _ in range(3):
            assert turned_away(server, option)
    assert len(caplog.records) == (option == "max_connections")  # no flood of lines
    assert server.stats.refused == {option.rpartition("_")[2]: 3}
    assert all(echoes(peer) for peer in peers[:2])
    peers.pop().close()
    peers.append(open_soon(server))
    peers.pop(0).close()  # a session leaves its place as well
    peers.append(open_soon(server))
    assert all(echoes(peer) for peer in peers)
    for peer in peers:
        peer.close()
    wait_until(lambda: server.admission.open == 0)
    assert server.admission.busy == 0 and not server.admission.greenlets


def test_behind_a_proxy_the_addresses_that_it_names_are_counted(serve, routes):
    config = Config(max_connections_per_address=1)
    server = serve(routes, config=config, trusted_proxies=1)
    one, two = {"X_Forwarded_For": "203.0.113.1"}, {"X_Forwarded_For": "6.6.6.6, 203.0.113.2"}
    with Peer.open(server.address, "/ws", **one) as first:
        assert turned_away(server, "max_connections_per_address", **one)
        with Peer.open(server.address, "/ws", **two) as second:
            assert echoes(first) and echoes(second)
        first.send(close_frame())
        assert first.read_frame()[1] == CLOSE
    with Peer.connect(server.address) as peer:  # what was not upgraded holds no place
        assert peer.shake("/nowhere", **one).status == 404
    open_soon(server, **one).close()


def test_over_tls_one_too_many_is_closed_without_the_cost_of_a_handshake(
    serve, routes, certificates
):
    served, trusting = certificates
    server = serve(routes, config=Config(max_connections=1), ssl_context=served)
    with Peer.connect(server.address) as first:
        wait_until(lambda: server.admission.open == 1)
        with Peer.connect(server.address) as peer:
            assert peer.at_end()
        first.sock = trusting.wrap_socket(first.sock, server_hostname="127.0.0.1")
        assert first.shake("/ws").status == 101


GET = b"GET /page HTTP/1.1\r\nHost: a\r\n\r\n"


@pytest.mark.usefixtures("over_tls_too")
def test_the_longest_idle_connection_makes_room(serve, routes):
    server = serve(routes, config=Config(max_connections=3))
    session = Peer.open(server.address, "/ws")
    idle = [Peer.connect(server.address) for _ in range(2)]
    for peer in idle:
        peer.send(GET)
        assert peer.read_response().status in (200, 404)
        wait_until(lambda: len(server.admission.idle) == idle.index(peer) + 1)  # noqa: B023
    with Peer.open(server.address, "/ws") as peer:
        assert idle[0].at_end()  # it waited longest
        assert echoes(peer) and echoes(session)
        idle[1].send(GET)
        assert idle[1].read_response().status in (200, 404)
        wait_until(lambda: server.admission.open == 3)
    for peer in [session, *idle]:
        peer.close()
    wait_until(lambda: server.admission.open == 0)
    assert not server.admission.idle and not server.stats.refused


def test_a_connection_with_a_request_in_progress_is_not_closed_for_another(serve, routes):
    server = serve(routes, config=Config(max_connections=1))
    with Peer.connect(server.address) as peer:
        peer.send(GET)
        assert peer.read_response().status in (200, 404)
        peer.send(GET[:20])
        wait_until(lambda: not server.admission.idle)
        assert turned_away(server, "max_connections")
        peer.send(GET[20:])
        assert peer.read_response().status in (200, 404)


class Owner:
    pass


class FailingAdmission(Admission):
    def enter(self, address: Any) -> str:
        raise MemoryError("expected")


def fail(*args: Any) -> None:
    raise MemoryError("expected")


@pytest.mark.parametrize("step", ["spawn", "enter"])
def test_a_connection_that_cannot_be_served_is_closed_and_not_counted(
    serve, hub_errors, monkeypatch, step
):
    server = serve(lambda environ, start_response: [])
    balance, owner = Balance(), Owner()
    server._share = balance.share(owner)
    changes = []
    monkeypatch.setattr(type(server._share), "add", lambda self, change: changes.append(change))
    if step == "spawn":
        server._spawn = fail
    else:
        server.admission = FailingAdmission(server.config)
    with Peer.connect(server.address) as peer:
        assert peer.at_end()
    wait_until(lambda: len(changes) >= 2)
    assert changes == [1, -1]
    assert "expected" in hub_errors.take()


def test_a_batch_of_connections_that_cannot_be_served_is_closed(serve, hub_errors, monkeypatch):
    server = serve(Routes())
    balance, owner = Balance(), Owner()
    server._share = balance.share(owner)
    changes = []
    monkeypatch.setattr(type(server._share), "add", lambda self, change: changes.append(change))
    with monkeypatch.context() as patch:
        patch.setattr(_BatchGreenlet, "spawn", fail)
        with Peer.connect(server.address) as peer:
            assert peer.at_end()
    assert changes == [1, -1]
    assert "expected" in hub_errors.take()
    with Peer.connect(server.address) as peer:
        peer.send(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        assert peer.read_response().status == 404
    wait_until(lambda: server.admission.open == 0)


def test_connections_that_wait_together_are_accepted_together(serve, monkeypatch):
    """A batch ends with the queue, or when others are to have a turn."""
    accepted = []

    def counting(*args: Any) -> Any:
        accepted.append(accept(*args))
        return accepted[-1]

    monkeypatch.setattr(server_module, "accept", counting)
    server = serve(Routes())
    server.max_accept = 4
    peers = [native.create_connection(server.address) for _ in range(6)]  # the hub does not run
    wait_until(lambda: server.admission.open == 6)
    assert [one is not None for one in accepted] == [True] * 6 + [False]
    for peer in peers:
        peer.close()
    wait_until(lambda: server.admission.open == 0)


@pytest.mark.parametrize("name", ["do_read", "do_handle", "handle"])
def test_a_method_that_is_replaced_on_the_server_is_called_for_each_connection(serve, name):
    asked = []
    server = serve(Routes())
    original = getattr(server, name)

    def ask(*args: Any) -> Any:
        asked.append(args)
        return original(*args)

    setattr(server, name, ask)
    for number in (1, 2):
        with Peer.connect(server.address) as peer:
            peer.send(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            assert peer.read_response().status == 404
        assert len(asked) >= number


@pytest.mark.parametrize("name", ["do_read", "do_handle", "handle"])
def test_a_subclass_is_asked_for_each_connection(serve, name):
    asked = []

    def ask(self: Any, *args: Any) -> Any:
        asked.append(args)
        return getattr(WebSocketServer, name)(self, *args)

    server = serve(Routes(), cls=type("Own", (WebSocketServer,), {name: ask}))
    for number in (1, 2):
        with Peer.connect(server.address) as peer:
            peer.send(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            assert peer.read_response().status == 404
        assert len(asked) >= number
