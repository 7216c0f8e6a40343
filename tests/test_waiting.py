"""before_wait(): called before a greenlet waits for input, and at no other time."""

from __future__ import annotations

import gevent
import pytest
from gevent.event import Event
from gevent.queue import Queue

import greenws
from greenws import waiting

from .support.limits import limit, stays, wait_until
from .support.wire import PING, PONG, TEXT, Peer, close_frame, frame


@pytest.fixture(autouse=True)
def unregister():
    before = list(waiting.functions)
    yield
    waiting.functions[:] = before


@pytest.fixture
def calls():
    """What the registered function was called in."""
    greenlets = []
    greenws.before_wait(lambda: greenlets.append(gevent.getcurrent()))
    return greenlets


def test_it_returns_the_function_and_can_be_a_decorator():
    @greenws.before_wait
    def function():
        pass

    assert function in waiting.functions
    assert greenws.before_wait(function) is function
    assert waiting.functions.count(function) == 1
    waiting.not_before_wait(function)
    waiting.not_before_wait(function)
    assert function not in waiting.functions


def test_what_cannot_be_called_is_refused_where_it_is_registered():
    async def coroutine():
        pass

    for wrong in (None, "name", coroutine, lambda socket: None):
        with pytest.raises(TypeError, match=r"before_wait\(\)"):
            greenws.before_wait(wrong)
    greenws.before_wait(lambda optional=1, *more: None)


@pytest.mark.parametrize(
    "read", ["receive", "read_string_message", "read_bytes_message", "__next__"]
)
def test_a_read_that_waits_calls_it_in_its_own_greenlet(pair, calls, read):
    socket, peer = pair()
    reader = gevent.spawn(getattr(socket, read))
    wait_until(lambda: calls)
    peer.send(frame(TEXT, b"hello"))
    reader.get(timeout=limit())
    assert calls == [reader]


def test_a_read_that_finds_something_does_not_call_it(pair, calls):
    socket, peer = pair()
    peer.send(frame(TEXT, b"one") + frame(TEXT, b"two"))
    wait_until(socket._has_unread_input)
    assert (socket.receive(), socket.receive()) == ("one", "two")
    peer.send(frame(TEXT, b"three"))
    wait_until(socket._has_unread_input)
    socket._poll_unread()  # it is in the inbox now
    assert socket.receive() == "three"
    peer.send(close_frame())
    wait_until(socket._has_unread_input)
    with pytest.raises(greenws.ConnectionClosed):
        socket.receive()
    with pytest.raises(greenws.ConnectionClosed):
        socket.receive()
    assert calls == []


def test_a_control_frame_or_a_part_of_a_message_is_nothing_to_read(pair, calls):
    socket, peer = pair()
    whole = frame(TEXT, b"hello")
    for some in (frame(PING), frame(PONG), whole[:3]):
        peer.send(some)
        wait_until(socket._has_unread_input)
        before = len(calls)
        with pytest.raises(TimeoutError):
            socket.receive(0.001)
        assert len(calls) == before + 1
    peer.send(whole[3:])
    assert socket.receive() == "hello"


def test_a_poll_does_not(pair, calls):
    socket, peer = pair()
    with pytest.raises(TimeoutError):
        socket.receive(0)
    with pytest.raises(TimeoutError):
        greenws.select(socket, Queue(), timeout=0)
    assert calls == []


def test_one_wait_calls_it_once_whatever_else_arrives(pair, calls):
    socket, peer = pair()
    reader = gevent.spawn(socket.receive)
    wait_until(lambda: calls)
    for _ in range(3):
        peer.send(frame(PING, b"are you there?"))
        assert peer.read_frame() == (True, PONG, b"are you there?")
    whole = frame(TEXT, b"hello")
    peer.send(whole[:3])
    stays(lambda: not reader.ready())
    peer.send(whole[3:])
    assert reader.get(timeout=limit()) == "hello"
    assert calls == [reader]
    reader = gevent.spawn(socket.receive)
    wait_until(lambda: len(calls) == 2)
    reader.kill()


def test_a_read_that_times_out_has_called_it(pair, calls):
    socket, peer = pair()
    with pytest.raises(TimeoutError):
        socket.receive(0.001)
    assert len(calls) == 1


def test_a_ping_calls_it_and_so_does_the_reader_beside_it(pair, calls):
    socket, peer = pair()
    pinger = gevent.spawn(socket.ping)
    _, opcode, payload = peer.read_frame()
    assert opcode == PING
    wait_until(lambda: calls == [pinger])
    reader = gevent.spawn(socket.receive)
    wait_until(lambda: calls == [pinger, reader])
    peer.send(frame(PONG, payload) + frame(TEXT, b"hello"))
    assert pinger.get(timeout=limit()) > 0
    assert reader.get(timeout=limit()) == "hello"
    assert calls == [pinger, reader]


def test_select_calls_it_before_it_waits(pair, calls):
    socket, peer = pair()
    queue: Queue[str] = Queue()
    selecting = gevent.spawn(greenws.select, socket, queue)
    wait_until(lambda: calls)
    queue.put("item")
    assert selecting.get(timeout=limit()) == (queue, "item")
    assert calls == [selecting]
    queue.put("there already")
    assert greenws.select(socket, queue) == (queue, "there already")
    peer.send(frame(TEXT, b"hello"))
    wait_until(socket._has_unread_input)
    assert greenws.select(socket, queue) == (socket, "hello")
    assert calls == [selecting]


def test_select_does_not_interrupt_it(pair):
    """An exception in the middle of a query would break a database's connection."""
    socket, peer = pair()
    queue: Queue[str] = Queue()
    entered, go_on, left = Event(), Event(), Event()

    @greenws.before_wait
    def query():
        entered.set()
        go_on.wait()
        left.set()

    selecting = gevent.spawn(greenws.select, socket, queue)
    entered.wait(limit())
    queue.put("item")
    stays(lambda: not selecting.ready())
    go_on.set()
    assert selecting.get(timeout=limit()) == (queue, "item")
    assert left.is_set()


def test_sends_never_call_it(pair, calls):
    socket, peer = pair(write_high_water=1000)
    sender = gevent.spawn(lambda: [socket.send(b"x" * 100_000) for _ in range(20)])
    stays(lambda: not sender.ready())  # the peer does not read
    for _ in range(20):
        peer.read_frame()
    sender.get(timeout=limit())
    socket.send_ping()
    assert calls == []


def test_what_arrives_while_it_runs_is_read(pair):
    socket, peer = pair()

    @greenws.before_wait
    def slow():
        if peer is not None:
            peer.send(frame(TEXT, b"hello"))
            wait_until(socket._has_unread_input)
            assert socket._poll_unread() is False  # as keepalive does

    assert socket.receive(limit()) == "hello"
    assert greenws.select(socket, Queue(), timeout=limit()) == (socket, "hello")


def test_a_pong_that_arrives_while_it_runs_ends_the_ping(pair):
    socket, peer = pair()

    @greenws.before_wait
    def slow():
        _, _, payload = peer.read_frame()
        peer.send(frame(PONG, payload))
        wait_until(socket._has_unread_input)
        socket._poll_unread()

    assert socket.ping(limit()) > 0


def test_a_close_that_arrives_while_it_runs_ends_the_read(pair):
    socket, peer = pair()

    @greenws.before_wait
    def slow():
        waiting.not_before_wait(slow)
        peer.send(close_frame(1001))
        wait_until(socket._has_unread_input)
        socket._poll_unread()

    with pytest.raises(greenws.ConnectionClosed, match="1001"):
        socket.receive(limit())


def test_a_connection_that_is_lost_while_it_runs_ends_the_read(pair):
    socket, peer = pair()
    greenws.before_wait(lambda: socket._mark_lost("gone"))
    with pytest.raises(greenws.ConnectionClosed, match="gone"):
        socket.receive(limit())


def test_what_was_held_back_is_sent_before_it_is_called(pair):
    socket, peer = pair()
    seen = []

    @greenws.before_wait
    def look():
        seen.extend(peer.read_frame() for _ in range(2))

    peer.send(frame(TEXT, b"one") + frame(TEXT, b"two"))
    for _ in range(2):
        socket.send(socket.receive())
    with pytest.raises(TimeoutError):
        socket.receive(0.001)
    assert [payload for _, _, payload in seen] == [b"one", b"two"]


def test_what_it_raises_is_logged_and_the_others_are_called(pair, calls, error_log):
    socket, peer = pair()

    @greenws.before_wait
    def broken():
        raise ValueError("broken")

    waiting.functions.reverse()
    with pytest.raises(TimeoutError):
        socket.receive(0.001)
    assert len(calls) == 1
    (record,) = error_log.take()
    assert "broken" in record.getMessage()
    assert record.exc_info[0] is ValueError


def test_a_kill_or_a_timeout_ends_the_wait(pair):
    socket, peer = pair()
    greenws.before_wait(Event().wait)
    with gevent.Timeout(0.01, False):
        socket.receive()
        raise AssertionError("it must not go on")
    reader = gevent.spawn(socket.receive)
    stays(lambda: not reader.ready())
    reader.kill()
    waiting.functions.clear()
    peer.send(frame(TEXT, b"hello"))
    assert socket.receive(limit()) == "hello"


def test_a_session_calls_it_before_each_wait_on_a_real_server(serve, calls):
    routes = greenws.Routes()

    @routes.websocket("/")
    def echo(request, socket):
        for message in socket:
            socket.send(message)

    server = serve(routes)
    with Peer.open(server.address) as peer:
        for number in (1, 2, 3):
            wait_until(lambda: len(calls) == number)  # noqa: B023
            peer.send(frame(TEXT, b"hello"))
            assert peer.read_frame() == (True, TEXT, b"hello")
    wait_until(lambda: not server.stats.connections_open)
