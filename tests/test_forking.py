"""A process that forks while it serves: the child leaves the connections of its parent alone."""

from __future__ import annotations

import os
import signal
import time

import gevent
import pytest
from gevent import socket as gevent_socket

from .support.limits import limit, pace, wait_until
from .support.processes import PROGRAMS, Process, children
from .support.wire import PING, TEXT, Peer, close_frame, frame, request


@pytest.fixture
def certificate(tmp_path_factory):
    """The file of a certificate for 127.0.0.1 with its key, and a context that trusts it."""
    import trustme
    from gevent import ssl

    authority = trustme.CA()
    file = tmp_path_factory.mktemp("tls") / "server.pem"
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(file))
    trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.configure_trust(trusting)
    return file, trusting


class Server(Process):
    """``forking_server.py``."""

    def __init__(self, *arguments, trusting=None):
        super().__init__(PROGRAMS / "forking_server.py", *arguments)
        self._trusting = trusting
        self.pid = int(self.wait_for(r"^(\d+) http")[1])
        self.wait_for_port()

    def connect(self, port=None):
        sock = gevent_socket.create_connection(("127.0.0.1", port or self.port))
        if self._trusting is not None and port is None:
            sock = self._trusting.wrap_socket(sock, server_hostname="127.0.0.1")
        return Peer(sock, limit())

    def open(self, path, port=None):
        peer = self.connect(port)
        assert peer.shake(path).status == 101
        return peer

    def fork(self, what):
        """Has a child of the server do ``what``, and returns its pid."""
        with self.open("/fork") as peer:
            peer.send(frame(TEXT, what.encode()))
            pid = int(read_text(peer))
            peer.send(close_frame())
        return pid

    def stop(self):
        if self.popen.poll() is None:
            for child in children(self.popen.pid):
                os.kill(child, signal.SIGKILL)
        super().stop()


MODES = [
    ("epoll", "early", "direct"),
    ("epoll", "late", "wsgi"),
    ("watchers", "early", "wsgi"),
    ("watchers", "late", "direct"),
    ("epoll", "early", "foreign"),
    ("watchers", "late", "foreign"),
    ("epoll", "early", "direct", "tls"),
    ("watchers", "early", "wsgi", "tls"),
]


@pytest.fixture(params=MODES, ids="-".join)
def server(request, certificate):
    *arguments, last = request.param
    file, trusting = certificate
    if last == "tls":
        server = Server(*arguments, file, trusting=trusting)
    else:
        server = Server(*arguments, last)
    with server:
        yield server


def read_text(peer):
    """The payload of the next text frame; pings of the server are passed over."""
    while True:
        fin, opcode, payload = peer.read_frame()
        if opcode != PING:
            assert (fin, opcode) == (True, TEXT)
            return payload.decode()


def exchange(peer, messages):
    """Sends them in batches, and returns the answers."""
    answers = []
    for first in range(0, len(messages), 10):
        batch = messages[first : first + 10]
        peer.send(b"".join(frame(TEXT, message.encode()) for message in batch))
        answers += [read_text(peer) for _ in batch]
    return answers


def test_children_on_their_way_to_exec_handle_no_messages(server):
    """A hook that starts a thread lets a child run its hub before it calls exec."""
    runner = server.open("/run")

    def chat(number):
        peer = server.open("/echo")
        sent = 0
        while not running.ready():
            messages = [f"{number}.{sent + i}" for i in range(10)]
            sent += 10
            assert exchange(peer, messages) == [f"{server.pid} {text}" for text in messages]
        peer.close()
        return sent

    def run():
        for _ in range(10):
            runner.send(frame(TEXT, b"go"))
            assert read_text(runner) == "done"

    running = gevent.spawn(run)
    chatting = [gevent.spawn(chat, number) for number in range(5)]
    running.get(timeout=limit(20))
    for greenlet in chatting:
        assert greenlet.get(timeout=limit(20)) > 0
    runner.close()
    server.assert_no_trouble()


def test_a_child_that_goes_on_using_gevent_has_its_own_sockets_only(server):
    peers = [server.open("/echo") for _ in range(5)]
    idle = server.connect()
    idle.send(request("/pid", Upgrade=None, Connection="keep-alive"))
    assert idle.read_response().body == str(server.pid).encode()
    child = server.fork("go_on")
    began = time.monotonic()
    port = None
    while port is None:
        for peer in peers:
            assert exchange(peer, ["x"]) == [f"{server.pid} x"]
        idle.send(request("/pid", Upgrade=None, Connection="keep-alive"))
        assert idle.read_response().body == str(server.pid).encode()
        with server.open("/echo") as peer:  # which of them accepts?
            assert exchange(peer, ["new"]) == [f"{server.pid} new"]
        port = next((line for line in server.lines if line.startswith("child:")), None)
        assert time.monotonic() - began < pace(20)
    assert "polled: 0" in server.lines
    with server.open("/echo", int(port.rstrip("/").rpartition(":")[2])) as peer:
        assert exchange(peer, ["own"]) == [f"{child} own"]
    os.kill(child, signal.SIGTERM)  # which asks the parent to stop, not the child
    wait_until(lambda: child not in children(server.popen.pid))
    for peer in [*peers, idle]:
        peer.close()
    server.assert_no_trouble()


def test_only_the_parent_sends_pings(server):
    peer = server.open("/echo")
    server.fork("accept")
    server.wait_for("accepting")  # what the parent prints may stand before it
    while not peer.is_silent(0.0):  # the pings that came meanwhile
        assert peer.read_frame()[1] == PING
    began = time.monotonic()
    # Those of one take 7 intervals of 0.2 s, less what is rounded: 1.3 s at least, unless this
    # process stands still for a moment. Those of two take 0.85 s at most.
    assert [peer.read_frame()[1] for _ in range(8)] == [PING] * 8
    assert time.monotonic() - began > 1.0
    peer.close()


def test_calls_on_inherited_sockets_raise_and_the_peer_notices_nothing(server):
    peers = [server.open("/echo") for _ in range(3)]
    child = server.fork("misuse")
    server.wait_for(r"^misused: \{1006\}$")
    wait_until(lambda: child not in children(server.popen.pid))  # all is closed, or was freed
    for peer in peers:
        assert exchange(peer, ["still here"]) == [f"{server.pid} still here"]
        peer.close()
    server.assert_no_trouble()


def test_a_child_accepts_on_request(server):
    child = server.fork("accept")
    server.wait_for("accepting")  # what the parent prints may stand before it
    with server.open("/echo") as peer:
        assert exchange(peer, ["x"]) == [f"{child} x"]
