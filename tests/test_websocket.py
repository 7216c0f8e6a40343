"""The blocking calls, over a real socket whose other end is worked by hand."""

from __future__ import annotations

import contextlib
import enum
import gc
import re
import threading
import time
import tracemalloc
import weakref
from unittest.mock import create_autospec

import gevent
import pytest
from gevent.event import Event

from greenws import (
    NO_TIMEOUT,
    ConcurrentReadError,
    ConnectionClosed,
    Message,
    OpcodeType,
    WebSocket,
    before_wait,
)
from greenws.waiting import not_before_wait
from greenws.websocket import explain_missing_name

from .support.limits import again_after_standstill, limit, pace, stays, wait_until
from .support.wire import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, close_frame, frame

NOTHING = Message(None, OpcodeType.INVALID, True)


# -- reading fragments


def test_a_text_frame_is_a_final_message(pair):
    socket, peer = pair()
    peer.send(frame(TEXT, "grüß".encode()))
    assert socket.read_string_message() == ("grüß", OpcodeType.TEXT, True)


def test_fragments_are_delivered_as_they_arrive(pair):
    socket, peer = pair()
    peer.send(frame(TEXT, b"one ", fin=False))
    assert socket.read_string_message() == Message("one ", OpcodeType.TEXT, False)
    peer.send(frame(CONTINUATION, b"two ", fin=False))
    assert socket.read_string_message() == Message("two ", OpcodeType.CONTINUATION, False)
    peer.send(frame(CONTINUATION, b"three"))
    assert socket.read_string_message() == Message("three", OpcodeType.CONTINUATION, True)


def test_a_text_fragment_keeps_a_cut_code_point_for_the_next(pair):
    socket, peer = pair()
    euro = "€".encode()
    peer.send(frame(TEXT, b"5 " + euro[:1], fin=False))
    assert socket.read_string_message().data == "5 "
    peer.send(frame(CONTINUATION, euro[1:2], fin=False))
    assert socket.read_string_message() == Message("", OpcodeType.CONTINUATION, False)
    peer.send(frame(CONTINUATION, euro[2:] + b"!"))
    assert socket.read_string_message() == Message("€!", OpcodeType.CONTINUATION, True)


def test_the_tail_of_a_code_point_follows_in_whichever_read_comes_next(pair):
    socket, peer = pair()
    peer.send(frame(TEXT, b"a\xc3", fin=False) + frame(CONTINUATION, b"\xa9"))
    assert socket.read_string_message().data == "a"
    assert socket.read_bytes_message() == Message("é".encode(), OpcodeType.CONTINUATION, True)


def test_bytes_and_strings_may_be_read_either_way(pair):
    socket, peer = pair()
    peer.send(frame(TEXT, "ä".encode()) + frame(BINARY, "ö".encode()) + frame(BINARY, b"\xff"))
    assert socket.read_bytes_message() == Message("ä".encode(), OpcodeType.TEXT, True)
    assert socket.read_string_message() == Message("ö", OpcodeType.BINARY, True)
    assert socket.read_bytes_message() == Message(b"\xff", OpcodeType.BINARY, True)


def test_a_binary_frame_that_is_not_utf8_is_read_as_none_by_a_string_read(pair):
    socket, peer = pair()
    peer.send(frame(BINARY, b"\xff\xfe") + frame(TEXT, b"next"))
    assert socket.read_string_message() == Message(None, OpcodeType.BINARY, True)
    assert socket.read_string_message().data == "next"


def test_a_ping_is_answered_inside_the_read(pair):
    socket, peer = pair()
    reader = gevent.spawn(socket.read_string_message)
    peer.send(frame(PING, b"are you there"))
    assert peer.read_frame() == (True, PONG, b"are you there")
    peer.send(frame(TEXT, b"x"))
    assert reader.get().data == "x"


def test_the_pong_to_send_ping_reaches_the_reader(pair):
    socket, peer = pair()
    socket.send_ping(b"1")
    assert peer.read_frame() == (True, PING, b"1")
    peer.send(frame(PONG, b"1"))
    assert socket.read_string_message() == Message("1", OpcodeType.PONG, True)
    socket.send_ping("two")
    peer.send(frame(PONG, b"two"))
    assert socket.read_bytes_message() == Message(b"two", OpcodeType.PONG, True)


def test_an_unsolicited_pong_does_not_reach_the_reader(pair):
    socket, peer = pair()
    peer.send(frame(PONG, b"nobody asked") + frame(TEXT, b"x"))
    assert socket.read_string_message().data == "x"


# -- timeouts


@again_after_standstill(0.2)
def test_a_timed_out_read_brings_nothing_and_leaves_the_socket_connected(pair):
    socket, peer = pair()
    socket.read_timeout_seconds = 0.02
    began = time.monotonic()
    assert socket.read_string_message() == NOTHING
    assert 0.015 < time.monotonic() - began < pace(1)
    assert socket.is_connected
    peer.send(frame(TEXT, b"late"))
    assert socket.read_string_message().data == "late"


@pytest.mark.parametrize("cut", [1, 2, 5, 6, 9])
@pytest.mark.parametrize("how", ["read", "receive", "gevent"])
def test_a_timeout_in_the_middle_of_a_frame_loses_nothing(pair, cut, how):
    socket, peer = pair()
    data = frame(TEXT, "héllo".encode())
    peer.send(data[:cut])
    if how == "read":
        socket.read_timeout_seconds = 0.02
        assert socket.read_string_message() == NOTHING
        socket.read_timeout_seconds = None
    elif how == "receive":
        with pytest.raises(TimeoutError):
            socket.receive(timeout=0.02)
    else:
        with gevent.Timeout(0.02, False):
            socket.receive()
    assert socket.is_connected
    peer.send(data[cut:])
    assert socket.read_string_message() == Message("héllo", OpcodeType.TEXT, True)


@pytest.mark.parametrize("timeout", [0.02, gevent.Timeout])
def test_a_timeout_between_fragments_loses_nothing(pair, timeout):
    socket, peer = pair()
    peer.send(frame(TEXT, b"a", fin=False) + frame(CONTINUATION, b"b", fin=False))
    if timeout is gevent.Timeout:
        with gevent.Timeout(0.02, False):
            socket.receive()
    else:
        with pytest.raises(TimeoutError):
            socket.receive(timeout=timeout)
    assert socket.read_string_message() == Message("ab", OpcodeType.TEXT, False)
    peer.send(frame(CONTINUATION, b"c"))
    assert socket.receive() == "c"


@again_after_standstill(0.1)
def test_the_timeout_bounds_the_whole_read(pair):
    socket, peer = pair()
    socket.read_timeout_seconds = 0.1

    def trickle():
        for byte in frame(TEXT, b"x" * 100):
            peer.send(bytes([byte]))
            gevent.sleep(0.02)

    trickling = gevent.spawn(trickle)
    began = time.monotonic()
    assert socket.read_string_message() == NOTHING
    assert time.monotonic() - began < pace(0.5)
    trickling.kill()


@again_after_standstill(0.2)
def test_a_shorter_timeout_after_a_longer_one_is_kept(pair):
    socket, peer = pair()
    with pytest.raises(TimeoutError):
        socket.receive(timeout=0.05)
    reader = gevent.spawn(socket.receive, 30)
    gevent.sleep(0)
    peer.send(frame(TEXT, b"x"))
    assert reader.get() == "x"
    began = time.monotonic()
    with pytest.raises(TimeoutError):
        socket.receive(timeout=0.03)
    assert time.monotonic() - began < pace(1)
    began = time.monotonic()
    with pytest.raises(TimeoutError):
        socket.receive(timeout=0.06)
    assert time.monotonic() - began > 0.05


def test_a_timeout_of_zero_returns_only_what_has_arrived(pair):
    socket, peer = pair()
    with pytest.raises(TimeoutError):
        socket.receive(timeout=0)
    peer.send(frame(TEXT, b"x"))
    assert wait_until(lambda: _poll(socket)) == "x"


class Pongs:
    """A socket with pongs to receive, without end; no reader wants them."""

    def __init__(self, sock):
        self._sock = sock
        self._calls = 0

    def recv_into(self, buffer):
        self._calls += 1
        assert self._calls < 10_000, "it does not end"
        data = frame(PONG) * 100
        buffer[: len(data)] = data
        return len(data)

    def __getattr__(self, name):
        return getattr(self._sock, name)


@pytest.mark.parametrize("timeout", [0, 0.01])
def test_a_poll_ends_though_control_frames_do_not(pair, timeout):
    """With a timeout, the reader polls before the functions of before_wait() are called."""
    socket, _ = pair()
    transport = socket._transport
    transport._raw, transport._direct = Pongs(transport._raw), False
    transport.hung_up = True  # so no read takes the input for drained
    called = []
    hook = before_wait(lambda: called.append(timeout))
    try:
        with pytest.raises(TimeoutError, match="no message"):
            socket.receive(timeout=timeout)
    finally:
        not_before_wait(hook)
    assert called == [timeout] * bool(timeout)


class Records:
    """A socket that receives as Python's TLS does: at most 16 KiB at a time."""

    def __init__(self, sock, data):
        self._sock = sock
        self._data = memoryview(data)

    def recv_into(self, buffer):
        data, self._data = self._data[: 1 << 14], self._data[1 << 14 :]
        if not data:
            raise BlockingIOError
        buffer[: len(data)] = data
        return len(data)

    def __getattr__(self, name):
        return getattr(self._sock, name)


@pytest.mark.parametrize("timeout", [0, 1])
@pytest.mark.parametrize("size", [1_200_000, 10_000_000])
def test_a_large_message_that_has_arrived_is_read_without_a_wait(pair, timeout, size):
    socket, _ = pair(max_message_size=size)
    transport = socket._transport
    transport._direct = False
    transport._raw = Records(transport._raw, frame(BINARY, bytes(size)))
    called = []
    hook = before_wait(lambda: called.append(timeout))
    try:
        assert len(socket.receive(timeout=timeout)) == size
    finally:
        not_before_wait(hook)
    assert not called


def _poll(socket: WebSocket):
    try:
        return socket.receive(timeout=0)
    except TimeoutError:
        return None


@pytest.mark.parametrize("forever", [None, NO_TIMEOUT])
def test_no_timeout_waits(pair, forever):
    socket, peer = pair()
    socket.read_timeout_seconds = forever
    reader = gevent.spawn(socket.read_string_message)
    stays(lambda: not reader.ready(), 0.05)
    peer.send(frame(TEXT, b"x"))
    assert reader.get().data == "x"


def test_a_negative_timeout_is_refused(pair):
    socket, _ = pair()
    with pytest.raises(ValueError, match="-5"):
        socket.receive(timeout=-5)
    assert socket.is_connected


# -- whole messages


def test_receive_joins_fragments_in_their_native_type(pair):
    socket, peer = pair()
    peer.send(frame(TEXT, b"a", fin=False) + frame(PING) + frame(CONTINUATION, b"b"))
    peer.send(frame(BINARY, b"\x00", fin=False) + frame(CONTINUATION, b"\xff"))
    assert socket.receive() == "ab"
    assert socket.receive() == b"\x00\xff"


def test_receive_skips_pongs(pair):
    socket, peer = pair()
    socket.send_ping(b"1")
    peer.send(frame(PONG, b"1") + frame(TEXT, b"x"))
    assert socket.receive() == "x"


def test_receive_uses_read_timeout_seconds(pair):
    socket, _ = pair()
    socket.read_timeout_seconds = 0.02
    with pytest.raises(TimeoutError, match=r"0\.02"):
        socket.receive()
    with pytest.raises(TimeoutError):
        next(iter(socket))


@pytest.mark.parametrize("code", [1000, 1001, None])
def test_iteration_ends_quietly_when_the_peer_closes(pair, code):
    socket, peer = pair()
    peer.send(frame(TEXT, b"a") + frame(BINARY, b"b") + close_frame(code))
    assert list(socket) == ["a", b"b"]
    assert socket.close_code == (code or 1005)


@pytest.mark.parametrize("code", [1002, 1011, 4000])
def test_iteration_raises_on_other_codes(pair, code):
    socket, peer = pair()
    peer.send(frame(TEXT, b"a") + close_frame(code, b"because"))
    got = []
    with pytest.raises(ConnectionClosed) as caught:
        for message in socket:
            got.append(message)
    assert got == ["a"]
    assert (caught.value.code, caught.value.reason) == (code, "because")


def test_a_lost_connection_is_1006(pair):
    socket, peer = pair()
    peer.close()
    with pytest.raises(ConnectionClosed) as caught:
        socket.receive()
    assert caught.value.code == 1006
    assert (socket.close_code, socket.is_connected) == (1006, False)
    assert socket.read_string_message() == NOTHING


def test_a_stream_that_ends_in_the_middle_of_a_frame_is_1006(pair):
    socket, peer = pair()
    peer.send(frame(TEXT, b"hello")[:7])
    peer.close()
    assert socket.read_string_message() == NOTHING
    assert socket.close_code == 1006


def test_messages_before_a_protocol_error_are_delivered(pair):
    socket, peer = pair()
    peer.send(frame(TEXT, b"good") + frame(TEXT, b"bad", mask=None))
    assert socket.receive() == "good"
    with pytest.raises(ConnectionClosed) as caught:
        socket.receive()
    assert caught.value.code == 1002
    assert "mask" in caught.value.reason
    code, reason = peer.read_close()
    assert code == 1002 and b"mask" in reason


def test_text_fails_on_its_first_bad_byte(pair):
    socket, peer = pair()
    reader = gevent.spawn(socket.read_string_message)
    peer.send(frame(TEXT, b"ok \xff" + b"x" * 1000)[:12])
    assert peer.read_close()[0] == 1007
    assert reader.get() == NOTHING


def test_a_message_too_big_is_refused_by_its_announced_length(pair):
    socket, peer = pair(max_message_size=1000)
    reader = gevent.spawn(socket.read_string_message)
    peer.send(frame(BINARY, b"", length=1001, length_bytes=2))
    code, reason = peer.read_close()
    assert code == 1009 and b"max_message_size" in reason
    assert reader.get() == NOTHING


def test_a_large_message_arrives_whole(pair):
    socket, peer = pair()
    payload = bytes(range(256)) * 4000
    sender = gevent.spawn(peer.send, frame(BINARY, payload))
    assert socket.receive() == payload
    sender.get()


def test_the_receive_buffer_is_not_shared_by_accident(pair):
    first, peer1 = pair()
    second, peer2 = pair()
    peer1.send(frame(TEXT, b"one" * 10) + frame(TEXT, b"two" * 10) + frame(TEXT, b"three")[:8])
    peer2.send(frame(TEXT, b"XXXX" * 50) * 3)
    assert first.receive() == "one" * 10
    assert second.receive() == "XXXX" * 50
    assert first.receive() == "two" * 10
    assert second.receive() == "XXXX" * 50
    peer1.send(frame(TEXT, b"three")[8:])
    assert first.receive() == "three"


# -- one reader


def test_a_second_reader_gets_a_clear_error(pair):
    socket, peer = pair()
    reader = gevent.spawn(socket.receive)
    gevent.sleep(0)
    for read in (socket.receive, socket.read_string_message, lambda: next(iter(socket))):
        with pytest.raises(ConcurrentReadError, match="another greenlet is already reading"):
            read()
    peer.send(frame(TEXT, b"mine"))
    assert reader.get() == "mine"
    peer.send(frame(TEXT, b"now me"))
    assert socket.receive() == "now me"


def test_a_killed_reader_leaves_the_socket_readable(pair):
    socket, peer = pair()
    reader = gevent.spawn(socket.receive)
    gevent.sleep(0)
    reader.kill()
    peer.send(frame(TEXT, b"x"))
    assert socket.receive() == "x"


# -- sending


def test_messages_go_out_in_their_type(pair):
    socket, peer = pair()
    socket.send("tëxt")
    socket.send(b"bytes")
    socket.send(bytearray(b"array"))
    socket.send(memoryview(b"view")[1:])
    socket.send("")
    assert peer.read_frame() == (True, TEXT, "tëxt".encode())
    assert [peer.read_frame() for _ in range(3)] == [
        (True, BINARY, b"bytes"),
        (True, BINARY, b"array"),
        (True, BINARY, b"iew"),
    ]
    assert peer.read_frame() == (True, TEXT, b"")


def test_views_of_other_shapes_are_sent_byte_by_byte(pair):
    import array

    socket, peer = pair()
    numbers = array.array("H", [1, 2, 3])
    socket.send(memoryview(numbers))
    socket.send(memoryview(b"abcdef")[::2])
    assert peer.read_frame()[2] == numbers.tobytes()
    assert peer.read_frame()[2] == b"ace"


def test_fragments_are_continued_and_ended(pair):
    socket, peer = pair()
    socket.send_string_message("a", final=False)
    socket.send_string_message("b", final=False)
    socket.send_ping(b"between")
    socket.send_string_message("c")
    socket.send_binary_message(b"d", final=False)
    socket.send_binary_message(bytearray(b"e"))
    socket.send_string_message("f")
    assert [peer.read_frame() for _ in range(7)] == [
        (False, TEXT, b"a"),
        (False, CONTINUATION, b"b"),
        (True, PING, b"between"),
        (True, CONTINUATION, b"c"),
        (False, BINARY, b"d"),
        (True, CONTINUATION, b"e"),
        (True, TEXT, b"f"),
    ]


def test_a_message_inside_ones_own_fragmented_message_is_an_error(pair):
    socket, peer = pair()
    socket.send_string_message("a", final=False)
    with pytest.raises(RuntimeError, match="final=True"):
        socket.send("whole")
    with pytest.raises(RuntimeError, match="other type"):
        socket.send_binary_message(b"x")
    socket.send_string_message("b")
    socket.send("whole")
    assert [peer.read_frame()[2] for _ in range(3)] == [b"a", b"b", b"whole"]


def test_other_greenlets_wait_for_the_end_of_a_fragmented_message(pair):
    socket, peer = pair()
    socket.send_string_message("a", final=False)
    others = [gevent.spawn(socket.send, f"other {i}") for i in range(3)]
    others.append(gevent.spawn(socket.send_string_message, "other 3"))
    stays(lambda: not any(other.ready() for other in others))
    socket.send_string_message("b")
    gevent.joinall(others, timeout=limit(2), raise_error=True)
    frames = [peer.read_frame() for _ in range(6)]
    assert frames[:2] == [(False, TEXT, b"a"), (True, CONTINUATION, b"b")]
    assert sorted(f[2] for f in frames[2:]) == [b"other %d" % i for i in range(4)]


def test_a_fragmented_message_whose_sender_died_is_reported(pair):
    socket, _ = pair()
    gevent.spawn(socket.send_string_message, "a", final=False).join()
    with pytest.raises(RuntimeError, match="ended before it sent the last fragment"):
        socket.send("x")


@pytest.mark.parametrize("wrong", [None, 5, ["a"], object()])
def test_a_value_that_is_not_a_message_is_refused(pair, wrong):
    socket, peer = pair()
    with pytest.raises(TypeError, match=type(wrong).__name__):
        socket.send(wrong)
    with pytest.raises(TypeError):
        socket.send_string_message(wrong)
    with pytest.raises(TypeError):
        socket.send_binary_message(wrong)
    with pytest.raises(TypeError):
        socket.send_string_message(b"bytes")
    with pytest.raises(TypeError):
        socket.send_binary_message("string")
    socket.send("still fine")
    assert peer.read_frame()[2] == b"still fine"


def test_control_payloads_are_limited(pair):
    socket, peer = pair()
    for send in (socket.send_ping, socket.send_pong):
        with pytest.raises(ValueError, match="125"):
            send(b"x" * 126)
    socket.send_pong(b"x" * 125)
    assert peer.read_frame() == (True, PONG, b"x" * 125)


def test_sends_on_a_closed_socket_raise(pair):
    socket, peer = pair()
    peer.send(close_frame(4001, b"bye"))
    assert socket.read_string_message() == NOTHING
    for send in (
        lambda: socket.send("x"),
        lambda: socket.send_string_message("x", final=False),
        lambda: socket.send_binary_message(b"x"),
        lambda: socket.send_ping(),
        lambda: socket.send_pong(),
        lambda: socket.ping(),
    ):
        with pytest.raises(ConnectionClosed) as caught:
            send()
        assert (caught.value.code, caught.value.reason) == (4001, "bye")


def test_frames_of_many_greenlets_never_interleave(pair):
    socket, peer = pair(write_high_water=10_000)
    count, size = 20, 30_000

    def send(index):
        for _ in range(5):
            socket.send(bytes([index]) * size)

    senders = [gevent.spawn(send, index) for index in range(count)]
    seen = [0] * count
    for _ in range(count * 5):
        _, _, payload = peer.read_frame()
        assert payload == payload[:1] * size
        seen[payload[0]] += 1
    assert seen == [5] * count
    gevent.joinall(senders, raise_error=True)


def test_killed_senders_leave_whole_frames(pair):
    socket, peer = pair(write_high_water=1000, write_timeout=None)
    senders = [gevent.spawn(socket.send, bytes([i]) * 500_000) for i in range(10)]
    gevent.sleep(0)
    gevent.killall(senders[::2])
    with gevent.Timeout(0.01, False):
        socket.send(b"\xff" * 500_000)
    senders.append(gevent.spawn(socket.send, b"last"))
    frames = []
    while not frames or frames[-1] != b"last":
        frames.append(peer.read_frame()[2])
    for payload in frames[:-1]:
        assert payload == payload[:1] * 500_000
    gevent.joinall(senders)


def test_a_sender_waits_while_the_peer_does_not_read(pair):
    socket, peer = pair(write_high_water=1 << 16)
    sent = []

    def send():
        for i in range(100):
            socket.send(b"x" * 100_000)
            sent.append(i)

    sender = gevent.spawn(send)
    stays(lambda: not sender.ready() and len(sent) < 50, 0.05)
    for _ in range(100):
        assert len(peer.read_frame()[2]) == 100_000
    sender.get(timeout=limit(2))


def test_a_peer_that_never_reads_is_dropped_after_write_timeout(pair):
    socket, _ = pair(write_timeout=0.1, write_high_water=1)
    reader = gevent.spawn(socket.read_string_message)
    with pytest.raises(ConnectionClosed, match="write_timeout") as caught:
        for _ in range(1000):
            socket.send(b"x" * 100_000)
    assert caught.value.code == 1006
    assert reader.get(timeout=limit(2)) == NOTHING
    assert not socket.is_connected


@again_after_standstill(0.1)
def test_a_peer_that_reads_slowly_is_not_dropped(pair):
    socket, peer = pair(write_timeout=0.2, write_high_water=1)
    size = 3_000_000
    sender = gevent.spawn(socket.send, b"x" * size)
    got = 0
    while got < size:
        came = len(peer.sock.recv(size // 8))
        assert came, "dropped"
        got += came
        gevent.sleep(0.05)
    sender.get(timeout=limit(2))


def test_changes_after_a_send_are_not_sent(pair):
    socket, peer = pair(write_high_water=None)
    data = bytearray(b"a" * 2_000_000)
    socket.send(data)
    data[:] = b"b" * len(data)
    data.clear()  # resizable: no view of it is kept
    assert peer.read_frame()[2] == b"a" * 2_000_000


def test_a_send_to_a_peer_that_is_gone_raises(pair):
    socket, peer = pair()
    peer.reset()
    with pytest.raises(ConnectionClosed) as caught:
        for _ in range(100):
            socket.send("x")
            gevent.sleep(0)
    assert caught.value.code == 1006


def test_a_handler_that_only_sends_answers_pings_and_learns_of_the_close(pair):
    socket, peer = pair()
    peer.send(frame(PING, b"hello"))
    socket._polled_at -= 10
    socket.send("tick")
    frames = {peer.read_frame()[1:] for _ in range(2)}
    assert frames == {(TEXT, b"tick"), (PONG, b"hello")}
    peer.send(close_frame(1001))
    socket._polled_at -= 10
    socket.send("tick")  # finds the Close
    with pytest.raises(ConnectionClosed) as caught:
        socket.send("tick")
    assert caught.value.code == 1001


def test_input_found_by_a_look_is_kept_for_the_reader(pair):
    socket, peer = pair()
    peer.send(frame(TEXT, b"a", fin=False) + frame(CONTINUATION, b"b"))
    socket._polled_at -= 10
    socket.send("tick")
    assert socket.read_string_message() == Message("a", OpcodeType.TEXT, False)
    assert socket.receive() == "b"


# -- corking


def test_answers_to_a_batch_go_out_together(pair):
    socket, peer = pair()
    peer.send(frame(TEXT, b"x" * 50) * 100)
    sends = _count_sends(socket)
    began = time.monotonic()
    for _ in range(100):
        socket.send(socket.receive())
    turns = (time.monotonic() - began) // 0.005  # at the end of each, what is held back goes out
    assert sends() <= 2 + turns
    for _ in range(100):
        assert peer.read_frame() == (True, TEXT, b"x" * 50)


@again_after_standstill(0.1)
def test_a_corked_message_goes_out_when_the_handler_waits_for_something_else(pair):
    socket, peer = pair()
    peer.send(frame(TEXT, b"1") + frame(TEXT, b"2"))
    go_on = Event()

    def handler():
        socket.send(socket.receive())  # held back: another frame is there
        go_on.wait()

    running = gevent.spawn(handler)
    began = time.monotonic()
    assert peer.read_frame() == (True, TEXT, b"1")
    assert time.monotonic() - began < pace(0.5)
    go_on.set()
    running.get()


def test_a_lone_message_is_sent_at_once(pair):
    socket, peer = pair()
    peer.send(frame(TEXT, b"1"))
    message = socket.receive()
    sends = _count_sends(socket)
    socket.send(message)
    assert sends() == 1


def _count_sends(socket: WebSocket):
    raw = socket._transport._raw
    count = 0

    class Counting:
        def send(self, data):
            nonlocal count
            count += 1
            return raw.send(data)

        def __getattr__(self, name):
            return getattr(raw, name)

    socket._transport._raw = Counting()
    socket._transport._direct = False
    return lambda: count


# -- ping()


@again_after_standstill(0.2)
def test_ping_returns_the_round_trip(pair):
    socket, peer = pair()

    def answer():
        _, opcode, payload = peer.read_frame()
        assert opcode == PING
        gevent.sleep(0.02)
        peer.send(frame(PONG, payload))

    answering = gevent.spawn(answer)
    assert 0.015 < socket.ping(timeout=limit(2)) < pace(1)
    answering.get()


@again_after_standstill(0.5)
def test_ping_keeps_messages_for_the_next_read(pair):
    socket, peer = pair()

    def answer():
        payload = peer.read_frame()[2]
        peer.send(frame(TEXT, b"a", fin=False) + frame(CONTINUATION, b"b") + frame(BINARY, b"c"))
        peer.send(frame(PONG, payload))

    answering = gevent.spawn(answer)
    assert socket.ping(timeout=limit(2)) < pace(2)
    assert socket.receive() == "ab"
    assert socket.receive() == b"c"
    answering.get()


@again_after_standstill(0.5)
def test_ping_while_another_greenlet_reads(pair):
    socket, peer = pair()
    reader = gevent.spawn(lambda: [socket.receive(), socket.receive()])
    gevent.sleep(0)
    pinging = gevent.spawn(socket.ping, limit(2))
    payload = peer.read_frame()[2]
    peer.send(frame(TEXT, b"a"))
    wait_until(lambda: socket.traffic.messages_in == 1)
    peer.send(frame(PONG, payload) + frame(TEXT, b"b"))
    assert pinging.get() < pace(2)
    assert reader.get() == ["a", "b"]


@again_after_standstill(1.0)
def test_a_reader_that_comes_while_ping_waits_gets_its_message(pair):
    socket, peer = pair()
    pinging = gevent.spawn(socket.ping, limit())
    payload = peer.read_frame()[2]
    reader = gevent.spawn(socket.receive)
    gevent.sleep(0)
    peer.send(frame(TEXT, b"a"))
    assert reader.get(timeout=limit(2)) == "a"
    assert not pinging.ready()
    peer.send(frame(PONG, payload))
    assert pinging.get(timeout=limit(2)) < pace()


@again_after_standstill(1.0)
def test_ping_goes_on_when_the_reader_leaves(pair):
    socket, peer = pair()
    reader = gevent.spawn(socket.receive)
    gevent.sleep(0)
    pinging = gevent.spawn(socket.ping, limit())
    payload = peer.read_frame()[2]
    reader.kill()
    peer.send(frame(PONG, payload))
    assert pinging.get(timeout=limit(2)) < pace()


def test_ping_times_out(pair):
    socket, peer = pair()
    with pytest.raises(TimeoutError, match="pong"):
        socket.ping(timeout=0.02)
    peer.send(frame(TEXT, b"x"))
    assert socket.receive() == "x"


def test_a_pong_after_its_ping_timed_out_is_not_a_message(pair):
    socket, peer = pair()
    with pytest.raises(TimeoutError):
        socket.ping(timeout=0.02)
    late = peer.read_frame()[2]
    pinging = gevent.spawn(socket.ping, limit())
    payload = peer.read_frame()[2]
    peer.send(frame(PONG, late))
    stays(lambda: not pinging.ready())  # it is not its answer
    peer.send(frame(PONG, payload) + frame(TEXT, b"x"))
    assert pinging.get(timeout=limit()) > 0.02
    assert socket.read_string_message() == Message("x", OpcodeType.TEXT, True)


def test_ping_keeps_no_more_than_max_message_size(pair):
    socket, peer = pair(max_message_size=1000)
    sender = gevent.spawn(peer.send, frame(BINARY, b"x" * 900) * 5)
    with pytest.raises(TimeoutError, match="unread"):
        socket.ping(timeout=limit())
    sender.get()
    assert [len(socket.receive()) for _ in range(5)] == [900] * 5


def test_a_full_inbox_leaves_the_shared_buffer_alone(pair):
    # Six frames that fill the receive buffer of the hub exactly, while one greenlet pings and
    # another reads: what the inbox does not take must not be overwritten by the next receive.
    socket, peer = pair(max_message_size=65_530)
    for end in (peer.sock, socket._transport._raw):
        end.setsockopt(gevent.socket.SOL_SOCKET, gevent.socket.SO_RCVBUF, 1 << 22)
        end.setsockopt(gevent.socket.SOL_SOCKET, gevent.socket.SO_SNDBUF, 1 << 22)

    def ping():
        with pytest.raises((TimeoutError, ConnectionClosed)):
            socket.ping(timeout=limit(1))

    pinging = gevent.spawn(ping)
    gevent.sleep(0)
    reader = gevent.spawn(lambda: [socket.receive()[:1] for _ in range(6)])
    gevent.sleep(0)
    peer.send(b"".join(frame(BINARY, bytes([65 + i]) * 65_528) for i in range(6)))
    assert reader.get(timeout=limit()) == [b"A", b"B", b"C", b"D", b"E", b"F"]
    pinging.kill()


def test_ping_on_a_connection_that_closes_raises(pair):
    socket, peer = pair()

    def answer():
        peer.read_frame()
        peer.send(close_frame(1001))

    answering = gevent.spawn(answer)
    with pytest.raises(ConnectionClosed) as caught:
        socket.ping(timeout=limit())
    assert caught.value.code == 1001
    answering.get()


# -- closing


def test_close_sends_close_and_waits_for_the_peers(pair):
    socket, peer = pair()
    closing = gevent.spawn(socket.close, 4000, "enough")
    assert peer.read_frame() == (True, CLOSE, b"\x0f\xa0enough")
    assert not closing.ready()
    peer.send(close_frame(4000))
    assert peer.at_end()
    peer.close()
    closing.get(timeout=limit(2))
    assert (socket.close_code, socket.is_connected) == (4000, False)


def test_close_is_idempotent(pair):
    socket, peer = pair()
    closing = [gevent.spawn(socket.close) for _ in range(3)]
    assert peer.read_frame()[1] == CLOSE
    peer.send(close_frame())
    assert peer.at_end()
    peer.close()
    gevent.joinall(closing, timeout=limit(2), raise_error=True)
    assert all(greenlet.ready() for greenlet in closing)
    socket.close()
    assert socket.close_code == 1000


@again_after_standstill(0.2)
def test_close_waits_no_longer_than_close_timeout(pair):
    socket, peer = pair(close_timeout=0.05)
    began = time.monotonic()
    socket.close()
    assert 0.04 < time.monotonic() - began < pace(1)
    assert socket.close_code == 1006
    assert peer.read_close() == (1000, b"")


@again_after_standstill(0.02)
def test_a_peer_that_answers_close_but_keeps_tcp_open_is_cut_off(pair):
    socket, peer = pair(close_timeout=0.05)
    peer.send(close_frame())
    socket.close()
    assert socket.close_code == 1000
    assert peer.read_close() == (1000, b"")


@pytest.mark.parametrize("how", ["kill", "timeout"])
def test_an_interrupted_close_leaves_the_socket_closed(pair, how):
    socket, peer = pair()
    if how == "kill":
        closer = gevent.spawn(socket.close, 4000)
        assert peer.read_frame() == (True, CLOSE, b"\x0f\xa0")
        closer.kill()
    else:
        with contextlib.suppress(gevent.Timeout), gevent.Timeout(0.01):
            socket.close(4000)
        assert peer.read_close() == (4000, b"")
    assert (socket.is_connected, socket.close_code, socket.closed_by) == (False, 1006, "us")
    with pytest.raises(ConnectionClosed) as caught:
        socket.send("late")
    assert caught.value.code == 1006
    assert socket.read_string_message() == NOTHING
    socket.close()


def test_an_interrupted_close_after_the_peers_keeps_its_code(pair):
    socket, peer = pair()
    peer.send(close_frame(4001))
    closer = gevent.spawn(socket.close)  # waits for the end of the stream
    wait_until(lambda: socket.close_code == 4001)
    closer.kill()
    assert (socket.is_connected, socket.close_code) == (False, 4001)


def test_messages_in_flight_when_we_close_are_dropped(pair):
    socket, peer = pair()
    peer.send(frame(TEXT, b"in flight") * 10 + frame(PING) + close_frame())
    gevent.spawn(peer.close)
    socket.close()
    assert socket.close_code == 1000
    assert socket.read_string_message() == NOTHING


def test_close_while_another_greenlet_reads(pair):
    socket, peer = pair()
    reader = gevent.spawn(lambda: [socket.read_string_message() for _ in range(2)])
    gevent.sleep(0)
    closing = gevent.spawn(socket.close)
    assert peer.read_frame()[1] == CLOSE
    peer.send(frame(TEXT, b"one more") + close_frame())
    assert reader.get(timeout=limit(2)) == [Message("one more", OpcodeType.TEXT, True), NOTHING]
    assert peer.at_end()
    peer.close()
    closing.get(timeout=limit(2))


def test_a_reader_is_released_when_the_peer_does_not_answer_our_close(pair):
    socket, _ = pair(close_timeout=0.05)
    reader = gevent.spawn(socket.read_string_message)
    gevent.sleep(0)
    socket.start_closing()
    assert reader.get(timeout=limit(2)) == NOTHING


def test_the_peers_close_is_echoed(pair):
    socket, peer = pair()
    peer.send(close_frame(3999, "später".encode()))
    assert socket.read_string_message() == NOTHING
    assert (socket.close_code, socket.close_reason) == (3999, "später")
    assert peer.read_close() == (3999, "später".encode())


def test_an_empty_close_is_1005(pair):
    socket, peer = pair()
    peer.send(close_frame(None))
    assert socket.read_string_message() == NOTHING
    assert (socket.close_code, socket.close_reason) == (1005, "")
    assert peer.read_close() == (None, b"")


@pytest.mark.parametrize("code", [0, 999, 1004, 1005.5, 1006, 1010, 1015, 2999, 5000])
def test_codes_that_may_not_be_sent_are_refused(pair, code):
    socket, _ = pair()
    with pytest.raises(ValueError, match=str(code)):
        socket.close(code)
    assert socket.is_connected


def test_a_reason_that_is_too_long_is_refused(pair):
    socket, _ = pair()
    with pytest.raises(ValueError, match="123"):
        socket.close(1000, "ä" * 62)
    assert socket.is_connected


def test_close_after_the_outbox(pair):
    socket, peer = pair(write_high_water=None)
    socket.send(b"x" * 3_000_000)
    closing = gevent.spawn(socket.close)
    assert len(peer.read_frame()[2]) == 3_000_000
    assert peer.read_frame()[1] == CLOSE
    peer.send(close_frame())
    peer.close()
    closing.get(timeout=limit(2))


def test_before_it_is_over_there_is_no_code(pair):
    socket, _ = pair()
    assert (socket.close_code, socket.close_reason) == (None, None)


# -- the end of a connection, and what was still unread


def test_a_failed_send_leaves_received_messages_to_the_reader(pair):
    socket, peer = pair()
    peer.send(frame(TEXT, b"important") * 3 + close_frame(1000))
    peer.close()
    with pytest.raises(ConnectionClosed):
        while True:
            socket.send(b"x" * 100_000)
    assert list(socket) == ["important"] * 3
    assert socket.close_code == 1000


def test_a_failed_send_leaves_received_messages_to_a_waiting_reader(pair):
    socket, peer = pair()
    reader = gevent.spawn(list, socket)
    gevent.sleep(0)
    peer.send(frame(TEXT, b"important") + close_frame(1000))
    peer.close()
    with pytest.raises(ConnectionClosed):
        while True:
            socket.send(b"x" * 100_000)
    assert reader.get(timeout=limit(2)) == ["important"]


@pytest.mark.parametrize("send", ["send_ping", "send_pong"])
def test_pings_and_pongs_to_a_peer_that_is_gone_raise(pair, send):
    socket, peer = pair()
    peer.reset()
    with pytest.raises(ConnectionClosed):
        for _ in range(3):
            getattr(socket, send)()


def test_a_send_waiting_for_anothers_message_raises_at_the_end(pair):
    socket, peer = pair()
    socket.send_string_message("begun", final=False)

    def send():
        with pytest.raises(ConnectionClosed):
            socket.send("mine")

    sending = gevent.spawn(send)
    gevent.sleep(0)
    peer.send(close_frame())
    assert socket.read_string_message() == NOTHING
    sending.get(timeout=limit(3))
    gevent.spawn(send).get(timeout=limit(3))
    with pytest.raises(ConnectionClosed):
        socket.send("x")


def test_a_close_that_came_in_time_counts_for_a_late_reader(pair):
    socket, peer = pair(close_timeout=0.02)
    socket.start_closing()
    peer.send(close_frame())
    gevent.sleep(0.05)  # longer than close_timeout
    socket.close()
    assert socket.close_code == 1000


def test_a_flood_of_pings_does_not_fill_the_outbox(pair):
    socket, peer = pair(write_high_water=100_000, write_timeout=None)
    reader = gevent.spawn(socket.read_string_message)
    flooding = gevent.spawn(_flood_of_pings, peer)
    most = 0
    for _ in range(100):
        most = max(most, socket._transport.backlog)
        gevent.sleep(0.002)
    assert 0 < most < 1_000_000
    flooding.kill()
    reader.kill()


def _flood_of_pings(peer):
    data = frame(PING, b"x" * 125) * 500
    while True:
        peer.send(data)
        gevent.sleep(0)


def test_a_read_only_view_of_something_mutable_is_copied(pair):
    socket, peer = pair(write_high_water=None)
    data = bytearray(b"a" * 2_000_000)
    socket.send(memoryview(data).toreadonly())
    data[:] = b"b" * len(data)
    assert peer.read_frame()[2] == b"a" * 2_000_000


# -- what programs do with the object


def test_identity_hash_attributes_and_weak_references(pair):
    socket, _ = pair()
    other, _ = pair()
    assert socket == socket and socket != other
    assert {socket: "me"}[socket] == "me"
    socket.user = "ada"
    reference = weakref.ref(socket)
    assert reference() is socket
    gc.collect()
    assert "open" in repr(socket)


# -- subclasses


class Reason(str, enum.Enum):
    KICKED = "kicked"


class Data(bytes):
    pass


def test_a_reason_may_be_a_member_of_an_enumeration(pair):
    socket, peer = pair()
    socket.start_closing(4000, Reason.KICKED)
    assert peer.read_frame() == (True, CLOSE, (4000).to_bytes(2, "big") + b"kicked")


@pytest.mark.parametrize("size", [5, 20_000])
def test_a_subclass_of_bytes_is_sent_as_bytes(pair, size):
    socket, peer = pair()
    socket.send(Data(b"x" * size))
    assert peer.read_frame() == (True, BINARY, b"x" * size)


# -- what waits costs what it costs


@pytest.mark.parametrize(
    "data", [frame(TEXT, b"x"), frame(TEXT, "\U0001f600".encode() * 100), frame(BINARY, b"x")]
)
def test_the_inbox_of_a_handler_that_only_sends_is_bounded_in_memory(pair, data):
    most = 1 << 18
    socket, peer = pair(max_message_size=most)
    peer.sock.setblocking(False)
    gc.collect()
    tracemalloc.start()
    for _ in range(200):
        with contextlib.suppress(OSError):
            peer.sock.send(data * 500)
        socket._poll_unread()
    kept = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert most / 3 < kept < 1.25 * most + 300_000  # what is left of one receive comes on top


def test_the_fragments_that_a_receive_joins_are_kept_as_one(pair):
    socket, peer = pair()
    reader = gevent.spawn(socket.receive)
    gevent.sleep(0)
    gc.collect()
    tracemalloc.start()
    peer.send(frame(TEXT, b"x", fin=False) + frame(CONTINUATION, b"x", fin=False) * 4000)
    wait_until(lambda: socket.traffic.bytes_in > 4000 * 7)
    gevent.sleep(0.01)
    kept = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    peer.send(frame(CONTINUATION, b"x"))
    assert reader.get(timeout=limit()) == "x" * 4002
    assert kept < 150_000


# -- mistakes


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda s: s.close("bye"), r"close\(1000, 'bye'\)"),
        (lambda s: s.close(4000, b"x"), "reason must be a str, not b'x'"),
        (lambda s: s.close(None), "must be an int such as 1000, not None"),
        (lambda s: s.close(True), "must be an int such as 1000, not True"),
        (lambda s: s.receive(timeout="5"), "timeout must be a number of seconds or None, not '5'"),
        (lambda s: s.receive("5"), "not '5'"),
        (lambda s: s.ping("5"), "timeout must be a number of seconds"),
        (lambda s: s.send({}), r"not dict; to send JSON: send\(json.dumps"),
        (lambda s: s.send(None), "bytes-like object, not NoneType$"),
        (lambda s: s.send(ValueError()), r"to send its text: send\(str"),
        (lambda s: s.send_binary_message([1]), "not list"),
        (lambda s: s.send_string_message(b"x"), "takes str, not bytes"),
    ],
)
def test_a_wrong_argument_is_reported_and_changes_nothing(pair, call, match):
    socket, peer = pair()
    with pytest.raises(TypeError, match=match):
        call(socket)
    socket.send("after")
    assert peer.read_frame() == (True, TEXT, b"after")


def test_a_wrong_read_timeout_is_reported_by_the_read(pair):
    socket, _ = pair()
    socket.read_timeout_seconds = "5"
    with pytest.raises(TypeError, match="not '5'"):
        socket.read_string_message()


@pytest.mark.parametrize(
    "arguments", [("bye",), (4000, b"x"), (4000, 5), (1005, "x"), (7,), (1000.0,)]
)
def test_a_wrong_close_raises_in_another_thread(pair, arguments):
    socket, _ = pair()
    told = []

    def close():
        try:
            socket.close(*arguments)
        except (TypeError, ValueError) as error:
            told.append(str(error))

    thread = threading.Thread(target=close)
    thread.start()
    thread.join(limit())
    assert "close" in told[0].lower()
    assert socket.is_connected


@pytest.mark.parametrize(
    ("name", "instead"),
    [
        ("recv", r"receive\(\)"),
        ("send_json", r"send\(json.dumps\(data\)\)"),
        ("receive_json", "json.loads"),
        ("send_text", r"send\(text\)"),
        ("connected", "is_connected"),
        ("accept", "accepted before the handler"),
        ("on", "for message in socket"),
        ("settimeout", "read_timeout_seconds"),
        ("readyState", "is_connected"),
        ("headers", "request.headers"),
        ("broadcast", "rooms"),
    ],
)
def test_a_name_of_other_libraries_leads_to_ours(pair, name, instead):
    socket, _ = pair()
    assert not hasattr(socket, name)
    with pytest.raises(AttributeError) as caught:
        getattr(socket, name)
    explain_missing_name(caught.value)
    text = str(caught.value)
    assert re.match(f"'WebSocket' object has no attribute '{name}'; use .*{instead}", text)
    with pytest.raises(AttributeError, match=name):  # of a test's double, too
        getattr(create_autospec(WebSocket), name)


def test_other_errors_are_left_as_they_are(pair):
    socket, _ = pair()
    with pytest.raises(AttributeError) as caught:
        socket.colour  # noqa: B018
    foreign = AttributeError(name="recv", obj=[])
    errors = [caught.value, AttributeError("recv"), foreign, ValueError("recv")]
    texts = [str(error) for error in errors]
    for error in errors:
        explain_missing_name(error)
    assert [str(error) for error in errors] == texts
