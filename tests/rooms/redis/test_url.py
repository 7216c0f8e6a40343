"""The URL of a Redis."""

from __future__ import annotations

import gevent
import pytest

from greenws import Rooms
from greenws.brokers.redis import RedisBroker

from ...support.limits import wait_until


def test_sockets_that_would_block_the_hub_are_refused(running):
    with pytest.raises(RuntimeError, match=r"monkey.patch_all\(\)"):
        RedisBroker(running.url)


def test_tls_that_would_block_the_hub_is_refused(server):
    with pytest.raises(RuntimeError, match=r"monkey.patch_all\(\)"):
        RedisBroker(server.url.replace("redis:", "rediss:"))


def test_a_unix_socket(server, worker, tmp_path, monkeypatch):
    path = tmp_path / "redis.sock"
    server.stop()
    monkeypatch.setattr(server, "_options", ("--unixsocket", str(path)))
    server.start()
    monkeypatch.setattr(server, "url", f"unix://{path}?db=0&socket_timeout=9")
    a = worker()
    ann = a.join()
    a.send("hello")
    assert ann.hear(1) == ["hello"]
    assert a.node.process.commands.client.connection_pool.connection_kwargs["socket_timeout"] == 1.0


def test_a_url_makes_a_redis_broker(server):
    rooms = Rooms(server.url)
    assert isinstance(rooms.broker, RedisBroker)
    rooms.close()


@pytest.mark.parametrize(
    "options",
    ["decode_responses=true", "health_check_interval=1", "socket_timeout=0.01", "protocol=3"],
)
def test_options_in_the_url_that_would_do_harm_do_none(server, worker, options):
    server.url, url = f"{server.url}?{options}", server.url
    a = worker()
    server.url = url
    ann = a.join()
    wait_until(lambda: a.is_idle)
    gevent.sleep(0.05)
    a.send("hello")
    assert ann.hear(1) == ["hello"]
    assert not a.is_away


def test_an_option_that_redis_py_does_not_know_is_refused(server):
    with pytest.raises(ValueError, match="foo"):
        RedisBroker(server.url + "?foo=bar")
