"""A real Celery worker: processes that it forks send to rooms, without gevent."""

from __future__ import annotations

import importlib.util
from collections import defaultdict
from collections.abc import Iterator

import pytest

from greenws import Sender

from ..support.limits import limit, wait_until
from ..support.processes import Process
from ..support.redis_server import RedisServer
from ..support.require import require, require_program

_CALL = """
from celery_app import tell
for number in range(40):
    tell.delay(number)
"""


@pytest.fixture
def server() -> Iterator[RedisServer]:
    require_program("redis-server")
    require(importlib.util.find_spec("celery"), "Celery")
    server = RedisServer()
    yield server
    server.close()


def said(server: RedisServer) -> list[str]:
    with Sender(server.url) as sender:
        return sender["r"].history(1000)


def test_tasks_of_forked_workers_send(server):
    arguments = ["-m", "celery", "-A", "celery_app", "worker", "--pool", "prefork"]
    arguments += ["--concurrency", "2", "--without-gossip", "--without-mingle", "-l", "INFO"]
    with Process(*arguments, REDIS_URL=server.url, PYTHONWARNINGS="ignore") as worker:
        worker.wait_for("ready")
        with Process("-c", _CALL, REDIS_URL=server.url) as caller:
            assert caller.popen.wait(limit(20)) == 0, caller.output
        wait_until(lambda: len(said(server)) >= 42 or "ERROR" in worker.output, 20)
        worker.assert_no_trouble()
    texts = said(server)
    assert texts.count("before the fork") == 2  # of the worker and of the caller
    of_process = defaultdict(list)
    for text in texts:
        if text != "before the fork":
            process, number = text.split()
            of_process[process].append(int(number))
    assert len(of_process) == 2
    assert sorted(sum(of_process.values(), [])) == list(range(40))
    assert all(numbers == sorted(numbers) for numbers in of_process.values())


def test_a_worker_that_imports_rooms_is_pointed_to_the_sender(tmp_path):
    require(importlib.util.find_spec("celery"), "Celery")
    (tmp_path / "of_rooms.py").write_text(
        "from celery import Celery\nfrom greenws import Rooms\n"
        "app = Celery()\nrooms = Rooms('redis://localhost:1')\n"
    )
    with Process("-m", "celery", "-A", "of_rooms", "report", cwd=tmp_path) as process:
        process.wait_for("a Celery worker has no rooms: send from its tasks with greenws.Sender")
        assert process.popen.wait(limit(20)) == 0
    assert "before all other imports" not in process.output
