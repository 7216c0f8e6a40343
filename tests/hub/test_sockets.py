"""gevent's sockets with an owner: as any in their process, closed to a forked child."""

from __future__ import annotations

import socket

import gevent
import pytest

from greenws.hub.sockets import OwnedSocket, OwnedSSLSocket, adopt, is_inherited

from ..support.forking import in_child
from ..support.limits import limit


@pytest.fixture(params=["plain", "tls"])
def pair(request, certificates, monkeypatch):
    """A connected socket of ours, and the peer's."""
    ours, theirs = socket.socketpair()
    owned = OwnedSocket(ours.family, ours.type, ours.proto, ours.detach())
    if request.param == "tls":
        served, trusting = certificates
        monkeypatch.setattr(served, "sslsocket_class", OwnedSSLSocket, raising=False)
        theirs = gevent.socket.socket(theirs.family, theirs.type, 0, theirs.detach())
        shaking = gevent.spawn(served.wrap_socket, owned, server_side=True)
        theirs = trusting.wrap_socket(theirs, server_hostname="127.0.0.1")
        owned = shaking.get(timeout=limit())
        assert type(owned) is OwnedSSLSocket
    else:
        theirs = gevent.socket.socket(theirs.family, theirs.type, 0, theirs.detach())
    theirs.settimeout(limit())
    yield owned, theirs
    owned.close()
    theirs.close()


def test_a_duplicate_of_an_adopted_one_has_the_same_owner():
    ours, theirs = gevent.socket.socketpair()
    adopt(ours)
    with ours, theirs, ours.dup() as another:
        another.send(b"x")
        assert theirs.recv(1) == b"x" and not is_inherited(another)


def test_it_works_where_it_was_made(pair):
    ours, theirs = pair
    reading = gevent.spawn(ours.recv, 10)
    gevent.sleep(0)
    theirs.sendall(b"in")
    assert reading.get(timeout=limit()) == b"in"
    sending = gevent.spawn(ours.sendall, bytes(1_000_000))
    received = 0
    while received < 1_000_000:
        received += len(theirs.recv(1 << 16))
    sending.get(timeout=limit())


def test_a_child_cannot_use_it_and_the_peer_notices_nothing(pair):
    ours, theirs = pair

    def child():
        calls = [
            lambda: ours.recv(10),
            lambda: ours.recv_into(bytearray(10)),
            lambda: ours.send(b"x"),
            lambda: ours.sendall(b"x"),
            lambda: ours.shutdown(socket.SHUT_RDWR),
        ]
        if isinstance(ours, OwnedSSLSocket):
            calls += [ours.unwrap, lambda: ours.write(b"x"), lambda: ours.read(10)]
        else:
            calls += [lambda: ours.sendmsg([b"x"])]
        for call in calls:
            with pytest.raises(ConnectionAbortedError):
                call()
        ours.close()

    in_child(child)
    ours.sendall(b"out")
    assert theirs.recv(10) == b"out"


def test_who_waits_for_it_does_not_wake_in_a_child(pair):
    ours, theirs = pair
    reading = gevent.spawn(ours.recv, 10)
    gevent.sleep(0)

    def child():
        theirs.sendall(b"for the parent")
        gevent.sleep(0.05)
        assert not reading.ready()

    in_child(child)
    assert reading.get(timeout=limit()) == b"for the pa"
