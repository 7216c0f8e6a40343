"""Rooms over a master that sentinels watch, with a replica that takes over."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

import gevent
import gevent.socket
import pytest
import redis.connection

from greenws import Sender

from ...support.limits import wait_until
from ...support.play import Play, run, seeds
from ...support.redis_cluster import Sentinels
from ...support.redis_server import RedisServer
from ...support.redis_workers import Worker
from ...support.require import require_program


@pytest.fixture(scope="module")
def sentinels() -> Iterator[Sentinels]:
    require_program("redis-server")
    sentinels = Sentinels()
    yield sentinels
    sentinels.close()


@pytest.fixture
def worker(
    sentinels: Sentinels, pair: Any, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Worker]]:
    monkeypatch.setattr(redis.connection, "socket", gevent.socket)
    workers: list[Worker] = []

    def make(**options: Any) -> Worker:
        workers.append(Worker(pair, **{"url": sentinels.url, **options}))
        return workers[-1]

    yield make
    for each in workers:
        each.stop()


def brokers_at(server: RedisServer) -> list[bytes]:
    """Connections that are no sentinel's, no replica's, and not the one that asks."""
    lines = server.call("CLIENT", "LIST").splitlines()
    others = (b"name=sentinel", b"flags=S", b"flags=M", b"cmd=client|list")
    return [line for line in lines if not any(each in line for each in others)]


def test_the_master_is_asked_of_a_sentinel_that_lives(sentinels, worker):
    a, b = worker(), worker(url=sentinels.url.replace("://", "://127.0.0.1:1,"))
    ann = a.join()
    b.send("hello")
    assert ann.hear(1) == ["hello"]
    assert sentinels.master.call("XLEN", "greenws:room:r") == 1


def test_a_sender_asks_a_sentinel(sentinels, worker):
    a = worker()
    ann = a.join("u")
    with Sender(sentinels.url) as sender:
        sender["u"].send("hello")
        assert ann.hear(1) == ["hello"]


def test_a_master_that_is_killed_is_followed(sentinels, worker):
    a = worker()
    ann = a.join("t")
    a.send("before", room="t")
    assert ann.hear(1) == ["before"]
    replica = next(each for each in sentinels.servers if each is not sentinels.master)
    wait_until(lambda: replica.call("XLEN", "greenws:room:t") == 1)
    sentinels.master.stop(signal.SIGKILL)
    a.send("unlogged", room="t")
    assert ann.hear(1) == ["unlogged"]
    wait_until(lambda: a.is_idle, 20)
    a.send("after", room="t")
    assert ann.hear(1) == ["after"]
    assert ann.member.is_complete
    assert replica.call("XLEN", "greenws:room:t") == 3
    a.stop()
    gevent.sleep(0)


def test_members_go_on_when_a_replica_takes_over(sentinels, worker):
    sentinels.mend()
    a, b = worker(), worker()
    ann, bob = a.join("s"), b.join("s")
    said = [str(number) for number in range(20)]
    a.send(*said, room="s")
    assert ann.hear(20) == bob.hear(20) == said
    # A forced failover waits for no replica, and what it lacks is lost, and told.
    replica = next(each for each in sentinels.servers if each is not sentinels.master)
    wait_until(lambda: replica.call("XLEN", "greenws:room:s") == 20)
    sentinels.fail_over()
    # The old one takes messages until it is told, and forgets them: nobody is to send there.
    old = next(each for each in sentinels.servers if each is not sentinels.master)
    wait_until(lambda: not brokers_at(old), 20)
    a.send("meanwhile", room="s")
    b.send("after", room="s")
    assert sorted(ann.hear(2)) == sorted(bob.hear(2)) == ["after", "meanwhile"]
    assert ann.member.is_complete and bob.member.is_complete
    wait_until(lambda: a.is_idle and b.is_idle)


@pytest.mark.parametrize("seed", seeds("1-2"))
def test_clients_that_move_while_replicas_take_over(seed, sentinels, worker, pair):
    sentinels.mend()
    workers = {name: worker(presence_timeout=1.0) for name in "abc"}
    play = Play(seed, workers, {}, pair, room=f"random-{seed}")

    def trouble(random: Random) -> None:
        what = random.choice(("hand over", "kill", "stop", "stop a sentinel"))
        play.note(what)
        if what in ("hand over", "kill"):
            sentinels.hand_over(is_killed=what == "kill")
            return
        server = sentinels.master if what == "stop" else random.choice(sentinels.sentinels)
        server.send_signal(signal.SIGSTOP)
        gevent.sleep(random.uniform(0, 0.5))
        server.send_signal(signal.SIGCONT)

    sentinels.set("down-after-milliseconds", 60_000)  # only those failovers that lose nothing
    try:
        run([play], trouble)
    finally:
        sentinels.set("down-after-milliseconds", 300)
