"""run_server.py with several workers, under gunicorn."""

from __future__ import annotations

import contextlib
import signal
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from ..support.demo import (
    Member,
    Watcher,
    closed_with,
    connect,
    run,
    running,
)
from ..support.limits import limit
from ..support.redis_server import RedisServer


def test_workers_share_their_rooms_and_their_metrics(redis: RedisServer) -> None:
    with running("--port", "0", "--workers", "3", "--redis", redis.url) as demo:
        with contextlib.ExitStack() as stack:
            members = []
            for number in range(9):
                connection = stack.enter_context(connect(demo.ws_url + "/chat/garden", "chat"))
                members.append(Member(connection))
                members[-1].send({"type": "join", "name": f"Ada {number}"})
            for member in members:
                while member.receive()["type"] != "welcome":
                    pass
            members[0].say("hello")
            for member in members:
                while (event := member.receive())["type"] != "message":
                    pass
                assert (event["name"], event["text"]) == ("Ada 0", "hello")

            def metrics() -> list[str]:
                with urllib.request.urlopen(f"{demo.url}/metrics", timeout=limit(20)) as response:
                    lines: list[str] = response.read().decode().splitlines()
                    return lines

            # Each worker publishes its figures once a second.
            deadline = time.monotonic() + limit()
            expected = {
                "greenws_rooms_members 9.0",
                "greenws_rooms_sent_total 1.0",
                "greenws_connections_total 9.0",
            }
            while not expected <= set(metrics()):
                assert time.monotonic() < deadline, metrics()
                time.sleep(0.1)
            demo.process.send_signal(signal.SIGTERM)
            for member in members:
                assert closed_with(member.connection) == 1001
        assert demo.exit_code() == 0, "\n".join(demo.stderr)
        assert "Traceback" not in "\n".join(demo.stderr)


def test_workers_without_redis_get_a_warning() -> None:
    with running("--port", "0", "--workers", "2") as demo:
        assert demo.url
        demo.wait_for(demo.stderr, "each worker has its own rooms; use --redis to share them")
        assert demo.stop() == 0


@pytest.mark.parametrize("module", ["gunicorn", "packaging"])  # which its gevent worker imports
def test_workers_without_gunicorn_are_one_line_and_exit_code_1(module: str, tmp_path: Path) -> None:
    (tmp_path / f"{module}.py").write_text(f"raise ImportError('no {module}')")
    result = run("--port", "0", "--workers", "2", PYTHONPATH=str(tmp_path))
    assert result.returncode == 1
    assert f"no {module}; pip install 'gunicorn[gevent]'" in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_worker_says_that_it_is_one_of_several() -> None:
    with running("--port", "0", "--workers", "2", "--log-level", "warning") as demo:
        with connect(demo.ws_url + "/server/live", "live") as connection:
            process = Watcher(connection).next()["process"]
        assert process["one_of_several"] is True
        assert process["pid"] != demo.process.pid
        assert demo.stop() == 0
