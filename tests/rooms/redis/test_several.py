"""Rooms over several Redis: each room is in one of them."""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

import gevent
import gevent.socket
import pytest
import redis.connection

from greenws import Rooms, Sender
from greenws.brokers.redis import RedisBroker
from greenws.rooms.redis.url import WrongScheme

from ...support.limits import limit, wait_until
from ...support.play import Play, run, seeds
from ...support.redis_server import RedisServer
from ...support.redis_workers import Worker
from ...support.require import require_program
from ..conformance import Brokers, SharedBrokerConformance


@pytest.fixture(scope="module")
def running() -> Iterator[list[RedisServer]]:
    require_program("redis-server")
    servers = [RedisServer() for _ in range(2)]
    yield servers
    for each in servers:
        each.close()


@pytest.fixture
def servers(
    running: list[RedisServer], monkeypatch: pytest.MonkeyPatch
) -> Iterator[list[RedisServer]]:
    for each in running:
        each.start()
        each.call("FLUSHALL")
    monkeypatch.setattr(redis.connection, "socket", gevent.socket)
    yield running
    for each in running:
        each.start()


@pytest.fixture
def urls(servers: list[RedisServer]) -> list[str]:
    return [each.url for each in servers]


@pytest.fixture
def worker(urls: list[str], pair: Any) -> Iterator[Callable[..., Worker]]:
    workers: list[Worker] = []

    def make(**options: Any) -> Worker:
        workers.append(Worker(pair, **{"url": urls, **options}))
        return workers[-1]

    yield make
    for each in workers:
        each.stop()


class TestSeveral(SharedBrokerConformance):
    @pytest.fixture
    def brokers(self, urls: list[str]) -> Iterator[Brokers]:
        made: list[RedisBroker] = []

        def make() -> RedisBroker:
            # Others may list them the other way round.
            made.append(RedisBroker(urls[:: (-1) ** len(made)], timeout=limit(1.0)))
            return made[-1]

        yield make
        for each in made:
            each.stop()


def test_rooms_are_spread_and_all_processes_agree_where(servers, urls, worker):
    a, b = worker(), worker(url=urls[::-1])
    names = [f"room {number}" for number in range(100)]
    for name in names:
        a.send("hello", room=name)
    assert a.rooms.flush(5)
    counts = [len(each.call("KEYS", "greenws:room:*")) for each in servers]
    assert sum(counts) == 100
    assert min(counts) > 25
    assert all(len(b.rooms[name].history()) == 1 for name in names)


def test_a_sender_finds_each_room(servers, urls, worker):
    a = worker()
    with Sender(urls[::-1]) as sender:
        for number in range(10):
            ann = a.join(name := f"room {number}")
            sender[name].send("hello")
            assert ann.hear(1) == ["hello"]
            assert sender[name].history() == ["hello"]


def test_one_that_is_lost_is_lost_to_its_rooms_alone(servers, worker, caplog):
    caplog.set_level(logging.WARNING)
    a = worker()
    names: dict[int, str] = {}
    for number in range(20):
        name = f"room {number}"
        names.setdefault(a.broker.parts.index(a.broker._part(name)), name)
    ann, bob = a.join(names[0]), a.join(names[1])
    wait_until(lambda: a.is_idle)
    servers[0].stop()
    wait_until(lambda: a.is_lost)
    a.send("unlogged", room=names[0])
    a.send("logged", room=names[1])
    assert ann.hear(1) == ["unlogged"]
    assert bob.hear(1) == ["logged"]
    gevent.spawn(a.rooms[names[1]].send, "waited", wait=True).get(timeout=limit())
    assert bob.hear(1) == ["waited"]
    assert ("+" in ann.last, "+" in bob.last) == (True, False)
    assert f"lost connection to Redis at 127.0.0.1:{servers[0].port}/0" in caplog.text
    assert not a.rooms.flush(0.01)
    servers[0].start()
    wait_until(lambda: a.is_idle)
    assert a.rooms.flush(5)


def test_rooms_take_a_list(urls):
    rooms = Rooms(urls)
    assert isinstance(rooms.broker, RedisBroker)
    assert len(rooms.broker.parts) == 2
    rooms.close()


def test_a_redis_that_is_no_cluster_is_refused_with_that_scheme(servers, worker, error_log):
    a = worker(url=servers[0].url.replace("redis:", "redis+cluster:"))
    with pytest.raises(WrongScheme, match="write redis://"):
        a.join()
    error_log.take()


@pytest.mark.parametrize("seed", seeds("1-1"))
def test_clients_that_move_while_one_of_several_comes_and_goes(seed, servers, worker, pair):
    workers = {name: worker(presence_timeout=1.0) for name in "abc"}
    broker = workers["a"].broker
    rooms = {broker.parts.index(broker._part(name)): name for name in map(str, range(20))}
    plays = [Play(seed, workers, {}, pair, room, clients=5) for room in rooms.values()]

    def trouble(random: Random) -> None:
        server = random.choice(servers)
        for play in plays:
            play.note(f"Redis {servers.index(server)} is killed")
        server.stop(signal.SIGKILL)
        gevent.sleep(random.uniform(0, 0.6))
        server.start()

    run(plays, trouble)
