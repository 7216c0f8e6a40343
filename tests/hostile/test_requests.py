"""Hostile requests: smuggling, limits, slowness. Each gets one response; other clients are fine."""

from __future__ import annotations

import contextlib
import time

import gevent
import pytest

from ..support.heads import REFUSED
from ..support.limits import again_after_standstill, pace
from ..support.target import BODIES
from ..support.wire import Peer, frame, request

GET = b"GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"


def read_all(peer: Peer) -> bytes:
    try:
        while peer._fill():
            pass
    except OSError as error:
        raise AssertionError(f"the answer was cut off: {error}") from error
    return peer.buffer


def check_one_refusal(answer: bytes, status: int) -> None:
    """One complete response, and nothing after it."""
    head, body = answer.split(b"\r\n\r\n", 1)
    assert head.startswith(b"HTTP/1.1 %d " % status), answer
    assert b"\r\nconnection: close" in head.lower()
    length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-len"))
    assert len(body) == int(length.split(b":")[1]), "something follows the answer"


@pytest.mark.parametrize("name", REFUSED)
def test_a_refused_head_gets_one_answer_and_no_second_request_is_seen(attack, name):
    status, data = REFUSED[name]
    with attack() as target, target.connect() as peer:
        peer.send(data + GET * 3)
        check_one_refusal(read_all(peer), status)
        assert BODIES == []
        (line,) = target.lines()
        assert f" {status}: " in line


@pytest.mark.parametrize("size", [100_000, 3_000_000])
def test_a_refusal_arrives_although_the_client_goes_on_sending(attack, size):
    with attack() as target, target.connect() as peer:
        flood = gevent.spawn(_send_quietly, peer, b"GET  / HTTP/1.1\r\n\r\n" + b"x" * size)
        check_one_refusal(read_all(peer), 400)
        flood.kill()


def _send_quietly(peer: Peer, data: bytes) -> None:
    try:
        peer.send(data)
    except OSError:
        pass


def test_requests_before_a_refused_one_are_answered(attack):
    with attack() as target, target.connect() as peer:
        peer.send(GET + GET + b"GET\r\n\r\n" + GET)
        assert peer.read_response().body == b"read 0"
        assert peer.read_response().body == b"read 0"
        check_one_refusal(read_all(peer), 400)
        assert len(BODIES) == 2


# -- bodies

CHUNKED = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
CHUNKS = {
    "a size with a sign": b"+5\r\nhello\r\n0\r\n\r\n",
    "a size with a prefix": b"0x5\r\nhello\r\n0\r\n\r\n",
    "no size": b"\r\nhello\r\n0\r\n\r\n",
    "an enormous size": b"f" * 17 + b"\r\nhello",
    "a bare LF behind the size": b"5\nhello\r\n0\r\n\r\n",
    "a bare LF in an extension": b"5;\nxx\r\nhello\r\n0\r\n\r\n",
    "a bare CR in an extension": b"5;a\rb\r\nhello\r\n0\r\n\r\n",
    "an extension without an end": b"5;" + b"a" * 5000 + b"\r\nhello\r\n0\r\n\r\n",
    "a chunk that is longer than its size": b"3\r\nhello\r\n0\r\n\r\n",
    "a chunk that ends with a bare LF": b"5\r\nhello\n0\r\n\r\n",
    "a trailer without a name": b"0\r\n: a\r\n\r\n",
    "a trailer that is folded": b"0\r\nX: a\r\n b\r\n\r\n",
    "a trailer with a bare LF": b"0\r\nX: a\nY: b\r\n\r\n",
    "many trailers": b"0\r\n" + b"X: a\r\n" * 200 + b"\r\n",
    "large trailers": b"0\r\n" + (b"X: " + b"a" * 8000 + b"\r\n") * 6 + b"\r\n",
    "a trailer without an end": b"0\r\nX: " + b"a" * 9000,
}


@pytest.mark.parametrize("name", CHUNKS)
def test_malformed_chunks_end_the_connection(attack, name):
    with attack() as target, target.connect() as peer:
        peer.send(CHUNKED + CHUNKS[name] + GET)
        check_one_refusal(read_all(peer), 400)
        assert BODIES == []
        assert len(target.lines()) == 1


@pytest.mark.parametrize(
    "head",
    [CHUNKED + b"5\r\nhe", CHUNKED, b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhe"],
)
def test_a_body_that_is_cut_off(attack, head):
    with attack() as target, target.connect() as peer:
        peer.send(head)
        peer.close()
        target.check_health()
        assert BODIES[:1] == [b"GET "], "the body that was cut off passed for a whole one"


def test_a_body_that_trickles(attack):
    # Without the rate: after a standstill, a late read fails with min_body_rate instead.
    with attack(body_timeout=0.05, min_body_rate=None) as target, target.connect() as peer:
        peer.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n\r\n" + b"x" * 49)
        check_one_refusal(read_all(peer), 400)
        assert "body_timeout" in target.lines()[0]


@pytest.mark.parametrize("header", ["Content-Length: 5", "Transfer-Encoding: chunked"])
def test_an_upgrade_that_announces_a_body_is_not_answered_twice(attack, header):
    name, value = header.split(": ")
    with attack() as target, target.connect() as peer:
        peer.send(request("/ws", **{name: value}) + b"5\r\nhello\r\n0\r\n\r\n" + GET)
        check_one_refusal(read_all(peer), 400)
        assert BODIES == []


@again_after_standstill(0.2)
def test_a_refused_upgrade_does_not_wait_for_the_body_it_announced(attack):
    with attack() as target, target.connect() as peer:
        begin = time.monotonic()
        peer.send(request("/ws", Content_Length="1000000"))
        assert peer.read_response().status == 400
        assert time.monotonic() - begin < pace(1)
        assert peer.at_end()


# -- slowness

SLOW = {
    "the request line": b"G",
    "a header": b"GET / HTTP/1.1\r\nHost: x\r\nX-A: a",
    "the last line": b"GET / HTTP/1.1\r\nHost: x\r\n\r",
}


@pytest.mark.parametrize("name", SLOW)
@again_after_standstill(0.1)
def test_a_head_that_trickles_is_cut_off(attack, name):
    with attack(handshake_timeout=pace(0.5)) as target, target.connect() as peer:  # TLS included
        data = SLOW[name]
        peer.send(data[:1])  # before the server runs: who sends nothing gets no answer
        dripping = gevent.spawn(_drip, peer, data[1:] or data)
        begin = time.monotonic()
        check_one_refusal(read_all(peer), 408)
        assert time.monotonic() - begin < pace(3)
        dripping.kill()
        assert len(target.lines()) == 1


def _drip(peer: Peer, data: bytes) -> None:
    try:
        for byte in data[:-1]:
            peer.send(bytes([byte]))
        while data[-1:].isalpha():
            peer.send(data[-1:])
            gevent.sleep(0.01)
    except OSError:
        pass


@again_after_standstill(0.03)
def test_a_client_that_sends_nothing_is_dropped_without_an_answer(attack):
    # Browsers open connections that they may never use; an answer would confuse them.
    with attack(handshake_timeout=0.1) as target, target.connect() as peer:
        assert read_all(peer) == b""
        assert target.lines() == []


def test_a_connection_without_another_request_is_closed(attack):
    with attack(keep_alive_timeout=0.1) as target, target.connect() as peer:
        peer.send(GET)
        assert peer.read_response().status == 200
        assert read_all(peer) == b""
        assert target.lines() == []


def first_response(target, data):
    """A connection whose first request came within ``handshake_timeout``, and the response: the
    next try, if the process stood still meanwhile."""
    for _ in range(5):
        peer = target.connect()
        with contextlib.suppress(OSError, EOFError):
            peer.send(data)
            response = peer.read_response()
            if response.status != 408:
                return peer, response
        peer.close()
    raise AssertionError("each request was cut off")


def test_a_slow_second_request_is_cut_off(attack):
    timeout = pace(0.1)
    with attack(handshake_timeout=timeout) as target:
        peer, response = first_response(target, GET)
        with peer:
            assert response.status == 200
            gevent.sleep(1.5 * timeout)  # which is allowed: the next request has not begun
            peer.send(GET + GET[:20])
            assert peer.read_response().status == 200
            check_one_refusal(read_all(peer), 408)


def test_many_slow_clients_do_not_delay_others(attack):
    # If the process stands still, some are cut off before another is served: then with more time.
    assert any(is_served_beside_slow_clients(attack, pace(seconds)) for seconds in (0.5, 5, 20))


def is_served_beside_slow_clients(attack, timeout):
    with attack(handshake_timeout=timeout) as target, contextlib.ExitStack() as stack:
        began = time.monotonic()
        peers = []
        try:
            for _ in range(50):
                peers.append(stack.enter_context(target.connect()))
                peers[-1].send(b"GET / HTTP/1.1\r\n")
        except OSError:
            assert time.monotonic() - began > timeout
        target.check_health()
        if time.monotonic() - began > timeout:
            return False
        for peer in peers:
            check_one_refusal(read_all(peer), 408)
        return True


def test_a_session_outlives_the_deadline_of_its_handshake(attack):
    timeout = pace(0.2)
    with attack(handshake_timeout=timeout, keep_alive_timeout=timeout) as target:
        peer, response = first_response(target, request("/ws"))
        with peer:
            assert response.status == 101
            gevent.sleep(1.5 * timeout)
            peer.send(frame(1, b"still here"))
            assert peer.read_frame()[2] == b"still here"
            peer.send(frame(8))
            assert peer.read_frame()[1] == 8


# -- leaving in the middle


@pytest.mark.parametrize("cut", [1, 10, 20, len(GET) - 1, len(GET)])
@pytest.mark.parametrize("leave", ["close", "reset"])
def test_a_client_that_leaves(attack, cut, leave):
    with attack() as target:
        for _ in range(5):
            peer = target.connect()
            peer.send(GET[:cut])
            peer.close() if leave == "close" else peer.reset()
        target.check_health()


def test_control_characters_do_not_reach_the_log(attack):
    with attack() as target, target.connect() as peer:
        peer.send(b"GET /\x1b[31m\r\nFake: 1\x07 HTTP/1.1\r\nHost: \xff\xfe\r\n\r\n")
        check_one_refusal(read_all(peer), 400)
        (line,) = target.lines()
        assert line.isprintable()
