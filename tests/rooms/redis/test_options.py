"""The options of what uses a Redis."""

from __future__ import annotations

import inspect

import pytest

from greenws.brokers.redis import RedisBroker
from greenws.rooms.redis.options import Options

pytestmark = pytest.mark.no_io


def test_the_broker_has_all_of_them_with_the_same_defaults():
    taken = inspect.signature(RedisBroker).parameters
    ours = inspect.signature(Options).parameters
    assert {name: each.default for name, each in taken.items()} == {
        name: each.default for name, each in ours.items() if name not in ("is_cluster", "name")
    }


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("history", 0, ValueError),
        ("history", 1.5, TypeError),
        ("history_bytes", True, TypeError),
        ("max_pending", -1, ValueError),
        ("max_age", 0, ValueError),
        ("timeout", "5", TypeError),
        ("presence_timeout", 1e16, ValueError),
        ("prefix", None, TypeError),
    ],
)
def test_a_value_that_is_not_allowed_is_refused_by_name(name, value, error):
    with pytest.raises(error, match=name):
        Options("redis://localhost", **{name: value})


@pytest.mark.parametrize(("max_age", "expiry"), [(0.5, 1), (1.9, 1), (60, 60)])
def test_redis_takes_whole_seconds(max_age, expiry):
    assert Options("redis://localhost", max_age=max_age).expiry == expiry
