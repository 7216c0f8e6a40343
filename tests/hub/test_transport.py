"""The byte stream of a socket: receiving, the outbox, closing; with injected faults."""

from __future__ import annotations

import os
import socket as native
import ssl
import sys
import time

import gevent
import pytest
from gevent import socket

from greenws.hub.delivery import Delivery, unacknowledged
from greenws.hub.transport import FOREVER, POLL, TIMED_OUT, Transport, accept, no_delay

from ..support.limits import again_after_standstill, limit, pace, stays, wait_until


class FaultySocket:
    """A real socket that does in a send or a receive what a test says, once for each entry."""

    def __init__(self, sock, sends=(), receives=()):
        self._sock = sock
        self.sends = list(sends)
        self.receives = list(receives)

    def __getattr__(self, name):
        return getattr(self._sock, name)

    def _next(self, faults):
        fault = faults.pop(0) if faults else None
        if isinstance(fault, BaseException):
            raise fault
        return fault

    def send(self, data):
        limit = self._next(self.sends)
        return self._sock.send(bytes(data)[:limit])

    def sendmsg(self, buffers):
        return self.send(b"".join(bytes(buffer) for buffer in buffers))

    def recv_into(self, buffer):
        limit = self._next(self.receives)
        return self._sock.recv_into(buffer, limit or 0)

    def write(self, data):
        limit = self._next(self.sends)
        return self._sock.write(bytes(data)[:limit])

    def read(self, size, buffer):
        limit = self._next(self.receives)
        return self._sock.read(limit or size, buffer)


class Backlog:
    """A socket with ``left`` bytes to receive."""

    def __init__(self, sock, left):
        self._sock = sock
        self.left = left

    def recv_into(self, buffer):
        size = min(self.left, len(buffer))
        if size == 0:
            raise BlockingIOError
        self.left -= size
        return size

    def __getattr__(self, name):
        return getattr(self._sock, name)


@pytest.fixture
def make():
    """``make(faulty=None, **options)`` gives a transport, and the raw socket at its other end."""
    yield from _make(socket.socketpair)


@pytest.fixture(params=["plain", "tls", "tls-in-memory"])
def make_either(request, certificates):
    """:func:`make`, plain and with TLS: by Python's object, and (compiled) with records in memory,
    which begins with the first read. Then no faults are injected."""

    def tls_pair():
        served, trusting = certificates
        ours, theirs = socket.socketpair()
        shaking = gevent.spawn(served.wrap_socket, ours, server_side=True)
        theirs = trusting.wrap_socket(theirs, server_hostname="127.0.0.1")
        return shaking.get(), theirs

    yield from _make(
        socket.socketpair if request.param == "plain" else tls_pair,
        request.param == "tls-in-memory",
    )


def _make(socketpair, in_memory=False):
    made = []

    def start(*, faulty=None, **options):
        ours, theirs = socketpair()
        theirs.settimeout(limit())
        transport = Transport(ours, gevent.get_hub(), **options)
        if in_memory:
            assert transport.poll() == TIMED_OUT
        if faulty is not None and not transport._engine:
            transport._raw = faulty(transport._raw)
            transport._ssl = transport._ssl and faulty(transport._ssl)
            transport._direct = False
        made.append((transport, theirs))
        return transport, theirs

    yield start
    for transport, theirs in made:
        transport.close()
        theirs.close()


def received(transport, deadline=FOREVER):
    size = transport.receive(deadline)
    return bytes(transport.buffer[:size]) if size > 0 else size


def read_all(sock, size):
    data = b""
    while len(data) < size:
        data += sock.recv(65536)
    return data


def test_receive_blocks_until_bytes_are_there(make_either):
    transport, peer = make_either()
    reader = gevent.spawn(received, transport)
    stays(lambda: not reader.ready())
    peer.sendall(b"bytes")
    assert reader.get() == b"bytes"


def test_the_end_of_the_stream_is_zero(make_either):
    transport, peer = make_either()
    peer.shutdown(native.SHUT_WR)
    assert [received(transport) for _ in range(2)] == [0, 0]


def test_a_reset_is_the_end_of_the_stream(make_either):
    transport, _ = make_either(
        faulty=lambda raw: FaultySocket(raw, receives=[ConnectionResetError()])
    )
    if transport._engine:  # no fault was injected
        return
    assert transport.poll() == 0
    assert "connection lost" in transport.failure


@again_after_standstill(0.2)
def test_a_deadline_that_passes(make_either):
    transport, _ = make_either()
    began = time.monotonic()
    assert received(transport, began + 0.03) == TIMED_OUT
    assert 0.025 < time.monotonic() - began < pace(1)
    assert received(transport, began) == TIMED_OUT
    assert received(transport, POLL) == TIMED_OUT


def test_input_that_does_not_end_does_not_extend_a_deadline(make):
    transport, peer = make()
    transport.hung_up = True  # so no read takes the input for drained
    peer.sendall(b"x")
    assert received(transport) == b"x"
    transport.poller.turns.steps = 100  # the turn is not over soon
    deadline = time.monotonic()
    peer.sendall(b"y")
    assert received(transport, deadline) == b"y"  # it came in time
    transport._raw, transport._direct = Backlog(transport._raw, 1 << 30), False
    most = 16 << 20
    while (size := transport.receive(deadline)) != TIMED_OUT:
        most -= size
        assert most > 0


def test_all_that_came_in_time_is_received_after_the_deadline(make):
    transport, peer = make()
    transport._raw, transport._direct = Backlog(transport._raw, 900_000), False
    deadline = time.monotonic()
    left = 900_000
    while left:
        size = transport.receive(deadline)
        assert size > 0
        left -= size
    assert transport.receive(deadline) == TIMED_OUT


def test_a_deadline_can_be_moved_forward(make_either):
    transport, _ = make_either()
    began = time.monotonic()
    reader = gevent.spawn(received, transport)
    gevent.sleep(0)
    transport.advance_deadline(began + 0.03)
    assert reader.get(timeout=limit(2)) == TIMED_OUT


def test_one_timer_serves_many_reads(make_either):
    transport, peer = make_either()
    timers = set()
    for _ in range(50):
        gevent.spawn(peer.sendall, b"x")
        assert received(transport, time.monotonic() + 10) == b"x"
        timers.add(transport._timer)
    assert len(timers) == 1


def test_a_drained_socket_is_not_read_again(make):
    transport, peer = make(faulty=lambda raw: FaultySocket(raw, receives=[None] * 100))
    for _ in range(10):
        peer.sendall(b"x")
        assert received(transport) == b"x"
    assert len(transport._raw.receives) == 90


def test_others_run_while_a_socket_is_never_drained(make_either):
    transport, peer = make_either()
    feeding = gevent.spawn(_feed, peer)
    turns = []
    ticking = gevent.spawn(_tick, turns)
    for _ in range(200):
        assert received(transport)
    assert turns
    gevent.killall([feeding, ticking])


def _feed(peer):
    while True:
        peer.sendall(b"x" * 1_000_000)


def _tick(turns):
    while True:
        turns.append(1)
        gevent.sleep(0)


def test_closing_wakes_the_reader(make_either):
    transport, _ = make_either()
    reader = gevent.spawn(received, transport)
    gevent.sleep(0)
    transport.close()
    assert reader.get(timeout=limit(2)) == 0


@pytest.mark.parametrize(
    "faults", [[1], [0], [BlockingIOError()], [1, BlockingIOError(), 2, 1], [3] * 5]
)
@pytest.mark.parametrize("large", [False, True])
def test_short_writes_lose_and_double_nothing(make_either, faults, large):
    transport, peer = make_either(faulty=lambda raw: FaultySocket(raw, sends=faults))
    expected = b""
    for i in range(5):
        payload = bytes([65 + i]) * (40_000 if large else 7)
        if large:
            transport.send_large(b"header", payload)
            expected += b"header"
        else:
            transport.send(payload)
        expected += payload
    assert read_all(peer, len(expected)) == expected
    wait_until(lambda: transport.backlog == 0)


def test_a_large_payload_is_not_copied_when_the_kernel_takes_part_of_it(make_either):
    transport, _ = make_either()
    payload = b"x" * 10_000_000
    transport.send_large(b"h", payload)
    *records, rest = transport._outbox
    assert len(b"".join(records)) < 100_000
    assert isinstance(rest, memoryview) and rest.obj is payload


def test_held_bytes_go_out_when_the_hub_gets_control(make):
    transport, peer = make()
    transport.hold(b"one ")
    transport.hold(b"two")
    with pytest.raises(BlockingIOError):
        peer._sock.recv(100)
    gevent.sleep(0)
    assert peer.recv(100) == b"one two"


def test_bytes_held_by_a_lost_socket_are_dropped(make):
    ours, theirs = socket.socketpair()
    gone = Transport(ours, gevent.get_hub())
    gone.hold(b"never sent")
    gone.close()
    del gone
    transport, peer = make()
    transport.hold(b"sent")
    gevent.sleep(0)
    assert peer.recv(100) == b"sent"
    assert theirs.recv(100) == b""
    theirs.close()


def test_no_more_than_64_kib_are_held(make):
    transport, peer = make()
    for _ in range(9):
        transport.hold(b"x" * 8000)
    assert len(peer._sock.recv(100_000)) == 64_000
    gevent.sleep(0)
    assert len(peer._sock.recv(100_000)) == 8_000


def test_senders_wait_for_room_and_all_get_it(make_either):
    transport, peer = make_either(high_water=1000)
    transport.send(b"x" * 2_000_000)
    waiting = [gevent.spawn(transport.wait_for_room) for _ in range(5)]
    stays(lambda: not any(greenlet.ready() for greenlet in waiting))
    read_all(peer, 2_000_000)
    gevent.joinall(waiting, timeout=limit(2), raise_error=True)
    assert all(greenlet.ready() for greenlet in waiting)


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel must tell")
def test_it_knows_what_the_peer_has_not_read(make):
    transport, peer = make()
    assert transport.undelivered() == 0
    assert transport.watch_delivery() is None
    transport.send(b"some bytes")
    assert transport.undelivered() == unacknowledged(transport.fileno) > 0
    assert isinstance(transport.watch_delivery(), Delivery)
    assert peer.recv(100) == b"some bytes"
    assert transport.undelivered() == 0
    assert transport.watch_delivery() is None
    transport.close()
    assert transport.undelivered() == -1


def test_a_stalled_peer_is_dropped(make_either):
    transport, _ = make_either(write_timeout=0.05, high_water=1000)
    transport.send(b"x" * 2_000_000)
    transport.wait_for_room()
    assert transport.closed and "write_timeout" in transport.failure


def test_a_broken_pipe_is_a_failure_not_an_error(make_either):
    transport, peer = make_either()
    peer.close()
    transport.send(b"x")
    transport.send(b"y")
    assert "connection lost" in transport.failure


def test_input_from_before_a_failed_send_can_still_be_read(make_either):
    transport, peer = make_either()
    peer.sendall(b"last words")
    peer.close()
    transport.send(b"x")
    assert transport.failure
    assert received(transport) == b"last words"


def test_the_stream_is_ended_after_the_outbox_is_sent(make_either):
    transport, peer = make_either()
    transport.send(b"x" * 2_000_000)
    transport.finish_writing()
    data = read_all(peer, 2_000_000)
    assert len(data) == 2_000_000
    assert peer.recv(1) == b""


def test_finish_drains_the_input_to_avoid_a_reset(make_either):
    transport, peer = make_either()
    peer.sendall(b"x" * 50_000)
    transport.send(b"goodbye")
    finishing = gevent.spawn(transport.finish, time.monotonic() + 5)
    gevent.sleep(0)
    peer.sendall(b"y" * 50_000)
    assert peer.recv(100) == b"goodbye"
    assert peer.recv(100) == b""
    peer.close()
    finishing.get(timeout=limit(2))
    assert transport.closed


@again_after_standstill(0.2)
def test_finish_waits_no_longer_than_its_deadline(make_either):
    transport, _ = make_either()
    began = time.monotonic()
    transport.finish(began + 0.03)
    assert transport.closed and time.monotonic() - began < pace(1)


def test_a_borrowed_socket_is_given_back_shut_down(make_either):
    ours, theirs = native.socketpair()
    ours.settimeout(7)
    transport = Transport(ours, gevent.get_hub(), borrowed=True)
    assert ours.gettimeout() == 0
    transport.send(b"x")
    transport.close()
    assert ours.gettimeout() == 7 and ours.fileno() > 0
    with pytest.raises(BrokenPipeError):
        ours.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
    assert theirs.recv(100) == b"x"
    assert theirs.recv(100) == b""
    ours.close()
    theirs.close()


def test_tls_is_read_to_its_end_however_its_records_are_cut(certificates):
    served, trusting = certificates
    ours, theirs = socket.socketpair()
    shaking = gevent.spawn(served.wrap_socket, ours, server_side=True)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    peer = trusting.wrap_bio(incoming, outgoing, server_hostname="127.0.0.1")
    while True:
        try:
            peer.do_handshake()
            break
        except ssl.SSLWantReadError:
            theirs.sendall(outgoing.read())
            incoming.write(theirs.recv(65536))
    theirs.sendall(outgoing.read())
    transport = Transport(shaking.get(), gevent.get_hub())
    pieces = [b"one", b"two" * 1000, b"x" * 16384, b"three"]
    for _ in range(3):  # all cuts are in between, and at the start and the end of a record
        for piece in pieces:
            peer.write(piece)
        records, expected = outgoing.read(), b"".join(pieces)
        cuts = sorted({*range(0, 60, 7), 3030, *range(len(records) - 40, len(records), 5)})
        got = b""
        for start, end in zip([0, *cuts], [*cuts, len(records)], strict=True):
            theirs.sendall(records[start:end])
            while True:
                piece = received(transport, time.monotonic() + (0.005 if end < len(records) else 5))
                if piece == TIMED_OUT:
                    break
                got += piece
                if len(got) == len(expected):
                    break
        assert got == expected
    transport.close()
    theirs.close()


def test_records_of_tls_that_came_at_once_are_received_one_after_the_other(make_either):
    transport, peer = make_either()
    for piece in (b"one", b"two", b"x" * 40_000, b"three"):
        peer.sendall(piece)
    got = b""
    while not got.endswith(b"three"):
        piece = received(transport, time.monotonic() + 5)
        assert piece != TIMED_OUT
        got += piece
    assert got == b"onetwo" + b"x" * 40_000 + b"three"
    assert received(transport, time.monotonic() + 0.01) == TIMED_OUT
    peer.sendall(b"four")
    assert received(transport, time.monotonic() + 5) == b"four"


@again_after_standstill(0.5)
def test_tls_that_must_write_before_it_reads_is_asked_again(make):
    blocked = [ssl.SSLWantWriteError()]
    transport, peer = make(faulty=lambda raw: FaultySocket(raw, receives=blocked))
    peer.sendall(b"hello")
    began = time.monotonic()
    assert received(transport, began + 5) == b"hello"
    assert time.monotonic() - began < pace(2)


@pytest.fixture(params=[native.AF_INET, native.AF_INET6], ids=["IPv4", "IPv6"])
def listener(request):
    with native.socket(request.param, native.SOCK_STREAM) as sock:
        sock.bind(("127.0.0.1" if request.param == native.AF_INET else "::1", 0))
        sock.listen()
        sock.setblocking(False)
        no_delay(sock)
        yield sock


def accept_one(listener):
    """The kernel may finish the handshake just after the client's side of it."""
    return wait_until(lambda: accept(listener.fileno(), listener.family))


def test_a_connection_is_accepted_without_a_socket_object(listener):
    assert accept(listener.fileno(), listener.family) is None
    with native.create_connection(listener.getsockname()[:2]) as peer:
        peer.settimeout(limit())
        accepted, address = accept_one(listener)
        assert address == peer.getsockname()
        assert not os.get_blocking(accepted.fileno())
        assert not os.get_inheritable(accepted.fileno())
        assert accepted.getsockopt(native.IPPROTO_TCP, native.TCP_NODELAY)
        transport = Transport(accepted, gevent.get_hub())
        peer.sendall(b"hello")
        assert transport.receive(FOREVER) == 5
        size = 3_000_000
        transport.send_large(b"head", memoryview(bytes(size)))
        reader = gevent.get_hub().threadpool.spawn(peer.makefile("rb").read, 4 + size)
        assert reader.get(timeout=limit()) == b"head" + bytes(size)
        transport.finish_writing()
        assert peer.recv(1) == b""
        transport.close()
        assert accepted.fileno() == -1


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere 127.0.0.1 is the only such address")
def test_an_accepted_connection_has_the_address_that_its_peer_has():
    with native.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        for host in ("127.0.0.1", "127.9.10.99", "127.100.109.190", "127.200.255.254"):
            source = (host, 0)
            with native.create_connection(listener.getsockname(), source_address=source) as peer:
                accepted, address = accept_one(listener)
                assert address == peer.getsockname()
                assert address[0] == host
                accepted.close()


def test_an_accepted_connection_that_nobody_serves_is_closed(listener):
    with native.create_connection(listener.getsockname()[:2]) as peer:
        accepted, _ = accept_one(listener)
        fileno = accepted.fileno()
        del accepted
        peer.settimeout(limit())
        assert peer.recv(1) == b""
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fileno)


def test_an_accepted_connection_becomes_a_socket(listener):
    with native.create_connection(listener.getsockname()[:2]) as peer:
        accepted, _ = accept_one(listener)
        sock = socket.socket(accepted.family, accepted.type, accepted.proto, accepted.detach())
        accepted.close()  # it is no longer its own
        with sock:
            sock.sendall(b"hello")
            assert peer.recv(5) == b"hello"


def test_what_cannot_be_accepted_is_an_error(listener):
    with open(os.devnull) as other, pytest.raises(OSError, match="non-socket"):
        accept(other.fileno(), listener.family)
