"""select(): returns what is ready first, and loses nothing."""

from __future__ import annotations

import gevent
import pytest
from gevent.event import AsyncResult, Event
from gevent.lock import Semaphore
from gevent.queue import JoinableQueue, LifoQueue, PriorityQueue, Queue
from hypothesis import given
from hypothesis import strategies as st

import greenws
from greenws import select
from greenws.hub.transport import Transport

from .support.examples import examples
from .support.limits import again_after_standstill, limit, pace
from .support.wire import PING, PONG, TEXT, close_frame, frame

QUEUES = [Queue, JoinableQueue, LifoQueue, PriorityQueue]


def later(call, *args):
    """As soon as the caller waits."""
    return gevent.spawn(call, *args)


def test_a_message_that_is_there_already(pair):
    socket, peer = pair()
    peer.send(frame(TEXT, b"hello"))
    assert select(socket, Queue(), Event(), timeout=limit()) == (socket, "hello")


def test_a_message_that_comes(pair):
    socket, peer = pair()
    later(peer.send, frame(TEXT, b"hello"))
    assert select(socket, Queue(), Event(), timeout=limit()) == (socket, "hello")


@pytest.mark.parametrize("cls", QUEUES)
def test_a_queue_s_item_that_is_there_already(pair, cls):
    socket, peer = pair()
    queue = cls()
    queue.put("item")
    assert select(socket, queue, timeout=limit()) == (queue, "item")
    assert queue.empty()


@pytest.mark.parametrize("cls", QUEUES)
def test_a_queue_s_item_that_comes(pair, cls):
    socket, peer = pair()
    queue, other = cls(), cls()
    later(queue.put, "item")
    assert select(socket, other, queue, timeout=limit()) == (queue, "item")
    assert queue.empty()


def test_a_greenlet_waiting_to_put_is_woken(pair):
    socket, peer = pair()
    queue = Queue(maxsize=1)
    queue.put(1)
    putter = later(queue.put, 2)
    assert select(socket, queue, timeout=limit()) == (queue, 1)
    assert select(socket, queue, timeout=limit()) == (queue, 2)
    putter.join()


def test_an_event(pair):
    socket, peer = pair()
    event = Event()
    later(event.set)
    assert select(socket, event, timeout=limit()) == (event, True)
    assert select(socket, event, timeout=limit()) == (event, True)  # it stays set


def test_an_event_that_was_set_for_a_moment_only(pair):
    socket, peer = pair()
    event = Event()

    def pulse() -> None:
        event.set()
        event.clear()

    later(pulse)
    assert select(socket, event, timeout=limit()) == (event, True)
    with pytest.raises(TimeoutError):
        select(socket, event, timeout=0.01)
    peer.send(frame(TEXT, b"hello"))
    assert select(socket, event, timeout=limit()) == (socket, "hello")


def test_a_result_and_a_greenlet(pair):
    socket, peer = pair()
    result = AsyncResult()
    later(result.set, 42)
    assert select(socket, result, timeout=limit()) == (result, 42)
    greenlet = later(lambda: "done")
    assert select(socket, greenlet, timeout=limit()) == (greenlet, "done")


def test_the_error_of_a_result_is_raised(pair):
    socket, peer = pair()
    result = AsyncResult()
    later(result.set_exception, KeyError("gone"))
    with pytest.raises(KeyError, match="gone"):
        select(socket, result, timeout=limit())


def test_a_timeout_loses_nothing(pair):
    socket, peer = pair()
    peer.send(frame(TEXT, b"first half")[:8])
    queue = Queue()
    with pytest.raises(TimeoutError, match="nothing was ready within 0.02 s"):
        select(socket, queue, timeout=0.02)
    peer.send(frame(TEXT, b"first half")[8:])
    assert select(socket, queue, timeout=limit()) == (socket, "first half")
    with pytest.raises(TimeoutError):
        select(socket, queue, timeout=0)


def test_the_end_of_the_connection_is_raised(pair):
    socket, peer = pair()
    later(peer.send, close_frame(4000, b"bye"))
    with pytest.raises(greenws.ConnectionClosed) as caught:
        select(socket, Queue(), timeout=limit())
    assert (caught.value.code, caught.value.reason) == (4000, "bye")


def test_pings_are_answered_while_it_waits(pair):
    socket, peer = pair()
    event = Event()

    def ask():
        peer.send(frame(PING, b"?"))
        assert peer.read_frame() == (True, PONG, b"?")
        event.set()

    later(ask)
    assert select(socket, event, timeout=limit()) == (event, True)


def test_half_a_message_waits_for_its_other_half(pair):
    socket, peer = pair()
    queue = Queue()

    def send():
        peer.send(frame(TEXT, b"one ", fin=False))
        gevent.sleep(0.01)
        queue.put("item")
        gevent.sleep(0.01)
        peer.send(frame(0, b"message"))

    later(send)
    assert select(socket, queue, timeout=limit()) == (queue, "item")
    assert select(socket, queue, timeout=limit()) == (socket, "one message")


@again_after_standstill(1.0)
def test_a_ping_by_another_greenlet_is_not_disturbed(pair):
    socket, peer = pair()
    queue = Queue()
    pinging = gevent.spawn(socket.ping, limit())
    gevent.sleep(0)
    later(queue.put, "item")
    assert select(socket, queue, timeout=limit()) == (queue, "item")
    fin, opcode, payload = peer.read_frame()
    peer.send(frame(TEXT, b"before") + frame(PONG, payload))
    assert select(socket, queue, timeout=limit()) == (socket, "before")
    assert pinging.get(timeout=limit()) < pace()


def test_neither_side_starves_the_other(pair):
    socket, peer = pair()
    queue = Queue()
    for number in range(20):
        queue.put(number)
        peer.send(frame(TEXT, b"%d" % number))
    sources = [select(socket, queue, timeout=limit())[0] for _ in range(20)]
    assert 8 <= sources.count(queue) <= 12
    rest = [select(socket, queue, timeout=limit())[0] for _ in range(20)]
    assert sources.count(queue) + rest.count(queue) == 20


def test_nothing_stays_linked(pair):
    socket, peer = pair()
    event, result, queue = Event(), AsyncResult(), Queue()
    greenlet = gevent.Greenlet(lambda: None)
    for _ in range(3):
        with pytest.raises(TimeoutError):
            select(socket, event, result, queue, greenlet, timeout=0.005)
    assert event.linkcount() == result.linkcount() == 0
    assert not greenlet.has_links()
    assert "getters" not in repr(queue)
    gevent.sleep(0)
    assert "getters" not in repr(queue)


def test_a_timeout_of_gevent_passes_through(pair):
    socket, peer = pair()
    event, queue = Event(), Queue()
    with pytest.raises(gevent.Timeout):
        with gevent.Timeout(0.01):
            select(socket, event, queue)
    assert event.linkcount() == 0
    assert "getters" not in repr(queue)


def test_a_second_reader_is_refused(pair):
    socket, peer = pair()
    reader = gevent.spawn(select, socket, Queue())
    gevent.sleep(0)
    with pytest.raises(greenws.ConcurrentReadError):
        select(socket, Queue(), timeout=1)
    reader.kill()


@pytest.mark.parametrize("thing", [Semaphore(), "queue", None, []])
def test_select_rejects_objects_that_it_cannot_wait_for(pair, thing):
    socket, peer = pair()
    with pytest.raises(TypeError, match="queues, events and greenlets"):
        select(socket, thing, timeout=1)


@examples(30)
@given(st.lists(st.sampled_from(["message", "item", "pause"]), max_size=30))
def test_all_comes_once_and_in_order(steps):
    ours, theirs = gevent.socket.socketpair()
    config = greenws.Config()
    socket = greenws.WebSocket(Transport(ours, gevent.get_hub(), None, None), config)
    queue = Queue()

    def play():
        for number, step in enumerate(steps):
            if step == "message":
                theirs.sendall(frame(TEXT, b"%d" % number))
            elif step == "item":
                queue.put(number)
            else:
                gevent.sleep(0)

    player = gevent.spawn(play)
    got = [select(socket, queue, timeout=limit()) for step in steps if step != "pause"]
    messages = [int(value) for source, value in got if source is socket]
    items = [value for source, value in got if source is queue]
    assert messages == [number for number, step in enumerate(steps) if step == "message"]
    assert items == [number for number, step in enumerate(steps) if step == "item"]
    player.join()
    theirs.close()
    socket._abandon(1001)
