"""The time by which messages in memory age."""

from __future__ import annotations

import time

import pytest

from greenws import Rooms
from greenws.rooms.ages import AgeTime
from greenws.rooms.memory import MemoryBroker


@pytest.mark.no_io
def test_it_follows_a_clock_and_goes_on_from_there():
    elapsed, age = 0.0, AgeTime()
    before = age.now()
    assert age.now() >= before
    age.stop(lambda: elapsed)
    stopped = age.now()
    assert age.now() == stopped
    elapsed = 1000.0
    assert age.now() == stopped + 1000
    age.go_on()
    assert age.now() >= stopped + 1000
    assert age.now() < stopped + 2000
    age.stop(lambda: 0.0)
    assert age.now() >= stopped + 1000


def test_messages_outlive_a_time_that_counts_from_1970(monkeypatch):
    """As within freezegun's freeze_time, which replaces time.monotonic()."""
    rooms = Rooms(MemoryBroker(max_age=60))
    rooms["a"].send("before")
    with monkeypatch.context() as frozen:
        frozen.setattr(time, "monotonic", lambda: 1.9e9)
        rooms["b"].send("within")
        assert rooms["a"].history() == ["before"]
    assert rooms["b"].history() == ["within"]
