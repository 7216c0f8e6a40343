"""Keepalive: pings, which peers count as alive, and sockets that are not read."""

from __future__ import annotations

import time

import gevent
import pytest

from greenws import Config, ConnectionClosed, Routes
from greenws import keepalive as module
from greenws.keepalive import Heartbeat, Pulse, start_pulse
from greenws.protocol.connection import Ping

from .support.limits import limit, stays, wait_until
from .support.wire import BINARY, CLOSE, PING, PONG, TEXT, Peer, close_frame, frame

FAST = {"ping_interval": 0.08, "ping_timeout": 0.08}


@pytest.fixture
def living(pair):
    """``pair`` with a pulse."""
    sockets = []

    def make(**options):
        socket, peer = pair(**options)
        start_pulse(socket, gevent.get_hub(), Config(**options))
        sockets.append(socket)
        return socket, peer

    yield make
    for socket in sockets:
        socket.pulse.stop()


@pytest.fixture
def looking_often(monkeypatch):
    monkeypatch.setattr(module, "_POLL_INPUT_INTERVAL", 0.05)


def pong(peer):
    """Waits for a ping of the heartbeat, and answers it."""
    fin, opcode, payload = peer.read_frame()
    assert (fin, opcode) == (True, PING)
    peer.send(frame(PONG, payload))
    return payload


def read_in_background(socket):
    return gevent.spawn(socket.read_string_message)


def test_a_silent_connection_is_pinged_again_and_again(living):
    socket, peer = living(**FAST)
    reader = read_in_background(socket)
    payloads = [pong(peer) for _ in range(4)]
    assert len(set(payloads)) == 4
    assert not reader.ready() and socket.is_connected
    reader.kill()


def test_a_peer_that_does_not_answer_is_dropped_in_time_with_a_reason(living):
    socket, peer = living(**FAST)
    reader = read_in_background(socket)
    began = time.monotonic()
    assert reader.get(timeout=limit(2)).data is None
    assert 0.1 < time.monotonic() - began < limit(0.26)
    assert not socket.is_connected
    assert socket.close_code == 1006
    assert "ping_timeout" in socket.close_reason
    assert socket.pulse.timed_out
    assert peer.read_frame()[1] == PING
    assert peer.at_end()


def test_receive_raises_with_the_reason(living):
    socket, _ = living(**FAST)
    with pytest.raises(ConnectionClosed, match="1006.*ping_timeout"):
        socket.receive(timeout=limit(2))


def test_messages_from_before_the_timeout_can_still_be_read(living):
    socket, peer = living(**FAST)
    peer.send(frame(TEXT, b"last words"))
    wait_until(lambda: not socket.is_connected)
    assert socket.receive() == "last words"
    with pytest.raises(ConnectionClosed):
        socket.receive()


@pytest.mark.parametrize("sign", ["data", "unsolicited pong", "half a frame"])
def test_whatever_a_peer_sends_is_a_sign_of_life(living, sign):
    socket, peer = living(**FAST)
    reader = gevent.spawn(lambda: list(iter(socket.receive, "end")))
    data = {
        "data": frame(TEXT, b"x"),
        "unsolicited pong": frame(PONG, b"unsolicited"),
        "half a frame": frame(TEXT, b"x" * 100),
    }[sign]
    sent = 0
    for _ in range(10):
        gevent.sleep(0.04)
        if sign == "half a frame":
            peer.send(data[sent : sent + 5])
            sent += 5
        else:
            peer.send(data)
    assert socket.is_connected
    reader.kill()


def test_the_answer_is_measured_and_never_reaches_the_reader(living):
    socket, peer = living(**FAST)
    reader = read_in_background(socket)
    assert socket.latency is None
    fin, opcode, payload = peer.read_frame()
    gevent.sleep(0.03)
    peer.send(frame(PONG, payload))
    wait_until(lambda: socket.latency is not None)
    assert 0.025 < socket.latency < limit(0.08)
    measured = socket.latency
    assert peer.read_frame()[1] == PING  # the next is not answered yet
    assert socket.latency == measured
    peer.send(frame(TEXT, b"data"))
    assert reader.get().data == "data"


def test_a_pong_that_comes_after_the_next_ping_is_measured_from_its_own(living):
    socket, peer = living(ping_interval=0.05, ping_timeout=None)
    reader = read_in_background(socket)
    first = peer.read_frame()[2]
    second = peer.read_frame()[2]
    peer.send(frame(PONG, first))
    late = wait_until(lambda: socket.latency)
    assert late > 0.04  # an interval has passed
    peer.send(frame(PONG, second))
    wait_until(lambda: socket.latency != late)
    assert not reader.ready()
    reader.kill()


def test_the_pong_of_an_application_is_still_its_own(living):
    socket, peer = living(**FAST)
    socket.send_ping(b"mine")
    assert peer.read_frame() == (True, PING, b"mine")
    ours = peer.read_frame()[2]
    peer.send(frame(PONG, b"mine") + frame(PONG, ours))
    assert socket.read_bytes_message()[:2] == (b"mine", PONG)
    wait_until(lambda: socket.latency is not None)


def test_without_an_interval_nothing_is_sent(living):
    socket, peer = living(ping_interval=None, ping_timeout=0.05)
    assert peer.is_silent(0.2)
    assert socket.is_connected


def test_without_ping_timeout_no_peer_is_dropped(living):
    socket, peer = living(ping_interval=0.05, ping_timeout=None)
    for _ in range(5):
        assert peer.read_frame()[1] == PING
    assert socket.is_connected and socket.latency is None


# -- sockets that are not read


def test_pings_are_answered_on_a_socket_that_is_not_read(living, looking_often):
    socket, peer = living()
    peer.send(frame(PING, b"there?"))
    assert peer.read_frame() == (True, PONG, b"there?")


def test_a_close_is_noticed_on_a_socket_that_is_not_read(living, looking_often):
    socket, peer = living()
    peer.send(close_frame(4001, b"bye"))
    assert peer.read_close() == (4001, b"bye")
    assert not socket.is_connected and socket.close_reason == "bye"
    with pytest.raises(ConnectionClosed):
        socket.send("x")


def test_the_end_of_the_stream_is_noticed_on_a_socket_that_is_not_read(living, looking_often):
    socket, peer = living()
    peer.close()
    wait_until(lambda: not socket.is_connected)
    assert socket.close_code == 1006


def test_unread_input_is_kept_and_bounded(living, looking_often):
    socket, peer = living(max_message_size=10_000, max_fragments=None)
    sending = gevent.spawn(peer.send, frame(TEXT, b"x" * 9_000) * 2000)
    one_receive = len(socket._transport.buffer)
    stays(lambda: socket.traffic.bytes_in <= one_receive, 0.3)  # of 18 MB
    for _ in range(2000):
        assert socket.receive() == "x" * 9_000
    sending.get()


def test_a_peer_is_not_dropped_while_its_input_is_unread(living, monkeypatch):
    monkeypatch.setattr(module, "_POLL_INPUT_INTERVAL", 0.02)
    socket, peer = living(max_message_size=10_000, **FAST)
    sending = gevent.spawn(peer.send, frame(TEXT, b"x" * 9_000) * 500)
    stays(lambda: socket.is_connected, 0.5)  # longer than both timeouts
    for _ in range(500):
        assert socket.receive() == "x" * 9_000
    sending.get()


def test_a_delayed_hub_reads_input_before_it_drops_a_peer(living):
    socket, peer = living(**FAST)
    reader = read_in_background(socket)
    fin, opcode, payload = peer.read_frame()
    peer.send(frame(PONG, payload))
    time.sleep(0.3)  # blocks the whole process for longer than both timeouts
    stays(lambda: socket.is_connected)
    reader.kill()


def test_no_pings_queue_up_for_a_peer_that_does_not_read(living):
    socket, _ = living(ping_interval=0.02, ping_timeout=5, write_high_water=None)
    socket.send(b"x" * 5_000_000)
    before = socket.traffic.bytes_out
    stays(lambda: socket.traffic.bytes_out == before, 0.2)


# -- the heartbeat of a server


def test_every_kind_of_session_is_kept_alive(serve):
    """Also ``wsgi.websocket``."""

    def app(environ, start_response):
        socket = environ["wsgi.websocket"]
        socket.send("ready")
        assert socket.receive() is None

    routes = Routes()
    routes.add(uri="/gevent", handler=app)

    @routes.websocket("/ours")
    def ours(request, socket):
        socket.send("ready")
        assert list(socket) == []

    server = serve(routes, config=Config(**FAST))
    for path in ("/gevent", "/ours"):
        with Peer.open(server.address, path) as peer:
            assert peer.read_frame() == (True, TEXT, b"ready")
            pong(peer)
            pong(peer)
            peer.send(close_frame())
            while (opcode := peer.read_frame()[1]) == PING:
                pass
            assert opcode == CLOSE


def test_a_handler_may_have_another_interval(serve):
    routes = Routes()

    @routes.websocket("/often", ping_interval=0.05)
    def often(request, socket):
        list(socket)

    with Peer.open(serve(routes).address, "/often") as peer:
        pong(peer)
        peer.send(close_frame())
        assert peer.read_frame()[1] in (PING, CLOSE)


# -- what it costs


class Loop:
    """Counts the timers that are set."""

    def __init__(self, loop):
        self._loop = loop
        self.timers = 0

    def timer(self, *args, **options):
        self.timers += 1
        return self._loop.timer(*args, **options)

    def run_callback(self, *args):
        return self._loop.run_callback(*args)


def test_a_thousand_sockets_share_one_timer(pair):
    loop = Loop(gevent.get_hub().loop)
    heartbeat = Heartbeat(loop)
    config = Config(ping_interval=1000, ping_timeout=1000)
    socket, _ = pair()
    pulses = [Pulse(socket, config, heartbeat) for _ in range(1000)]
    assert loop.timers <= 2
    for pulse in pulses:
        pulse.stop()


def test_pulses_that_stop_leave_no_timer(living):
    loop = Loop(gevent.get_hub().loop)
    heartbeat = Heartbeat(loop)
    socket, _ = living()
    pulses = [Pulse(socket, Config(), heartbeat) for _ in range(3)]
    for pulse in pulses:
        pulse.stop()
        pulse.stop()
    assert heartbeat._timer is None


def test_an_end_after_unread_messages_does_not_stop_the_heartbeat(living):
    socket, peer = living(max_message_size=1000)
    for _ in range(10):
        peer.send(frame(BINARY, b"y" * 500))
    peer.sock.shutdown(gevent.socket.SHUT_WR)
    gevent.sleep(0.01)
    socket.poll_input()
    socket.receive()
    socket.poll_input()  # sees the end, but messages must be delivered before it
    assert socket.is_connected
    socket.send_heartbeat(Ping(b"a", False))


def test_a_pulse_that_fails_does_not_stop_the_others(living, hub_errors, monkeypatch):
    first, other = living()[0].pulse, living()[0].pulse
    beaten = []

    def beat(pulse, now):
        if pulse is first:
            raise RuntimeError("a bug")
        beaten.append(pulse)
        return now + 20

    monkeypatch.setattr(Pulse, "beat", beat)
    heartbeat = Heartbeat(gevent.get_hub().loop)
    heartbeat._due.extend([first, other])
    gevent.get_hub().loop.run_callback(heartbeat._beat)
    wait_until(lambda: beaten == [other])
    other.stop()
    assert "a bug" in hub_errors.take()
