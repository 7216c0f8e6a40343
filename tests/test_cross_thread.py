"""What other threads than the session's may do with a socket."""

from __future__ import annotations

import gc
import threading

import gevent
import pytest
from gevent.monkey import get_original

from greenws import Message, OpcodeType
from greenws.cross_thread import CrossThreadCalls

from .support.limits import limit, stays, wait_until
from .support.wire import CLOSE, CONTINUATION, PING, TEXT, close_frame

NOTHING = Message(None, OpcodeType.INVALID, True)


def calls_of(socket):
    """The CrossThreadCalls that ``socket`` has."""
    held = [*gc.get_referents(socket), *getattr(socket, "__dict__", {}).values()]
    return {each for each in held if isinstance(each, CrossThreadCalls)}


def test_only_a_socket_that_other_threads_use_has_room_for_their_calls(pair):
    socket, peer = pair()
    socket.send("mine")
    assert peer.read_frame()[2] == b"mine" and not calls_of(socket)
    threads = [threading.Thread(target=socket.send, args=("x",)) for _ in range(3)]
    for thread in threads:
        thread.start()
    assert [peer.read_frame()[2] for _ in range(3)] == [b"x"] * 3
    for thread in threads:
        thread.join()
    assert len(calls_of(socket)) == 1


def test_a_thread_that_sends_faster_than_the_peer_reads_waits(pair):
    socket, peer = pair(write_high_water=1000)
    sent = []

    def send():
        for _ in range(200):
            socket.send(b"x" * 100_000)
            sent.append(1)

    thread = threading.Thread(target=send)
    thread.start()
    wait_until(lambda: len(sent) >= 64)
    stays(lambda: len(sent) < 150, 0.1)
    for _ in range(200):
        assert peer.read_frame()[2] == b"x" * 100_000
    thread.join()
    assert len(sent) == 200


def test_a_call_for_a_hub_that_has_ended_is_not_taken(pair):
    socket, _ = pair()
    taken = []

    def session():
        hub = gevent.get_hub()
        calls = CrossThreadCalls(hub)
        hub.destroy()
        taken.append(calls.hand_over(socket, print, ()))

    thread = get_original("threading", "Thread")(target=session)
    thread.start()
    thread.join()
    assert taken == [False]


def test_a_close_from_another_thread_is_quiet_if_the_hub_has_just_ended(pair, monkeypatch):
    """The loop that the thread found is destroyed before it gets the call."""
    socket, _ = pair()
    loop = gevent.config.loop(default=False)
    loop.destroy()
    with pytest.raises(ValueError, match="destroyed loop"):
        loop.run_callback_threadsafe(print)
    with monkeypatch.context() as patches:
        patches.setattr(gevent.get_hub(), "loop", loop)
        errors = []

        def close():
            try:
                socket.start_closing(1001)
            except ValueError as error:
                errors.append(error)

        thread = threading.Thread(target=close)
        thread.start()
        get_original("threading", "Thread").join(thread)
    assert errors == []


def test_fragments_of_one_thread_and_messages_of_another(pair):
    socket, peer = pair()
    begun, sent = threading.Event(), threading.Event()

    def fragments():
        socket.send_string_message("a", final=False)
        begun.set()
        sent.wait(limit())
        socket.send_string_message("b")

    def whole():
        begun.wait(limit())
        socket.send("whole")
        sent.set()

    threads = [threading.Thread(target=target) for target in (fragments, whole)]
    for thread in threads:
        thread.start()
    assert [peer.read_frame() for _ in range(3)] == [
        (False, TEXT, b"a"),
        (True, CONTINUATION, b"b"),
        (True, TEXT, b"whole"),
    ]
    for thread in threads:
        thread.join()


def test_a_thread_may_end_before_its_last_fragment_is_sent(pair):
    socket, peer = pair()
    go_on = threading.Event()

    def fragments():
        socket.send_string_message("a", final=False)
        go_on.wait(limit())
        socket.send_string_message("b")

    first = threading.Thread(target=fragments)
    second = threading.Thread(target=socket.send, args=("whole",))
    first.start()
    assert peer.read_frame() == (False, TEXT, b"a")
    # The hub does not run while this thread blocks, so both calls wait, and their threads end.
    second.start()
    second.join()
    go_on.set()
    first.join()
    assert peer.read_frame() == (True, CONTINUATION, b"b")
    assert peer.read_frame() == (True, TEXT, b"whole")


def test_a_wrong_call_in_another_thread_raises_there_and_loses_nothing(pair):
    socket, peer = pair()
    errors = []

    def send():
        socket.send("1")
        try:
            socket.send_ping(b"x" * 126)
        except ValueError as error:
            errors.append(str(error))
        socket.send("2")

    thread = threading.Thread(target=send)
    thread.start()
    assert [peer.read_frame()[2] for _ in range(2)] == [b"1", b"2"]
    thread.join()
    assert "125" in errors[0]


def test_messages_of_other_threads_precede_our_close(pair):
    socket, peer = pair()
    thread = threading.Thread(target=lambda: [socket.send(str(i)) for i in range(5)])
    thread.start()
    thread.join()
    closing = gevent.spawn(socket.close)
    assert [peer.read_frame()[2] for _ in range(5)] == [b"0", b"1", b"2", b"3", b"4"]
    assert peer.read_frame()[1] == CLOSE
    peer.send(close_frame())
    peer.close()
    closing.get(timeout=limit(2))


def test_sends_of_a_thread_arrive_in_order(pair):
    socket, peer = pair()
    done = threading.Event()

    def send():
        for i in range(200):
            socket.send(str(i))
        socket.send_ping(b"p")
        done.set()

    thread = threading.Thread(target=send)
    thread.start()
    assert [peer.read_frame()[2] for _ in range(200)] == [str(i).encode() for i in range(200)]
    assert peer.read_frame()[1:] == (PING, b"p")
    assert done.wait(limit(2))
    thread.join()


def test_other_threads_may_not_read(pair):
    socket, _ = pair()
    errors = []

    def read():
        try:
            socket.receive()
        except RuntimeError as error:
            errors.append(str(error))

    thread = threading.Thread(target=read)
    thread.start()
    thread.join()
    assert "thread" in errors[0]


def test_another_thread_may_close(pair):
    socket, peer = pair()
    thread = threading.Thread(target=socket.close, args=(1001,))
    thread.start()
    assert peer.read_frame() == (True, CLOSE, b"\x03\xe9")
    peer.send(close_frame(1001))
    assert socket.read_string_message() == NOTHING
    thread.join()
