"""What waits for a member that lags, and what is dropped for it."""

from __future__ import annotations

import json
import sys
import time
from contextlib import nullcontext

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
    policy = policies.block(timeout=60, limit=1)
    assert put(policy, queue, "a", "b") == 0
    queue.full_since = time.monotonic()
    assert put(policy, queue, "c") == 0
    queue.full_since -= 61
    with pytest.raises(TooSlow):
        put(policy, queue, "d")


def size(queue: Queue) -> int:
    """What a queue should know, counted again."""
    return sum(sys.getsizeof(message.data) + 250 for message in queue.values())


@pytest.mark.parametrize("policy", [policies.close, policies.drop_oldest, policies.block])
def test_a_queue_is_full_by_bytes_before_it_is_by_messages(policy):
    queue = Queue()
    options = {"timeout": 60} if policy is policies.block else {}
    limited = policy(limit_bytes=50_000, **options)
    text = "x" * 20_000
    with pytest.raises(TooSlow) if policy is not policies.drop_oldest else nullcontext():
        for number in range(40):
            put(limited, queue, f"{number} {text}")
    most = 500_000 if policy is policies.block else 50_000
    assert most - 20_300 < queue.bytes < most + 20_300
    assert queue.bytes == size(queue)


def test_a_message_larger_than_the_limit_waits_alone():
    queue = Queue()
    put(policies.drop_oldest(limit_bytes=100), queue, "a", "b" * 1000)
    assert texts(queue) == ["b" * 1000]


def test_coalesce_counts_the_bytes_of_what_it_replaces():
    queue = Queue()
    policy = policies.coalesce(key=lambda text: text[0], limit_bytes=5000)
    put(policy, queue, *(f"{name}{'.' * 1000}" for _ in range(10) for name in "abc"))
    assert (len(queue), queue.bytes) == (3, size(queue))
    put(policy, queue, "d" * 2000)
    with pytest.raises(TooSlow):
        put(policy, queue, "e")


def test_a_queue_counts_bytes_whichever_way_a_policy_uses_it():
    queue = Queue()
    one, two = SharedMessage("one"), SharedMessage("two" * 100)
    queue["a"] = one
    queue["b"] = two
    queue["a"] = two
    assert queue.bytes == size(queue)
    queue.update({"c": one})
    queue.setdefault("d", one)
    assert queue.bytes == size(queue)
    assert queue.pop("a") is two
    assert queue.pop("nothing", None) is None
    assert queue.popitem() == ("d", one)
    assert queue.bytes == size(queue)
    del queue["b"]
    assert queue.bytes == size(queue)
    queue.clear()
    assert (queue.bytes, len(queue)) == (0, 0)
    with pytest.raises(KeyError):
        queue.popitem()
    with pytest.raises(KeyError):
        queue.pop("nothing")


@pytest.mark.parametrize("limit", [0, -1, 1.5, True, None])
def test_a_limit_that_makes_no_sense(limit):
    with pytest.raises(ValueError, match="limit must be a number of messages"):
        policies.close(limit=limit)


@pytest.mark.parametrize("limit", [0, 1.5, None])
def test_a_limit_of_bytes_that_makes_no_sense(limit):
    with pytest.raises((TypeError, ValueError), match="limit_bytes must be"):
        policies.close(limit_bytes=limit)


def test_a_key_that_is_no_function():
    with pytest.raises(TypeError, match="key must be a function of a message, not 'symbol'"):
        policies.coalesce("symbol")


def test_a_timeout_that_makes_no_sense():
    with pytest.raises(ValueError, match="above 0"):
        policies.block(0)
