"""TLS with its records in memory, as a transport has it in the compiled form from its first read
on; and the same in the pure form, by Python's SSL objects."""

from __future__ import annotations

import _ssl
import ctypes
import importlib.util
import ssl
import subprocess
import sys
import time

import gevent
import pytest
from gevent import socket

from greenws import form
from greenws.hub import tls
from greenws.hub.sockets import OwnedSSLSocket
from greenws.hub.transport import FOREVER, TIMED_OUT, Transport

from ..support.limits import limit, wait_until
from ..support.require import require

compiled = pytest.mark.skipif(form.PURE, reason="the pure form has Python's SSL objects do it")


class Outside:
    """A client's end whose records a test can see and cut."""

    def __init__(self, sock, context):
        self.sock = sock
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_hostname="127.0.0.1")

    def shake(self):
        while True:
            try:
                self.tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                self.sock.sendall(self.outgoing.read())
                self.incoming.write(self.sock.recv(65536))
        self.sock.sendall(self.outgoing.read())

    def records(self, *messages):
        for message in messages:
            self.tls.write(message)
        return self.outgoing.read()

    def read(self):
        while True:
            try:
                return self.tls.read(65536)
            except ssl.SSLWantReadError:
                data = self.sock.recv(65536)
                self.incoming.write(data) if data else self.incoming.write_eof()


@pytest.fixture(params=["TLSv1_2", "TLSv1_3"])
def ends(request, certificates):
    """A transport over TLS, and the client's end."""
    served, trusting = certificates
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata="".join(_pem(trusting)))
    context.maximum_version = getattr(ssl.TLSVersion, request.param)
    ours, theirs = socket.socketpair()
    theirs.settimeout(limit())
    shaking = gevent.spawn(served.wrap_socket, ours, server_side=True)
    outside = Outside(theirs, context)
    outside.shake()
    sock = shaking.get(timeout=limit())
    assert sock.version() == request.param.replace("_", ".")
    transport = Transport(sock, gevent.get_hub())
    sock.write(b"hello")
    assert outside.read() == b"hello"  # and tickets before it
    yield transport, outside
    transport.close()
    theirs.close()


def _pem(context):
    return [ssl.DER_cert_to_PEM_cert(der) for der in context.get_ca_certs(binary_form=True)]


def received(transport, seconds=5.0):
    size = transport.receive(time.monotonic() + seconds)
    return bytes(transport.buffer[:size]) if size > 0 else size


def collected(transport, size):
    data = b""
    while len(data) < size:
        piece = received(transport)
        assert piece not in (0, TIMED_OUT)
        data += piece
    return data


def detach(transport):
    sock = transport.detach()
    transport.closed = True  # for the fixture
    return sock


@compiled
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere OpenSSL may be hidden")
def test_the_records_are_in_memory_where_openssl_can_be_reached(ends):
    transport, _ = ends
    transport.poll()
    assert transport._engine


def test_many_records_that_came_at_once_cost_one_read_and_their_answers_one_record(ends):
    transport, outside = ends
    outside.sock.sendall(outside.records(*[b"%03d" % i for i in range(100)]))
    assert collected(transport, 300) == b"".join(b"%03d" % i for i in range(100))
    for i in range(100):
        transport.hold(b"%03d" % i)
    transport.flush()
    records = outside.sock.recv(65536)
    outside.incoming.write(records)
    assert outside.tls.read(65536) == b"".join(b"%03d" % i for i in range(100))
    assert len(records) < 400 and outside.incoming.pending == 0


def test_the_rest_of_a_record_that_was_partly_read_is_received(ends):
    transport, outside = ends
    sock = detach(transport)
    outside.sock.sendall(outside.records(b"requestframe"))
    assert sock.recv(7) == b"request"  # as a server that reads its head, and no more
    again = Transport(sock, gevent.get_hub())
    assert received(again) == b"frame"
    outside.sock.sendall(outside.records(b"next"))
    assert received(again) == b"next"
    again.finish(time.monotonic())


@pytest.mark.parametrize("cut", [1, 5, 20])
def test_a_transport_that_is_detached_gives_python_its_tls_back(ends, cut):
    transport, outside = ends
    records = outside.records(b"one") + outside.records(b"two")
    outside.sock.sendall(records[: len(records) // 2 + cut])
    assert received(transport) == b"one"
    assert transport.poll() == TIMED_OUT
    sock = detach(transport)
    outside.sock.sendall(records[len(records) // 2 + cut :])
    assert sock.recv(100) == b"two"
    sock.sendall(b"three")
    assert outside.read() == b"three"
    with pytest.raises(ssl.SSLWantReadError):
        sock.settimeout(0)
        sock.recv(1)
    sock.close()


def test_what_precedes_a_forged_record_is_received_and_the_client_gets_an_alert(ends):
    transport, outside = ends
    good, forged = outside.records(b"good"), bytearray(outside.records(b"forged"))
    forged[-1] ^= 1
    outside.sock.sendall(good + forged)
    assert received(transport) == b"good"
    assert received(transport) == 0
    assert received(transport) == 0
    assert "bad record mac" in transport.failure
    with pytest.raises(ssl.SSLError, match="(?i)bad.record.mac"):
        outside.read()


def test_what_precedes_a_close_notify_is_received_and_we_may_still_send(ends):
    transport, outside = ends
    records = outside.records(b"last words")
    with pytest.raises(ssl.SSLWantReadError):
        outside.tls.unwrap()
    outside.sock.sendall(records + outside.outgoing.read())
    assert received(transport) == b"last words"
    assert received(transport) == 0
    assert transport.failure == ""
    transport.send(b"answer")
    data = outside.sock.recv(65536)
    assert data and transport.failure == ""


def test_the_end_has_a_close_notify(ends):
    transport, outside = ends
    outside.sock.sendall(outside.records(b"x"))
    assert received(transport) == b"x"
    transport.send(b"goodbye")
    transport.finish_writing()
    assert outside.read() == b"goodbye"
    assert outside.read() == b""  # without it, an SSLEOFError


def test_the_stream_that_is_cut_off_is_at_its_end(ends):
    transport, outside = ends
    outside.sock.sendall(outside.records(b"x") + outside.records(b"cut")[:-3])
    outside.sock.close()
    assert received(transport) == b"x"
    assert received(transport) == 0


def test_more_than_the_kernel_takes_is_sent_whole_and_in_order(ends):
    transport, outside = ends
    outside.sock.sendall(outside.records(b"x"))
    assert received(transport) == b"x"
    expected = b""
    for i in range(20):
        small, large = b"%04d" % i * 10, bytes([i]) * 150_000
        transport.send(small)
        transport.hold(small)
        transport.send_large(b"head", large)
        expected += small + small + b"head" + large
    assert transport.backlog > 1_000_000
    data = b""
    while len(data) < len(expected):
        data += outside.read()
    assert data == expected
    wait_until(lambda: transport.backlog == 0)


def test_a_mutable_payload_may_change_as_soon_as_it_is_sent(ends):
    transport, outside = ends
    outside.sock.sendall(outside.records(b"x"))
    assert received(transport) == b"x"
    payload = bytearray(b"a" * 1_000_000)
    transport.send_large(b"", memoryview(payload))
    payload[:] = b"b" * 1_000_000
    data = b""
    while len(data) < 1_000_000:
        data += outside.read()
    assert data == b"a" * 1_000_000


# -- TLS 1.3 changes keys


@pytest.fixture
def both(certificates):
    """Two transports over TLS 1.3, and a function that has the second change its keys and ask for
    other keys with what it sends next."""
    served, trusting = certificates
    ours, theirs = socket.socketpair()
    shaking = gevent.spawn(served.wrap_socket, ours, server_side=True)
    theirs = trusting.wrap_socket(theirs, server_hostname="127.0.0.1")
    transport = Transport(shaking.get(timeout=limit()), gevent.get_hub())
    peer = Transport(theirs, gevent.get_hub())
    assert peer.poll() == transport.poll() == TIMED_OUT
    openssl = ctypes.CDLL(_ssl.__file__)
    openssl.SSL_key_update.argtypes = [ctypes.c_size_t, ctypes.c_int]

    def change():
        assert openssl.SSL_key_update(peer._engine, 1) == 1  # SSL_KEY_UPDATE_REQUESTED

    yield transport, peer, change
    transport.close()
    peer.close()


@compiled
def test_keys_are_changed_as_the_peer_asks(both):
    transport, peer, change = both
    for i in range(5):
        change()
        peer.send(b"in %d" % i)
        assert received(transport) == b"in %d" % i
        transport.send(b"out %d" % i)
        assert received(peer) == b"out %d" % i


@compiled
def test_keys_are_changed_while_the_outbox_is_full(both):
    transport, peer, change = both
    payload = bytes(range(256)) * 8000
    transport.send_large(b"", payload)
    backlog = transport.backlog
    assert backlog
    for _ in range(3):  # OpenSSL answers the first when it has something to send
        change()
        peer.send(b"in")
        assert received(transport) == b"in"
    assert transport.backlog > backlog  # its answers wait after the records that exist
    transport.send(b"end")
    assert collected(peer, len(payload) + 3) == payload + b"end"


@compiled
def test_a_peer_that_asks_for_keys_and_reads_no_answer_is_given_up(both):
    transport, peer, change = both
    transport.send_large(b"", bytes(2_000_000))
    for _ in range(2000):
        change()
        peer.send(b"x")
        if transport.poll() <= 0 or transport.failure:
            break
    assert "does not read" in transport.failure
    assert transport.backlog == 0


@compiled
def test_tls_1_2_may_renegotiate_in_the_middle(certificates):
    served, trusting = certificates
    monkey = trusting.maximum_version
    trusting.maximum_version = ssl.TLSVersion.TLSv1_2
    ours, theirs = socket.socketpair()
    shaking = gevent.spawn(served.wrap_socket, ours, server_side=True)
    theirs = trusting.wrap_socket(theirs, server_hostname="127.0.0.1")
    trusting.maximum_version = monkey
    transport = Transport(shaking.get(timeout=limit()), gevent.get_hub())
    peer = Transport(theirs, gevent.get_hub())
    assert peer.poll() == transport.poll() == TIMED_OUT
    openssl = ctypes.CDLL(_ssl.__file__)
    openssl.SSL_renegotiate.argtypes = [ctypes.c_size_t]
    assert openssl.SSL_renegotiate(transport._engine) == 1
    echoing = gevent.spawn(_echo_some, peer)
    expected = b""
    for i in range(5):
        transport.send(b"message %d" % i)
        expected += b"message %d" % i
    assert collected(transport, len(expected)) == expected
    peer.close()
    echoing.kill()
    transport.close()


def _echo_some(transport):
    while (size := transport.receive(FOREVER)) > 0:
        transport.send(bytes(transport.buffer[:size]))


# -- what is not taken over


@compiled
def test_other_objects_than_pythons_are_left_alone():
    transport_of = tls.make_object()
    assert not transport_of.pending()

    class Proxy:
        def pending(self):
            return 0

    ours, theirs = socket.socketpair()
    ours_tls = Fake(ours, Proxy())
    transport = Transport(ours_tls, gevent.get_hub())
    with pytest.raises(AttributeError, match="read"):
        transport.poll()
    assert not transport._engine
    transport.close()
    theirs.close()


ECHO = """
import glob, importlib.util, os, sys, trustme
from gevent import ssl
from greenws import Routes, WebSocketServer, connect
from greenws.cli import doctor
from greenws.hub import tls, transport

if sys.argv[1] == "hidden":
    tls.LIBRARY = None
else:
    folder = os.path.dirname(importlib.util.find_spec("psycopg2").origin)
    (tls.LIBRARY,) = glob.glob(f"{folder}_binary.libs/libssl*")
    import psycopg2
authority = trustme.CA()
served = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
authority.issue_cert("127.0.0.1").configure_cert(served)
trusting = ssl.create_default_context()
authority.configure_trust(trusting)
routes = Routes()

@routes.websocket("/")
def echo(request, socket):
    for message in socket:
        socket.send(message)

server = WebSocketServer(("127.0.0.1", 0), routes, ssl_context=served)
server.start()
with connect(f"wss://127.0.0.1:{server.server_port}/", ssl_context=trusting) as socket:
    for message in ("hello", "x" * 100_000):
        socket.send(message)
        assert socket.receive() == message
server.stop()
assert not transport.has_tls_in_memory()
print(next(doctor.check_tls()))
"""


@compiled
@pytest.mark.parametrize("kind", ["hidden", "another"])
def test_where_pythons_openssl_cannot_be_reached_its_ssl_objects_do_it(kind):
    """Python may have OpenSSL in itself, its names hidden; and what is found under the names may
    be the OpenSSL of another module, such as psycopg2's wheel."""
    if kind == "another":
        require(importlib.util.find_spec("psycopg2"), "psycopg2")
    done = subprocess.run(
        [sys.executable, "-c", ECHO, kind], capture_output=True, text=True, timeout=limit(20)
    )
    lines = [
        line for line in done.stderr.splitlines() if not line.startswith("psycopg2 is imported")
    ]
    assert (done.returncode, lines) == (0, [])
    assert "records by Python's SSL objects, as its OpenSSL cannot be reached" in done.stdout


class Fake:
    """A TLS socket of another make."""

    def __init__(self, sock, ssl_object):
        self._sock = sock
        self._sslobj = ssl_object

    def pending(self):
        return 0

    def __getattr__(self, name):
        return getattr(self._sock, name)


def test_an_owned_socket_works_over_memory(certificates, monkeypatch):
    served, trusting = certificates
    monkeypatch.setattr(served, "sslsocket_class", OwnedSSLSocket, raising=False)
    ours, theirs = socket.socketpair()
    shaking = gevent.spawn(served.wrap_socket, ours, server_side=True)
    theirs = trusting.wrap_socket(theirs, server_hostname="127.0.0.1")
    transport = Transport(shaking.get(timeout=limit()), gevent.get_hub())
    reading = gevent.spawn(transport.receive, FOREVER)
    gevent.sleep(0)
    theirs.sendall(b"hello")
    assert reading.get(timeout=limit()) == 5
    ending = gevent.spawn(transport.finish, time.monotonic() + limit())
    assert theirs.recv(1) == b""
    theirs.close()
    ending.get(timeout=limit())
