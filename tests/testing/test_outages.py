"""``testing.outage()``: what an application sees while its broker is out of reach."""

from __future__ import annotations

import logging
import socket

import gevent
import gevent.socket
import pytest

from greenws import BrokerUnavailable, Rooms, Routes, testing
from greenws.brokers.memory import MemoryBroker

from ..support.limits import limit, wait_until
from ..support.redis_server import RedisServer
from ..support.require import require_program


def make_chat(rooms):
    routes = Routes()

    @routes.websocket("/chat")
    def chat(request, socket):
        with rooms["room"].join(socket, since=request.args.get("since"), gap="gap") as member:
            socket.send(f"at {member.position}")
            for message in socket:
                if message == "position?":
                    try:
                        socket.send(rooms["room"].position)
                    except BrokerUnavailable:
                        socket.send("unavailable")
                elif message == "history?":
                    socket.send(str(rooms["room"].history()))
                elif message == "wait":
                    rooms["room"].send("waited", wait=True)
                elif message == "disconnect":
                    rooms["room"].disconnect()
                else:
                    rooms["room"].send(message)

    return routes


def test_what_works_and_what_does_not_without_the_broker():
    rooms = Rooms(MemoryBroker())
    app = make_chat(rooms)
    with testing.connect(app, "/chat") as ada, testing.connect(app, "/chat") as grace:
        assert ada.receive().startswith("at ") and grace.receive().startswith("at ")
        ada.send("before")
        assert (ada.receive(), grace.receive()) == ("before", "before")
        with testing.outage(rooms):
            ada.send("meanwhile")
            assert (ada.receive(), grace.receive()) == ("meanwhile", "meanwhile")
            for question, answer in (("position?", "unavailable"), ("history?", "[]")):
                ada.send(question)
                assert ada.receive() == answer
            assert rooms["empty"].members == []
            with pytest.raises(BrokerUnavailable):
                rooms["room"].disconnect()
            ada.send("wait")
            assert (ada.receive(), grace.receive()) == ("waited", "waited")
            assert not rooms.flush(timeout=0.01)
        ada.send("history?")
        assert ada.receive() == "['before', 'meanwhile', 'waited']"
        assert rooms.flush()


def test_who_comes_back_during_an_outage_gets_its_gap():
    rooms = Rooms(MemoryBroker())
    app = make_chat(rooms)
    with testing.connect(app, "/chat") as ada:
        position = ada.receive()[3:]
        ada.send("missed")
        assert ada.receive() == "missed"
    with testing.outage(rooms), testing.connect(app, f"/chat?since={position}") as ada:
        assert ada.receive() == "gap"


def test_too_much_waits():
    rooms = Rooms(MemoryBroker())
    with testing.outage(rooms, max_pending=1):
        rooms["room"].send("first")
        with pytest.raises(BrokerUnavailable, match="1 messages wait"):
            rooms["room"].send("second")
    rooms["room"].send("third")
    assert rooms["room"].history() == ["first", "third"]


def test_wrong_arguments():
    with pytest.raises(TypeError, match="takes Rooms"):
        testing.outage(42).__enter__()


def length_of(server, key):
    """The length of a stream, asked without redis-py."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=limit()) as sock:
        sock.sendall(b"XLEN " + key + b"\r\n")
        return sock.recv(100)


def test_a_broker_over_redis_loses_its_connections(monkeypatch, caplog):
    redis = pytest.importorskip("redis")
    require_program("redis-server")
    monkeypatch.setattr(redis.connection, "socket", gevent.socket)
    server = RedisServer()
    rooms = Rooms(server.url)
    app = make_chat(rooms)
    caplog.set_level(logging.CRITICAL, "greenws")
    try:
        with testing.connect(app, "/chat") as ada:
            ada.receive()
            ada.send("before")
            assert ada.receive() == "before"
            (key,) = [
                key for key in server.call("KEYS", "*") if server.call("TYPE", key) == b"stream"
            ]
            with pytest.raises(TypeError, match="option of RedisBroker"):
                testing.outage(rooms, max_pending=1).__enter__()
            with testing.outage(rooms):
                ada.send("position?")
                assert ada.receive() == "unavailable"
                ada.send("meanwhile")
                assert ada.receive() == "meanwhile"
                assert length_of(server, key) == b":1\r\n"
            wait_until(lambda: length_of(server, key) == b":2\r\n")
            ada.send("position?")
            assert gevent.with_timeout(limit(), ada.receive) != "unavailable"
    finally:
        rooms.close()
        server.close()
