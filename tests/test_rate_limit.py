"""The token bucket, with a simulated clock; and its effect on a session."""

from __future__ import annotations

import pytest

from greenws import rate_limit
from greenws.rate_limit import RateLimit

from .support.wire import PING, PONG, TEXT, frame


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 100.0

        def monotonic(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr(rate_limit, "time", clock)
    return clock


def test_one_seconds_allowance_may_come_at_once(clock):
    limit = RateLimit(5)
    assert [limit.take() for _ in range(6)] == [True] * 5 + [False]


def test_the_allowance_refills_with_time_up_to_one_second(clock):
    limit = RateLimit(5)
    while limit.take():
        pass
    clock.now += 0.4
    assert [limit.take() for _ in range(3)] == [True, True, False]
    clock.now += 1000
    assert sum(limit.take() for _ in range(20)) == 5


def test_less_than_one_a_second(clock):
    limit = RateLimit(0.5)
    assert [limit.take(), limit.take()] == [True, False]
    clock.now += 1.9
    assert not limit.take()
    clock.now += 0.2
    assert limit.take()


def test_one_message_too_many_closes_with_1008_after_the_others(clock, pair):
    socket, peer = pair(max_message_rate=3)
    peer.send(frame(TEXT, b"x") * 10)
    assert [socket.receive() for _ in range(3)] == ["x"] * 3
    assert socket.read_string_message().data is None
    code, reason = peer.read_close()
    assert code == 1008 and b"max_message_rate" in reason
    assert socket.close_code == 1008


def test_pings_count_too(clock, pair):
    socket, peer = pair(max_message_rate=3)
    peer.send(frame(PING) * 10)
    assert socket.read_string_message().data is None
    for _ in range(3):
        assert peer.read_frame()[1] == PONG
    assert peer.read_close()[0] == 1008


def test_a_message_counts_once_however_many_fragments_it_has(clock, pair):
    socket, peer = pair(max_message_rate=1)
    peer.send(frame(TEXT, b"a", fin=False) + frame(0, b"b", fin=False) * 20 + frame(0, b"c"))
    assert socket.receive() == "a" + "b" * 20 + "c"
    assert socket.is_connected
