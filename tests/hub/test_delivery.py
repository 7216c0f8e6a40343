"""What the peer's TCP has acknowledged: over TCP, a Unix socket, and where that is unknown."""

from __future__ import annotations

import socket
import sys

import pytest

from greenws.hub import delivery
from greenws.hub.delivery import Delivery, unacknowledged

from ..support.limits import eventually

pytestmark = [
    pytest.mark.no_io,
    pytest.mark.skipif(sys.platform != "linux", reason="the kernel must tell"),
]


@pytest.fixture
def tcp():
    """Two connected sockets; the second one's receive buffer holds a few kB."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 12)
        ours.connect(listener.getsockname())
        theirs, _ = listener.accept()
    ours.setblocking(False)
    yield ours, theirs
    ours.close()
    theirs.close()


def fill(ours):
    sent = 0
    while sent < 100_000:
        sent += ours.send(bytes(10_000))
    return sent


def test_what_the_peer_does_not_read_stays_unacknowledged(tcp):
    ours, theirs = tcp
    sent = fill(ours)
    left = unacknowledged(ours.fileno())
    assert 0 < left <= sent
    received = 0
    while received < sent:
        received += len(theirs.recv(1 << 16))
    eventually(lambda: unacknowledged(ours.fileno()), 0)


def test_delivery_progresses_until_what_was_there_is_acknowledged(tcp):
    ours, theirs = tcp
    sent = fill(ours)
    watched = Delivery(ours, ours.fileno())
    received = len(theirs.recv(1 << 16))
    eventually(watched.has_progressed, True)
    sent += ours.send(b"ping")
    while received < sent:
        received += len(theirs.recv(1 << 16))
    eventually(lambda: unacknowledged(ours.fileno()), 0)
    watched.has_progressed()
    ours.send(b"more")
    eventually(lambda: unacknowledged(ours.fileno()), 0)
    assert not watched.has_progressed()  # that was sent later


def test_a_peer_that_acknowledges_nothing_shows_no_progress(tcp):
    ours, _ = tcp
    fill(ours)
    eventually(lambda: unacknowledged(ours.fileno()) == unacknowledged(ours.fileno()), True)
    watched = Delivery(ours, ours.fileno())
    assert not watched.has_progressed()


def test_a_unix_socket_reports_only_what_is_unread():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.send(b"x")
        assert unacknowledged(ours.fileno()) > 0
        theirs.recv(10)
        assert unacknowledged(ours.fileno()) == 0
        watched = Delivery(ours, ours.fileno())
        assert not watched.has_progressed()


def test_elsewhere_nothing_is_known(tcp, monkeypatch):
    ours, _ = tcp
    monkeypatch.setattr(delivery, "_IS_LINUX", False)
    assert unacknowledged(ours.fileno()) == -1
    watched = Delivery(ours, ours.fileno())
    assert not watched.has_progressed()


def test_a_closed_socket_reports_nothing(tcp):
    ours, _ = tcp
    fileno = ours.fileno()
    ours.close()
    assert unacknowledged(fileno) == -1
