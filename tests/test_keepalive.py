"""Keepalive: pings, which peers count as alive, and sockets that are not read."""

from __future__ import annotations

import time

import gevent
import pytest

from greenws import Config, ConnectionClosed, Routes
from greenws import keepalive as module
from greenws.keepalive import Heartbeat, Pulse, start_pulse
from greenws.protocol.connection import Ping

from .support.limits import again_after_standstill, limit, pace, stays, wait_until
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
        socket._pulse.stop()


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


@again_after_standstill(0.05)
def test_a_silent_connection_is_pinged_again_and_again(living):
    socket, peer = living(**FAST)
    reader = read_in_background(socket)
    payloads = [pong(peer) for _ in range(4)]
    assert len(set(payloads)) == 4
    assert not reader.ready() and socket.is_connected
    reader.kill()


@again_after_standstill(0.02)
def test_a_peer_that_does_not_answer_is_dropped_in_time_with_a_reason(living):
    socket, peer = living(**FAST)
    reader = read_in_background(socket)
    began = time.monotonic()
    assert reader.get(timeout=limit(2)).data is None
    assert 0.1 < time.monotonic() - began < pace(0.26)
    assert not socket.is_connected
    assert socket.close_code == 1006
    # A Unix socket: nothing tells what its peer has acknowledged.
    assert "no data within 0.08 s after a ping (ping_timeout)" in socket.close_reason
    assert socket._pulse.timed_out
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
@again_after_standstill(0.04)
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


@again_after_standstill(0.02)
def test_the_answer_is_measured_and_never_reaches_the_reader(living):
    socket, peer = living(**FAST)
    reader = read_in_background(socket)
    assert socket.latency is None
    fin, opcode, payload = peer.read_frame()
    gevent.sleep(0.03)
    peer.send(frame(PONG, payload))
    wait_until(lambda: socket.latency is not None)
    assert 0.025 < socket.latency < pace(0.08)
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


@again_after_standstill(0.05)
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


@again_after_standstill(0.5)
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


# -- sessions that end


def close_from(peer):
    """The code and reason of the Close that comes next; the stream goes on."""
    fin, opcode, payload = peer.read_frame()
    assert (fin, opcode) == (True, CLOSE)
    return int.from_bytes(payload[:2], "big"), payload[2:]


@pytest.fixture
def closing_often(monkeypatch):
    monkeypatch.setattr(module, "_CLOSING_INTERVAL", 0.05)


@again_after_standstill(0.02)
def test_a_session_is_closed_when_its_lifetime_is_over(living, caplog):
    caplog.set_level("INFO", "greenws.session")
    began = time.monotonic()
    socket, peer = living(max_lifetime=0.3)
    reader = gevent.spawn(list, socket)
    assert close_from(peer) == (1001, b"max_lifetime")
    assert 0.27 <= time.monotonic() - began < pace(0.3 + 1 / 16)
    assert not socket.is_connected and not reader.ready()
    peer.send(close_frame(1001))
    assert reader.get(timeout=limit()) == []
    assert "with 1001 (max_lifetime)" in caplog.text


@again_after_standstill(0.5)
def test_sessions_that_began_together_do_not_end_together(pair):
    socket, _ = pair()
    heartbeat = Heartbeat(gevent.get_hub().loop)
    began = time.monotonic()
    pulses = [Pulse(socket, Config(max_lifetime=1000), heartbeat) for _ in range(500)]
    ends = [pulse._lifetime_end - began for pulse in pulses]
    heartbeat.stop()
    assert 900 <= min(ends) < 920 and 980 < max(ends) <= 1001


@pytest.mark.parametrize("delay", [0.02, 0.2])
@again_after_standstill(0.02)
def test_a_socket_is_closed_at_a_time_and_never_before(living, delay):
    socket, peer = living()
    end = time.time() + delay
    socket.close_at(end, 4001, "token expired")
    assert close_from(peer) == (4001, b"token expired")
    assert 0 <= time.time() - end < pace(1 / 16)
    with pytest.raises(ConnectionClosed, match="4001.*token expired"):
        socket.send("x")


@pytest.mark.parametrize("end", [0, -1, 1_700_000_000, 1_700_000_000.5])
def test_a_time_that_is_over_closes_at_once(living, end):
    socket, peer = living()
    socket.close_at(end)
    with pytest.raises(ConnectionClosed, match="1001"):
        socket.send("x")
    assert close_from(peer) == (1001, b"")


@again_after_standstill(0.05)
def test_the_last_time_counts_and_none_cancels_it(living):
    socket, peer = living()
    socket.close_at(time.time() + 0.1, 4001)
    socket.close_at(time.time() + 0.3, 4002)
    assert peer.is_silent(0.2)
    assert close_from(peer) == (4002, b"")
    socket, peer = living()
    socket.close_at(time.time() + 0.1)
    socket.close_at(None)
    assert peer.is_silent(0.3)
    assert socket.is_connected


@pytest.mark.parametrize(("lifetime", "delay", "code"), [(0.1, 60, 1001), (60, 0.1, 4001)])
def test_the_earlier_of_both_ends_counts(living, lifetime, delay, code):
    socket, peer = living(max_lifetime=lifetime)
    socket.close_at(time.time() + delay, 4001)
    assert close_from(peer)[0] == code


def test_a_clock_that_jumps_is_noticed(living, looking_often, monkeypatch):
    real, jump = time.time, [0.0]
    monkeypatch.setattr(module.time, "time", lambda: real() + jump[0])
    socket, peer = living()
    socket.close_at(real() + 0.2, 4001)
    jump[0] = -3600  # the end is an hour off now
    assert peer.is_silent(0.4)
    jump[0] = 3600
    assert close_from(peer)[0] == 4001


def test_another_thread_may_set_the_time(living):
    socket, peer = living()
    gevent.get_hub().threadpool.apply(socket.close_at, (time.time() + 0.1, 4001))
    assert close_from(peer)[0] == 4001


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        (("soon",), TypeError, "number of seconds since 1970"),
        ((True,), TypeError, "number of seconds"),
        (("1700000000",), TypeError, "number of seconds"),
        ((1.9e12,), ValueError, "not in ms"),
        ((60,), ValueError, r"in 60 seconds is close_at\(time.time\(\) \+ 60\)"),
        ((float("nan"),), ValueError, "since 1970"),
        ((float("inf"),), ValueError, "since 1970"),
        ((float("-inf"),), ValueError, "since 1970"),
        ((1e9, 1006), ValueError, "1006 may not be sent"),
        ((1e9, 4000, "x" * 124), ValueError, "123 bytes"),
    ],
)
def test_a_time_or_code_that_is_wrong_says_so(living, arguments, error, match):
    socket, _ = living()
    with pytest.raises(error, match=match):
        socket.close_at(*arguments)
    assert socket.is_connected


def test_a_closed_socket_ignores_the_time(living):
    socket, peer = living()
    peer.close()
    with pytest.raises(ConnectionClosed):
        socket.receive()
    socket.close_at(time.time() - 1)
    socket.close_at(None)


def test_the_answer_to_a_close_is_taken_without_a_reader(living, closing_often):
    socket, peer = living()
    socket.close_at(time.time())
    assert close_from(peer)[0] == 1001
    peer.send(frame(TEXT, b"late") + close_frame(1001))
    assert peer.at_end()
    assert socket.receive() == "late"
    with pytest.raises(ConnectionClosed, match="1001"):
        socket.receive()


@pytest.mark.parametrize("traffic", ["silent", "reading", "reading a flood"])
def test_a_peer_that_ignores_the_close_is_cut_off(living, closing_often, traffic):
    socket, peer = living(close_timeout=0.1)
    helpers = []
    if traffic != "silent":
        helpers.append(gevent.spawn(lambda: pytest.raises(ConnectionClosed, list, socket)))
    if traffic == "reading a flood":

        def flood():
            with pytest.raises(OSError):
                while True:
                    peer.send(frame(TEXT, b"x") * 1000)

        helpers.append(gevent.spawn(flood))
    socket.close_at(time.time())
    wait_until(lambda: socket._transport.closed)
    gevent.joinall(helpers, timeout=limit(), raise_error=True)
    assert all(helper.ready() for helper in helpers)


def test_many_times_leave_one_beat(living):
    socket, _ = living()
    heartbeat = socket._pulse._heartbeat
    for delay in range(100, 200):
        socket.close_at(time.time() + delay)
    assert sum(socket._pulse in bucket for bucket in heartbeat._buckets.values()) == 1


def test_a_time_that_is_set_while_a_beat_is_due_leaves_one_beat(living):
    socket, _ = living()
    pulse, heartbeat = socket._pulse, socket._pulse._heartbeat
    heartbeat._buckets.pop(min(heartbeat._buckets))  # as if its timer had fired
    heartbeat._times.clear()
    heartbeat._due.append(pulse)
    socket.close_at(time.time() + 100)
    heartbeat._beat()
    assert sum(pulse in bucket for bucket in heartbeat._buckets.values()) == 1


# -- the heartbeat of a server


@again_after_standstill(0.05)
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


def test_a_handler_may_have_a_lifetime_of_its_own(serve):
    routes = Routes()

    @routes.websocket("/short", max_lifetime=0.05)
    def short(request, socket):
        list(socket)

    with Peer.open(serve(routes, config=Config(max_lifetime=60)).address, "/short") as peer:
        assert close_from(peer) == (1001, b"max_lifetime")
        peer.send(close_frame(1001))
        assert peer.at_end()


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
    socket._poll_unread()
    socket.receive()
    socket._poll_unread()  # sees the end, but messages must be delivered before it
    assert socket.is_connected
    socket._send_heartbeat(Ping(b"a", False))


def test_a_pulse_that_fails_does_not_stop_the_others(living, hub_errors):
    socket, _ = living()
    beaten = []

    class FirstFails(Pulse):
        def beat(self, now):
            if self is pulses[0]:
                raise RuntimeError("a bug")
            beaten.append(self)
            return now + 20

    heartbeat = Heartbeat(gevent.get_hub().loop)
    pulses = [FirstFails(socket, Config(), heartbeat) for _ in range(2)]
    heartbeat._due.extend(pulses)
    gevent.get_hub().loop.run_callback(heartbeat._beat)
    wait_until(lambda: beaten == pulses[1:])
    for pulse in pulses:
        pulse.stop()
    assert "a bug" in hub_errors.take()


def test_a_peer_that_times_out_while_nobody_reads_leaves_nothing_in_the_heartbeat(living):
    """Its handler may go on for long. Others must get their beats meanwhile."""
    socket, peer = living(ping_interval=0.05, ping_timeout=0.05)
    other, other_peer = living(ping_interval=0.05, ping_timeout=10.0)
    wait_until(lambda: not socket.is_connected)
    heartbeat = socket._pulse._heartbeat
    wait_until(lambda: socket._pulse not in heartbeat.pulses())
    assert all(time == time for time in heartbeat._times)  # no NaN, which has no order
    assert other_peer.read_frame()[1] == PING
    assert other_peer.read_frame()[1] == PING  # the next one, too
    assert other.is_connected
