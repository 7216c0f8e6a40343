"""Calls of one Redis from any thread: tried again in time, once at a time."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import pytest
import redis

from greenws import BrokerUnavailable
from greenws.rooms.redis.caller import Caller

from ...support.cutting_proxy import CuttingProxy
from ...support.limits import again_after_standstill, limit, pace
from ...support.threads import in_thread


def get(client: redis.Redis) -> Any:
    return client.get("marked")


@pytest.fixture
def make(running: Any) -> Iterator[Callable[..., Caller]]:
    made: list[Caller] = []
    running.start()
    running.call("SET", "marked", "found")

    def make(timeout: float = limit(), port: int = running.port, options: str = "") -> Caller:
        made.append(Caller(f"redis://127.0.0.1:{port}/0{options}", timeout))
        return made[-1]

    yield make
    for each in made:
        each.close()


def test_nothing_is_connected_before_the_first_call(running, make):
    make(port=1).close()
    assert in_thread(make().call, get) == b"found"


@pytest.mark.parametrize("part", ["requests_to_cut", "answers_to_cut"])
def test_a_call_whose_connection_was_cut_is_made_again(running, make, part):
    with CuttingProxy(running.port, b"marked") as proxy:
        caller = make(port=proxy.port)
        assert in_thread(caller.call, get) == b"found"
        setattr(proxy, part, 3)
        assert in_thread(caller.call, get) == b"found"
        assert (proxy.cuts, proxy.connections) == (3, 4)


def test_a_connection_that_redis_closed_is_made_again(running, make):
    caller = make()
    in_thread(caller.call, get)
    running.call("CLIENT", "KILL", "TYPE", "normal")
    assert in_thread(caller.call, get) == b"found"


def test_a_redis_that_is_back_in_time_is_waited_for(running, make):
    caller = make()
    running.stop()
    waiting = gevent.spawn(in_thread, caller.call, get)
    gevent.sleep(0.1)
    assert not waiting.ready()
    running.start()
    assert waiting.get(timeout=limit()) in (b"found", None)


@again_after_standstill(0.1)
def test_a_redis_that_is_down_is_given_up_in_time(make):
    began = time.monotonic()
    with pytest.raises(BrokerUnavailable, match="out of reach: .*refused.$"):
        in_thread(make(0.3, port=1).call, get, " (in doubt)")
    assert time.monotonic() - began < pace(0.5)


@again_after_standstill(0.1)
def test_a_redis_that_hangs_is_given_up_in_time_by_all_that_wait_for_it(running, make):
    caller = make(0.3)
    in_thread(caller.call, get)
    while caller._has_short_timeout:  # connecting took long: it would connect again
        in_thread(caller.call, get)
    errors: list[str] = []

    def call() -> None:
        with pytest.raises(BrokerUnavailable) as caught:
            caller.call(get, " (in doubt)")
        errors.append(str(caught.value))

    threads = [threading.Thread(target=call) for _ in range(5)]
    running.send_signal(signal.SIGSTOP)
    try:
        began = time.monotonic()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(limit())
        assert time.monotonic() - began < pace(0.6)
    finally:
        running.send_signal(signal.SIGCONT)
    assert len(errors) == 5 and all("out of reach" in each for each in errors)
    assert any(each.endswith("(in doubt)") for each in errors)
    assert in_thread(caller.call, get) == b"found"


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda client: client.lpush("marked", "x"), "refuses: WRONGTYPE"),
        (lambda client: client.execute_command("NOSUCH"), "refuses: unknown command"),
        (lambda client: client.eval("return redis.error_reply('ERR full')", 0), "refuses: full"),
    ],
)
def test_what_redis_refuses_is_not_tried_again(make, call, said):
    calls: list[int] = []

    def count(client: redis.Redis) -> Any:
        calls.append(1)
        return call(client)

    with pytest.raises(BrokerUnavailable, match=said):
        in_thread(make().call, count)
    assert len(calls) == 1


@pytest.mark.parametrize("code", ["CLUSTERDOWN", "TRYAGAIN", "BUSY", "NOREPLICAS", "MASTERDOWN"])
def test_a_refusal_that_may_pass_is_waited_for(running, make, code):
    """Such as that of a cluster in which a replica takes over."""
    refuses_twice = f"""
        if redis.call('INCR', 'calls') > 2 then return 'done' end
        return redis.error_reply('{code} not now')"""
    running.call("DEL", "calls")
    assert in_thread(make().call, lambda client: client.eval(refuses_twice, 0)) == b"done"


@again_after_standstill(1.0)
def test_a_wrong_password_is_not_tried_again(make):
    began = time.monotonic()
    with pytest.raises(BrokerUnavailable, match="refuses: .*AUTH|refuses: .*password"):
        in_thread(make(limit(20), options="?password=wrong").call, get)
    assert time.monotonic() - began < pace()


def test_a_replica_that_becomes_a_master_in_time_is_waited_for(running, make):
    def add(client: redis.Redis) -> Any:
        return client.sadd("s", "x")

    caller = make()
    running.call("DEL", "s")
    running.call("REPLICAOF", "127.0.0.1", "1")
    waiting = gevent.spawn(in_thread, caller.call, add)
    gevent.sleep(0.1)
    assert not waiting.ready()
    running.call("REPLICAOF", "NO", "ONE")
    assert waiting.get(timeout=limit()) == 1


def test_a_call_that_is_broken_off_leaves_no_answer_for_the_next(make):
    """As by the signal of a time limit."""

    def break_off(client: redis.Redis) -> None:
        connection = client.connection_pool.get_connection()
        connection.send_command("GET", "marked")
        raise KeyboardInterrupt

    caller = make()
    with pytest.raises(KeyboardInterrupt):
        caller.call(break_off)
    assert in_thread(caller.call, lambda client: client.ping()) is True


def test_after_close_nothing_is_called(make):
    caller = make()
    in_thread(caller.call, get)
    caller.close()
    caller.close()
    with pytest.raises(BrokerUnavailable, match="closed"):
        caller.call(get)
