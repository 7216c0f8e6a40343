"""What an answer of Redis says about the connection."""

from __future__ import annotations

import pytest
import redis

from greenws.rooms.redis.errors import must_be_left


@pytest.mark.parametrize(
    ("error", "is_left"),
    [
        (redis.ReadOnlyError("You can't write against a read only replica."), True),
        (redis.ResponseError("READONLY You can't write against a read only replica."), True),
        (redis.ResponseError("UNBLOCKED force unblock from blocking operation"), True),
        (redis.BusyLoadingError("Redis is loading the dataset in memory"), True),
        (redis.ResponseError("MASTERDOWN Link with MASTER is down"), True),
        (redis.ResponseError("WRONGTYPE Operation against a key"), False),
        (redis.ConnectionError("Connection refused"), False),
        (ValueError("READONLY"), False),
    ],
)
def test_some_answers_mean_that_another_connection_must_be_made(error, is_left):
    assert must_be_left(error) == is_left
