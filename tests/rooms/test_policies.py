"""What waits for a member that lags, and what is dropped for it."""

from __future__ import annotations

import json
import time

import pytest

from greenws import policies
from greenws.policies import Queue, TooSlow
from greenws.protocol.shared import SharedMessage


def put(policy: policies.Policy, queue: Queue, *texts: str) -> int:
    return sum(policy.put(queue, SharedMessage(text), text) for text in texts)


def texts(queue: Queue) -> list[object]:
    return [message.data for message in queue.values()]


def test_close_keeps_up_to_the_limit():
    queue = Queue()
    assert put(policies.close(limit=3), queue, "a", "b", "c") == 0
    with pytest.raises(TooSlow):
        put(policies.close(limit=3), queue, "d")
    assert texts(queue) == ["a", "b", "c"]


def test_drop_oldest_keeps_the_newest():
    queue = Queue()
    assert put(policies.drop_oldest(limit=2), queue, *"abcde") == 3
    assert texts(queue) == ["d", "e"]


def test_coalesce_keeps_the_newest_of_each_key_in_the_order_of_sending():
    queue = Queue()
    policy = policies.coalesce(key=lambda text: text.split("=")[0])
    assert put(policy, queue, "a=1", "b=1", "a=2", "c=1", "b=2", "a=3") == 3
    assert texts(queue) == ["c=1", "b=2", "a=3"]


def test_coalesce_keeps_all_without_a_key_and_closes_at_the_limit():
    queue = Queue()
    policy = policies.coalesce(key=lambda text: json.loads(text).get("key"), limit=3)
    assert put(policy, queue, "{}", '{"key": 1}', "{}", '{"key": 1}') == 1
    assert texts(queue) == ["{}", "{}", '{"key": 1}']
    with pytest.raises(TooSlow):
        put(policy, queue, "{}")


@pytest.mark.parametrize("text", ["no JSON", '{"key": []}'])
def test_coalesce_keeps_what_gives_no_key(text, error_log):
    queue = Queue()
    policy = policies.coalesce(key=lambda text: json.loads(text)["key"])
    for _ in range(2):
        message = SharedMessage(text)
        assert policy.put(queue, message, text) == 0
        assert queue[message] is message
    assert ["no key for" in record.getMessage() for record in error_log.take()] == [True] * 2


def test_block_closes_at_ten_times_its_limit_at_once():
    queue = Queue()
    policy = policies.block(timeout=60, limit=2)
    for number in range(20):
        policy.put(queue, SharedMessage(str(number)), str(number))
    with pytest.raises(TooSlow):
        policy.put(queue, SharedMessage("one more"), "one more")


def test_block_lets_more_wait_until_its_time_is_up():
    queue = Queue()
    policy = policies.block(timeout=0.05, limit=1)
    assert put(policy, queue, "a", "b") == 0
    queue.full_since = time.monotonic()
    assert put(policy, queue, "c") == 0
    queue.full_since -= 0.06
    with pytest.raises(TooSlow):
        put(policy, queue, "d")


@pytest.mark.parametrize("limit", [0, -1, 1.5, True, None])
def test_a_limit_that_makes_no_sense(limit):
    with pytest.raises(ValueError, match="limit is a number of messages"):
        policies.close(limit=limit)


def test_a_key_that_is_no_function():
    with pytest.raises(TypeError, match="key is a function of a message, not 'symbol'"):
        policies.coalesce("symbol")


def test_a_timeout_that_makes_no_sense():
    with pytest.raises(ValueError, match="above 0"):
        policies.block(0)
