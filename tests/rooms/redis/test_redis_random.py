"""Clients that move between processes at random, while Redis is stopped, killed or cut off at
random, or processes are killed."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

import gevent
import pytest

from ...support.play import Line, Play, run, seeds
from ...support.redis_server import RedisServer


@pytest.fixture
def line(running: RedisServer) -> Iterator[Callable[[], Line]]:
    lines: list[Line] = []

    def make() -> Line:
        lines.append(Line(running.port))
        return lines[-1]

    yield make
    for each in lines:
        each.close()


@pytest.mark.parametrize("seed", seeds("1-3"))
def test_clients_that_move_while_redis_comes_and_goes(seed, server, line, worker, pair):
    lines = {name: line() for name in "abc"}
    workers = {name: worker(url=lines[name].url) for name in "abc"}
    play = Play(seed, workers, lines, pair)

    def trouble(random: Random) -> None:
        number = random.choice((signal.SIGTERM, signal.SIGKILL))
        play.note(f"Redis gets {number.name}")
        server.send_signal(number)
        gevent.sleep(random.uniform(0, 0.6))
        server.stop(signal.SIGKILL)
        server.start()
        play.note("Redis is back")

    try:
        run([play], trouble)
    finally:
        server.start()


@pytest.mark.parametrize("seed", seeds("1-2"))
def test_clients_that_move_while_processes_are_killed(seed, server, line, worker, pair, error_log):
    workers = {name: worker(presence_timeout=1.0) for name in "abc"}
    play = Play(seed, workers, {}, pair)

    def trouble(random: Random) -> None:
        play.kill(random.choice(list(play.workers)))
        gevent.sleep(random.uniform(0, 0.3))
        play.add(worker(presence_timeout=1.0))

    run([play], trouble)
    allow_what_dies_with_a_process(error_log)


def allow_what_dies_with_a_process(error_log: Any) -> None:
    assert all("that waited for Redis are lost" in each.getMessage() for each in error_log.take())
