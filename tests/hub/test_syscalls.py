"""The system calls on the path of a message, over real sockets."""

from __future__ import annotations

import os
import select
import socket
import subprocess
import sys

import pytest

from greenws.hub import syscalls
from greenws.hub.syscalls import WOULD_BLOCK

from ..support.limits import limit
from ..support.paths import ROOT


@pytest.fixture
def ends():
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    yield ours, theirs
    ours.close()
    theirs.close()


def test_receive_fills_the_buffer_from_its_start(ends):
    ours, theirs = ends
    buffer = bytearray(8)
    assert syscalls.receive(ours.fileno(), buffer) == WOULD_BLOCK
    theirs.send(b"abc")
    assert syscalls.receive(ours.fileno(), buffer) == 3
    assert buffer == b"abc\0\0\0\0\0"
    theirs.send(b"0123456789")
    assert syscalls.receive(ours.fileno(), buffer) == 8
    assert buffer == b"01234567"
    theirs.close()
    assert syscalls.receive(ours.fileno(), buffer) == 2
    assert syscalls.receive(ours.fileno(), buffer) == 0


def test_readable_says_whether_there_is_input_or_its_end(ends):
    ours, theirs = ends
    assert not syscalls.readable(ours.fileno())
    theirs.send(b"abc")
    assert syscalls.readable(ours.fileno())
    ours.recv(3)
    assert not syscalls.readable(ours.fileno())
    theirs.close()
    assert syscalls.readable(ours.fileno())


def test_sends_say_how_much_the_kernel_took(ends):
    ours, theirs = ends
    fileno = ours.fileno()
    assert syscalls.send(fileno, b"one") == 3
    assert syscalls.send_prefix(fileno, bytearray(b"two and more"), 3) == 3
    assert syscalls.send_both(fileno, b"th", b"ree") == 5
    assert theirs.recv(100) == b"onetwothree"
    taken = 0
    while (sent := syscalls.send(fileno, b"x" * 100_000)) != WOULD_BLOCK:
        taken += sent
    assert syscalls.send_prefix(fileno, bytearray(10), 10) == WOULD_BLOCK
    assert syscalls.send_both(fileno, b"a", b"b") == WOULD_BLOCK
    while taken:
        taken -= len(theirs.recv(1 << 20))


def test_a_connection_that_is_lost_raises(ends):
    ours, theirs = ends
    theirs.close()
    for send in (
        lambda fileno: syscalls.send(fileno, b"x"),
        lambda fileno: syscalls.send_prefix(fileno, bytearray(b"x"), 1),
        lambda fileno: syscalls.send_both(fileno, b"x", b"y"),
    ):
        with pytest.raises(BrokenPipeError):
            send(ours.fileno())
    with pytest.raises(OSError, match="Bad file descriptor"):
        syscalls.receive(1 << 20, bytearray(1))


@pytest.mark.skipif(not hasattr(select, "epoll"), reason="this system has no epoll")
def test_an_event_has_its_descriptor_and_reports_a_hang_up(ends):
    ours, theirs = ends
    with select.epoll() as epoll:
        epoll.register(ours.fileno(), select.EPOLLIN | select.EPOLLRDHUP)
        events = syscalls.new_events(4)
        assert syscalls.take_events(epoll, epoll.fileno(), events, 4) == 0
        theirs.send(b"x")
        assert syscalls.take_events(epoll, epoll.fileno(), events, 4) == 1
        assert syscalls.event_fd(events, 0) == ours.fileno()
        assert not syscalls.event_hung_up(events, 0)
        theirs.shutdown(socket.SHUT_WR)
        assert syscalls.take_events(epoll, epoll.fileno(), events, 4) == 1
        assert syscalls.event_hung_up(events, 0)


def test_close_closes_at_once_in_a_patched_program():
    """gevent's own os.close() waits for its loop, so a server that had stopped was still connected
    to its clients."""
    code = """
from gevent import monkey
monkey.patch_all()
import socket
from greenws.hub import syscalls

ours, theirs = socket.socketpair()
theirs.setblocking(False)
syscalls.close(ours.detach())
print(theirs.recv(1))
"""
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=limit(20),
        cwd=ROOT,
        env={**os.environ, "GREENWS_PURE_PYTHON": "1"},
    )
    assert result.stdout == "b''\n", result.stderr
