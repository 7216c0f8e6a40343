"""gevent's sockets with an owner: as any in their process, closed to a forked child."""

from __future__ import annotations

import socket
import time

import gevent
import gevent.socket
import pytest
from gevent.exceptions import ConcurrentObjectUseError

from greenws.hub.sockets import OwnedSocket, OwnedSSLSocket, adopt, is_inherited
from greenws.hub.transport import Transport

from ..support.forking import in_child
from ..support.limits import again_after_standstill, limit


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
            calls += [lambda: ours.sendmsg([b"x"]), lambda: ours.receive(10)]
        for call in calls:
            with pytest.raises(ConnectionAbortedError):
                call()
        ours.close()

    in_child(child)
    ours.sendall(b"out")
    assert theirs.recv(10) == b"out"


def test_who_waits_for_it_does_not_wake_in_a_child(pair):
    waits_in_the_parent_alone(*pair, pair[0].recv)


def test_who_waits_in_the_poller_does_not_wake_in_a_child(plain_pair):
    waits_in_the_parent_alone(*plain_pair, plain_pair[0].receive)


def waits_in_the_parent_alone(ours, theirs, receive):
    reading = gevent.spawn(receive, 10)
    gevent.sleep(0)

    def child():
        theirs.sendall(b"for the parent")
        gevent.sleep(0.05)
        assert not reading.ready()

    in_child(child)
    assert reading.get(timeout=limit()) == b"for the pa"


class CountingSocket:
    """A native socket that counts the calls of recv()."""

    def __init__(self, sock):
        self._sock = sock
        self.receives = 0

    def __getattr__(self, name):
        return getattr(self._sock, name)

    def recv(self, size):
        self.receives += 1
        return self._sock.recv(size)


@pytest.fixture
def plain_pair():
    ours, theirs = socket.socketpair()
    ours = OwnedSocket(ours.family, ours.type, ours.proto, ours.detach())
    yield ours, theirs
    ours.close()
    theirs.close()


def receive_later(sock, *args):
    """A greenlet that waits for the input of ``sock``."""
    reading = gevent.spawn(sock.receive, 100, *args)
    gevent.sleep(0)
    return reading


def test_input_that_is_waited_for_costs_one_receive(plain_pair):
    ours, theirs = plain_pair
    theirs.send(b"first")
    assert ours.receive(100, time.monotonic() + limit()) == b"first"
    ours._sock = counting = CountingSocket(ours._sock)
    for _ in range(10):
        reading = receive_later(ours, time.monotonic() + limit())
        theirs.send(b"more")
        assert reading.get(timeout=limit()) == b"more"
    ours._sock = counting._sock
    assert counting.receives == 10


def test_input_longer_than_was_asked_for_is_received_at_once(plain_pair):
    ours, theirs = plain_pair
    theirs.send(b"x" * 250)
    assert [len(ours.receive(100)) for _ in range(3)] == [100, 100, 50]


def test_without_input_the_deadline_ends_it_and_nothing_is_lost(plain_pair):
    ours, theirs = plain_pair
    assert ours.receive(100, 0.0) is None
    began = time.monotonic()
    assert ours.receive(100, began + 0.02) is None
    assert time.monotonic() >= began + 0.02
    assert ours.receive(100, began) is None
    theirs.send(b"late")
    assert ours.receive(100, began) == b"late"


@again_after_standstill(0.03)
def test_a_timer_that_fires_early_ends_nothing(plain_pair):
    ours, theirs = plain_pair
    ours.receive(100, 0.0)  # what a try before has left
    theirs.send(b"1")
    assert ours.receive(100, time.monotonic() + 0.05) == b"1"
    reading = receive_later(ours, time.monotonic() + 0.05)
    theirs.send(b"2")  # the timer stays armed
    assert reading.get(timeout=limit()) == b"2"
    reading = receive_later(ours)
    gevent.sleep(0.06)
    assert not reading.ready()
    reading.kill()
    began = time.monotonic()
    assert ours.receive(100, began + 0.03) is None
    assert time.monotonic() >= began + 0.03


def test_the_end_of_the_stream_after_input_is_noticed(plain_pair):
    ours, theirs = plain_pair
    reading = receive_later(ours)
    theirs.send(b"last")
    theirs.shutdown(socket.SHUT_WR)
    assert reading.get(timeout=limit()) == b"last"
    assert receive_later(ours).get(timeout=limit()) == b""


def test_a_receive_fails_when_another_greenlet_closes_the_socket(plain_pair):
    ours, _ = plain_pair

    def receive():
        with pytest.raises(OSError, match="closed or taken by another greenlet"):
            ours.receive(100)

    reading = gevent.spawn(receive)
    gevent.sleep(0)
    ours.close()
    reading.get(timeout=limit())


def test_a_second_greenlet_cannot_receive_while_one_waits(plain_pair):
    ours, theirs = plain_pair
    reading = receive_later(ours, time.monotonic() + limit())
    with pytest.raises(ConcurrentObjectUseError):
        ours.receive(100, time.monotonic() + limit())
    assert ours.receive(100, 0.0) is None
    theirs.send(b"for the first")
    assert reading.get(timeout=limit()) == b"for the first"


def test_what_another_thread_receives_is_not_waited_for_there(plain_pair):
    ours, theirs = plain_pair
    theirs.send(b"1")
    assert gevent.get_hub().threadpool.apply(ours.receive, (100,)) == b"1"
    reading = receive_later(ours)
    theirs.send(b"2")
    assert reading.get(timeout=limit()) == b"2"


def test_a_transport_that_only_sends_leaves_the_input_alone(plain_pair):
    ours, theirs = plain_pair
    reading = receive_later(ours)
    sending = Transport(ours, gevent.get_hub(), 0, borrowed=True)

    def send():
        sending.send_large(b"", b"x" * 4_000_000)
        sending.wait_for_room()
        sending.detach()

    writing = gevent.spawn(send)
    gevent.sleep(0)
    theirs = gevent.socket.socket(fileno=theirs.detach())
    received = 0
    while received < 4_000_000:
        received += len(theirs.recv(1 << 16))
    writing.get(timeout=limit())
    theirs.send(b"in")
    assert reading.get(timeout=limit()) == b"in"
    theirs.close()


def test_a_transport_takes_over_a_socket_that_is_watched(plain_pair):
    ours, theirs = plain_pair
    receive_later(ours).kill()
    ours.stop_watching()
    transport = Transport(ours, gevent.get_hub())
    reading = gevent.spawn(transport.receive, time.monotonic() + limit())
    gevent.sleep(0)
    theirs.send(b"in")
    assert reading.get(timeout=limit()) == 2
    transport.close()


def test_closing_does_not_disturb_another_socket_of_the_same_number(plain_pair):
    ours, theirs = plain_pair
    receive_later(ours).kill()
    number = ours._sock.detach()  # as pywsgi closes it, inside
    socket.socket(fileno=number).close()
    another, peer = socket.socketpair()
    with peer, OwnedSocket(another.family, another.type, 0, another.detach()) as another:
        assert another.fileno() == number
        reading = receive_later(another)
        ours.close()
        peer.send(b"mine")
        assert reading.get(timeout=limit()) == b"mine"
