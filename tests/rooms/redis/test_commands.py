"""Whose turn it is to use the connection for commands, and how long anybody waits."""

from __future__ import annotations

import contextlib
import signal
import time
from typing import Any

import gevent
import pytest
import redis

from greenws.rooms.redis.commands import Commands, closed_by_another

from ...support.limits import again_after_standstill, limit, pace, wait_until
from ...support.redis_workers import Worker


@pytest.fixture
def commands(server: Any) -> Any:
    commands = Commands(server.url, limit())
    yield commands
    commands.close()


def test_one_command_at_a_time_and_urgent_ones_first(commands):
    order: list[str] = []
    may_go_on = gevent.event.Event()

    def run(name: str) -> Any:
        def call(client: redis.Redis) -> None:
            order.append(name)
            may_go_on.wait(limit())

        return call

    first = gevent.spawn(commands.run, run("first"))
    wait_until(lambda: order)
    others = [gevent.spawn(commands.run, run(f"other {n}")) for n in range(3)]
    gevent.sleep(0.01)
    urgent = gevent.spawn(commands.run, run("urgent"), urgent=True)
    gevent.sleep(0.01)
    may_go_on.set()
    gevent.joinall([first, urgent, *others], raise_error=True)
    assert order == ["first", "urgent", "other 0", "other 1", "other 2"]


@again_after_standstill(0.1)
def test_waits_for_a_redis_that_hangs_take_the_timeout_in_all(server):
    with contextlib.closing(Commands(server.url, 0.3)) as commands:
        assert commands.run(lambda client: client.ping())
        server.send_signal(signal.SIGSTOP)
        try:
            began = time.monotonic()
            waiting = [gevent.spawn(fail, commands, number % 2 == 0) for number in range(8)]
            gevent.joinall(waiting)
            assert time.monotonic() - began < pace(0.3) + 0.3
            assert all(isinstance(each.value, redis.TimeoutError) for each in waiting)
            assert commands.is_hanging
        finally:
            server.send_signal(signal.SIGCONT)
        assert commands.run(lambda client: client.ping())
        assert not commands.is_hanging


def fail(commands: Commands, urgent: bool) -> BaseException:
    with pytest.raises(redis.RedisError) as raised:
        commands.run(lambda client: client.ping(), urgent)
    return raised.value


def test_an_answer_that_is_an_error_is_raised_for_its_own_command_alone(server):
    commands = Commands(server.url, limit())
    commands.run(lambda client: client.set("text", "x"))
    may_ask = gevent.event.Event()

    def ask(client: redis.Redis) -> Any:
        may_ask.wait(limit())
        return client.lpush("text", "y")

    def fail() -> None:
        with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
            commands.run(ask, urgent=True)

    asking = gevent.spawn(fail)
    wait_until(lambda: commands.turn.locked())
    others = [gevent.spawn(commands.run, redis.Redis.ping, urgent=n < 2) for n in range(4)]
    gevent.sleep(0.01)
    may_ask.set()
    asking.get(timeout=limit())
    assert [each.get(timeout=limit()) for each in others] == [True] * 4
    commands.close()


def test_a_connection_that_was_cut_is_made_again_at_once(server, commands):
    assert commands.run(lambda client: client.ping())
    server.call("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    assert commands.run(lambda client: client.ping())


def test_a_redis_that_is_not_there_is_tried_once_and_again(server, commands):
    assert commands.run(lambda client: client.ping())
    server.stop()
    tries: list[int] = []

    def ping(client: redis.Redis) -> bool:
        tries.append(1)
        return bool(client.ping())

    for expected in (2, 3):
        with pytest.raises(redis.ConnectionError):
            commands.run(ping)
        assert len(tries) == expected


def test_a_master_that_became_a_replica_is_left_and_nothing_is_lost(server, worker):
    """As behind an address that leads to the new master: here it becomes one again."""
    a: Worker = worker()
    ann = a.join()
    wait_until(lambda: a.is_idle)
    server.call("REPLICAOF", "127.0.0.1", "1")
    try:
        a.send("one")
        assert ann.hear(1) == ["one"]
        wait_until(lambda: a.is_lost)
        connections = {line.split()[0] for line in clients(server)}
        gevent.sleep(0.2)
        assert not connections & {line.split()[0] for line in clients(server)}
    finally:
        server.call("REPLICAOF", "NO", "ONE")
    wait_until(lambda: a.is_idle, 3)
    a.send("two")
    assert ann.hear(1) == ["two"]
    entries = server.call("XRANGE", "greenws:room:r", "-", "+")
    assert [fields[b"d"] for _, fields in entries] == [b"one", b"two"]


def test_one_who_is_killed_as_another_closes_the_connection_has_ended(server, commands):
    waiting = gevent.spawn(commands.run, lambda client: client.blpop("nothing"))
    wait_until(lambda: server.call("INFO", "clients")["blocked_clients"])
    waiting.kill(block=False)
    commands.disconnect()
    gevent.joinall([waiting], timeout=limit())
    assert isinstance(waiting.value, gevent.GreenletExit)


def fail_in_cleanup(first: BaseException) -> None:
    """As redis-py does, when its cleanup finds that the connection was closed."""
    try:
        try:
            raise first
        finally:
            raise ValueError("closed")
    finally:
        raise AttributeError("closed")


def test_the_end_of_a_greenlet_counts_before_what_its_cleanup_raises():
    with pytest.raises(gevent.GreenletExit), closed_by_another():
        fail_in_cleanup(gevent.GreenletExit())
    with pytest.raises(redis.ConnectionError), closed_by_another():
        fail_in_cleanup(OSError())


def test_a_timeout_that_is_being_handled_does_not_end_a_command():
    try:
        raise gevent.Timeout(1)
    except gevent.Timeout:
        with pytest.raises(redis.ConnectionError), closed_by_another():
            raise AttributeError("closed") from None
        with pytest.raises(gevent.GreenletExit), closed_by_another():
            fail_in_cleanup(gevent.GreenletExit())


def clients(server: Any) -> list[str]:
    """Connections for commands, except the one that asks."""
    found = server.call("CLIENT", "LIST", "TYPE", "normal")
    if not isinstance(found, bytes):  # as redis-py parses it
        return [f"{each['id']}" for each in found if each["cmd"] != "client|list"]
    return [line for line in found.decode().splitlines() if "cmd=client" not in line]
