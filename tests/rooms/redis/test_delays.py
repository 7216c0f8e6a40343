"""The pauses between attempts to reach Redis."""

from __future__ import annotations

from itertools import islice

from greenws.rooms.redis.delays import FIRST_DELAY, delays


def test_a_delay_doubles_up_to_the_longest():
    assert list(islice(delays(), 8)) == [0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.0, 1.0]
    assert list(islice(delays(0.1), 5)) == [FIRST_DELAY, 0.04, 0.08, 0.1, 0.1]


def test_the_first_attempts_may_be_made_at_once():
    assert list(islice(delays(at_once=2), 4)) == [0.0, 0.0, 0.02, 0.04]
